import hashlib
import io
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from adamae_jax import run_data
from adamae_jax.data import schema
from adamae_jax.data.schema import TFRECORD
from adamae_jax.errors import UserError
from adamae_jax.prepare import embedded, examples, synthetic
from adamae_jax.prepare.shard_files import records
from configs import videomae_demo

TINY = synthetic.Size(side=32, num_frames=5, clips={"train": 16, "validation": 8})


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "SIZES", {"demo": TINY})


def stored(folder: Path, split: str) -> list[tuple[str, Any]]:
    """Id and features of every record, as they are in the file."""
    (shard,) = folder.glob(f"*-{split}.tfrecord-*")
    features = [
        tf_example_pb2.Example.FromString(record).features.feature
        for record in records(shard, TFRECORD)
        if isinstance(record, bytes)
    ]
    return [(each[schema.ID].bytes_list.value[0].decode(), each) for each in features]


@pytest.mark.usefixtures("tiny")
def test_the_embedded_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the network was asked for something")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    output = tmp_path / "a" / "b"
    embedded.prepare("demo", output, seed=5)
    assert "16 clips for train, 8 clips for validation" in capsys.readouterr().out
    for split, count in TINY.clips.items():
        records = stored(output, split)
        assert sorted(name for name, _ in records) == [f"{split}-{n:06d}" for n in range(count)]
        name, feature = records[3]
        clip = synthetic.make_clip(TINY, 5, split, int(name[-6:]))
        frames = feature[schema.FRAMES].bytes_list.value
        decoded = np.stack([simplejpeg.decode_jpeg(frame) for frame in frames])
        assert abs(decoded.astype(int) - clip.frames).mean() < 3
        assert {simplejpeg.decode_jpeg_header(frame)[3] for frame in frames} == {"444"}
        masks = np.asarray(Image.open(io.BytesIO(feature[schema.FOREGROUND].bytes_list.value[0])))
        np.testing.assert_array_equal(masks.reshape(clip.foreground.shape), clip.foreground)
        assert feature[schema.LABEL].int64_list.value == [clip.label]
        assert feature[schema.RATE].float_list.value == [25.0]
    builder = tfds.builder_from_directory(output.rename(tmp_path / "moved"))
    assert tuple(builder.info.features[schema.LABEL].names) == synthetic.MOTIONS
    example = next(iter(tfds.as_numpy(builder.as_dataset(split="validation"))))
    assert example[schema.FRAMES].shape == (5, 32, 32, 3)
    assert example[schema.FOREGROUND].shape == (5 * 8, 8, 1)


@pytest.mark.usefixtures("tiny")
def test_the_same_seed_makes_the_same_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shards(name: str, seed: int, num_workers: int = 0) -> list[bytes]:
        embedded.prepare("demo", tmp_path / name, seed, num_workers)
        return [path.read_bytes() for path in sorted((tmp_path / name).glob("*.tfrecord*"))]

    first = shards("a", 1)
    assert shards("b", 1) == first
    assert all(one != other for one, other in zip(shards("c", 2), first, strict=True))
    embedded.prepare("demo", tmp_path / "a", 1)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="seed is 1 there, 0 was asked for"):
        embedded.prepare("demo", tmp_path / "a")
    for arguments, message in (
        (("huge", tmp_path / "x"), "--embedded=huge is unknown: choose demo"),
        (("demo", tmp_path / "x", -1), "--seed=-1 must be 0 or more"),
    ):
        with pytest.raises(UserError, match=message):
            embedded.prepare(*arguments)


def test_the_demo_trains_on_the_clips_of_the_published_figures() -> None:
    """In their order, and with their pixels."""
    items = [item for item in embedded._items("demo") if item.split == "train"]
    assert [item.id for item in items[:3]] == ["train-000781", "train-000112", "train-000131"]
    names = " ".join(item.id for item in items)
    assert hashlib.sha256(names.encode()).hexdigest()[:16] == "7f93e144be9167ba"
    clip = synthetic.make_clip(synthetic.SIZES["demo"], 0, "train", 0)
    assert clip.frames.mean((0, 1, 2)) == pytest.approx([135.29, 133.79, 139.91], abs=0.02)


@pytest.mark.usefixtures("tiny")
def test_a_dataset_that_a_config_names_is_made_on_first_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedded, "num_cores", lambda: 0)
    directory = Path("runs/moving_objects_demo")
    embedded.ensure(directory)
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == f"{directory} is missing: making the embedded dataset 'demo'"
    assert len(stored(directory, "train")) == 16
    before = (directory / "prepare.json").stat()
    embedded.ensure(directory)
    embedded.ensure("runs/my_videos")
    embedded.ensure("gs://bucket/moving_objects_demo")
    assert capsys.readouterr().out == "" and os.listdir("runs") == [directory.name]
    assert (directory / "prepare.json").stat() == before


@pytest.mark.usefixtures("tiny")
def test_a_job_makes_the_embedded_data_that_its_config_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a fresh clone; what else a folder of that name holds, is left to the reader."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedded, "num_cores", lambda: 0)
    config = videomae_demo.get_config()
    assert len(run_data.open_training(config)) == 16
    printed = capsys.readouterr()
    assert "moving_objects_demo is missing: making" in printed.err and not printed.out
    assert len(run_data.open_training(config)) == 16 and not capsys.readouterr().err
    for file in Path(config.data.dir).iterdir():
        if file.suffix == ".json":
            file.unlink()
    with pytest.raises(UserError, match="no dataset at runs/data/moving_objects_demo"):
        run_data.open_training(config)


def test_a_record_is_written_as_tfds_writes_it() -> None:
    """Our own bytes hold the same features as those that TFDS makes of the same example."""
    example = examples.make_example(**embedded.encode_clip(("demo", 0, "validation", 3)))
    ours = tf_example_pb2.Example.FromString(examples.serialize(example))
    described = examples.features(synthetic.MOTIONS, foreground=True)
    theirs = tfds.core.example_serializer.ExampleSerializer(
        described.get_serialized_info()
    ).serialize_example(described.encode_example(example))
    parsed = tf_example_pb2.Example.FromString(theirs)
    assert dict(ours.features.feature) == dict(parsed.features.feature)


def test_serialising_is_repeatable() -> None:
    example = examples.make_example("ü", [b"1", b"2"], 29.97, 24, 40, 3, b"png")
    payload = examples.serialize(example)
    assert examples.serialize(dict(reversed(example.items()))) == payload
    feature = tf_example_pb2.Example.FromString(payload).features.feature
    assert list(feature[schema.FRAMES].bytes_list.value) == [b"1", b"2"]
    assert feature[schema.ID].bytes_list.value[0].decode() == "ü"
    assert feature[schema.RATE].float_list.value[0] == pytest.approx(29.97)
    assert feature[schema.NUM_FRAMES].int64_list.value == [2]


def test_importing_does_not_import_tensorflow_or_jax() -> None:
    code = (
        "import sys, adamae_jax.prepare.examples, adamae_jax.prepare.write\n"
        "import adamae_jax.prepare.transform\n"
        "print([name for name in ('tensorflow', 'jax', 'flax') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
