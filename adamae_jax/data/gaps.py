"""Holes in a video file that its demuxer steps over without a word."""

import av

CONTAINERS = ("matroska", "webm", "flv", "nut")
# Behind a hole the next frame comes as late as if so many had been left out,
_LATE_FRAMES = 3.5
# and in the file stands so large a share of the bytes that make up such a time, which no packet of
# any stream has. A picture that is shown for long leaves none.
_SHARE = 0.5
# What a container says anew every now and then.
_OVERHEAD_BYTES = 256


class Gaps:
    """Looks for holes between the packets of a video, given in the order of the file.

    Matroska, WebM, FLV and NUT (`CONTAINERS`) have no table of their frames that would tell: a
    demuxer that meets damage goes on at the next place which makes sense to it, which may be
    seconds later. Others either have one, or leave bytes unused where nothing is wrong.
    """

    def __init__(self, stream: int, file_bytes: int, duration_s: float):
        """Starts at the front of a file.

        Args:
            stream: index of that with the frames.
            file_bytes: size of the file.
            duration_s: of the video; 0 if it is not known, and then no holes are.
        """
        self._stream = stream
        self._bytes_per_s = file_bytes / duration_s if duration_s > 0 else 0.0
        self._first_s: float | None = None  # when frames are due to be decoded
        self._last_s = 0.0
        self._count = 0
        self._place = -1  # where the latest packet begins in the file, or what it is a part of
        self._stop = 0  # and ends
        self._skipped = 0  # the most bytes between two packets since the latest frame

    def before(self, packet: av.Packet) -> float:
        """Seconds of frames that are lost before this packet, of any stream; 0 if none are."""
        if packet.pos is not None and packet.pos == self._place:  # laced: one of several
            self._stop += packet.size
        elif packet.pos is not None:
            self._skipped = max(self._skipped, packet.pos - self._stop)
            self._place, self._stop = packet.pos, max(self._stop, packet.pos + packet.size)
        if packet.stream_index != self._stream or packet.dts is None or not packet.time_base:
            return 0.0
        time_s, lost = float(packet.dts * packet.time_base), 0.0
        if self._first_s is None or time_s < self._last_s:  # files that were joined start anew
            self._first_s, self._count = time_s, 0
        elif self._count > 1:
            usual = (self._last_s - self._first_s) / (self._count - 1)
            late, skipped = time_s - self._last_s, self._skipped - _OVERHEAD_BYTES
            if late > _LATE_FRAMES * usual > 0 and skipped > _SHARE * late * self._bytes_per_s > 0:
                lost = late - usual
        self._last_s, self._count, self._skipped = time_s, self._count + 1, 0
        return lost
