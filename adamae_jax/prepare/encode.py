"""Videos on their way into a dataset: as JPEG frames, as H.264, or as they are.

They come from video files, or from encoded images: the files of a folder, or the frames in a record
of TFDS.
"""

import dataclasses
import io
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import av
import numpy as np
import simplejpeg
from absl import logging
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from adamae_jax.data import schema, storage
from adamae_jax.data.storage import is_outage
from adamae_jax.data.video_file import (
    StoredVideo,
    UnreadableVideoError,
    Upright,
    exact_rate,
    shown_size,
)
from adamae_jax.prepare.frame_folders import FrameFolders
from adamae_jax.prepare.keyframes import digest, exact_keyframes
from adamae_jax.prepare.sources import Item, text_of
from adamae_jax.prepare.video_file import VideoFile

# All frames of a video are one record, and the protocol buffers that hold it end at 2 GiB.
MAX_BYTES = 1 << 30
JPEG_QUALITY = 90
KEYFRAME_INTERVAL = 12
# Made to be decoded in part. Groups are closed and short, so that decoding starts near the frames
# that are needed. Three of four frames are B-frames that no other frame refers to: those that are
# not needed are not decoded. CAVLC and no deblocking decode twice as fast as their opposites, for a
# tenth more bytes. Without mbtree, which weighs blocks by what a look ahead finds, for that gives
# other bytes every time; for the same bytes it gains nothing on groups so short.
_X264_OPTIONS = {
    "preset": "veryfast",
    "crf": "17",
    "x264-params": (
        f"keyint={KEYFRAME_INTERVAL}:min-keyint={KEYFRAME_INTERVAL}:scenecut=0:open-gop=0:"
        "bframes=3:b-adapt=0:b-pyramid=none:weightp=0:cabac=0:no-deblock=1:mbtree=0:threads=1"
    ),
}
_UNKNOWN_RATE = Fraction(25)  # MP4 needs one

Pixels = Iterator[UInt8[np.ndarray, "h w 3"]]


@dataclasses.dataclass(frozen=True)
class EncodedVideo:
    """A video as it goes into a dataset.

    Attributes:
        frames: one JPEG per frame, in the order in which they are shown; or one video file.
        num_frames: how many frames that is.
        rate: frames per second; 0 where it is not known.
        height: of all frames, in pixels.
        width: of all frames, in pixels.
        damage: where and why the frames end before the video does; None for a whole video.
        times: of a video file, when each frame is shown, in ticks of its stream; empty where the
            file does not say, and for JPEGs.
        keyframes: of a video file, the numbers of the frames at which decoding may start.
    """

    frames: list[bytes]
    num_frames: int
    rate: float
    height: int
    width: int
    damage: str | None
    times: tuple[int, ...] = ()
    keyframes: tuple[int, ...] = ()


def read_video(
    path: str | os.PathLike[str],
    codec: str = schema.CODEC_JPEG,
    short_side: int = 256,
    max_bytes: int = MAX_BYTES,
) -> EncodedVideo:
    """Decodes a video file up to the first damage (see `VideoFile`) and encodes it.

    Args:
        path: of the video.
        codec: one of `schema.CODECS`; "original" keeps the file's bytes, and only looks at them.
        short_side: of the stored frames, in pixels; larger frames are made smaller. Not for
            "original".
        max_bytes: of the record; JPEGs that come after count as damaged.

    Raises:
        UnreadableVideoError: nothing can be decoded, or an original file is larger than
            `max_bytes`.
        OSError: the storage fails again and again, which says nothing of the file.
        MemoryError: there is too little memory for it.
    """
    if codec == schema.CODEC_ORIGINAL:
        return _keep(path, max_bytes)
    with VideoFile(path) as video:
        upright = Upright(short_side, multiple=2 if codec == schema.CODEC_H264 else 1)
        pixels = map(upright, video.frames())
        encoded = ENCODERS[codec](pixels, video.rate, max_bytes)
        damage = encoded.damage or video.damage
        return dataclasses.replace(encoded, rate=float(video.rate), damage=damage)


def encode_jpegs(pixels: Pixels, rate: Fraction, max_bytes: int = MAX_BYTES) -> EncodedVideo:
    """Frames of one size as JPEGs; at least one frame."""
    frames: list[bytes] = []
    num_bytes, size, damage = 0, (0, 0), None
    for frame in pixels:
        size = frame.shape[:2]
        frames.append(simplejpeg.encode_jpeg(frame, JPEG_QUALITY, colorsubsampling="420"))
        num_bytes += len(frames[-1])
        if num_bytes > max_bytes:
            damage = f"after {len(frames)} frames: more than {max_bytes} bytes of JPEGs"
            break
    return EncodedVideo(frames, len(frames), float(rate), *size, damage)


def encode_h264(pixels: Pixels, rate: Fraction, max_bytes: int = MAX_BYTES) -> EncodedVideo:
    """Frames of one even height and width as an MP4 file at a constant rate; at least one frame."""
    file, count, damage = io.BytesIO(), 0, None
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate or _UNKNOWN_RATE)
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt = "yuv420p"
        stream.options = dict(_X264_OPTIONS)
        for frame in pixels:
            if not count:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            count += 1
            if file.tell() > max_bytes:
                damage = f"after {count} frames: more than {max_bytes} bytes of H.264"
                break
        container.mux(stream.encode())
    data = file.getvalue()
    with VideoFile(data) as video:
        seen = survey(video)
    return EncodedVideo([data], count, float(rate), *seen.size, damage, seen.times, seen.keyframes)


ENCODERS: dict[str, Callable[[Pixels, Fraction, int], EncodedVideo]] = {
    schema.CODEC_JPEG: encode_jpegs,
    schema.CODEC_H264: encode_h264,
}


def _keep(path: str | os.PathLike[str], max_bytes: int) -> EncodedVideo:
    """A file as it is, with the keyframes at which decoding may start."""
    try:
        name = os.path.abspath(path)
        if storage.file_sizes([name])[0] > max_bytes:
            raise UnreadableVideoError(f"has more than {max_bytes} bytes: use --codec=h264 or jpeg")
        data = storage.read_file(name)
    except OSError as error:
        if is_outage(error):
            raise
        raise UnreadableVideoError(f"cannot be opened: {error.strerror}") from error
    with VideoFile(data) as video:
        seen = survey(video)
    stored = StoredVideo(data, video.num_frames, seen.times, seen.keyframes)
    return EncodedVideo(
        [data],
        video.num_frames,
        float(video.rate),
        *seen.size,
        video.damage,
        seen.times,
        exact_keyframes(stored, seen.digests),
    )


class Survey(NamedTuple):
    """What decoding a video from the front shows.

    Attributes:
        size: (height, width) of the frames, upright.
        times: when each frame is shown, in ticks; empty where they do not tell frames apart.
        keyframes: numbers of frames; empty likewise.
        digests: of every frame's pixels; empty where nobody asked for them.
    """

    size: tuple[int, int]
    times: tuple[int, ...]
    keyframes: tuple[int, ...]
    digests: list[int]


def survey(video: VideoFile, *, with_digests: bool = True) -> Survey:
    """Decodes a video from the front, up to the first damage; raises as `VideoFile.frames`."""
    size: tuple[int, int] = (0, 0)
    times, keyframes, digests = [], [], []
    for number, frame in enumerate(video.frames()):
        size = size if number else shown_size(frame)
        times.append(frame.pts)
        if with_digests:
            digests.append(digest(frame))
        if frame.key_frame:
            keyframes.append(number)
    rising = [time for time in times if time is not None]
    rising = [*rising[:1], *(late for early, late in pairwise(rising) if late > early)]
    if len(rising) < len(times):
        return Survey(size, (), (), digests)
    return Survey(size, tuple(rising), tuple(keyframes), digests)


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
    video = ENCODERS[codec](iter(stills), exact_rate(rate), MAX_BYTES)
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
