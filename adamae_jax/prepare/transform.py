"""From an item of a source to a record of a dataset: the one pure function that preparing maps.

It runs in worker processes and in Apache Beam alike. What is wrong with an item becomes a `Flaw`;
only what is no fault of the item is an error.
"""

import dataclasses
import io
import os
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from adamae_jax.data import schema, storage
from adamae_jax.data.frames import PNG_MODES, PNG_SIGNATURE, encoded_size
from adamae_jax.data.storage import is_outage
from adamae_jax.errors import UserError
from adamae_jax.prepare import writer
from adamae_jax.prepare.encoding import JPEG_QUALITY, EncodedVideo, read_video
from adamae_jax.prepare.frame_folders import FrameFolders
from adamae_jax.prepare.sources import Item, printable
from adamae_jax.prepare.stills import encode_stills, read_folder, reason_of, small_size, upright
from adamae_jax.prepare.tfds_source import StoredFeatures, read_stored

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


def transform(recipe: Recipe, item: Item, alone: bool = False) -> Result:
    """Reads one item and encodes it.

    Args:
        recipe: how the record is made.
        item: what to read.
        alone: that nobody else takes memory (see `VideoFile`).

    Raises:
        UserError: the storage fails, again and again: as a flaw, a short outage would leave out or
            cut off all that is being read.
        MemoryError: there is too little, perhaps for what others take.
    """
    try:
        if recipe.images:
            return Result(writer.serialize(_image(recipe, item)), None)
        identity, label, video = _video(recipe, item, alone)
    except MemoryError:
        raise
    except Exception as error:  # One bad file must not end a run of days, whatever it provokes.
        if is_outage(error):
            raise UserError(
                f"{printable(item.path)} cannot be read, again and again ({reason_of(error)}): see "
                "to its storage and run the same command again, which continues; if it is this "
                "file alone, put back a copy"
            ) from error
        return Result(None, Flaw(item.id, SKIPPED, 0, reason_of(error)))
    if video.num_frames < recipe.min_frames:
        frames = f"{video.num_frames} frame{'' if video.num_frames == 1 else 's'}"
        reason = f"{frames}, fewer than {recipe.min_frames}"
        reason += f" ({video.damage})" if video.damage else ""
        return Result(None, Flaw(item.id, SKIPPED, video.num_frames, reason))
    flaw = Flaw(item.id, TRUNCATED, video.num_frames, video.damage) if video.damage else None
    return Result(
        writer.serialize(writer.video_example(identity, label, recipe.codec, video)), flaw
    )


def _video(recipe: Recipe, item: Item, alone: bool) -> tuple[str, int, EncodedVideo]:
    """Id, label and video."""
    if recipe.frame_folders is not None:
        video = read_folder(item, recipe.frame_folders, recipe.codec, recipe.short_side)
        return item.id, item.label, video
    if recipe.stored is None:
        video = read_video(item.path, recipe.codec, recipe.short_side, alone=alone)
        return item.id, item.label, video
    record = read_stored(item, recipe.stored)
    video = encode_stills(record.frames, record.rate, recipe.codec, recipe.short_side)
    return record.id, record.label, video


def _image(recipe: Recipe, item: Item) -> writer.Example:
    identity, label = item.id, item.label
    if recipe.stored is None:
        data = storage.read_file(os.path.abspath(item.path))
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
            shown = upright(image).convert("RGB")
            size = small_size(shown, recipe.short_side)
            pixels = np.asarray(shown.resize(size, Image.Resampling.BICUBIC))
            data = simplejpeg.encode_jpeg(pixels, JPEG_QUALITY, colorsubsampling="420")
    return {schema.ID: identity, schema.LABEL: label, schema.IMAGE: data}
