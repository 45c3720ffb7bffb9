"""A video file inside a record: any of its frames, by number, without decoding all before it.

Frame numbers count what decoding from the front shows. A record says when each frame is shown and
at which frames decoding may start, so that a frame is found by its time, whatever the frame rate
does and in whatever order frames are stored.
"""

import bisect
import contextlib
import dataclasses
import io
from collections.abc import Collection, Iterator, Sequence
from fractions import Fraction
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import av
import av.container
import av.error
import av.video
import numpy as np
from av.sidedata.sidedata import SideData
from av.video.reformatter import VideoReformatter
from jaxtyping import Float64, Int64, UInt8

from adamae_jax.data.damage import BadRecordError, Damage

# Seeking costs about as much as decoding this many frames.
_SEEK_FRAMES = 8
_H264_SLICES = (1, 5)  # types of the units that hold pictures: of other frames, of key frames
# Of one frame; more is a header that lies, and would make the decoder allocate what it says.
MAX_PIXELS = 1 << 26


class UnreadableVideoError(Exception):
    """Not a single frame can be had from a file; the message says why."""


class OpenVideo:
    """The video stream of a file, opened to be decoded; a context manager.

    Of several streams it is the one that FFmpeg finds best: never a cover, if there is another.

    Attributes:
        container: the file, as PyAV has it open.
        stream: the stream.
    """

    def __init__(self, file: Any):
        """Opens a file.

        Args:
            file: what can be read and searched like a file of Python; at its start.

        Raises:
            UnreadableVideoError: it cannot be opened, or has no video that can be decoded.
        """
        options = {"protocol_whitelist": "none"}  # keeps playlists from reaching out
        try:
            try:
                self.container = av.open(file, "r", container_options=options)
            except UnicodeDecodeError:  # PyAV before version 19 refuses a title that is not UTF-8
                file.seek(0)
                self.container = av.open(
                    file, "r", container_options=options, metadata_errors="replace"
                )
        except av.error.FFmpegError as error:
            raise UnreadableVideoError(f"cannot be opened: {reason(error)}") from error
        try:
            self.stream = self._stream()
        except BaseException:
            self.container.close()
            raise

    def _stream(self) -> av.video.VideoStream:
        stream = self.container.streams.best("video")
        if not isinstance(stream, av.VideoStream):
            raise UnreadableVideoError("holds no video stream")
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


def reason(error: Exception) -> str:
    """Returns what FFmpeg says, without the number and the path that it adds."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def exact_rate(rate: float) -> Fraction:
    """Returns frames per second as they are written: 29.97 is stored as 29.969999."""
    return Fraction(rate).limit_denominator(1001)


@dataclasses.dataclass(frozen=True)
class StoredVideo:
    """A video file, with what is known of its frames; its length is their number.

    Attributes:
        data: the bytes of the file; or its path, for one that is read from disk each time.
        num_frames: that can be had from it.
        times: when each frame is shown, in ticks of the stream, rising; empty where the file does
            not say, so that decoding must start at the front.
        keyframes: sorted numbers of frames at which decoding may start.
    """

    data: bytes | str
    num_frames: int
    times: Sequence[int] = ()
    keyframes: Sequence[int] = ()

    def __post_init__(self) -> None:
        """Checks that the numbers can be true.

        Raises:
            BadRecordError: they cannot.
        """
        if self.times and len(self.times) != self.num_frames:
            raise BadRecordError(f"it has {len(self.times)} times for {self.num_frames} frames")
        if self.keyframes and not 0 <= self.keyframes[0] <= self.keyframes[-1] < self.num_frames:
            raise BadRecordError(f"its keyframes are {self.keyframes[0]} to {self.keyframes[-1]}")

    def __len__(self) -> int:
        """The number of frames."""
        return self.num_frames

    def file(self) -> BinaryIO:
        """Opens the file; whoever calls it closes it."""
        return open(self.data, "rb") if isinstance(self.data, str) else io.BytesIO(self.data)

    def seconds(self) -> Float64[np.ndarray, "n"] | None:
        """Returns when each frame is shown, from the first on; None where the file does not say.

        Raises:
            BadRecordError: the file is damaged.
        """
        if not self.times:
            return None
        try:
            with self.file() as file, OpenVideo(file) as video:
                tick = video.stream.time_base
        except UnreadableVideoError as error:
            raise BadRecordError(f"its video is damaged ({error})", Damage.FRAMES) from error
        return None if tick is None else (np.array(self.times) - self.times[0]) * float(tick)

    def each_frame(
        self, frames: Int64[np.ndarray, "t"], frame_size: tuple[int, int]
    ) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        """The frames of these sorted numbers, RGB, upright, of (height, width) `frame_size`.

        Raises:
            BadRecordError: the file is damaged, or does not have them.
        """
        if frame_size[0] * frame_size[1] > MAX_PIXELS or min(frame_size) < 1:
            raise BadRecordError(f"its frames claim the size {frame_size}")
        needed = frames.tolist()
        if not needed or needed[0] < 0 or needed[-1] >= self.num_frames:
            raise BadRecordError(f"frames {needed} were asked for, but it has {self.num_frames}")
        upright = Upright(size=frame_size)
        found = 0
        try:
            with self.file() as file, OpenVideo(file) as video:
                for number, frame in self._needed(video, needed):
                    yield number, upright(frame)
                    found += 1
        except (UnreadableVideoError, av.error.FFmpegError) as error:
            raise BadRecordError(f"its video is damaged ({error})", Damage.FRAMES) from error
        if found < len(needed):
            raise BadRecordError(
                f"its video shows only {found} of the frames {needed}", Damage.FRAMES
            )

    def _needed(
        self, video: OpenVideo, needed: Sequence[int]
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """The frames of these sorted numbers, in order."""
        if not self.times:
            numbers = set(needed)
            for number, frame in enumerate(video.container.decode(video.stream)):
                if number in numbers:
                    yield number, frame
                if number == needed[-1]:
                    return
            return
        for start, run in self._runs(needed):
            yield from self._decode_run(video, start, run)

    def _runs(self, needed: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Frames that are decoded in one go, and the keyframe to start at."""
        start, run = self._keyframe(needed[0]), [needed[0]]
        for number in needed[1:]:
            keyframe = self._keyframe(number)
            if keyframe > run[-1] + _SEEK_FRAMES:
                yield start, run
                start, run = keyframe, []
            run.append(number)
        yield start, run

    def _keyframe(self, number: int) -> int:
        """The last keyframe that is not behind the frame; 0 where there is none."""
        place = bisect.bisect_right(self.keyframes, number)
        return self.keyframes[place - 1] if place else 0

    def _decode_run(
        self, video: OpenVideo, start: int, run: Sequence[int]
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        waiting: dict[int | None, int] = {self.times[number]: number for number in run}
        # Close to damage, what is before it may only come out if no frame is passed over: then
        # once more without.
        with contextlib.suppress(av.error.FFmpegError):
            for frame in self.frames_from(video, start, needed=set(waiting)):
                if (number := waiting.pop(frame.pts, None)) is not None:
                    yield number, frame
                if not waiting:
                    return
        with self.file() as file, OpenVideo(file) as again:
            for frame in self.frames_from(again, start):
                if (number := waiting.pop(frame.pts, None)) is not None:
                    yield number, frame
                if not waiting:
                    return

    def frames_from(
        self, video: OpenVideo, start: int, needed: Collection[int | None] | None = None
    ) -> Iterator[av.VideoFrame]:
        """Decodes from a keyframe on.

        Args:
            video: the file; not read before, if `start` is 0.
            start: number of the keyframe.
            needed: times of the frames that are needed; others may be passed over if no frame
                refers to them. None: all are needed.

        Raises:
            av.error.FFmpegError: damage.
        """
        if start:  # not all containers find their way back to the front
            video.container.seek(self.times[start], stream=video.stream)
        if not _has_avc_units(video.stream):
            needed = None
        for packet in video.container.demux(video.stream):
            if needed is None or packet.pts in needed or not _is_disposable(packet):
                yield from video.stream.codec_context.decode(packet)


def _has_avc_units(stream: av.VideoStream) -> bool:
    """Whether packets are H.264 units, each behind its length in four bytes, as in MP4."""
    extra = stream.codec_context.extradata or b""
    return stream.codec_context.name == "h264" and extra[:1] == b"\1" and extra[4] & 3 == 3


def _is_disposable(packet: av.Packet) -> bool:
    """Whether an H.264 picture is one that no other refers to (its nal_ref_idc is 0)."""
    data, place = memoryview(packet), 0
    while place + 4 < len(data):
        header = data[place + 4]
        if header & 31 in _H264_SLICES:
            return header >> 5 & 3 == 0
        place += 4 + int.from_bytes(data[place : place + 4], "big")
    return False


class _Orientation(NamedTuple):
    """How a decoded frame becomes what is shown: first transposed, then flipped."""

    transposed: bool = False
    up_down: bool = False
    left_right: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Self:
        """Returns what the frame's display matrix says, to the nearest quarter turn."""
        try:
            data = frame.side_data.get("DISPLAYMATRIX")
        except ValueError:  # it has data of a kind that PyAV does not know, such as EXIF
            turns = round(frame.rotation / 90) % 4  # counterclockwise, and all that can be had
            return cls(turns % 2 == 1, turns in (1, 2), turns in (2, 3))
        if not isinstance(data, SideData):
            return cls()
        # The row vector (x, y) becomes (a x + c y, b x + d y).
        a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(True, up_down=b < 0, left_right=c < 0)
        return cls(False, up_down=d < 0, left_right=a < 0)


def shown_size(frame: av.VideoFrame) -> tuple[int, int]:
    """Returns (height, width) of a frame, turned as its metadata says."""
    lies = _Orientation.of(frame).transposed
    return (frame.width, frame.height) if lies else (frame.height, frame.width)


class Upright:
    """Turns and mirrors decoded frames as their metadata says; makes them smaller, never larger.

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
        """Returns the pixels of one frame, RGB."""
        lies, up_down, left_right = _Orientation.of(frame)  # lies: height and width exchanged
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
        pixels = small.to_ndarray().swapaxes(0, 1) if lies else small.to_ndarray()
        rows, columns = slice(None, None, 1 - 2 * up_down), slice(None, None, 1 - 2 * left_right)
        return np.ascontiguousarray(pixels[rows, columns])

    def _shrink(self, height: int, width: int) -> tuple[int, int]:
        scale = min(1.0, self._short_side / min(height, width)) if self._short_side else 1.0
        units = (max(1, round(side * scale / self._multiple)) for side in (height, width))
        rows, columns = (unit * self._multiple for unit in units)
        return rows, columns
