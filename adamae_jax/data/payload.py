"""One record's bytes, of which a reader takes as many as it needs, and what it finds there.

A ``tf.train.Example`` is a protocol buffer: a message ``Features`` that maps names to values, each
entry behind its length. Walking from entry to entry takes a few bytes of each, so that the frames,
nearly all of a record, are passed over. The record's own checksum covers every byte and is of no
use then: the other features have one of their own, and so has each frame.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, SupportsIndex, overload

import google_crc32c
import numpy as np
from google.protobuf.message import DecodeError
from jaxtyping import Int64
from tensorflow_datasets.proto import tf_feature_pb2

from adamae_jax.data import schema
from adamae_jax.data.damage import BadRecordError, Damage

NO_EXAMPLE = "it is no tf.train.Example"
BLOCK = 1 << 14  # bytes asked for at a time: the header of a video of some 2,000 frames
# Field numbers and the mark of what has a length, in one byte each. Features are field 1 of the
# example, entries of the features, and so on: nearly everything here is the first field.
_FIRST, _SECOND = 0x0A, 0x12
_VARINT_BYTES = 10  # at most


class Payload(Protocol):
    """The bytes of one record."""

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    @property
    def gap(self) -> int:
        """How many unwanted bytes are cheaper to read than to make another read for."""
        ...

    def read(self, start: int, count: int) -> bytes:
        """Returns ``count`` bytes from ``start`` on, unchecked.

        Raises:
            BadRecordError: the record does not have them.
            OSError: the storage keeps failing.
        """
        ...

    def whole(self) -> bytes:
        """Returns all bytes, checked against whatever checksums the file format has.

        Raises:
            BadRecordError: the record is damaged.
            OSError: the storage keeps failing.
        """
        ...


@dataclasses.dataclass(frozen=True)
class HeldPayload:
    """Bytes in memory; see `Payload`."""

    data: bytes
    gap: int = dataclasses.field(default=0, init=False)

    @property
    def size(self) -> int:
        """See `Payload`."""
        return len(self.data)

    def read(self, start: int, count: int) -> bytes:
        """See `Payload`."""
        if not 0 <= start <= start + count <= len(self.data):
            raise BadRecordError(f"it ends before byte {start + count}")
        return self.data[start : start + count]

    def whole(self) -> bytes:
        """See `Payload`."""
        return self.data


class Span(NamedTuple):
    """Bytes of a payload, from ``start`` to before ``stop``."""

    start: int
    stop: int


def read_header(payload: Payload) -> tuple[Mapping[str, Any], Span | None]:
    """Reads all features of a record but its frames, and checks them.

    Args:
        payload: of the record; best if the frames are its last feature.

    Returns:
        Messages ``tf.train.Feature`` by name, and where the frames lie, each behind its tag and
        length; None where there are none.

    Raises:
        BadRecordError: the payload is no ``tf.train.Example``, or is damaged.
        OSError: the storage keeps failing.
    """
    window = _Window(payload)
    small: list[bytes] = []
    frames: Span | None = None
    for entry in _entries(window):
        inside = window.field(entry.start, _FIRST, entry.stop)
        key = window.field(inside.start, _FIRST, inside.stop)
        if window[key] != schema.FRAMES.encode():
            small.append(window[entry])
        else:
            feature = window.field(key.stop, _SECOND, inside.stop)
            frames = window.field(feature.start, _FIRST, feature.stop)
    try:
        features = tf_feature_pb2.Features.FromString(b"".join(small)).feature
    except DecodeError as error:
        raise BadRecordError(NO_EXAMPLE) from error
    # The membership test first: asking a protobuf map for what it lacks adds it.
    found = schema.HEADER_CHECKSUM in features and features[schema.HEADER_CHECKSUM].int64_list.value
    if not found or list(found) != [header_checksum(features)]:
        raise BadRecordError("its features do not match their checksum", Damage.CHECKSUM)
    return features, frames


def header_checksum(features: Mapping[str, Any]) -> int:
    """Returns the CRC32C of messages ``tf.train.Feature`` by name, without frames and checksum.

    Of their deterministic serialisation: entries may lie in any order in a record.
    """
    header = tf_feature_pb2.Features()
    for name, feature in features.items():
        if name not in (schema.FRAMES, schema.HEADER_CHECKSUM):
            header.feature[name].CopyFrom(feature)
    return int(google_crc32c.value(header.SerializeToString(deterministic=True)))


def compose(small: bytes, frames: bytes) -> bytes:
    """Returns the ``tf.train.Example`` that has the entries of two serialised ``Features``."""
    length, size = b"", len(small) + len(frames)
    while size >= 128:
        length += bytes([size & 127 | 128])
        size >>= 7
    return b"".join((bytes([_FIRST]), length, bytes([size]), small, frames))


class _Window:
    """Bytes of a payload by place, read in blocks."""

    def __init__(self, payload: Payload):
        self.size = payload.size
        self._payload = payload
        self._start = 0
        self._data = b""

    def __getitem__(self, span: Span) -> bytes:
        start, stop = span
        if start < self._start or stop > self._start + len(self._data):
            count = min(max(stop - start, BLOCK), self.size - start)
            self._start, self._data = start, self._payload.read(start, count)
        return self._data[start - self._start : stop - self._start]

    def field(self, place: int, tag: int, stop: int) -> Span:
        """Returns what a field at ``place`` holds, if it has this tag and ends by ``stop``."""
        start, length = place + 1, 0
        head = self[Span(place, min(start + _VARINT_BYTES, stop))]
        for shift, byte in enumerate(head[1:]):
            start += 1
            length |= (byte & 127) << 7 * shift
            if byte < 128:
                break
        else:
            raise BadRecordError(NO_EXAMPLE)
        if head[0] != tag or start + length > stop:
            raise BadRecordError(NO_EXAMPLE)
        return Span(start, start + length)


def _entries(window: _Window) -> Iterator[Span]:
    """Yields the entries of the map, with tag and length."""
    features = window.field(0, _FIRST, window.size)
    place = features.start
    while place < features.stop:
        stop = window.field(place, _FIRST, features.stop).stop
        yield Span(place, stop)
        place = stop


@dataclasses.dataclass(frozen=True)
class StoredFrames(Sequence[bytes]):
    """The encoded frames of a record, each read and checked when it is asked for.

    `fetch` gets many with few reads; ``frames[number]`` is one read. Two are equal where sizes and
    checksums are. Any number of threads may use one.

    Attributes:
        sizes: bytes of each frame.
        checksums: CRC32C of each frame.
        starts: where in the payload each begins.
        payload: of the record.
    """

    sizes: tuple[int, ...]
    checksums: tuple[int, ...]
    starts: Int64[np.ndarray, "n"] = dataclasses.field(compare=False, repr=False)
    payload: Payload = dataclasses.field(compare=False, repr=False)

    def __len__(self) -> int:
        """Returns the number of frames."""
        return len(self.sizes)

    @overload
    def __getitem__(self, number: SupportsIndex) -> bytes: ...

    @overload
    def __getitem__(self, number: slice) -> list[bytes]: ...

    def __getitem__(self, number: SupportsIndex | slice) -> bytes | list[bytes]:
        """Returns one frame, or those of a slice; raises as `fetch` does."""
        if isinstance(number, slice):
            return self.fetch(range(len(self))[number])
        return self.fetch([number])[0]

    def __iter__(self) -> Iterator[bytes]:
        """All frames, read at once."""
        return iter(self.fetch(range(len(self))))

    def fetch(self, numbers: Iterable[SupportsIndex]) -> list[bytes]:
        """Returns the frames of these numbers, in their order, with as few reads as pay.

        Raises:
            IndexError: there is no such frame.
            BadRecordError: one of them is damaged.
            OSError: the storage keeps failing.
        """
        places = range(len(self))
        wanted = [places[number] for number in numbers]
        found: dict[int, bytes] = {}
        for run in self._runs(sorted(set(wanted))):
            start = int(self.starts[run[0]])
            data = self.payload.read(start, int(self.starts[run[-1]]) + self.sizes[run[-1]] - start)
            for number in run:
                place = int(self.starts[number]) - start
                frame = data[place : place + self.sizes[number]]
                if google_crc32c.value(frame) != self.checksums[number]:
                    raise BadRecordError(
                        f"frame {number} does not match its checksum", Damage.CHECKSUM
                    )
                found[number] = frame
        return [found[number] for number in wanted]

    def held(self) -> "StoredFrames":
        """Returns the same frames, all of them in memory."""
        stop = int(self.starts[-1]) + self.sizes[-1]
        first = int(self.starts[0])
        held = HeldPayload(self.payload.read(first, stop - first))
        return dataclasses.replace(self, starts=self.starts - first, payload=held)

    def _runs(self, numbers: Sequence[int]) -> Iterator[list[int]]:
        """Yields sorted numbers in runs, each to be read at once with what lies between."""
        run: list[int] = []
        for number in numbers:
            if run and self.starts[number] - self.starts[run[-1]] > (
                self.sizes[run[-1]] + self.payload.gap
            ):
                yield run
                run = []
            run.append(number)
        if run:
            yield run


def locate(
    payload: Payload, span: Span | None, sizes: Sequence[int], checksums: Sequence[int]
) -> StoredFrames:
    """Returns the frames that a record's header describes.

    Args:
        payload: of the record.
        span: where in it the frames lie, as `read_header` finds it.
        sizes: of each frame, in bytes.
        checksums: of each frame.

    Raises:
        BadRecordError: they cannot lie there.
    """
    start, stop = span or (0, 0)
    counts = np.array(sizes, np.int64)
    # Before each value stand its tag, one byte, and its size, in groups of seven bits.
    lengths = 1 + np.sum([counts >> bits > 0 for bits in (7, 14, 21, 28)], axis=0)
    ends = start + np.cumsum(1 + lengths + counts)
    if len(sizes) != len(checksums) or (int(ends[-1]) if len(ends) else start) != stop:
        raise BadRecordError(f"its {len(sizes)} frames do not fill the place that they have")
    return StoredFrames(tuple(sizes), tuple(checksums), ends - counts, payload)
