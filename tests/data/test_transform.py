import csv
import io
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
from adamae_jax.data import transform as module
from adamae_jax.data.frame_folders import FrameFolders
from adamae_jax.data.schema import UNLABELLED
from adamae_jax.data.sources import Item
from adamae_jax.data.tfds_source import StoredFeatures, tfds_source
from adamae_jax.data.transform import Flaw, Recipe, Result, transform, write_flaws
from adamae_jax.errors import UserError
from tests.data.fixtures import video
from tests.data.test_tfds_source import VIDEO, clips, encode_png, write
from tests.data.videos import blot, make_audio, make_video


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes of datasets of TFDS go here, not to the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


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


def test_whatever_happens_becomes_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise KeyError("two\nlines")

    monkeypatch.setattr(module, "read_video", fail)
    assert "\n" not in flaw(tmp_path / "a.mp4").reason
    monkeypatch.setattr(module, "read_video", lambda *_: (_ for _ in ()).throw(MemoryError()))
    assert flaw(tmp_path / "a.mp4").reason == "MemoryError"


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


@pytest.mark.parametrize("codec", [schema.CODEC_JPEG, schema.CODEC_H264])
def test_records_of_tfds_keep_their_rate(tmp_path: Path, codec: str) -> None:
    described = {**VIDEO, "fps": np.float32, "id": tfds.features.Text()}
    example = {**clips(1)[0], "fps": 29.97, "id": "a/b"}
    source, stored = tfds_source(write(tmp_path / "a", described, {"train": [example]}))
    values = features(transform(Recipe(codec, 16, 6, stored=stored), source.items[0]).payload)
    assert values[schema.RATE] == [np.float32(29.97)]
    assert values[schema.ID] == [b"a/b"]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [(b"x", "after 4 frames: what follows is no image"), (None, "after 4 frames: .*truncated")],
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
    assert result.flaw.reason == "nothing can be decoded (after 0 frames: what follows is no image)"


def test_records_of_tfds_have_frames_of_one_size(tmp_path: Path) -> None:
    (example,) = clips(1)
    example["clip"][3] = encode_png(video(0, height=40, width=20)[3])
    source, stored = tfds_source(write(tmp_path / "a", VIDEO, {"train": [example]}))
    recipe = Recipe(short_side=16, min_frames=1, stored=stored)
    frames = features(transform(recipe, source.items[0]).payload)[schema.FRAMES]
    assert [simplejpeg.decode_jpeg_header(frame)[:2] for frame in frames] == [(16, 21)] * 6


def save_frames(folder: Path, pixels: np.ndarray, name: str = "img_{}.png") -> Path:
    folder.mkdir()
    for number, frame in enumerate(pixels, 1):
        save(folder / name.format(number), frame)
    return folder


def of_folder(
    folder: Path, num_frames: int | None = None, names: str = "", **options: Any
) -> Result:
    recipe = Recipe(min_frames=1, frame_folders=FrameFolders(names, 29.97), **options)
    return transform(recipe, Item("a/b", str(folder), 2, num_frames=num_frames))


@pytest.mark.parametrize("codec", [schema.CODEC_JPEG, schema.CODEC_H264])
def test_folders_of_frames(tmp_path: Path, codec: str) -> None:
    pixels = video(0, num_frames=12)
    result = of_folder(save_frames(tmp_path / "v", pixels), codec=codec, short_side=16)
    assert result.flaw is None
    values = features(result.payload)
    assert (values[schema.ID], values[schema.LABEL]) == ([b"a/b"], [2])
    assert (values[schema.RATE], values[schema.NUM_FRAMES]) == ([np.float32(29.97)], [12])
    assert (values[schema.HEIGHT], values[schema.WIDTH]) == ([16], [22 if codec == "h264" else 21])
    if codec == schema.CODEC_JPEG:
        for frame, shown in zip(values[schema.FRAMES], pixels, strict=True):
            small = Image.fromarray(shown).resize((21, 16), Image.Resampling.BICUBIC)
            assert frame == simplejpeg.encode_jpeg(np.asarray(small), 90, colorsubsampling="420")


def test_folders_of_images_of_every_kind(tmp_path: Path) -> None:
    """But for those with more than 8 bits, which would be cut off."""
    grey = Image.fromarray(np.full((24, 32), 120, np.uint8))
    (tmp_path / "v").mkdir()
    for number, mode in enumerate(["L", "LA", "RGB", "RGBA", "P"]):
        grey.convert(mode).save(tmp_path / "v" / f"{number}.png")
    grey.save(tmp_path / "v" / "5.jpg")
    grey.convert("CMYK").save(tmp_path / "v" / "6.jpeg")
    frames = features(of_folder(tmp_path / "v").payload)[schema.FRAMES]
    assert [round(simplejpeg.decode_jpeg(frame).mean() / 5) for frame in frames] == [24] * 7
    save(tmp_path / "v" / "7.png", np.full((24, 32), 30_000, np.uint16))
    result = of_folder(tmp_path / "v")
    assert result.flaw is not None
    assert result.flaw.reason == "after 7 frames: an image of mode I;16, not of 8 bits (7.png)"
    save(tmp_path / "v" / "5.tiff", np.zeros((24, 32), np.float32))
    result = of_folder(tmp_path / "v", names="*.tiff")
    assert result.flaw is not None and "an image of mode F, not" in result.flaw.reason


def test_lists_say_how_many_frames_of_a_folder_are_the_video(tmp_path: Path) -> None:
    folder = save_frames(tmp_path / "v", video(0))
    assert features(of_folder(folder, 4).payload)[schema.NUM_FRAMES] == [4]
    assert of_folder(folder, 6).flaw is None and of_folder(folder, 4).flaw is None
    result = of_folder(folder, 9)
    assert features(result.payload)[schema.NUM_FRAMES] == [6]
    reason = "after 6 frames: its list says that there are 9"
    assert result.flaw == Flaw("a/b", "truncated", 6, reason)
    nothing = of_folder(folder, 0)
    assert nothing.flaw == Flaw("a/b", "skipped", 0, "its list says that it has no frames")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("cut", r"after 3 frames: .*truncated.* \(img_4.png\)"),
        ("empty", r"after 3 frames: what follows is no image \(img_4.png\)"),
        ("link", r"after 3 frames: .*No such file.* \(img_4.png\)"),
    ],
)
def test_folders_of_frames_are_kept_up_to_their_damage(
    tmp_path: Path, damage: str, reason: str
) -> None:
    folder = save_frames(tmp_path / "v", video(0))
    frame = folder / "img_4.png"
    content = frame.read_bytes()
    frame.unlink()
    if damage == "link":
        frame.symlink_to("nowhere")
    else:
        frame.write_bytes(content[:-60] if damage == "cut" else b"")
    result = of_folder(folder, 9)
    assert features(result.payload)[schema.NUM_FRAMES] == [3]
    assert result.flaw is not None
    assert (result.flaw.status, result.flaw.frames) == ("truncated", 3)
    assert re.fullmatch(reason, result.flaw.reason)


def test_useless_folders_of_frames(tmp_path: Path) -> None:
    def reason(folder: Path, names: str = "") -> str:
        result = of_folder(folder, names=names)
        assert result.payload is None and result.flaw is not None
        assert result.flaw.status == "skipped"
        return result.flaw.reason

    (tmp_path / "empty").mkdir()
    assert reason(tmp_path / "empty") == "holds no images"
    folder = save_frames(tmp_path / "v", video(0))
    assert reason(folder, "x*") == "holds no images called 'x*'"
    assert reason(tmp_path / "absent") == "cannot be opened: No such file or directory"
    assert reason(folder / "img_1.png") == "cannot be opened: Not a directory"
    (folder / "img_1.png").write_text("text")
    assert reason(folder) == (
        "nothing can be decoded (after 0 frames: what follows is no image (img_1.png))"
    )


def test_one_frame_of_a_folder_is_held_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_frames(tmp_path / "v", video(0))
    events: list[str] = []

    def note(place: Any, name: str) -> None:
        work = getattr(place, name)

        def noted(*arguments: Any, **options: Any) -> Any:
            events.append(name)
            return work(*arguments, **options)

        monkeypatch.setattr(place, name, noted)

    note(storage, "read_file")
    note(simplejpeg, "encode_jpeg")
    of_folder(folder)
    assert events == ["read_file", "encode_jpeg"] * 6


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


def test_images_stand_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    path = save(tmp_path / "a.jpg", video(0, height=32, width=64)[0], exif=exif)
    values = features(transform(Recipe(images=True), Item("x", str(path))).payload)
    assert simplejpeg.decode_jpeg_header(values[schema.IMAGE][0])[:2] == (64, 32)


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
    assert "cannot identify image" in flaw(tmp_path / "d.png", images=True).reason


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
        (
            {"codec": "original", "stored": StoredFeatures("a", None, False)},
            "--codec=original must be one of: jpeg, h264",
        ),
        (
            {"codec": "original", "frame_folders": FrameFolders()},
            "--codec=original must be one of: jpeg, h264",
        ),
        ({"min_frames": 0}, "--min_frames=0"),
        ({"short_side": 8}, "--short_side=8"),
    ],
)
def test_bad_recipes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Recipe(**options)


def test_flaws_are_a_table(tmp_path: Path) -> None:
    flaws = [Flaw("ü,1", "truncated", 20, 'said "no"'), Flaw("a", "skipped", 0, "empty")]
    write_flaws(flaws, tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["id", "status", "frames", "reason"],
        ["a", "skipped", "0", "empty"],
        ["ü,1", "truncated", "20", 'said "no"'],
    ]
