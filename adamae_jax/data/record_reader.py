"""Single records of TFRecord shards, whole and checked, or in part."""

import dataclasses

from adamae_jax.data import storage
from adamae_jax.data.open_files import OpenFiles
from adamae_jax.data.payload import Payload
from adamae_jax.data.storage import RangedFile
from adamae_jax.data.tfrecord import CHECKSUM_BYTES, BadRecordError, ShardIndex, masked_checksum


class RecordReader:
    """Reads records by number, from any number of threads; survives pickling and forking."""

    def __init__(self, index: ShardIndex):
        """Opens nothing yet."""
        self.index = index
        self._files: OpenFiles[RangedFile] = OpenFiles(index.paths, storage.open_file)

    def __len__(self) -> int:
        """Number of records."""
        return len(self.index)

    def place(self, record: int) -> tuple[str, int]:
        """The file that holds a record, and the record's number in it."""
        shard = self.index.shard_of(record)
        return self.index.paths[shard], record - int(self.index.first[shard])

    def payload(self, record: int) -> Payload:
        """One record, of which nothing is read yet."""
        return _StoredPayload(self, record, int(self.index.lengths[record]))

    def read(self, record: int, start: int, count: int) -> bytes:
        """``count`` bytes from byte ``start`` of a record's payload on.

        Raises:
            BadRecordError: the shard has become shorter.
            OSError: reading failed again and again (a passing failure is retried for seconds).
        """
        shard = self.index.shard_of(record)
        offset = int(self.index.offsets[record]) + start
        data = storage.retried(
            lambda: self._files[shard].read(offset, count),
            self.index.paths[shard],
            lambda: self._files.forget(shard),
        )
        if len(data) < count:
            raise BadRecordError("the shard ends inside the record")
        return data


@dataclasses.dataclass(frozen=True)
class _StoredPayload:
    """See `Payload`."""

    reader: RecordReader
    record: int
    size: int

    @property
    def gap(self) -> int:
        return storage.gap(self.reader.place(self.record)[0])

    def read(self, start: int, count: int) -> bytes:
        if not 0 <= start <= start + count <= self.size:
            raise BadRecordError(f"it ends before byte {start + count}")
        return self.reader.read(self.record, start, count)

    def whole(self) -> bytes:
        data = self.reader.read(self.record, 0, self.size + CHECKSUM_BYTES)
        payload = data[: self.size]
        if int.from_bytes(data[self.size :], "little") != masked_checksum(payload):
            raise BadRecordError("its checksum does not match its content")
        return payload
