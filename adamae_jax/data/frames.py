"""From stored bytes to pixels: only the frames that a clip needs."""

import io
from collections.abc import Sequence

import numpy as np
import simplejpeg
from jaxtyping import Int64, UInt8
from PIL import Image

from adamae_jax.data.tfrecord import BadRecordError


def decode_frames(
    jpegs: Sequence[bytes], frames: Int64[np.ndarray, "t"], frame_size: tuple[int, int]
) -> UInt8[np.ndarray, "t h w 3"]:
    """Decodes the JPEGs numbered ``frames`` to RGB.

    Raises:
        BadRecordError: one of them is damaged, or is not of (height, width) ``frame_size``.
    """
    # All headers first: a wrong size must not make anybody allocate it.
    for number in frames:
        try:
            size = simplejpeg.decode_jpeg_header(jpegs[number])[:2]
        except ValueError as error:
            raise BadRecordError(f"frame {number} is no JPEG ({error})") from error
        if size != frame_size:
            raise BadRecordError(f"frame {number} is of size {size}, not {frame_size}")
    pixels = np.empty((len(frames), *frame_size, 3), np.uint8)
    for number, out in zip(frames, pixels, strict=True):
        try:
            simplejpeg.decode_jpeg(jpegs[number], colorspace="RGB", buffer=out)
        except ValueError as error:
            raise BadRecordError(f"frame {number} is damaged ({error})") from error
    return pixels


def decode_foreground(
    png: bytes, num_frames: int, frames: Int64[np.ndarray, "t"]
) -> UInt8[np.ndarray, "t h w"]:
    """The foreground masks numbered ``frames``, from the PNG that stacks all ``num_frames``.

    Raises:
        BadRecordError: the PNG is damaged, not grey, or cannot hold that many masks.
    """
    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            if image.mode != "L" or image.height % num_frames:
                raise BadRecordError(
                    f"its foreground is {image.mode} of height {image.height}, "
                    f"not grey (L) with {num_frames} masks"
                )
            stacked = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadRecordError(f"its foreground is no sound PNG ({error})") from error
    return stacked.reshape(num_frames, -1, stacked.shape[1])[frames]
