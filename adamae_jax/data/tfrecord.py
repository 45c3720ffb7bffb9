"""TFRecord shards: where their records lie, and how they are read, whole or in part.

A TFRecord file is a chain of records: the payload's length (8 bytes, little endian), the masked
CRC32C of those 8 bytes, the payload, the masked CRC32C of the payload. An index of where records
begin is made once, by following the chains, and kept beside the shards. Every length is checked
against its checksum and the file's size on the way, so that a damaged one is found at the start.
"""

import array
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import struct
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import google_crc32c
import numpy as np
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
_INDEX_VERSION = 4
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
        file: the file that ``bounds`` are mapped from, and the digest in it; None where they are in
            memory. A mapped index is pickled as that, so that processes share one copy.
    """

    paths: tuple[str, ...]
    counts: tuple[int, ...]
    bounds: Int64[np.ndarray, "records_plus_shards"]
    file: tuple[str, bytes] | None = None

    @functools.cached_property
    def first(self) -> Int64[np.ndarray, "shards_plus_1"]:
        """Number of the first record of each shard, and, last, the number of records."""
        return np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])

    def __len__(self) -> int:
        """Returns the number of records."""
        return int(self.first[-1])

    def __reduce__(self) -> tuple[Callable[..., "RecordIndex"], tuple[Any, ...]]:
        """By the file that it is mapped from, where there is one."""
        if self.file is None:
            return RecordIndex, (self.paths, self.counts, np.asarray(self.bounds))
        return _map_again, (self.paths, self.counts, self.file)

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
    """Maps the index of some shards if it has been kept, else builds it and tries to keep it.

    Args:
        paths: the shards; local, or addresses for fsspec.
        counts: how many records each shard should hold.
        beside: file beside the shards to keep the index in; None: leave their folder alone. Where
            it cannot be written, or is remote, there is a copy in ``$XDG_CACHE_HOME/adamae_jax``.

    Raises:
        UserError: a shard is missing, is damaged between records, or holds another number of
            records than it should; or the storage keeps failing.
    """
    names = tuple(os.fspath(path) for path in paths)
    states = _states(names)
    shards = [[name.rpartition("/")[2], *state] for name, state in zip(names, states, strict=True)]
    signature = json.dumps([_INDEX_VERSION, list(counts), shards])
    remote = beside if beside is not None and storage.is_remote(beside) else None
    places = [_cached(names, signature)]
    if beside is not None and not remote:
        places.insert(0, beside)

    def kept() -> RecordIndex | None:
        for place in places:
            if (found := _map(place, signature, sum(counts) + len(names))) is not None:
                return RecordIndex(names, tuple(counts), found[0], (place, found[1]))
        return None

    if (index := kept()) is not None:
        return index
    if remote:
        with contextlib.suppress(OSError):
            _replace(places[-1], storage.read_file(remote))
            if (index := kept()) is not None:
                return index
    bounds = _scan_shards(names, [state.size for state in states], counts)
    content = _index_file(signature, bounds)
    if remote:
        with contextlib.suppress(OSError):
            storage.write_file(remote, content)
    for place in places:
        with contextlib.suppress(OSError):
            _replace(place, content)
            break
    return kept() or RecordIndex(names, tuple(counts), bounds)


def _states(paths: Sequence[str]) -> list[storage.FileState]:
    try:
        return storage.file_states(paths)
    except FileNotFoundError as error:
        raise UserError(
            f"shard {error.filename} cannot be opened ({error.strerror}): {COPY_AGAIN}"
        ) from error
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read ({error.strerror}): {SEE_TO_STORAGE}"
        ) from error


def _cached(paths: Sequence[str], signature: str) -> str:
    """Returns the name of an index in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = hashlib.sha256(repr((list(paths), signature)).encode()).hexdigest()[:32]
    return os.path.join(cache, "adamae_jax", "indexes", f"{name}.npy")


def _digest(signature: str, bounds: Int64[np.ndarray, "n"]) -> bytes:
    digest = hashlib.sha256(signature.encode())
    digest.update(np.ascontiguousarray(bounds).data)
    return digest.digest()


def _index_file(signature: str, bounds: Int64[np.ndarray, "n"]) -> bytes:
    """Returns an index as NumPy saves it: a digest of signature and bounds, then the bounds."""
    file = io.BytesIO()
    words = np.frombuffer(_digest(signature, bounds), np.int64)
    np.save(file, np.concatenate([words, bounds]))
    return file.getvalue()


def _map(path: str, signature: str, size: int) -> tuple[Int64[np.ndarray, "n"], bytes] | None:
    """Maps an index file; None where there is none, or it belongs to other shards."""
    try:
        words = np.load(path, mmap_mode="r")
    except Exception:  # missing, or damaged: NumPy raises many kinds
        return None
    if words.dtype != np.int64 or words.shape != (_DIGEST_WORDS + size,):
        return None
    digest, bounds = words[:_DIGEST_WORDS].tobytes(), words[_DIGEST_WORDS:]
    return (bounds, digest) if digest == _digest(signature, bounds) else None


def _map_again(
    paths: tuple[str, ...], counts: tuple[int, ...], file: tuple[str, bytes]
) -> RecordIndex:
    words = np.load(file[0], mmap_mode="r")
    if words[:_DIGEST_WORDS].tobytes() != file[1]:
        raise UserError(
            f"the index {file[0]} has changed since the dataset was opened: somebody is writing "
            "to the dataset; wait for them, and start again"
        )
    return RecordIndex(paths, counts, words[_DIGEST_WORDS:], file)


def _replace(path: str, content: bytes) -> None:
    """Writes a file in one step, since several processes may do this at once."""
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        os.makedirs(folder, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f"{name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide it from other users of the data
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


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
