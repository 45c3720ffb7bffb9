import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import tensorflow_datasets as tfds
from PIL import Image

from adamae_jax.data.damage import BadRecordError
from adamae_jax.data.schema import UNLABELLED
from adamae_jax.errors import UserError
from adamae_jax.prepare import examples as writing
from adamae_jax.prepare import shard_files
from adamae_jax.prepare.tfds_source import StoredFeatures, read_stored, tfds_source
from tests.data.fixtures import flip_byte, video


def encode_png(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return file.getvalue()


def write(folder: Path, features: Mapping[str, Any], splits: dict[str, list[Any]]) -> Path:
    """A dataset as TFDS leaves it: its own description, and examples with these features."""
    folder.mkdir()
    for split, examples in splits.items():
        path = folder / writing.shard_name("other", split, "tfrecord", 0, 1)
        shard = shard_files.TFRecordWriter(path)
        for example in examples:
            shard.write(writing.serialize(example))
        shard.close()
    sizes = {split: [(len(examples), 1)] for split, examples in splits.items()}
    described = tfds.features.FeaturesDict(features)
    writing.write_metadata(folder, described, sizes, "tfrecord", "other", "Somebody else's.")
    return folder


VIDEO = {
    "clip": tfds.features.Video(shape=(None, 24, 32, 3)),
    "action": tfds.features.ClassLabel(names=["walk", "run"]),
    "name": tfds.features.Text(),
}


def clips(count: int) -> list[dict[str, Any]]:
    return [
        {"clip": [encode_png(frame) for frame in video(n)], "action": n % 2, "name": f"v{n}"}
        for n in range(count)
    ]


def test_videos(tmp_path: Path) -> None:
    examples = clips(5)
    folder = write(tmp_path / "a", VIDEO, {"train": examples[:3], "test": examples[3:]})
    source, features = tfds_source(folder)
    assert features == StoredFeatures("clip", "action", images=False)
    assert source.label_names == ("walk", "run")
    assert sorted(item.id for item in source.items) == [
        "test/0", "test/1", "train/0", "train/1", "train/2"
    ]  # fmt: skip
    assert {item.split for item in source.items} == {"train", "test"}
    item = next(item for item in source.items if item.id == "test/1")
    assert read_stored(item, features) == (examples[4]["clip"], 0, "test/1", 0.0)


@pytest.mark.parametrize(
    ("more", "values", "expected"),
    [
        ({"fps": np.float32, "video_id": tfds.features.Text()}, (12.5, "ü"), ("ü", 12.5)),
        ({"rate": np.int64, "id": tfds.features.Text()}, (30, "b"), ("b", 30.0)),
        ({"rate": np.float32, "id": tfds.features.Text()}, (0.0, ""), ("train/0", 8.0)),
        ({"rate": np.float32, "id": tfds.features.Text()}, (60000.0, "c"), ("c", 8.0)),
        ({"rate": tfds.features.Text(), "id": np.int64}, ("x", 3), ("train/0", 8.0)),
    ],
)
def test_names_and_rates_are_taken_over(
    tmp_path: Path, more: dict[str, Any], values: tuple[Any, Any], expected: tuple[str, float]
) -> None:
    example = {**clips(1)[0], **dict(zip(more, values, strict=True))}
    folder = write(tmp_path / "a", {**VIDEO, **more}, {"train": [example]})
    source, features = tfds_source(folder, rate=8.0)
    assert read_stored(source.items[0], features)[2:] == expected


def test_the_folder_is_left_as_it_is(tmp_path: Path) -> None:
    folders = [
        write(tmp_path / name, VIDEO, {"train": clips(n)}) for n, name in ((2, "a"), (3, "b"))
    ]
    before = sorted(path.name for path in folders[0].iterdir())
    for _ in range(2):
        assert [len(tfds_source(folder)[0].items) for folder in folders] == [2, 3]
    assert sorted(path.name for path in folders[0].iterdir()) == before


def test_images_without_labels(tmp_path: Path) -> None:
    jpeg = simplejpeg.encode_jpeg(video(0)[0])
    folder = write(tmp_path / "a", {"image": tfds.features.Image()}, {"train": [{"image": jpeg}]})
    source, features = tfds_source(folder)
    assert features == StoredFeatures("image", None, images=True)
    assert source.label_names == ()
    assert read_stored(source.items[0], features) == ([jpeg], UNLABELLED, "train/0", 0.0)


def test_damage(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", VIDEO, {"train": clips(1)})
    (item,), features = tfds_source(folder)[0].items, tfds_source(folder)[1]
    flip_byte(Path(item.path), 100)
    with pytest.raises(BadRecordError, match="checksum"):
        read_stored(item, features)
    folder = write(tmp_path / "b", VIDEO, {"train": [{"clip": [], "action": 0}]})
    source, features = tfds_source(folder)
    with pytest.raises(BadRecordError, match="'clip' holds no frames"):
        read_stored(source.items[0], features)


def test_what_is_not_understood(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no dataset that TFDS opens"):
        tfds_source(tmp_path)
    image = tfds.features.Image()
    folder = write(tmp_path / "a", {"left": image, "right": image}, {"train": [{"left": b""}]})
    with pytest.raises(UserError, match=r"images \['left', 'right'\]"):
        tfds_source(folder)
    folder = write(tmp_path / "b", {"name": tfds.features.Text()}, {"train": [{"name": "x"}]})
    with pytest.raises(UserError, match="one feature with videos or images"):
        tfds_source(folder)
