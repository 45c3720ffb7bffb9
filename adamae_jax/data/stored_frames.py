"""The encoded frames of a record, read when they are needed, and only those."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import SupportsIndex, overload

import google_crc32c
import numpy as np
from jaxtyping import Int64

from adamae_jax.data.header import Span, varint_lengths
from adamae_jax.data.payload import HeldPayload, Payload
from adamae_jax.data.tfrecord import BadRecordError


@dataclasses.dataclass(frozen=True)
class StoredFrames(Sequence[bytes]):
    """Byte strings by number, each read and checked when it is asked for.

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
        """The number of frames."""
        return len(self.sizes)

    @overload
    def __getitem__(self, number: SupportsIndex) -> bytes: ...

    @overload
    def __getitem__(self, number: slice) -> list[bytes]: ...

    def __getitem__(self, number: SupportsIndex | slice) -> bytes | list[bytes]:
        """One frame, or those of a slice; raises as `fetch` does."""
        if isinstance(number, slice):
            return self.fetch(range(len(self))[number])
        return self.fetch([number])[0]

    def __iter__(self) -> Iterator[bytes]:
        """All frames, read at once."""
        return iter(self.fetch(range(len(self))))

    def fetch(self, numbers: Iterable[SupportsIndex]) -> list[bytes]:
        """The frames of these numbers, in their order, with as few reads as pay.

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
                    raise BadRecordError(f"frame {number} does not match its checksum")
                found[number] = frame
        return [found[number] for number in wanted]

    def held(self) -> "StoredFrames":
        """The same frames, all of them in memory."""
        stop = int(self.starts[-1]) + self.sizes[-1]
        first = int(self.starts[0])
        held = HeldPayload(self.payload.read(first, stop - first))
        return dataclasses.replace(self, starts=self.starts - first, payload=held)

    def _runs(self, numbers: Sequence[int]) -> Iterator[list[int]]:
        """Sorted numbers in runs, each to be read at once with the little that lies between."""
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
    payload: Payload, span: Span, sizes: Sequence[int], checksums: Sequence[int]
) -> StoredFrames:
    """The frames that a record's header describes.

    Args:
        payload: of the record.
        span: where in it the frames lie, as `adamae_jax.data.header.read_header` finds it.
        sizes: of each frame, in bytes.
        checksums: of each frame.

    Raises:
        BadRecordError: they cannot lie there.
    """
    if len(sizes) != len(checksums):
        raise BadRecordError(f"it has {len(sizes)} frame sizes and {len(checksums)} checksums")
    if sizes and not 0 <= min(sizes) <= max(sizes) <= payload.size:
        raise BadRecordError(f"its frames claim sizes from {min(sizes)} to {max(sizes)} bytes")
    counts = np.array(sizes, np.int64)
    # Before each value stand its tag, one byte, and its size.
    ends = span.start + np.cumsum(1 + varint_lengths(counts) + counts)
    if (int(ends[-1]) if len(ends) else span.start) != span.stop:
        raise BadRecordError(f"its {len(sizes)} frames do not fill the place that they have")
    return StoredFrames(tuple(sizes), tuple(checksums), ends - counts, payload)
