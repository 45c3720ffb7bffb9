"""Folders of frames, as `transform` makes records of them."""

import errno
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from adamae_jax.data import schema
from adamae_jax.errors import UserError
from adamae_jax.prepare.frame_folders import FrameFolders
from adamae_jax.prepare.sources import Item
from adamae_jax.prepare.transform import Recipe, transform
from adamae_jax.prepare.write import Flaw, Result
from tests.data.fixtures import video
from tests.prepare.test_transform import break_reading, features, save


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
        ("empty", r"after 3 frames: it is no image \(img_4.png\)"),
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
    assert reason(folder) == ("nothing can be decoded (after 0 frames: it is no image (img_1.png))")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_frames_stand_upright(tmp_path: Path, suffix: str) -> None:
    """All as their first is shown; broken EXIF is no damage."""
    pixels = video(0, height=32, width=64)
    folder = save_frames(tmp_path / "v", pixels, f"{{}}.{suffix}")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    for number, frame in enumerate(pixels, 1):
        save(folder / f"{number}.{suffix}", frame, exif=exif)
    values = features(of_folder(folder).payload)
    assert (values[schema.HEIGHT], values[schema.WIDTH]) == ([64], [32])
    shown = simplejpeg.decode_jpeg(values[schema.FRAMES][2]).astype(int)
    assert abs(shown - np.rot90(pixels[2], -1)).mean() < 12
    save(folder / f"1.{suffix}", pixels[0], exif=b"Exif\0\0no directory of tags")
    result = of_folder(folder)
    assert result.flaw is None
    assert features(result.payload)[schema.HEIGHT] == [32]


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("codec", [schema.CODEC_JPEG, schema.CODEC_H264])
def test_what_is_no_fault_of_an_item_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, codec: str
) -> None:
    """Not a video that ends where the storage failed."""
    folder = save_frames(tmp_path / "v", video(0))
    with monkeypatch.context() as patch:
        break_reading(patch, OSError(errno.ENOTCONN, "gone", "x.png"), first)
        with pytest.raises(UserError, match="v cannot be read, again .*gone.*run the same command"):
            of_folder(folder, codec=codec)
    with monkeypatch.context() as patch:
        break_reading(patch, MemoryError(), first)  # no damage behind which a video ends
        assert of_folder(folder, codec=codec).flaw == Flaw("a/b", "skipped", 0, "MemoryError")
    break_reading(monkeypatch, PermissionError(errno.EACCES, "not allowed"), first)
    found = of_folder(folder, codec=codec).flaw
    assert found is not None and "not allowed" in found.reason
    assert found.status == ("truncated" if first else "skipped")
