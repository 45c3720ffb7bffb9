"""One video file, whatever FFmpeg reads, as JPEG frames."""

import dataclasses
import os

import av
import av.container
import av.error
import av.video
import numpy as np
import simplejpeg
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

# All frames of a video are one record, and the protocol buffers that hold it end at 2 GiB.
MAX_BYTES = 1 << 30
# A file whose header announces more is called damaged if less than this share of it is there. (Not
# all of it: edit lists and dropped frames make honest headers say a little more than one sees.)
_WHOLE = 0.95


class UnreadableVideoError(Exception):
    """Not a single frame can be had from a file; the message says why."""


@dataclasses.dataclass(frozen=True)
class EncodedVideo:
    """A video as it goes into a dataset.

    Attributes:
        frames: one JPEG per frame, in the order in which they are shown.
        rate: frames per second; 0 where the file does not say.
        height: of all frames, in pixels.
        width: of all frames, in pixels.
        damage: where and why the frames end before the video does; None for a whole video.
    """

    frames: list[bytes]
    rate: float
    height: int
    width: int
    damage: str | None


def read_video(
    path: str | os.PathLike[str],
    short_side: int = 256,
    quality: int = 90,
    max_bytes: int = MAX_BYTES,
) -> EncodedVideo:
    """Decodes the first video stream of a file, frame by frame, up to the first damage.

    Damage is what the decoder reports, and a file that holds fewer frames than its header says.
    Where a container skips lost data and says nothing, as AVI can, some pictures behind the gap may
    be wrong; the video is reported as damaged, but its place is not known.

    Frames are turned as the file's metadata says and made smaller, never larger, so that the
    shorter side has `short_side` pixels. Non-square pixels are taken as square.

    Args:
        path: of the video.
        short_side: of the stored frames, in pixels.
        quality: of the JPEGs, 1 to 100.
        max_bytes: of all JPEGs together; what comes after counts as damaged.

    Raises:
        UnreadableVideoError: nothing can be decoded.
    """
    try:
        container = _open(path)
    except av.error.FFmpegError as error:
        raise UnreadableVideoError(f"cannot be opened: {_reason(error)}") from error
    with container:
        if not container.streams.video:
            raise UnreadableVideoError("holds no video stream")
        if container.streams.video[0].codec_context is None:
            raise UnreadableVideoError("FFmpeg has no decoder for its codec")
        return _decode(container, short_side, quality, max_bytes)


def _open(path: str | os.PathLike[str]) -> av.container.InputContainer:
    # The prefix keeps FFmpeg from taking a colon in a name for a protocol, and the list keeps
    # playlists from reaching out to the network.
    url, options = f"file:{os.fspath(path)}", {"protocol_whitelist": "file"}
    try:
        return av.open(url, container_options=options)
    except UnicodeDecodeError:  # PyAV before version 19 refuses a title that is not UTF-8
        return av.open(url, container_options=options, metadata_errors="replace")


def _decode(
    container: av.container.InputContainer, short_side: int, quality: int, max_bytes: int
) -> EncodedVideo:
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1  # the caller reads several videos at a time
    # Without this, decoders patch damaged pictures with what they have and say nothing.
    stream.codec_context.options = {"err_detect": "explode"}
    encoder = _FrameEncoder(short_side, quality)
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    frames: list[bytes] = []
    num_bytes, damage = 0, None
    try:
        for frame in container.decode(stream):
            frames.append(encoder(frame))
            num_bytes += len(frames[-1])
            if num_bytes > max_bytes:
                damage = f"after {len(frames)} frames: more than {max_bytes} bytes of JPEGs"
                break
        else:
            damage = _missing_frames(container, stream, rate, len(frames))
    except av.error.FFmpegError as error:
        if not frames:
            raise UnreadableVideoError(f"cannot be decoded: {_reason(error)}") from error
        seconds = f" ({len(frames) / rate:.2f} s)" if rate else ""
        damage = f"after {len(frames)} frames{seconds}: {_reason(error)}"
    if not frames:
        raise UnreadableVideoError("holds no frame")
    return EncodedVideo(frames, rate, encoder.height, encoder.width, damage)


def _missing_frames(
    container: av.container.InputContainer,
    stream: av.video.VideoStream,
    rate: float,
    num_frames: int,
) -> str | None:
    """What is wrong with a file that was read without an error, but holds less than it says."""
    announced = stream.frames
    if not announced and container.duration:
        announced = int(container.duration / av.time_base * rate)
    if num_frames >= _WHOLE * announced:
        return None
    return f"only {num_frames} of the {announced} frames that its header announces"


class _FrameEncoder:
    """Turns decoded frames into JPEGs, all of the size that the first one determines."""

    def __init__(self, short_side: int, quality: int):
        self._short_side = short_side
        self._quality = quality
        self._reformatter = VideoReformatter()
        self.height = 0
        self.width = 0

    def __call__(self, frame: av.VideoFrame) -> bytes:
        quarter_turns = round(frame.rotation / 90) % 4  # counterclockwise
        lies = quarter_turns % 2 == 1  # decoded with height and width exchanged
        if not self.height:
            shown = (frame.width, frame.height) if lies else (frame.height, frame.width)
            self.height, self.width = self._shrink(*shown)
        small = self._reformatter.reformat(
            frame,
            width=self.height if lies else self.width,
            height=self.width if lies else self.height,
            format="rgb24",
            interpolation="AREA",
        )
        pixels: UInt8[np.ndarray, "h w 3"] = np.rot90(small.to_ndarray(), quarter_turns)
        return simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels), quality=self._quality, colorsubsampling="420"
        )

    def _shrink(self, height: int, width: int) -> tuple[int, int]:
        scale = min(1.0, self._short_side / min(height, width))
        return round(height * scale), round(width * scale)


def _reason(error: Exception) -> str:
    """What FFmpeg says, without the number and the path that it adds."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
