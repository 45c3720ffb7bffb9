"""From stored bytes to pixels: only the frames that a clip needs."""

import io
from collections.abc import Iterator, Sequence

import numpy as np
import simplejpeg
from jaxtyping import Int64, UInt8
from PIL import Image

from adamae_jax.data.damage import BadRecordError, Damage
from adamae_jax.data.payload import StoredFrames
from adamae_jax.data.video_file import StoredVideo

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")  # PIL's names; all but those with 16 bits
MAX_PIXELS = 1 << 27  # more than photographs have, and little enough to allocate
# One JPEG or PNG for each frame, or a video file.
Encoded = Sequence[bytes] | StoredVideo
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def encoded_size(image: bytes) -> tuple[int, int]:
    """Returns (height, width) of a JPEG or PNG, from its header.

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
        raise BadRecordError(f"no JPEG or PNG ({error})", Damage.FRAMES) from error
    if size[0] * size[1] > MAX_PIXELS:
        raise BadRecordError(
            f"of size {size}, which is more than {MAX_PIXELS} pixels", Damage.FRAMES
        )
    return size


def each_frame(
    encoded: Encoded,
    frames: Int64[np.ndarray, "t"],
    frame_size: tuple[int, int],
    reduction: int = 1,
) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
    """Decodes single frames of JPEGs, PNGs or a video file to RGB, one after the other.

    One at a time, so that it is still in the processor's cache when it is cut. Transparency is
    dropped.

    Args:
        encoded: what holds them.
        frames: sorted numbers of the frames to decode, each once.
        frame_size: (height, width) of them all.
        reduction: how many times smaller JPEGs are decoded, one of 1, 2, 4 and 8; what else there
            is has its whole size.

    Yields:
        A number and the pixels, which are good until the next ones are asked for. They are of
        ``frame_size``, or that divided by ``reduction`` and rounded up.

    Raises:
        BadRecordError: one of them is damaged, or is not of ``frame_size``.
    """
    if isinstance(encoded, StoredVideo):
        yield from encoded.each_frame(frames, frame_size)
        return
    images = (
        encoded.fetch(frames)
        if isinstance(encoded, StoredFrames)
        else [encoded[number] for number in frames]
    )
    # A video comes with colours of half the resolution, which FFmpeg only repeats; images may come
    # from a camera, and everybody smooths theirs.
    of_video = isinstance(encoded, StoredFrames)
    small = tuple(-(-side // reduction) for side in frame_size)
    buffer: np.ndarray | None = None
    for number, image in zip(frames.tolist(), images, strict=True):
        try:
            size = encoded_size(image)
        except BadRecordError as error:
            raise BadRecordError(f"frame {number} is {error}", Damage.FRAMES) from error
        if size != frame_size:
            raise BadRecordError(
                f"frame {number} is of size {size}, not {frame_size}", Damage.FRAMES
            )
        if buffer is None:  # not before a header has said that frames are so large
            buffer = np.empty((*small, 3), np.uint8)
        try:
            pixels = _decode(image, buffer, repeat_colours=of_video)
        except _DECODING_ERRORS as error:
            raise BadRecordError(f"frame {number} is damaged ({error})", Damage.FRAMES) from error
        yield number, pixels


def decode_frames(
    encoded: Encoded,
    frames: Int64[np.ndarray, "t"],
    frame_size: tuple[int, int],
) -> UInt8[np.ndarray, "t h w 3"]:
    """Returns the frames numbered ``frames``, in any order, as one array; see `each_frame`.

    Raises:
        BadRecordError: one of them is damaged, or is not of (height, width) ``frame_size``.
    """
    numbers, places = np.unique(frames, return_inverse=True)
    found = [pixels.copy() for _, pixels in each_frame(encoded, numbers, frame_size)]
    return np.stack([found[place] for place in places])


def _decode(
    image: bytes, buffer: UInt8[np.ndarray, "h w 3"], repeat_colours: bool
) -> UInt8[np.ndarray, "..."]:
    """Returns the pixels; of a JPEG in the buffer, whose size it is decoded to."""
    if not image.startswith(PNG_SIGNATURE):
        simplejpeg.decode_jpeg(
            image,
            colorspace="RGB",
            fastupsample=repeat_colours,
            min_height=buffer.shape[0],
            min_width=buffer.shape[1],
            buffer=buffer,
        )
        return buffer
    with _open_png(image) as png:
        if png.mode not in PNG_MODES:
            raise ValueError(f"a PNG of mode {png.mode}, not of 8 bits")
        return np.asarray(png.convert("RGB"))


def _open_png(image: bytes) -> Image.Image:
    return Image.open(io.BytesIO(image), formats=("PNG",))


def decode_foreground(png: bytes, num_frames: int) -> UInt8[np.ndarray, "n h w"]:
    """Returns the foreground masks of all ``num_frames`` frames, from the PNG that stacks them.

    Raises:
        BadRecordError: the PNG is damaged, not grey, or cannot hold that many masks.
    """
    try:
        with _open_png(png) as image:
            if image.mode != "L" or image.height % num_frames:
                raise BadRecordError(
                    f"its foreground is {image.mode} of height {image.height}, "
                    f"not grey (L) with {num_frames} masks",
                    Damage.FOREGROUND,
                )
            stacked = np.asarray(image)
    except _DECODING_ERRORS as error:
        raise BadRecordError(
            f"its foreground is no sound PNG ({error})", Damage.FOREGROUND
        ) from error
    return stacked.reshape(num_frames, -1, stacked.shape[1])
