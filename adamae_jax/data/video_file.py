"""One video file, whatever FFmpeg reads, frame by frame up to its first damage."""

import io
import os
import re
from collections.abc import Iterator
from fractions import Fraction
from types import TracebackType
from typing import Any, Self

import av
import av.container
import av.error
import av.video
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

# A file whose header announces more is called damaged if less than this share of it is there. (Not
# all of it: edit lists and dropped frames make honest headers say a little more than one sees.)
_WHOLE = 0.95
_DURATION = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")
# Of one frame; more is a header that lies, and would make the decoder allocate what it says.
MAX_PIXELS = 1 << 26


class UnreadableVideoError(Exception):
    """Not a single frame can be had from a file; the message says why."""


class VideoFile:
    """The first video stream of a file, opened to be decoded once; a context manager.

    Damage is what the decoder reports, and a file that holds fewer frames than its header says.
    Where a container skips lost data and says nothing, as AVI can, some pictures behind the gap may
    be wrong; the video is reported as damaged, but its place is not known.

    Attributes:
        rate: frames per second; 0 where the file does not say.
        num_frames: how many have been decoded.
        damage: after the last frame, where and why the frames end before the video does; None for
            a whole video.
    """

    def __init__(self, file: str | os.PathLike[str] | bytes):
        """Opens a file by its path, or one that is held in memory.

        Raises:
            UnreadableVideoError: it cannot be opened, or has no video that can be decoded.
        """
        try:
            self.container = _open(file)
        except av.error.FFmpegError as error:
            raise UnreadableVideoError(f"cannot be opened: {_reason(error)}") from error
        try:
            self.stream = self._stream()
        except BaseException:
            self.container.close()
            raise
        self.rate = Fraction(self.stream.average_rate or self.stream.guessed_rate or 0)
        self.num_frames = 0
        self.damage: str | None = None
        self._first_s: float | None = None  # when the first and the latest frame are shown
        self._last_s: float | None = None

    def _stream(self) -> av.video.VideoStream:
        if not self.container.streams.video:
            raise UnreadableVideoError("holds no video stream")
        stream = self.container.streams.video[0]
        if stream.codec_context is None:
            raise UnreadableVideoError("FFmpeg has no decoder for its codec")
        if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
            size = f"{stream.codec_context.width}x{stream.codec_context.height}"
            raise UnreadableVideoError(f"its frames claim to have {size} pixels")
        stream.codec_context.thread_count = 1  # the caller reads several videos at a time
        # Without the first, decoders patch damaged pictures with what they have and say nothing.
        stream.codec_context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
        return stream

    def __enter__(self) -> Self:
        """Itself, to be closed at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes."""
        self.container.close()

    def frames(self) -> Iterator[av.VideoFrame]:
        """Frames in the order in which they are shown, up to the first damage.

        Raises:
            UnreadableVideoError: there is not a single one.
        """
        try:
            for frame in self.container.decode(self.stream):
                if not self.num_frames:
                    self._first_s = frame.time
                self._last_s = frame.time
                self.num_frames += 1
                yield frame
            self.damage = self._missing_frames()
        except (av.error.FFmpegError, MemoryError) as error:
            if not self.num_frames:
                raise UnreadableVideoError(f"cannot be decoded: {_reason(error)}") from error
            self.damage = f"{self.place()}: {_reason(error)}"
        if not self.num_frames:
            raise UnreadableVideoError("holds no frame")

    def place(self) -> str:
        """Words on how much has been decoded."""
        seconds = f" ({float(self.num_frames / self.rate):.2f} s)" if self.rate else ""
        return f"after {self.num_frames} frames{seconds}"

    def _missing_frames(self) -> str | None:
        """What is wrong with a file that was read without an error, but holds less than it says."""
        duration = self._duration_s()
        counted = self.stream.frames
        announced = counted or int(duration * self.rate)
        if self.num_frames >= _WHOLE * announced:
            return None
        # Where rates vary, a time says nothing of a number; and MP4 counts frames that its edit
        # list hides. Of AVI only the count is to be trusted: its duration shrinks with a cut file.
        timed = not counted or "mp4" in self.container.format.name.split(",")
        if timed and duration and self._shown_s() >= _WHOLE * duration:
            return None
        return f"only {self.num_frames} of the {announced} frames that its header announces"

    def _duration_s(self) -> float:
        """How long the video is by its header; 0 where it does not say."""
        if self.stream.duration and self.stream.time_base:
            return float(self.stream.duration * self.stream.time_base)
        for name, value in self.stream.metadata.items():
            # Matroska's, "01:23:45.678": when the stream ends, as against the longest of all.
            match = _DURATION.fullmatch(value) if name.upper().startswith("DURATION") else None
            if match:
                hours, minutes, seconds = map(float, match.groups())
                return 3600 * hours + 60 * minutes + seconds - max(0.0, self._first_s or 0.0)
        return (self.container.duration or 0) / av.time_base

    def _shown_s(self) -> float:
        """For how long the frames are shown; 0 where it is not known."""
        if self._first_s is None or self._last_s is None:
            return 0.0
        return self._last_s - self._first_s + (float(1 / self.rate) if self.rate else 0.0)


def _open(file: str | os.PathLike[str] | bytes) -> av.container.InputContainer:
    # The prefix keeps FFmpeg from taking a colon in a name for a protocol, and the list keeps
    # playlists from reaching out to the network.
    options = {"protocol_whitelist": "file"}

    def source() -> Any:  # PyAV's types know paths and files, but not that both are read
        return io.BytesIO(file) if isinstance(file, bytes) else f"file:{os.fspath(file)}"

    try:
        return av.open(source(), "r", container_options=options)
    except UnicodeDecodeError:  # PyAV before version 19 refuses a title that is not UTF-8
        return av.open(source(), "r", container_options=options, metadata_errors="replace")


def _reason(error: Exception) -> str:
    """What FFmpeg says, without the number and the path that it adds."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def shown_size(frame: av.VideoFrame) -> tuple[int, int]:
    """(height, width) of a frame, turned as its metadata says."""
    lies = round(frame.rotation / 90) % 2 == 1
    return (frame.width, frame.height) if lies else (frame.height, frame.width)


class Upright:
    """Turns decoded frames as their metadata says and makes them smaller, never larger.

    All get the size that the first one determines: the shorter side `short_side` pixels, or as many
    as it has. Non-square pixels are taken as square.

    Attributes:
        height: of the frames, in pixels; 0 before the first.
        width: of the frames, in pixels.
    """

    def __init__(
        self,
        short_side: int | None = None,
        multiple: int = 1,
        size: tuple[int, int] = (0, 0),
    ):
        """Starts a video.

        Args:
            short_side: in pixels; None keeps the size.
            multiple: of which height and width are to be.
            size: (height, width), if it is known without the first frame.
        """
        self._short_side = short_side
        self._multiple = multiple
        self._reformatter = VideoReformatter()
        self.height, self.width = size

    def __call__(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
        """The pixels of one frame, RGB."""
        quarter_turns = round(frame.rotation / 90) % 4  # counterclockwise
        lies = quarter_turns % 2 == 1  # decoded with height and width exchanged
        if not self.height:
            self.height, self.width = self._shrink(*shown_size(frame))
        small = self._reformatter.reformat(
            frame,
            width=self.height if lies else self.width,
            height=self.width if lies else self.height,
            format="rgb24",
            interpolation="AREA",
            threads=1,  # starting some takes longer than what they do
        )
        return np.ascontiguousarray(np.rot90(small.to_ndarray(), quarter_turns))

    def _shrink(self, height: int, width: int) -> tuple[int, int]:
        scale = min(1.0, self._short_side / min(height, width)) if self._short_side else 1.0
        units = (max(1, round(side * scale / self._multiple)) for side in (height, width))
        rows, columns = (unit * self._multiple for unit in units)
        return rows, columns
