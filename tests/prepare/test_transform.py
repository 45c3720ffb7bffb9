import errno
import io
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from adamae_jax.data import schema, storage
from adamae_jax.data.schema import UNLABELLED
from adamae_jax.errors import UserError
from adamae_jax.prepare.frame_folders import FrameFolders
from adamae_jax.prepare.sources import Item
from adamae_jax.prepare.tfds_source import StoredFeatures, tfds_source
from adamae_jax.prepare.transform import Recipe, transform
from adamae_jax.prepare.write import Flaw
from tests.data.fixtures import video
from tests.data.videos import blot, make_audio, make_video
from tests.prepare.test_tfds_source import VIDEO, clips, encode_png, write


def features(payload: bytes | None) -> dict[str, list[Any]]:
    assert payload is not None
    stored = tf_example_pb2.Example.FromString(payload).features.feature
    return {name: list(getattr(f, f.WhichOneof("kind")).value) for name, f in stored.items()}


def flaw(path: Path, **options: Any) -> Flaw:
    result = transform(Recipe(**options), Item("x", str(path)))
    assert result.payload is None and result.flaw is not None
    assert result.flaw.id == "x"
    return result.flaw


def test_a_video(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 20)
    result = transform(Recipe(short_side=24), Item("ü", str(path), 3))
    assert result.flaw is None
    values = features(result.payload)
    frames = values.pop(schema.FRAMES)
    assert len(frames) == 20
    assert values.pop(schema.FRAME_SIZES) == [len(frame) for frame in frames]
    assert len(values.pop(schema.FRAME_CHECKSUMS)) == 20
    assert len(values.pop(schema.HEADER_CHECKSUM)) == 1
    assert values == {
        schema.ID: ["ü".encode()],
        schema.LABEL: [3],
        schema.CODEC: [b"jpeg"],
        schema.NUM_FRAMES: [20],
        schema.RATE: [25.0],
        schema.HEIGHT: [24],
        schema.WIDTH: [32],
    }


def test_useless_videos(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video\n" * 50)
    assert flaw(text).reason == "cannot be opened: Invalid data found when processing input"
    assert flaw(tmp_path / "absent.mp4").reason == "cannot be opened: No such file or directory"
    assert flaw(tmp_path / "absent.mp4", codec="original").reason.startswith("cannot be opened: No")
    assert flaw(make_audio(tmp_path / "sound.mp4")).reason == "holds no video stream"
    one = make_video(tmp_path / "one.mp4", 1)
    assert flaw(one) == Flaw("x", "skipped", 1, "1 frame, fewer than 16")
    both = flaw(blot(make_video(tmp_path / "both.mkv", 16, codec="libx264"), 0.6, 600))
    assert both.reason.startswith(f"{both.frames} frames, fewer than 16 (after ")


def test_damaged_videos_are_kept_and_named(tmp_path: Path) -> None:
    path = blot(make_video(tmp_path / "a.mkv", 60, codec="libx264"), 0.65, 150)
    result = transform(Recipe(), Item("x", str(path)))
    (count,) = features(result.payload)[schema.NUM_FRAMES]
    assert result.flaw is not None
    assert (result.flaw.status, result.flaw.frames) == ("truncated", count)
    assert result.flaw.reason.startswith(f"after {count} frames")


def break_reading(
    monkeypatch: pytest.MonkeyPatch, error: Exception, first: int = 0, name: str = "read_file"
) -> None:
    """Lets reading fail from the call of this number on."""
    work, calls = getattr(storage, name), itertools.count()

    def fail(*arguments: Any) -> Any:
        if next(calls) >= first:
            raise error
        return work(*arguments)

    monkeypatch.setattr(storage, name, fail)


def test_storage_that_fails_fails_every_kind_of_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outage = OSError(errno.ETIMEDOUT, "no answer")
    image = save(tmp_path / "a.png", video(0)[0])
    source, stored = tfds_source(write(tmp_path / "b", VIDEO, {"train": clips(1)}))
    with monkeypatch.context() as patch:
        break_reading(patch, outage)
        with pytest.raises(UserError, match="a.png cannot be read"):
            transform(Recipe(images=True), Item("x", str(image)))
    with monkeypatch.context() as patch:
        patch.setattr(storage, "RETRY_DELAYS_S", (0.0, 0.0))
        break_reading(patch, outage, name="open_file")
        with pytest.raises(UserError, match="no answer"):
            transform(Recipe(stored=stored), source.items[0])
        with pytest.raises(UserError, match="a.mp4 cannot be read"):
            transform(Recipe(), Item("x", str(make_video(tmp_path / "a.mp4"))))


@pytest.mark.parametrize("codec", [schema.CODEC_JPEG, schema.CODEC_H264])
def test_records_of_tfds(tmp_path: Path, codec: str) -> None:
    source, stored = tfds_source(write(tmp_path / "a", VIDEO, {"train": clips(3)}))
    item = next(item for item in source.items if item.id == "train/1")
    values = features(transform(Recipe(codec, 16, 6, stored=stored), item).payload)
    assert values[schema.LABEL] == [1]
    assert values[schema.RATE] == [0.0]
    assert (values[schema.HEIGHT], values[schema.WIDTH]) == ([16], [22 if codec == "h264" else 21])
    assert values[schema.NUM_FRAMES] == [6]
    if codec == schema.CODEC_JPEG:
        red = [simplejpeg.decode_jpeg(f)[..., 0].mean() for f in values[schema.FRAMES]]
        assert np.allclose(red, 10 * np.arange(6) + 5, atol=5)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [(b"x", "after 4 frames: it is no image"), (None, "after 4 frames: .*truncated")],
)
def test_records_of_tfds_are_kept_up_to_their_damage(
    tmp_path: Path, broken: bytes | None, reason: str
) -> None:
    (example,) = clips(1)
    example["clip"][4] = broken or example["clip"][4][:-60]
    source, stored = tfds_source(write(tmp_path / "a", VIDEO, {"train": [example]}))
    (item,) = source.items
    result = transform(Recipe(short_side=16, min_frames=4, stored=stored), item)
    assert features(result.payload)[schema.NUM_FRAMES] == [4]
    assert result.flaw is not None
    assert (result.flaw.status, result.flaw.frames) == ("truncated", 4)
    assert re.match(reason, result.flaw.reason)
    example["clip"][0] = b""
    source, stored = tfds_source(write(tmp_path / "b", VIDEO, {"train": [example]}))
    result = transform(Recipe(min_frames=1, stored=stored), source.items[0])
    assert result.flaw is not None
    assert result.flaw.reason == "nothing can be decoded (after 0 frames: it is no image)"


def test_records_of_tfds_have_frames_of_one_size(tmp_path: Path) -> None:
    (example,) = clips(1)
    example["clip"][3] = encode_png(video(0, height=40, width=20)[3])
    source, stored = tfds_source(write(tmp_path / "a", VIDEO, {"train": [example]}))
    recipe = Recipe(short_side=16, min_frames=1, stored=stored)
    frames = features(transform(recipe, source.items[0]).payload)[schema.FRAMES]
    assert [simplejpeg.decode_jpeg_header(frame)[:2] for frame in frames] == [(16, 21)] * 6


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tiff"])
def test_images(tmp_path: Path, suffix: str) -> None:
    pixels = video(0, height=64, width=128)[0]
    path = save(tmp_path / f"a.{suffix}", pixels)
    result = transform(Recipe(short_side=32, images=True), Item("x", str(path), 2))
    assert result.flaw is None
    values = features(result.payload)
    decoded = simplejpeg.decode_jpeg(values[schema.IMAGE][0])
    assert decoded.shape == (32, 64, 3)
    assert abs(decoded.mean((0, 1)) - pixels.mean((0, 1))).max() < 8
    assert (values[schema.ID], values[schema.LABEL]) == ([b"x"], [2])


def test_original_images(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", video(0)[0])
    recipe = Recipe("original", images=True)
    assert features(transform(recipe, Item("x", str(path))).payload)[schema.IMAGE] == [
        path.read_bytes()
    ]
    deep = save(tmp_path / "b.png", np.zeros((4, 4), np.uint16))
    assert "not of 8 bits: use --codec=jpeg" in flaw(deep, codec="original", images=True).reason
    webp = save(tmp_path / "c.webp", video(0)[0])
    assert "no JPEG or PNG" in flaw(webp, codec="original", images=True).reason
    path.write_bytes(path.read_bytes()[:-100])
    for codec in ("original", "jpeg"):
        assert "truncated" in flaw(path, codec=codec, images=True).reason
    (tmp_path / "d.png").write_text("text")
    assert flaw(tmp_path / "d.png", images=True).reason == "it is no image"


def test_images_of_tfds(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(video(0)[0]).save(file, "PNG")
    folder = write(
        tmp_path / "a", {"photo": tfds.features.Image()}, {"train": [{"photo": file.getvalue()}]}
    )
    (item,), stored = tfds_source(folder)[0].items, tfds_source(folder)[1]
    values = features(transform(Recipe(images=True, stored=stored), item).payload)
    assert simplejpeg.decode_jpeg_header(values[schema.IMAGE][0])[:2] == (24, 32)
    assert values[schema.LABEL] == [UNLABELLED]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "av1"}, "--codec=av1 must be one of: jpeg, h264, original"),
        ({"codec": "h264", "images": True}, "--codec=h264 must be one of: jpeg, original"),
        ({"codec": "original", "stored": StoredFeatures("a", None, False)}, "of: jpeg, h264$"),
        ({"codec": "original", "frame_folders": FrameFolders()}, "of: jpeg, h264$"),
        ({"min_frames": 0}, "--min_frames=0"),
    ],
)
def test_bad_recipes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Recipe(**options)
