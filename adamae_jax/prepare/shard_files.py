"""Files of records, written and read from front to back: TFRecord and ArrayRecord."""

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from adamae_jax.data import array_records
from adamae_jax.data.damage import BadRecordError
from adamae_jax.data.schema import ARRAY_RECORD, TFRECORD
from adamae_jax.data.tfrecord import CHECKSUM_BYTES, HEADER_BYTES, LENGTH_BYTES, masked_checksum

# Each record for itself, as TFDS has it. What is in them is compressed already: to try that once
# more only makes writing three times slower.
_ARRAY_RECORD_OPTIONS = "group_size:1,uncompressed"


class RecordWriter(Protocol):
    """Appends records to one new file."""

    def write(self, payload: bytes) -> None:
        """Appends a record.

        Raises:
            OSError: the disk is full, for instance.
        """
        ...

    def close(self) -> None:
        """Completes the file and brings it to the disk; raises as `write` does."""
        ...

    def abandon(self) -> None:
        """Closes the file as it is."""
        ...


class TFRecordWriter:
    """Length, its checksum, payload, its checksum; see `adamae_jax.data.tfrecord`."""

    def __init__(self, path: Path):
        """Opens a new file."""
        # Without a buffer, which would be left over when the disk is full.
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 (close and abandon close it)

    def write(self, payload: bytes) -> None:
        """See `RecordWriter`."""
        length = struct.pack("<Q", len(payload))
        header = length + struct.pack("<I", masked_checksum(length))
        record = memoryview(header + payload + struct.pack("<I", masked_checksum(payload)))
        while record:
            record = record[self._file.write(record) :]

    def close(self) -> None:
        """See `RecordWriter`."""
        with self._file as file:
            os.fsync(file.fileno())

    def abandon(self) -> None:
        """See `RecordWriter`."""
        self._file.close()


class ArrayRecordWriter:
    """See `RecordWriter`."""

    def __init__(self, path: Path):
        """Opens a new file."""
        self._path = path
        self._writer = array_records.package().ArrayRecordWriter(
            os.fspath(path), _ARRAY_RECORD_OPTIONS
        )

    def write(self, payload: bytes) -> None:
        """See `RecordWriter`."""
        try:
            self._writer.write(payload)
        except RuntimeError as error:
            raise _os_error(error, os.fspath(self._path)) from error

    def close(self) -> None:
        """See `RecordWriter`."""
        try:
            self._writer.close()
        except RuntimeError as error:
            raise _os_error(error, os.fspath(self._path)) from error
        with open(self._path, "rb") as file:
            os.fsync(file.fileno())

    def abandon(self) -> None:
        """See `RecordWriter`."""
        with contextlib.suppress(RuntimeError):
            self._writer.close()


def _os_error(error: RuntimeError, path: str) -> OSError:
    """With the number of what the kernel has said, so that a full disk is known for one."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    found = [number for number in numbers if os.strerror(number) in str(error)]
    return OSError(found[0] if found else errno.EIO, str(error), path)


WRITERS: dict[str, Callable[[Path], RecordWriter]] = {
    TFRECORD: TFRecordWriter,
    ARRAY_RECORD: ArrayRecordWriter,
}


def records(path: Path, file_format: str) -> Iterator[bytes | BadRecordError]:
    """All records of a file in their order, every checksum checked, and what stands for damage.

    Args:
        path: of the file.
        file_format: one of `schema.FILE_FORMATS`.

    Yields:
        The payload of each record, or why it cannot be had. Nothing comes after a damaged length in
        a TFRecord file, and nothing else from an ArrayRecord file whose index is damaged.

    Raises:
        OSError: the file cannot be read.
    """
    read = _tfrecord_records if file_format == TFRECORD else _array_records
    return read(path)


def _tfrecord_records(path: Path) -> Iterator[bytes | BadRecordError]:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while header := file.read(HEADER_BYTES):
            length = int.from_bytes(header[:LENGTH_BYTES], "little")
            checksum = int.from_bytes(header[LENGTH_BYTES:], "little")
            if len(header) < HEADER_BYTES or checksum != masked_checksum(header[:LENGTH_BYTES]):
                yield BadRecordError("its length is damaged, so that what follows is lost")
                return
            if file.tell() + length + CHECKSUM_BYTES > size:
                yield BadRecordError("the shard ends inside it")
                return
            payload = file.read(length)
            sound = int.from_bytes(file.read(CHECKSUM_BYTES), "little") == masked_checksum(payload)
            yield payload if sound else BadRecordError("its checksum does not match its content")


def _array_records(path: Path) -> Iterator[bytes | BadRecordError]:
    reader = array_records.open_reader(os.fspath(path))
    if not reader.ok():
        yield BadRecordError(array_records.CUT_OFF)
        return
    for number in range(reader.num_records()):
        try:
            yield array_records.read_record(reader, os.fspath(path), number)
        except BadRecordError as error:
            yield error
