"""ArrayRecord files, as the array_record package writes and reads them.

Records lie there in chunks, compressed or not, that have checksums of their own, which the package
checks: they are read whole. Files must be local.
"""

import contextlib
import errno
import functools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from adamae_jax.data import storage
from adamae_jax.data.open_files import OpenFiles
from adamae_jax.data.payload import HeldPayload, Payload
from adamae_jax.data.tfrecord import COPY_AGAIN, LOCAL_SCANS, SEE_TO_STORAGE, BadRecordError
from adamae_jax.errors import UserError

# Each record for itself, as TFDS has it. What is in them is compressed already: to try that once
# more only makes writing three times slower.
_WRITER_OPTIONS = "group_size:1,uncompressed"
# For random access: nothing is read ahead, and by no threads of its own.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER_BYTES = 1 << 15
# The package raises RuntimeError for everything; where the kernel has refused something, it says so
# by the name of the call: "pread() failed: Input/output error".
_CALL_FAILED = "() failed: "
_CUT_OFF = "damaged or cut off at its end, where its index is"


class ArrayRecordReader:
    """Reads records by number, from any number of threads; survives pickling and forking."""

    def __init__(self, paths: Sequence[str], counts: Sequence[int]):
        """Opens every shard once.

        Args:
            paths: the shards.
            counts: how many records each should hold.

        Raises:
            UserError: a shard is remote, missing, damaged or holds another number of records.
        """
        self._paths = tuple(paths)
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._files: OpenFiles[Any] = OpenFiles(self._paths, _open)
        with ThreadPoolExecutor(LOCAL_SCANS) as pool:
            list(pool.map(_check, self._paths, counts))

    def __len__(self) -> int:
        """Number of records."""
        return int(self._first[-1])

    def place(self, record: int) -> tuple[str, int]:
        """The file that holds a record, and the record's number in it."""
        shard = self._shard_of(record)
        return self._paths[shard], record - int(self._first[shard])

    def payload(self, record: int) -> Payload:
        """One record, read whole.

        Raises:
            BadRecordError: it is damaged.
            OSError: reading failed again and again (a passing failure is retried for seconds).
        """
        shard = self._shard_of(record)
        path, number = self.place(record)
        data = storage.retried(
            lambda: _read(self._files[shard], path, number),
            path,
            lambda: self._files.forget(shard),
        )
        return HeldPayload(data)

    def _shard_of(self, record: int) -> int:
        return int(np.searchsorted(self._first, record, side="right")) - 1


class ArrayRecordWriter:
    """A `adamae_jax.data.shard_files.RecordWriter` of one file."""

    def __init__(self, path: Path):
        """Opens a new file."""
        self._path = path
        self._writer = _package().ArrayRecordWriter(os.fspath(path), _WRITER_OPTIONS)

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


def records(path: Path) -> Iterator[bytes | BadRecordError]:
    """All records of a file in their order, or why they cannot be had.

    Raises:
        OSError: the file cannot be read.
    """
    reader = _open(os.fspath(path))
    if not reader.ok():
        yield BadRecordError(_CUT_OFF)
        return
    for number in range(reader.num_records()):
        try:
            yield _read(reader, os.fspath(path), number)
        except BadRecordError as error:
            yield error


def _open(path: str) -> Any:
    with open(path, "rb"):  # the package does not say why it could not open a file
        pass
    return _package().ArrayRecordReader(
        path, options=_READER_OPTIONS, file_reader_buffer_size=_BUFFER_BYTES
    )


def _read(reader: Any, path: str, number: int) -> bytes:
    try:
        payload = bytes(reader.read([number])[0])
    except RuntimeError as error:
        if _CALL_FAILED in str(error):
            raise _os_error(error, path) from error
        raise BadRecordError(f"array_record cannot read it ({error})") from error
    if not payload:  # what the package makes of a file that has become shorter
        raise BadRecordError("the shard ends before the record")
    return payload


def _os_error(error: RuntimeError, path: str) -> OSError:
    """With the number of what the kernel has said, so that a full disk is known for one."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    found = [number for number in numbers if os.strerror(number) in str(error)]
    return OSError(found[0] if found else errno.EIO, str(error), path)


def _check(path: str, count: int) -> None:
    if storage.is_remote(path):
        raise UserError(
            f"{path} is an ArrayRecord file, of which only local ones are read: copy the dataset "
            "to a disk, or prepare it as TFRecord"
        )
    try:
        reader = storage.retried(functools.partial(_open, path), path)
    except OSError as error:
        remedy = COPY_AGAIN if isinstance(error, FileNotFoundError) else SEE_TO_STORAGE
        raise UserError(f"shard {path} cannot be opened ({error.strerror}): {remedy}") from error
    if not reader.ok():
        raise UserError(f"shard {path} is {_CUT_OFF}: {COPY_AGAIN}")
    if reader.num_records() != count:
        raise UserError(
            f"shard {path} holds {reader.num_records()} records, but dataset_info.json says "
            f"{count}: {COPY_AGAIN}"
        )


def _package() -> Any:
    try:
        from array_record.python import (  # type: ignore[import-untyped,unused-ignore]
            array_record_module,
        )
    except ImportError as error:
        raise UserError(
            f"ArrayRecord files need a package that cannot be imported ({error}): pip install "
            "array_record, or prepare with --file_format=tfrecord"
        ) from error
    return array_record_module
