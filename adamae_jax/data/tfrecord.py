"""TFRecord shards: where their records lie, and how they are read, whole or in part.

A TFRecord file is a chain of records: the payload's length (8 bytes, little endian), the masked
CRC32C of those 8 bytes, the payload, the masked CRC32C of the payload. An index of where records
begin is made once, by following the chains, and kept beside the shards; it stays good for copies of
them. Every length is checked against its checksum and the file's size on the way, so that a damaged
one is found at the start.
"""

import array
import dataclasses
import functools
import hashlib
import io
import json
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import numpy as np
from absl import logging
from jaxtyping import Int64

from adamae_jax.data import storage
from adamae_jax.data.damage import BadRecordError, Damage
from adamae_jax.data.payload import Payload
from adamae_jax.errors import UserError

LENGTH_BYTES = 8
CHECKSUM_BYTES = 4
HEADER_BYTES = LENGTH_BYTES + CHECKSUM_BYTES
FRAMING_BYTES = HEADER_BYTES + CHECKSUM_BYTES  # of a record beside its payload
# Shards are scanned in threads: a million headers cost 0.7 s of one core, and what takes long is
# waiting for disks, which threads do well, and for networks, where each request is slow.
LOCAL_SCANS, REMOTE_SCANS = 16, 64
# Bytes asked for at a time, which hold one header or, of small records, many.
LOCAL_BLOCK, REMOTE_BLOCK = 1 << 12, 1 << 16
COPY_AGAIN = "copy the dataset again, or rebuild it with python -m adamae_jax.prepare"
SEE_TO_STORAGE = "see to the storage, and start again"
_INDEX_VERSION = 5
_DIGEST_WORDS = 4  # of 8 bytes, at the front of an index file
_HEADER = struct.Struct("<QI")


@dataclasses.dataclass(frozen=True)
class RecordIndex:
    """Where every record lies; records are numbered through all shards.

    Attributes:
        paths: the shards, in order; local, or addresses for fsspec.
        counts: number of records of each shard.
        bounds: for each shard, where its records begin and where the last one ends, in bytes; one
            shard behind the other.
    """

    paths: tuple[str, ...]
    counts: tuple[int, ...]
    bounds: Int64[np.ndarray, "records_plus_shards"]

    @functools.cached_property
    def first(self) -> Int64[np.ndarray, "shards_plus_1"]:
        """Number of the first record of each shard, and, last, the number of records."""
        return np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])

    def __len__(self) -> int:
        """Returns the number of records."""
        return int(self.first[-1])

    def place(self, record: int) -> tuple[int, int]:
        """Returns the number of the shard that holds a record, and the record's number in it."""
        shard = int(np.searchsorted(self.first, record, side="right")) - 1
        return shard, record - int(self.first[shard])

    def span(self, record: int) -> tuple[int, int]:
        """Returns where in its shard the payload of a record begins, and its length in bytes."""
        shard, _ = self.place(record)
        start, stop = map(int, self.bounds[record + shard : record + shard + 2])
        return start + HEADER_BYTES, stop - start - FRAMING_BYTES


def load_index(
    paths: Sequence[str | os.PathLike[str]], counts: Sequence[int], beside: str | None = None
) -> RecordIndex:
    """Reads the index of some shards if it has been kept, else builds it and tries to keep it.

    Args:
        paths: the shards; local, or addresses for fsspec.
        counts: how many records each shard should hold.
        beside: file beside the shards to keep the index in; None: leave their folder alone.

    Raises:
        UserError: a shard is missing, is damaged between records, or holds another number of
            records than it should; or the storage keeps failing.
    """
    names = tuple(os.fspath(path) for path in paths)
    sizes = _sizes(names)
    shards = [[os.path.basename(name), size] for name, size in zip(names, sizes, strict=True)]
    signature = json.dumps([_INDEX_VERSION, list(counts), shards])
    bounds = _kept(beside, signature) if beside else None
    if bounds is None:
        bounds = _scan_shards(names, sizes, counts)
        if beside:
            try:
                storage.write_file(beside, _index_file(signature, bounds))
            except OSError as error:
                logging.info("%s cannot be kept (%s): it is made at each start", beside, error)
    return RecordIndex(names, tuple(counts), bounds)


def _sizes(paths: Sequence[str]) -> list[int]:
    try:
        return storage.file_sizes(paths)
    except FileNotFoundError as error:
        raise UserError(
            f"shard {error.filename} cannot be opened ({error.strerror}): {COPY_AGAIN}"
        ) from error
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read ({error.strerror}): {SEE_TO_STORAGE}"
        ) from error


def _digest(signature: str, bounds: Int64[np.ndarray, "n"]) -> bytes:
    return hashlib.sha256(signature.encode() + bounds.tobytes()).digest()


def _index_file(signature: str, bounds: Int64[np.ndarray, "n"]) -> bytes:
    """Returns an index as NumPy saves it: a digest of signature and bounds, then the bounds."""
    file = io.BytesIO()
    words = np.frombuffer(_digest(signature, bounds), np.int64)
    np.save(file, np.concatenate([words, bounds]))
    return file.getvalue()


def _kept(path: str, signature: str) -> Int64[np.ndarray, "n"] | None:
    """Reads an index file; None where there is none, or it belongs to other shards."""
    try:
        words = np.load(io.BytesIO(storage.read_file(path)))
        digest, bounds = words[:_DIGEST_WORDS].tobytes(), words[_DIGEST_WORDS:]
        return bounds if digest == _digest(signature, bounds) else None
    except Exception:  # missing, or damaged: NumPy raises many kinds
        return None


def _scan_shards(
    paths: Sequence[str], sizes: Sequence[int], counts: Sequence[int]
) -> Int64[np.ndarray, "records_plus_shards"]:
    """Follows the chains of all shards, many at a time; raises as `load_index` does."""
    remote = any(map(storage.is_remote, paths))
    threads = min(REMOTE_SCANS if remote else LOCAL_SCANS, max(1, len(paths)))
    with ThreadPoolExecutor(threads, "scan") as pool:
        parts = list(pool.map(_scan_shard, paths, sizes))
    for path, bounds, count in zip(paths, parts, counts, strict=True):
        if len(bounds) != count + 1:
            raise UserError(
                f"shard {path} holds {len(bounds) - 1} records, but dataset_info.json says "
                f"{count}: {COPY_AGAIN}"
            )
    return np.concatenate([np.frombuffer(bounds, np.int64) for bounds in parts])


def _scan_shard(path: str, size: int) -> "array.array[int]":
    """Returns where the records of a shard begin, and its size; reads little more than headers."""
    block = REMOTE_BLOCK if storage.is_remote(path) else LOCAL_BLOCK
    bounds = array.array("q", [0])
    try:
        file = storage.retried(functools.partial(storage.open_file, path), path)
        position, block_start, data = 0, 0, b""
        while position < size:
            if position - block_start + HEADER_BYTES > len(data):
                data = storage.retried(functools.partial(file.read, position, block), path)
                block_start = position
            length = _checked_length(data, position - block_start)
            if length is None or position + length + FRAMING_BYTES > size:
                raise UserError(
                    f"shard {path} is damaged or cut off at byte {position}, after "
                    f"{len(bounds) - 1} whole records: {COPY_AGAIN}"
                )
            position += length + FRAMING_BYTES
            bounds.append(position)
    except OSError as error:
        raise UserError(f"shard {path} cannot be read ({error}): {SEE_TO_STORAGE}") from error
    return bounds


def masked_checksum(data: bytes) -> int:
    """Returns the masked CRC32C of TFRecord files (rotated right by 15 bits, plus a constant)."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _checked_length(data: bytes, start: int) -> int | None:
    """Returns the length in a header; None where the header is incomplete or damaged."""
    if start + HEADER_BYTES > len(data):
        return None
    length, checksum = _HEADER.unpack_from(data, start)
    if checksum != masked_checksum(data[start : start + LENGTH_BYTES]):
        return None
    return int(length)


class RecordReader:
    """Reads records by number, from any number of threads; can be pickled."""

    def __init__(self, index: RecordIndex):
        """Opens nothing yet."""
        self.index = index
        self._files: storage.OpenFiles[storage.RangedFile] = storage.OpenFiles(
            index.paths, storage.open_file
        )

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self.index)

    def place(self, record: int) -> tuple[str, int]:
        """Returns the file that holds a record, and the record's number in it."""
        shard, number = self.index.place(record)
        return self.index.paths[shard], number

    def payload(self, record: int) -> Payload:
        """Returns one record, of which nothing is read yet."""
        shard, _ = self.index.place(record)
        path = self.index.paths[shard]
        return _StoredPayload(self._files, shard, path, *self.index.span(record))


def stored_payload(path: str, offset: int, length: int) -> Payload:
    """Returns a record whose payload lies at a place of a shard; nothing is read yet."""
    files: storage.OpenFiles[storage.RangedFile] = storage.OpenFiles([path], storage.open_file)
    return _StoredPayload(files, 0, path, offset, length)


@dataclasses.dataclass(frozen=True)
class _StoredPayload:
    """See `Payload`; a failure that passes is waited for while reading."""

    files: storage.OpenFiles[storage.RangedFile]
    shard: int
    path: str
    offset: int
    size: int

    @property
    def gap(self) -> int:
        return storage.gap(self.path)

    def read(self, start: int, count: int) -> bytes:
        if not 0 <= start <= start + count <= self.size:
            raise BadRecordError(f"it ends before byte {start + count}")
        return self._read(start, count)

    def whole(self) -> bytes:
        data = self._read(0, self.size + CHECKSUM_BYTES)
        payload = data[: self.size]
        if int.from_bytes(data[self.size :], "little") != masked_checksum(payload):
            raise BadRecordError("its checksum does not match its content", Damage.CHECKSUM)
        return payload

    def _read(self, start: int, count: int) -> bytes:
        data = storage.retried(
            lambda: self.files[self.shard].read(self.offset + start, count),
            self.path,
            lambda: self.files.forget(self.shard),
        )
        if len(data) < count:
            raise BadRecordError("the shard ends inside the record", Damage.CUT_OFF)
        return data
