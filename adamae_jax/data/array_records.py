"""ArrayRecord shards, as the array_record package reads them.

Records lie there in chunks, compressed or not, that have checksums of their own, which the package
checks: they are read whole. Files must be local.
"""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from adamae_jax.data import storage
from adamae_jax.data.damage import BadRecordError, Damage
from adamae_jax.data.payload import HeldPayload, Payload
from adamae_jax.data.tfrecord import COPY_AGAIN, LOCAL_SCANS, SEE_TO_STORAGE
from adamae_jax.errors import UserError

# For random access: nothing is read ahead, and by no threads of its own.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER_BYTES = 1 << 15
_READ_BYTES = 1 << 22
CUT_OFF = "damaged or cut off at its end, where its index is"


class ArrayRecordReader:
    """Reads records by number, from any number of threads; can be pickled."""

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
        self._files: storage.OpenFiles[Any] = storage.OpenFiles(self._paths, open_reader)
        with ThreadPoolExecutor(LOCAL_SCANS) as pool:
            list(pool.map(_check, self._paths, counts))

    def __len__(self) -> int:
        """Returns the number of records."""
        return int(self._first[-1])

    def place(self, record: int) -> tuple[str, int]:
        """Returns the file that holds a record, and the record's number in it."""
        shard = self._shard_of(record)
        return self._paths[shard], record - int(self._first[shard])

    def payload(self, record: int) -> Payload:
        """Returns one record, read whole.

        Raises:
            BadRecordError: it is damaged.
            OSError: reading failed again and again (a passing failure is retried for seconds).
        """
        shard = self._shard_of(record)
        path, number = self.place(record)

        def read() -> bytes:
            return read_record(self._files[shard], path, number)

        try:
            return HeldPayload(storage.retried(read, path))
        except BadRecordError:  # the package says the same of a handle that went stale
            self._files.forget(shard)
            return HeldPayload(storage.retried(read, path))

    def _shard_of(self, record: int) -> int:
        return int(np.searchsorted(self._first, record, side="right")) - 1


def open_reader(path: str) -> Any:
    """Opens a file for random access; raises `OSError` where it cannot be opened."""
    with open(path, "rb"):  # the package does not say why it could not open a file
        pass
    return package().ArrayRecordReader(
        path, options=_READER_OPTIONS, file_reader_buffer_size=_BUFFER_BYTES
    )


def read_record(reader: Any, path: str, number: int) -> bytes:
    """Returns one record of an open file.

    Raises:
        BadRecordError: it is damaged.
        OSError: the storage fails.
    """
    try:
        payload = bytes(reader.read([number])[0])
    except RuntimeError as error:  # which the package raises for everything
        with open(path, "rb") as file:  # if the storage fails, this says so
            while file.read(_READ_BYTES):
                pass
        raise BadRecordError(f"array_record cannot read it ({error})", Damage.CHECKSUM) from error
    if not payload:  # what the package makes of a file that has become shorter
        raise BadRecordError("the shard ends before the record", Damage.CUT_OFF)
    return payload


def _check(path: str, count: int) -> None:
    if storage.is_remote(path):
        raise UserError(
            f"{path} is an ArrayRecord file, of which only local ones are read: copy the dataset "
            "to a disk, or prepare it as TFRecord"
        )
    try:
        reader = storage.retried(functools.partial(open_reader, path), path)
    except OSError as error:
        remedy = COPY_AGAIN if isinstance(error, FileNotFoundError) else SEE_TO_STORAGE
        raise UserError(f"shard {path} cannot be opened ({error.strerror}): {remedy}") from error
    if not reader.ok():
        raise UserError(f"shard {path} is {CUT_OFF}: {COPY_AGAIN}")
    if reader.num_records() != count:
        raise UserError(
            f"shard {path} holds {reader.num_records()} records, but dataset_info.json says "
            f"{count}: {COPY_AGAIN}"
        )


def package() -> Any:
    """Imports the package that reads and writes the format."""
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
