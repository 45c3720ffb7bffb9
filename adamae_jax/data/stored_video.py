"""A video file inside a record: any of its frames, by number, without decoding all before it.

Frame numbers count what decoding from the front shows. A record says when each frame is shown and
at which frames decoding may start, so that a frame is found by its time, whatever the frame rate
does and in whatever order frames are stored.
"""

import bisect
import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Sequence

import av
import av.error
import google_crc32c
import numpy as np
from jaxtyping import Int64, UInt8

from adamae_jax.data.tfrecord import BadRecordError
from adamae_jax.data.video_file import MAX_PIXELS, UnreadableVideoError, Upright, VideoFile

# Seeking costs about as much as decoding this many frames.
_SEEK_FRAMES = 8
_H264_SLICES = (1, 5)  # types of the units that hold pictures: of other frames, of key frames


@dataclasses.dataclass(frozen=True)
class StoredVideo:
    """The bytes of a video file, with what is known of its frames; its length is their number.

    Attributes:
        data: the file.
        num_frames: that can be had from it.
        times: when each frame is shown, in ticks of the stream, rising; empty where the file does
            not say, so that decoding must start at the front.
        keyframes: sorted numbers of frames at which decoding may start.
    """

    data: bytes
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
            with VideoFile(self.data) as video:
                for number, frame in self._needed(video, needed):
                    yield number, upright(frame)
                    found += 1
        except (UnreadableVideoError, av.error.FFmpegError) as error:
            raise BadRecordError(f"its video is damaged ({error})") from error
        if found < len(needed):
            raise BadRecordError(f"its video shows only {found} of the frames {needed}")

    def _needed(
        self, video: VideoFile, needed: Sequence[int]
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """The frames of these sorted numbers, in order."""
        if not self.times:
            numbers = set(needed)
            for number, frame in enumerate(video.frames()):
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
        self, video: VideoFile, start: int, run: Sequence[int]
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
        with VideoFile(self.data) as again:
            for frame in self.frames_from(again, start):
                if (number := waiting.pop(frame.pts, None)) is not None:
                    yield number, frame
                if not waiting:
                    return

    def frames_from(
        self, video: VideoFile, start: int, needed: Collection[int | None] | None = None
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


def digest(frame: av.VideoFrame) -> int:
    """A checksum of a frame's pixels, in whatever format they are."""
    try:
        pixels = frame.to_ndarray()
    except ValueError:  # PyAV does not know all formats
        pixels = frame.to_ndarray(format="rgb24")
    return int(google_crc32c.value(pixels.tobytes()))


def exact_keyframes(stored: StoredVideo, digests: Sequence[int]) -> tuple[int, ...]:
    """Those keyframes from which decoding gives the same frames as from the front.

    Not all do: a recovery point may repair the picture little by little, an open group refer to
    what is before it, and a container's index may be wrong.

    Args:
        stored: with all keyframes.
        digests: of every frame, decoded from the front.
    """
    exact = []
    with VideoFile(stored.data) as video:
        for place, start in enumerate(stored.keyframes):
            stop = [*stored.keyframes, stored.num_frames][place + 1]
            expected = dict(zip(stored.times[start:stop], digests[start:stop], strict=True))
            if start == 0 or _gives(stored, video, start, expected):
                exact.append(start)
    return tuple(exact)


def _gives(stored: StoredVideo, video: VideoFile, start: int, expected: dict[int, int]) -> bool:
    """Whether decoding from a keyframe shows the frames of these times, with these digests."""
    missing = dict(expected)
    try:
        for frame in stored.frames_from(video, start):
            if frame.pts in missing and missing.pop(frame.pts) != digest(frame):
                return False
            if not missing:
                return True
    except av.error.FFmpegError:
        return False
    return False
