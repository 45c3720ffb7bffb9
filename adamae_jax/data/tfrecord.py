"""Random access to TFRecord shards: an index of where the records lie, and checked reads.

A TFRecord file is a chain of records: the payload's length (8 bytes, little endian), the masked
CRC32C of those 8 bytes, the payload, the masked CRC32C of the payload. The index follows the chain
once, checking every length against its checksum and the file's size, so that a damaged length
field can neither lead astray nor make anybody allocate what it says; it is kept beside the shards.
"""

import contextlib
import dataclasses
import json
import os
import struct
import tempfile
import threading
import time
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from absl import logging
from jaxtyping import Int32, Int64

from adamae_jax.errors import UserError

LENGTH_BYTES = 8
CHECKSUM_BYTES = 4
HEADER_BYTES = LENGTH_BYTES + CHECKSUM_BYTES
INDEX_VERSION = 1
MAX_OPEN_SHARDS = 128  # well below the usual limit of 1,024 open files
RETRY_DELAYS_S = (0.1, 0.5, 2.0, 5.0)


class BadRecordError(UserError):
    """One record cannot be used: checksum, structure or image data are damaged."""


def masked_checksum(data: bytes) -> int:
    """The masked CRC32C that TFRecord files store (rotated right by 15 bits, plus a constant)."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """Where the payload of every record lies; records are numbered through all shards.

    Attributes:
        paths: the shards, in order.
        first: number of the first record of each shard, and, last, the number of records.
        offsets: byte offset of each payload in its shard.
        lengths: bytes of each payload.
    """

    paths: tuple[str, ...]
    first: Int64[np.ndarray, "shards_plus_1"]
    offsets: Int64[np.ndarray, "records"]
    lengths: Int32[np.ndarray, "records"]

    def __len__(self) -> int:
        """Number of records."""
        return len(self.offsets)

    def shard_of(self, record: int) -> int:
        """The number of the shard that holds ``record``."""
        return int(np.searchsorted(self.first, record, side="right")) - 1


def load_index(paths: Sequence[Path], counts: Sequence[int], cache: Path) -> ShardIndex:
    """Reads the index from ``cache`` if it fits the shards, else builds it and tries to keep it.

    Args:
        paths: the shards.
        counts: how many records each shard should hold.
        cache: file to keep the index in. It is replaced in one step, so that several processes
            may do this at once; where it cannot be written the index lives in memory only.

    Raises:
        UserError: a shard is missing, is damaged between records, or holds another number of
            records than it should.
    """
    signature = _signature(paths)
    index = _read_cache(cache, signature, paths)
    if index is None:
        index = _build_index(paths)
        _write_cache(cache, signature, index)
    for path, found, expected in zip(paths, np.diff(index.first), counts, strict=True):
        if found != expected:
            raise UserError(
                f"shard {path} holds {found} records, but dataset_info.json says {expected}: "
                "copy the dataset again, or rebuild it with python -m adamae_jax.prepare"
            )
    return index


def _signature(paths: Sequence[Path]) -> str:
    """What the cached index belongs to: format, names, sizes and modification times."""
    shards = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(
                f"shard {path} cannot be opened ({error.strerror}): copy the dataset again, "
                "or rebuild it with python -m adamae_jax.prepare"
            ) from error
        shards.append([path.name, status.st_size, status.st_mtime_ns])
    return json.dumps([INDEX_VERSION, shards])


def _read_cache(cache: Path, signature: str, paths: Sequence[Path]) -> ShardIndex | None:
    try:
        with np.load(cache, allow_pickle=False) as stored:
            if str(stored["signature"]) != signature:
                return None
            arrays = {name: stored[name] for name in ("first", "offsets", "lengths")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return ShardIndex(tuple(map(str, paths)), **arrays)


def _write_cache(cache: Path, signature: str, index: ShardIndex) -> None:
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=cache.parent, prefix=f"{cache.name}.")
        with os.fdopen(descriptor, "wb") as file:
            np.savez(
                file,
                signature=np.array(signature),
                first=index.first,
                offsets=index.offsets,
                lengths=index.lengths,
            )
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide it from other users of the data
        os.replace(temporary, cache)
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _build_index(paths: Sequence[Path]) -> ShardIndex:
    offsets: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    for path in paths:
        shard_offsets, shard_lengths = _scan_shard(path)
        offsets.append(shard_offsets)
        lengths.append(shard_lengths)
    first = np.cumsum([0, *map(len, offsets)], dtype=np.int64)
    return ShardIndex(
        tuple(map(str, paths)), first, np.concatenate(offsets), np.concatenate(lengths)
    )


def _scan_shard(path: Path) -> tuple[Int64[np.ndarray, "n"], Int32[np.ndarray, "n"]]:
    """Follows one shard's chain of records; reads headers only."""
    offsets: list[int] = []
    lengths: list[int] = []
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        position = 0
        while position < size:
            length = _checked_length(os.pread(file.fileno(), HEADER_BYTES, position))
            end = position + HEADER_BYTES + (length or 0) + CHECKSUM_BYTES
            if length is None or end > size or length > np.iinfo(np.int32).max:
                raise UserError(
                    f"shard {path} is damaged or cut off at byte {position}, after "
                    f"{len(offsets)} whole records: copy the dataset again, or rebuild it with "
                    "python -m adamae_jax.prepare"
                )
            offsets.append(position + HEADER_BYTES)
            lengths.append(length)
            position = end
    return np.array(offsets, np.int64), np.array(lengths, np.int32)


def _checked_length(header: bytes) -> int | None:
    """The payload's length, or None where the header is incomplete or fails its checksum."""
    if len(header) < HEADER_BYTES:
        return None
    length, checksum = struct.unpack("<QI", header)
    return length if checksum == masked_checksum(header[:LENGTH_BYTES]) else None


class _OpenShard:
    """A file descriptor that closes with its last user, so that eviction needs no lock on reads."""

    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class RecordReader:
    """Reads payloads by number, from any number of threads; survives pickling and forking."""

    def __init__(self, index: ShardIndex):
        """Opens nothing yet."""
        self.index = index
        self._start_process()

    def _start_process(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Without open files and lock, which belong to this process."""
        return {"index": self.index}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Starts afresh with the same index."""
        self.index = state["index"]
        self._start_process()

    def read(self, record: int) -> bytes:
        """The payload of one record.

        Raises:
            BadRecordError: the payload fails its checksum, or the shard has become shorter.
            OSError: reading failed again and again (a passing failure is retried for seconds).
        """
        shard = self.index.shard_of(record)
        length = int(self.index.lengths[record])
        data = self._read_bytes(shard, int(self.index.offsets[record]), length + CHECKSUM_BYTES)
        if len(data) < length + CHECKSUM_BYTES:
            raise BadRecordError("the shard ends inside the record")
        payload = data[:length]
        if int.from_bytes(data[length:], "little") != masked_checksum(payload):
            raise BadRecordError("its checksum does not match its content")
        return payload

    def _read_bytes(self, shard: int, offset: int, count: int) -> bytes:
        for delay in (*RETRY_DELAYS_S, None):
            try:
                return _pread_all(self._shard(shard).descriptor, offset, count)
            except OSError as error:
                path = self.index.paths[shard]
                if delay is None:
                    raise OSError(error.errno, error.strerror, path) from error
                logging.warning("reading %s failed (%s): again in %.1f s", path, error, delay)
                self._forget(shard)  # a stale handle of a network file system stays stale
                time.sleep(delay)
        raise AssertionError("unreachable")

    def _shard(self, shard: int) -> _OpenShard:
        if self._process != os.getpid():  # forked: the lock may be held by a thread left behind
            self._start_process()
        with self._lock:
            handle = self._open.pop(shard, None) or _OpenShard(self.index.paths[shard])
            self._open[shard] = handle
            if len(self._open) > MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
            return handle

    def _forget(self, shard: int) -> None:
        with self._lock:
            self._open.pop(shard, None)


def _pread_all(descriptor: int, offset: int, count: int) -> bytes:
    """``count`` bytes from ``offset``, fewer only at the end of the file."""
    data = os.pread(descriptor, count, offset)
    while len(data) < count and (
        more := os.pread(descriptor, count - len(data), offset + len(data))
    ):
        data += more
    return data
