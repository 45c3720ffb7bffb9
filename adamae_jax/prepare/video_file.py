"""One video file of a source, whatever FFmpeg reads, frame by frame up to its first damage."""

import io
import os
import re
from collections.abc import Iterator
from fractions import Fraction

import av
import av.error
import numpy as np

from adamae_jax.data import storage
from adamae_jax.data.video_file import OpenVideo, UnreadableVideoError, reason

# A file whose header announces more is called damaged if less than this share of it is there. (Not
# all of it: edit lists and dropped frames make honest headers say a little more than one sees.)
_WHOLE = 0.95
_RATES = (1, 240)  # frames per second; others, such as those of time stamps, are not believed
_AGREE = 0.03  # rates that differ by no more than this share are the same
_GIF_END = b";"
_TAIL_BYTES = 4096
_DURATION = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")


class _Reader:
    """A file that FFmpeg reads through this process.

    Left to itself it takes storage that fails for the end of the file, or for damage, and what it
    calls an input/output error is damage as a rule. A failure here looks like the end of the file
    to it as well, but is remembered.

    Attributes:
        name: by which it knows the file. The prefix keeps it from taking a colon for a protocol.
        failure: why the file cannot be read, again and again; None while it can.
        size: in bytes.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Opens the file; raises `OSError` where it cannot be opened, again and again."""
        self.name = f"file:{os.fspath(path)}"
        self.failure: OSError | None = None
        self.size = storage.file_sizes([os.path.abspath(path)])[0]
        self._path = os.path.abspath(path)
        self._file: storage.RangedFile | None = None
        self._place = 0
        self._read(0)

    def read(self, count: int) -> bytes:
        if self.failure is not None:  # else it would be tried for long, again and again
            return b""
        try:
            data = self._read(count)
        except OSError as error:
            self.failure = error
            return b""
        self._place += len(data)
        return data

    def _read(self, count: int) -> bytes:
        def attempt() -> bytes:
            file = self._file or storage.open_file(self._path)
            self._file = None  # a network's file that went stale must be opened again
            data = file.read(self._place, count)
            self._file = file
            return data

        return storage.retried(attempt, self._path)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence]
        self._place = max(0, start + offset)
        return self._place

    def tell(self) -> int:
        return self._place


class VideoFile(OpenVideo):
    """The video stream of a source file, opened to be decoded once; a context manager.

    Damage is what FFmpeg reports, a frame that it calls corrupt, and a file that holds fewer frames
    than its header says. A demuxer that skips lost data says nothing (AVI, Matroska): up to a
    twentieth of the frames may be missing without being noticed.

    Attributes:
        num_frames: how many have been decoded.
        damage: after the last frame, where and why the frames end before the video does; None for
            a whole video.
    """

    def __init__(self, file: str | os.PathLike[str] | bytes):
        """Opens a file by its path, or one that is held in memory.

        Raises:
            UnreadableVideoError: it cannot be opened, or has no video that can be decoded.
            OSError: the storage fails, which says nothing of the file.
            MemoryError: there is too little memory for it.
        """
        self._source = file if isinstance(file, bytes) else _opened(file)
        try:
            super().__init__(io.BytesIO(file) if isinstance(file, bytes) else self._source)
            self._check_reading()
        except UnreadableVideoError as error:
            self._check_reading(error.__cause__)
            raise
        self._header_rate = Fraction(self.stream.average_rate or self.stream.guessed_rate or 0)
        self.num_frames = 0
        self.damage: str | None = None
        self._intact = False
        self._shown: list[float] = []  # when frames are shown, in seconds, as far as is known
        self._beside_s = 0.0  # when the other streams, such as sound, end

    @property
    def rate(self) -> Fraction:
        """Frames per second; 0 where neither the header nor the frames' times can be believed.

        Where the two contradict each other, the times count: of the frames decoded so far.
        """
        gaps = np.diff(np.sort(self._shown))
        gaps = gaps[gaps > 0]
        # The second, where the times jump.
        timed = [float(1 / gaps.mean()), float(1 / np.median(gaps))] if gaps.size else []
        header = self._header_rate
        if not any(abs(rate - header) <= _AGREE * header for rate in timed):
            for rate in filter(is_believed, timed):
                return Fraction(rate).limit_denominator(1001)
        return header if is_believed(header) else Fraction(0)

    def frames(self) -> Iterator[av.VideoFrame]:
        """Frames in the order in which they are shown, up to the first damage.

        Raises:
            UnreadableVideoError: there is not a single one.
            OSError: the storage fails, which says nothing of the file.
            MemoryError: there is too little memory to go on.
        """
        try:
            for frame in self._decoded():
                # Before the first whole one: the video was cut out of another at any place.
                if frame.is_corrupt and self._intact:
                    self.damage = f"{self.place()}: the next frame is damaged"
                    break
                self._intact = self._intact or not frame.is_corrupt
                if frame.time is not None:
                    self._shown.append(frame.time)
                self.num_frames += 1
                yield frame
            self._check_reading()
            self.damage = self.damage or self._missing_frames()
        except av.error.FFmpegError as error:
            self._check_reading(error)
            if not self.num_frames:
                raise UnreadableVideoError(f"cannot be decoded: {reason(error)}") from error
            self.damage = f"{self.place()}: {reason(error)}"
        if not self.num_frames:
            raise UnreadableVideoError("holds no frame")

    def _decoded(self) -> Iterator[av.VideoFrame]:
        for packet in self.container.demux():
            if packet.stream.index == self.stream.index:
                yield from self.stream.decode(packet)
            elif packet.pts is not None and packet.time_base:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                self._beside_s = max(self._beside_s, end)

    def _is(self, container: str) -> bool:
        return container in self.container.format.name.split(",")

    def _check_reading(self, error: BaseException | None = None) -> None:
        """Raises an error where what FFmpeg has seen, or says, is not what the file holds."""
        if isinstance(error, av.error.MemoryError):
            raise error
        failure = self._source.failure if isinstance(self._source, _Reader) else None
        if failure and storage.is_outage(failure):
            raise failure
        if failure:
            raise UnreadableVideoError(f"cannot be read: {failure.strerror}") from failure

    def place(self) -> str:
        """Words on how much has been decoded."""
        seconds = f" ({float(self.num_frames / self.rate):.2f} s)" if self.rate else ""
        return f"after {self.num_frames} frames{seconds}"

    def _missing_frames(self) -> str | None:
        """What is wrong with a file that was read without an error, but holds less than it says."""
        if self._is("gif") and not self._tail().rstrip(b"\0\r\n ").endswith(_GIF_END):
            return f"{self.place()}: the file ends early"
        if self._is("mp4") and self._ends_in_fragment():
            return f"{self.place()}: the file ends early"
        own_duration, counted = self._duration_s(), self.stream.frames
        duration = own_duration or self._longest_s()
        if self._is("asf") and not duration:  # which FFmpeg believes of whole files only
            return f"{self.place()}: the file ends early"
        announced = counted or int(duration * self.rate)
        if self.num_frames >= _WHOLE * announced:
            return None
        if not own_duration and self._beside_s - self._start_s() >= _WHOLE * duration:
            return None  # sound that goes on
        # Where rates vary, a time says nothing of a number; and MP4 counts frames that its edit
        # list hides. Of AVI only the count is to be trusted: its duration shrinks with a cut file.
        timed = not counted or self._is("mp4")
        if timed and duration and self._shown_s() >= _WHOLE * duration:
            return None
        return f"only {self.num_frames} of the {announced} frames that its header announces"

    def _tail(self) -> bytes:
        """The last bytes of the file; after it has been read."""
        return self._bytes(max(0, self._size() - _TAIL_BYTES), _TAIL_BYTES)

    def _ends_in_fragment(self) -> bool:
        """Whether an MP4 file of fragments, of which no header says how many, ends in one."""
        place, fragmented = 0, False
        while place + 8 <= self._size():
            head = self._bytes(place, 16)
            size, kind = int.from_bytes(head[:4]), head[4:8]
            size = int.from_bytes(head[8:]) if size == 1 else size
            if size < 8:  # a box without an end, or no box
                return False
            place, fragmented = place + size, fragmented or kind == b"moof"
        return fragmented and place != self._size()

    def _size(self) -> int:
        return len(self._source) if isinstance(self._source, bytes) else self._source.size

    def _bytes(self, place: int, count: int) -> bytes:
        if isinstance(self._source, bytes):
            return self._source[place : place + count]
        self._source.seek(place)
        data = self._source.read(count)
        self._check_reading()
        return data

    def _duration_s(self) -> float:
        """How long the video is by its header; 0 where it does not say."""
        if self.stream.duration and self.stream.time_base:
            duration = float(self.stream.duration * self.stream.time_base)
            # Of fragments: when the last one ends, as against when the first one starts.
            late = self._is("mp4") and not self.stream.frames
            return duration - self._start_s() if late else duration
        for name, value in self.stream.metadata.items():
            # Matroska's, "01:23:45.678": when the stream ends, as against the longest of all.
            match = _DURATION.fullmatch(value) if name.upper().startswith("DURATION") else None
            if match:
                hours, minutes, seconds = map(float, match.groups())
                return 3600 * hours + 60 * minutes + seconds - self._start_s()
        return 0.0

    def _longest_s(self) -> float:
        """How long the longest stream is by the header; 0 where it does not say."""
        return (self.container.duration or 0) / av.time_base

    def _start_s(self) -> float:
        """When the first frame is shown."""
        return max(0.0, self._shown[0]) if self._shown else 0.0

    def _shown_s(self) -> float:
        """For how long the frames are shown; 0 where it is not known."""
        if not self._shown:
            return 0.0
        return self._shown[-1] - self._shown[0] + (float(1 / self.rate) if self.rate else 0.0)


def is_believed(rate: float | Fraction) -> bool:
    """Returns whether a rate is one of videos, in frames per second, rather than of time stamps."""
    return _RATES[0] <= rate <= _RATES[1]


def _opened(path: str | os.PathLike[str]) -> _Reader:
    try:
        return _Reader(path)
    except OSError as error:
        if storage.is_outage(error):
            raise
        raise UnreadableVideoError(f"cannot be opened: {error.strerror}") from error
