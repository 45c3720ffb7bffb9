"""From an item of a source to a record of a dataset: the one pure function that preparing maps.

It runs in worker processes and in Apache Beam alike. What is wrong with an item becomes a `Flaw`;
only what is no fault of the item is an error.
"""

import dataclasses
import functools
import io
import os
from collections.abc import Callable, Generator, Iterable

import numpy as np
import simplejpeg
from PIL import Image

from adamae_jax.data import schema, storage
from adamae_jax.data.frames import PNG_MODES, PNG_SIGNATURE, encoded_size
from adamae_jax.data.storage import is_outage
from adamae_jax.errors import UserError
from adamae_jax.prepare import examples
from adamae_jax.prepare.encode import (
    JPEG_QUALITY,
    EncodedVideo,
    encode_stills,
    read_folder,
    read_video,
    reason_of,
    small_size,
    upright,
)
from adamae_jax.prepare.frame_folders import FrameFolders
from adamae_jax.prepare.pool import ordered_map
from adamae_jax.prepare.sources import Item, text_of
from adamae_jax.prepare.tfds_source import StoredFeatures, read_stored
from adamae_jax.prepare.write import SKIPPED, TRUNCATED, Flaw, Result


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


def read_items(
    read: Callable[[Item], Result], items: Iterable[Item], num_workers: int, max_seconds: float
) -> Generator[Result, None, None]:
    """Yields the results of items, in their order; to be closed.

    An item that ends its process or takes too long is a flaw like others; storage that fails is
    none, and raises what `read` raises.

    Args:
        read: makes a record of an item.
        items: what to read.
        num_workers: processes; 0 reads in this one, which has to bear what the items do.
        max_seconds: for one item.
    """
    return ordered_map(read, items, num_workers, max_seconds, _lost)


def _lost(item: Item, reason: str) -> Result:
    return Result(None, Flaw(item.id, SKIPPED, 0, reason))


def reader(recipe: Recipe) -> Callable[[Item], Result]:
    """Returns `transform` with this recipe; it can be pickled."""
    return functools.partial(transform, recipe)


def transform(recipe: Recipe, item: Item) -> Result:
    """Reads one item and encodes it.

    Raises:
        UserError: the storage fails, again and again: as a flaw, a short outage would leave out or
            cut off all that is being read.
    """
    try:
        if recipe.images:
            return Result(examples.serialize(_image(recipe, item)), None)
        identity, label, video = _video(recipe, item)
    except Exception as error:  # One bad file must not end a run of days, whatever it provokes.
        if is_outage(error):
            raise UserError(
                f"{text_of(item.path)} cannot be read, again and again ({reason_of(error)}): see "
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
    example = examples.video_example(identity, label, recipe.codec, video)
    return Result(examples.serialize(example), flaw)


def _video(recipe: Recipe, item: Item) -> tuple[str, int, EncodedVideo]:
    """Returns id, label and video."""
    if recipe.stored is not None:
        record = read_stored(item, recipe.stored)
        video = encode_stills(record.frames, record.rate, recipe.codec, recipe.short_side)
        return record.id, record.label, video
    if recipe.frame_folders is not None:
        video = read_folder(item, recipe.frame_folders, recipe.codec, recipe.short_side)
    else:
        video = read_video(item.path, recipe.codec, recipe.short_side)
    return item.id, item.label, video


def _image(recipe: Recipe, item: Item) -> examples.Example:
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
