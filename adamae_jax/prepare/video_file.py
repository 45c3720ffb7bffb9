"""One video file of a source, whatever FFmpeg reads, frame by frame up to its first damage."""

import io
import os
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

    Damage is what FFmpeg reports, a frame that it calls corrupt, and a file that holds clearly
    fewer frames than its header says, where it says so.

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
            for frame in self.container.decode(self.stream):
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
        stream, start = self.stream, max(0.0, self._shown[0]) if self._shown else 0.0
        duration = 0.0
        if stream.duration and stream.time_base:
            duration = float(stream.duration * stream.time_base) - start
        elif len(self.container.streams) == 1:  # else it may be that of the sound
            duration = (self.container.duration or 0) / av.time_base - start
        announced = stream.frames or int(duration * self.rate)
        if self.num_frames >= _WHOLE * announced:
            return None
        # Where rates vary, a time says nothing of a number; and MP4 counts frames that its edit
        # list hides.
        shown = self._shown[-1] - self._shown[0] if self._shown else 0.0
        if duration and shown + (float(1 / self.rate) if self.rate else 0.0) >= _WHOLE * duration:
            return None
        return f"only {self.num_frames} of the {announced} frames that its header announces"


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
