"""Videos of encoded images: the files of a folder, or the frames in a record of TFDS."""

import dataclasses
import io
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np
from absl import logging
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from adamae_jax.data import schema, storage
from adamae_jax.data.storage import is_outage
from adamae_jax.prepare.encode import ENCODERS, MAX_BYTES, EncodedVideo
from adamae_jax.prepare.frame_folders import FrameFolders
from adamae_jax.prepare.sources import Item, text_of


def read_folder(item: Item, folders: FrameFolders, codec: str, short_side: int) -> EncodedVideo:
    """Reads the images of a folder up to the first that is damaged, and encodes them as a video.

    Args:
        item: the folder, and how many of its images are the video.
        folders: which of its files are frames.
        codec: one of `ENCODERS`.
        short_side: see `encode_stills`.

    Raises:
        ValueError: there is no frame, or the first is damaged.
        OSError: the storage fails again and again, which says nothing of the folder.
    """
    if item.num_frames == 0:
        raise ValueError("its list says that it has no frames")
    try:
        paths = storage.retried(lambda: folders.paths(item.path), item.path)
    except OSError as error:
        if is_outage(error):
            raise
        raise ValueError(f"cannot be opened: {error.strerror}") from error
    if not paths:
        called = f" called {folders.names!r}" if folders.names else ""
        raise ValueError(f"holds no images{called}")
    video = encode_stills(paths[: item.num_frames], folders.rate, codec, short_side)
    if video.damage is None and len(paths) < (item.num_frames or 0):
        damage = f"after {len(paths)} frames: its list says that there are {item.num_frames}"
        return dataclasses.replace(video, damage=damage)
    return video


def encode_stills(
    frames: Iterable[bytes | str], rate: float, codec: str, short_side: int
) -> EncodedVideo:
    """Encodes images as a video, up to the first that is damaged.

    Args:
        frames: encoded images, or the files that hold them.
        rate: frames per second; 0 where it is not known.
        codec: one of `ENCODERS`.
        short_side: of the stored frames, in pixels; larger ones are made smaller.

    Raises:
        ValueError: there is no frame, or the first is damaged.
        OSError: the storage fails again and again, which says nothing of the frames.
    """
    stills = _Stills(frames, short_side, multiple=2 if codec == schema.CODEC_H264 else 1)
    # As rates are written: 29.97 is stored as 29.969999.
    exact_rate = Fraction(rate).limit_denominator(1001)
    video = ENCODERS[codec](iter(stills), exact_rate, MAX_BYTES)
    return dataclasses.replace(video, damage=video.damage or stills.damage)


def upright(image: Image.Image) -> Image.Image:
    """Turns an image in place as its EXIF says, and returns it.

    Raises:
        OSError: it is damaged; and whatever else Pillow makes of damage.
    """
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # of the EXIF, which no viewer minds: the pixels are sound
        logging.debug("an image's EXIF is damaged", exc_info=True)
    return image


def small_size(image: Image.Image, short_side: int, multiple: int = 1) -> tuple[int, int]:
    """Returns (width, height) at which the shorter side has at most so many pixels."""
    scale = min(1.0, short_side / min(image.size))
    width, height = (max(1, round(side * scale / multiple)) * multiple for side in image.size)
    return width, height


def reason_of(error: Exception) -> str:
    """Returns what an error says, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no image"  # Pillow names a place in memory
    return " ".join(str(error).split()) or type(error).__name__


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
            except MemoryError:  # which is no damage
                raise
            except Exception as error:  # Pillow raises many kinds here
                if is_outage(error):
                    raise
                name = "" if isinstance(frame, bytes) else f" ({text_of(os.path.basename(frame))})"
                self.damage = f"after {number} frames: {reason_of(error)}{name}"
                if not number:
                    raise ValueError(f"nothing can be decoded ({self.damage})") from error
                return
            size = size or small_size(image, self._short_side, self._multiple)
            yield np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def _opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    if image.mode == "F" or image.mode.startswith("I"):  # Pillow would cut values off at 255
        raise ValueError(f"an image of mode {image.mode}, not of 8 bits")
    return upright(image).convert("RGB")
