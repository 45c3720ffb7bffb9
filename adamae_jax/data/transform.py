"""From an item of a source to a record of a dataset: the one pure function that preparing maps.

It runs in worker processes and in Apache Beam alike, and raises nothing: what is wrong with an item
becomes a `Flaw`.
"""

import csv
import dataclasses
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from adamae_jax.data import schema, storage, writer
from adamae_jax.data.encoding import (
    ENCODERS,
    JPEG_QUALITY,
    MAX_BYTES,
    EncodedVideo,
    read_video,
)
from adamae_jax.data.frame_folders import FrameFolders
from adamae_jax.data.frames import PNG_MODES, PNG_SIGNATURE, encoded_size
from adamae_jax.data.sources import Item, printable
from adamae_jax.data.tfds_source import StoredFeatures, read_stored
from adamae_jax.errors import UserError

SKIPPED, TRUNCATED = "skipped", "truncated"


@dataclasses.dataclass(frozen=True)
class Flaw:
    """An item that is not, or not wholly, in the dataset: one line of ``skipped.csv``.

    Attributes:
        id: of the item.
        status: "skipped" (left out) or "truncated" (kept up to its damage).
        frames: how many could be read.
        reason: what is wrong.
    """

    id: str
    status: str
    frames: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What determines a record beside its item.

    Attributes:
        codec: one of `schema.CODECS`; images know "jpeg" and "original".
        short_side: of the stored frames, in pixels; smaller ones keep their size. Not for
            "original".
        min_frames: videos with fewer frames are left out.
        images: whether items are images.
        stored: of items that are records of a TFDS dataset, where they have what is wanted.
        frame_folders: of items that are folders, which of their files are frames.

    Raises:
        UserError: a value that makes no sense.
    """

    codec: str = schema.CODEC_JPEG
    short_side: int = 256
    min_frames: int = 16
    images: bool = False
    stored: StoredFeatures | None = None
    frame_folders: FrameFolders | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        codecs: tuple[str, ...] = schema.CODECS
        if self.images:
            codecs = (schema.CODEC_JPEG, schema.CODEC_ORIGINAL)
        elif self.stored is not None or self.frame_folders is not None:
            codecs = (schema.CODEC_JPEG, schema.CODEC_H264)
        if self.codec not in codecs:
            raise UserError(f"--codec={self.codec} must be one of: {', '.join(codecs)}")
        if self.min_frames < 1:
            raise UserError(f"--min_frames={self.min_frames} must be 1 or more")
        if self.short_side < 16:
            raise UserError(f"--short_side={self.short_side} must be 16 pixels or more")


class Result(NamedTuple):
    """A serialised ``tf.train.Example``, or none, and what was wrong."""

    payload: bytes | None
    flaw: Flaw | None


def transform(recipe: Recipe, item: Item) -> Result:
    """Reads one item and encodes it."""
    try:
        if recipe.images:
            return Result(writer.serialize(_image(recipe, item)), None)
        identity, label, video = _video(recipe, item)
    except Exception as error:  # One bad file must not end a run of days, whatever it provokes.
        return Result(None, Flaw(item.id, SKIPPED, 0, _reason(error)))
    if video.num_frames < recipe.min_frames:
        frames = f"{video.num_frames} frame{'' if video.num_frames == 1 else 's'}"
        reason = f"{frames}, fewer than {recipe.min_frames}"
        reason += f" ({video.damage})" if video.damage else ""
        return Result(None, Flaw(item.id, SKIPPED, video.num_frames, reason))
    flaw = Flaw(item.id, TRUNCATED, video.num_frames, video.damage) if video.damage else None
    return Result(
        writer.serialize(writer.video_example(identity, label, recipe.codec, video)), flaw
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _video(recipe: Recipe, item: Item) -> tuple[str, int, EncodedVideo]:
    """Id, label and video."""
    if recipe.frame_folders is not None:
        return item.id, item.label, _folder(recipe, recipe.frame_folders, item)
    if recipe.stored is None:
        return item.id, item.label, read_video(item.path, recipe.codec, recipe.short_side)
    record = read_stored(item, recipe.stored)
    return record.id, record.label, _encode(recipe, record.frames, record.rate)


def _folder(recipe: Recipe, folders: FrameFolders, item: Item) -> EncodedVideo:
    if item.num_frames == 0:
        raise ValueError("its list says that it has no frames")
    try:
        paths = folders.paths(item.path)
    except OSError as error:
        raise ValueError(f"cannot be opened: {error.strerror}") from error
    if not paths:
        raise ValueError(
            "holds no images" + (f" called {folders.names!r}" if folders.names else "")
        )
    video = _encode(recipe, paths[: item.num_frames], folders.rate)
    if video.damage is None and len(paths) < (item.num_frames or 0):
        damage = f"after {len(paths)} frames: its list says that there are {item.num_frames}"
        return dataclasses.replace(video, damage=damage)
    return video


def _encode(recipe: Recipe, frames: Iterable[bytes | str], rate: float) -> EncodedVideo:
    multiple = 2 if recipe.codec == schema.CODEC_H264 else 1
    stills = _Stills(frames, recipe.short_side, multiple)
    # As rates are written: 29.97 is stored as 29.969999.
    exact_rate = Fraction(rate).limit_denominator(1001)
    video = ENCODERS[recipe.codec](iter(stills), exact_rate, MAX_BYTES)
    return dataclasses.replace(video, damage=video.damage or stills.damage)


class _Stills:
    """Encoded images, or the files that hold them, as the frames of a video.

    They end with the first that is damaged. All get the size that the first one determines, as
    those of a video file do.

    Attributes:
        damage: after the last frame, where and why they end too early; None where they do not.
    """

    def __init__(self, frames: Iterable[bytes | str], short_side: int, multiple: int):
        self._frames = frames
        self._short_side = short_side
        self._multiple = multiple
        self.damage: str | None = None

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        size: tuple[int, int] | None = None
        for number, frame in enumerate(self._frames):
            try:
                # Of files, one at a time is held in memory.
                data = frame if isinstance(frame, bytes) else storage.read_file(frame)
                image = _opened(data)
            except Exception as error:  # Pillow raises many kinds here
                known = not isinstance(error, UnidentifiedImageError)
                self.damage = f"after {number} frames: "
                self.damage += _reason(error) if known else "what follows is no image"
                if isinstance(frame, str):
                    self.damage += f" ({printable(os.path.basename(frame))})"
                if not number:
                    raise ValueError(f"nothing can be decoded ({self.damage})") from error
                return
            size = size or _small_size(image, self._short_side, self._multiple)
            yield np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def _opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    if image.mode == "F" or image.mode.startswith("I"):  # Pillow would cut values off at 255
        raise ValueError(f"an image of mode {image.mode}, not of 8 bits")
    return image.convert("RGB")


def _small_size(image: Image.Image, short_side: int, multiple: int = 1) -> tuple[int, int]:
    """(width, height) at which the shorter side has at most so many pixels."""
    scale = min(1.0, short_side / min(image.size))
    width, height = (max(1, round(side * scale / multiple)) * multiple for side in image.size)
    return width, height


def _image(recipe: Recipe, item: Item) -> writer.Example:
    identity, label = item.id, item.label
    if recipe.stored is None:
        data = Path(item.path).read_bytes()
    else:
        (data, *more), label, identity, _ = read_stored(item, recipe.stored)
        if more:
            raise ValueError(f"holds {1 + len(more)} images instead of one")
    with Image.open(io.BytesIO(data)) as image:
        if recipe.codec == schema.CODEC_ORIGINAL:
            encoded_size(data)  # a JPEG or PNG of a sane size
            if data.startswith(PNG_SIGNATURE) and image.mode not in PNG_MODES:
                raise ValueError(f"is a PNG of mode {image.mode}, not of 8 bits: use --codec=jpeg")
            image.load()
        else:
            # Cameras write down how they were held; the reader shows pixels as they are stored.
            upright = ImageOps.exif_transpose(image).convert("RGB")
            size = _small_size(upright, recipe.short_side)
            pixels = np.asarray(upright.resize(size, Image.Resampling.BICUBIC))
            data = simplejpeg.encode_jpeg(pixels, JPEG_QUALITY, colorsubsampling="420")
    return {schema.ID: identity, schema.LABEL: label, schema.IMAGE: data}


def write_flaws(flaws: Sequence[Flaw], path: Path) -> None:
    """Writes a CSV table of flaws, sorted by id, with a line of column names."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([field.name for field in dataclasses.fields(Flaw)])
        table.writerows(dataclasses.astuple(flaw) for flaw in sorted(flaws, key=lambda f: f.id))
