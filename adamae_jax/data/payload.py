"""One record's bytes, wherever they are: a reader takes as many of them as it needs."""

import dataclasses
from typing import Protocol

from adamae_jax.data.tfrecord import BadRecordError


class Payload(Protocol):
    """The bytes of one record."""

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    @property
    def gap(self) -> int:
        """As many bytes can be read in about the time that one more read takes."""
        ...

    def read(self, start: int, count: int) -> bytes:
        """``count`` bytes from ``start`` on, which nothing proves yet.

        Raises:
            BadRecordError: the record does not have them.
            OSError: the storage keeps failing.
        """
        ...

    def whole(self) -> bytes:
        """All of them, after whatever checks the file format knows.

        Raises:
            BadRecordError: the record is damaged.
            OSError: the storage keeps failing.
        """
        ...


@dataclasses.dataclass(frozen=True)
class HeldPayload:
    """Bytes in memory.

    Attributes:
        data: all of them.
    """

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
