import io
import socket
import struct
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

from adamae_jax.data import schema
from adamae_jax.prepare import synthetic, writer

TINY = synthetic.Size(side=32, num_frames=5, clips={"train": 16, "validation": 8})


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "SIZES", {"demo": TINY})


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the network was asked for something")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def stored(folder: Path, split: str) -> dict[str, Any]:
    """Features of every record, by id, as they are in the file."""
    (shard,) = folder.glob(f"*-{split}.tfrecord-*")
    content, records = shard.read_bytes(), {}
    while content:
        (length,) = struct.unpack_from("<Q", content)
        example = tf_example_pb2.Example.FromString(content[12 : 12 + length])
        content = content[12 + length + 4 :]
        feature = example.features.feature
        records[feature[schema.ID].bytes_list.value[0].decode()] = feature
    return records


def test_the_embedded_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    builder = writer.MovingObjects(config="demo", data_dir=tmp_path, seed=5)
    folder, counts = writer.write(builder)
    assert counts == {"train": 16, "validation": 8}
    assert capsys.readouterr().out == ""
    for split, count in counts.items():
        records = stored(folder, split)
        assert sorted(records) == [f"{split}-{index:06d}" for index in range(count)]
        for index in (0, count - 1):
            feature = records[f"{split}-{index:06d}"]
            clip = synthetic.make_clip(TINY, 5, split, index)
            frames = feature[schema.FRAMES].bytes_list.value
            decoded = np.stack([simplejpeg.decode_jpeg(frame) for frame in frames])
            assert abs(decoded.astype(int) - clip.frames).mean() < 3
            masks = np.asarray(
                Image.open(io.BytesIO(feature[schema.FOREGROUND].bytes_list.value[0]))
            )
            np.testing.assert_array_equal(masks.reshape(clip.foreground.shape), clip.foreground)
            assert feature[schema.LABEL].int64_list.value == [clip.label]
            assert feature[schema.CODEC].bytes_list.value == [b"jpeg"]
            assert feature[schema.NUM_FRAMES].int64_list.value == [5]
            assert feature[schema.HEIGHT].int64_list.value == [32]
            assert feature[schema.WIDTH].int64_list.value == [32]
            assert feature[schema.RATE].float_list.value == [25.0]


def test_tfds_opens_it(tmp_path: Path) -> None:
    folder, _ = writer.write(writer.MovingObjects(config="demo", data_dir=tmp_path / "made"))
    moved = folder.rename(tmp_path / "moved")
    builder = tfds.builder_from_directory(moved)
    assert builder.info.splits["train"].num_examples == 16
    assert tuple(builder.info.features[schema.LABEL].names) == synthetic.MOTIONS
    example = next(iter(tfds.as_numpy(builder.as_dataset(split="validation"))))
    assert example[schema.FRAMES].shape == (5, 32, 32, 3)
    assert example[schema.FOREGROUND].shape == (5 * 8, 8, 1)


def test_the_same_seed_makes_the_same_files(tmp_path: Path) -> None:
    def shards(name: str, seed: int) -> list[bytes]:
        builder = writer.MovingObjects(config="demo", data_dir=tmp_path / name, seed=seed)
        folder, _ = writer.write(builder)
        return [path.read_bytes() for path in sorted(folder.glob("*.tfrecord*"))]

    first = shards("a", 1)
    assert shards("b", 1) == first
    assert all(one != other for one, other in zip(shards("c", 2), first, strict=True))


def test_colours_are_not_subsampled() -> None:
    frames = writer.encode_clip(("demo", 0, "train", 3))["frames"]
    assert {simplejpeg.decode_jpeg_header(frame)[3] for frame in frames} == {"444"}


def test_a_record_is_written_as_tfds_writes_it(tmp_path: Path) -> None:
    """Our own bytes hold the same features as those that TFDS makes of the same example."""
    folder, _ = writer.write(writer.MovingObjects(config="demo", data_dir=tmp_path))
    feature = stored(folder, "validation")["validation-000003"]
    fields = writer.encode_clip(("demo", 0, "validation", 3))
    ours = tf_example_pb2.Example.FromString(writer.serialize(writer.make_example(**fields)))
    assert dict(ours.features.feature) == dict(feature)


def test_serialising_is_repeatable() -> None:
    example = writer.make_example("ü", [b"1", b"2"], 29.97, 24, 40, 3, b"png")
    payload = writer.serialize(example)
    assert writer.serialize(dict(reversed(example.items()))) == payload
    feature = tf_example_pb2.Example.FromString(payload).features.feature
    assert list(feature[schema.FRAMES].bytes_list.value) == [b"1", b"2"]
    assert feature[schema.ID].bytes_list.value[0].decode() == "ü"
    assert feature[schema.RATE].float_list.value[0] == pytest.approx(29.97)
    assert feature[schema.LABEL].int64_list.value == [3]
    assert feature[schema.NUM_FRAMES].int64_list.value == [2]


def test_labels_must_exist() -> None:
    features = writer.features(("a", "b"))
    for label in (schema.UNLABELLED, 0, 1):
        features.encode_example(writer.make_example("x", [b""], 1, 8, 8, label))
    with pytest.raises(ValueError, match="Class label 2"):
        features.encode_example(writer.make_example("x", [b""], 1, 8, 8, 2))


def test_importing_does_not_import_tensorflow_or_jax() -> None:
    code = (
        "import sys, adamae_jax.prepare.writer, adamae_jax.prepare.shards\n"
        "print([name for name in ('tensorflow', 'jax', 'flax') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
