"""From stored bytes to pixels: only the frames that a clip needs."""

import io
from collections.abc import Sequence

import numpy as np
import simplejpeg
from jaxtyping import Int64, UInt8
from PIL import Image

from adamae_jax.data.stored_video import StoredVideo
from adamae_jax.data.tfrecord import BadRecordError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")  # PIL's names; all but those with 16 bits
MAX_PIXELS = 1 << 27  # more than photographs have, and little enough to allocate
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def encoded_size(image: bytes) -> tuple[int, int]:
    """(height, width) of a JPEG or PNG, from its header.

    Raises:
        BadRecordError: it is neither, or claims to have more than `MAX_PIXELS`.
    """
    try:
        if image.startswith(PNG_SIGNATURE):
            with _open_png(image) as png:
                size = (png.height, png.width)
        else:
            size = simplejpeg.decode_jpeg_header(image)[:2]
    except _DECODING_ERRORS as error:
        raise BadRecordError(f"no JPEG or PNG ({error})") from error
    if size[0] * size[1] > MAX_PIXELS:
        raise BadRecordError(f"of size {size}, which is more than {MAX_PIXELS} pixels")
    return size


def decode_frames(
    encoded: Sequence[bytes] | StoredVideo,
    frames: Int64[np.ndarray, "t"],
    frame_size: tuple[int, int],
) -> UInt8[np.ndarray, "t h w 3"]:
    """Decodes the frames numbered ``frames``, of JPEGs, PNGs or a video file, to RGB.

    Transparency is dropped.

    Raises:
        BadRecordError: one of them is damaged, or is not of (height, width) ``frame_size``.
    """
    if isinstance(encoded, StoredVideo):
        return encoded.decode(frames, frame_size)
    # All headers first: a wrong size must not make anybody allocate it.
    for number in frames:
        try:
            size = encoded_size(encoded[number])
        except BadRecordError as error:
            raise BadRecordError(f"frame {number} is {error}") from error
        if size != frame_size:
            raise BadRecordError(f"frame {number} is of size {size}, not {frame_size}")
    pixels = np.empty((len(frames), *frame_size, 3), np.uint8)
    for number, out in zip(frames, pixels, strict=True):
        try:
            _decode(encoded[number], out)
        except _DECODING_ERRORS as error:
            raise BadRecordError(f"frame {number} is damaged ({error})") from error
    return pixels


def _decode(image: bytes, out: UInt8[np.ndarray, "h w 3"]) -> None:
    if not image.startswith(PNG_SIGNATURE):
        simplejpeg.decode_jpeg(image, colorspace="RGB", buffer=out)
        return
    with _open_png(image) as png:
        if png.mode not in PNG_MODES:
            raise ValueError(f"a PNG of mode {png.mode}, not of 8 bits")
        out[:] = np.asarray(png.convert("RGB"))


def _open_png(image: bytes) -> Image.Image:
    return Image.open(io.BytesIO(image), formats=("PNG",))


def decode_foreground(png: bytes, num_frames: int) -> UInt8[np.ndarray, "n h w"]:
    """The foreground masks of all ``num_frames`` frames, from the PNG that stacks them.

    Raises:
        BadRecordError: the PNG is damaged, not grey, or cannot hold that many masks.
    """
    try:
        with _open_png(png) as image:
            if image.mode != "L" or image.height % num_frames:
                raise BadRecordError(
                    f"its foreground is {image.mode} of height {image.height}, "
                    f"not grey (L) with {num_frames} masks"
                )
            stacked = np.asarray(image)
    except _DECODING_ERRORS as error:
        raise BadRecordError(f"its foreground is no sound PNG ({error})") from error
    return stacked.reshape(num_frames, -1, stacked.shape[1])
