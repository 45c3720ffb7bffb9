"""TFRecord shards: where their records lie, and what proves that they are whole.

A TFRecord file is a chain of records: the payload's length (8 bytes, little endian), the masked
CRC32C of those 8 bytes, the payload, the masked CRC32C of the payload. The index follows the chain
once, checking every length against its checksum and the file's size, so that a damaged length
field can neither lead astray nor make anybody allocate what it says; it is kept beside the shards
(`adamae_jax.data.index_files`). Records are read by `adamae_jax.data.record_reader`.
"""

import array
import dataclasses
import functools
import json
import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import google_crc32c
import numpy as np
from jaxtyping import Int32, Int64

from adamae_jax.data import index_files, storage
from adamae_jax.data.index_files import Arrays
from adamae_jax.errors import UserError

LENGTH_BYTES = 8
CHECKSUM_BYTES = 4
HEADER_BYTES = LENGTH_BYTES + CHECKSUM_BYTES
# Shards are scanned in threads: a million headers cost 0.7 s of one core, and what takes long is
# waiting for disks, which threads do well, and for networks, where each request is slow.
LOCAL_SCANS, REMOTE_SCANS = 16, 64
# Bytes asked for at a time, which hold one header or, of small records, many.
LOCAL_BLOCK, REMOTE_BLOCK = 1 << 12, 1 << 16
COPY_AGAIN = "copy the dataset again, or rebuild it with python -m adamae_jax.prepare"
SEE_TO_STORAGE = "see to the storage, and start again"
MAX_LENGTH = (1 << 31) - 1
_HEADER = struct.Struct("<QI")


class BadRecordError(UserError):
    """One record cannot be used: checksum, structure or image data are damaged."""


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """Where the payload of every record lies; records are numbered through all shards.

    Attributes:
        paths: the shards, in order; local, or addresses for fsspec.
        first: number of the first record of each shard, and, last, the number of records.
        offsets: byte offset of each payload in its shard.
        lengths: bytes of each payload.
        mapped: the file that the arrays are mapped from, and the digest in it; None where they are
            in memory. A mapped index is pickled as that, so that the processes of a pipeline share
            one copy.
    """

    paths: tuple[str, ...]
    first: Int64[np.ndarray, "shards_plus_1"]
    offsets: Int64[np.ndarray, "records"]
    lengths: Int32[np.ndarray, "records"]
    mapped: tuple[str, bytes] | None = None

    def __len__(self) -> int:
        """Number of records."""
        return len(self.offsets)

    def __reduce__(self) -> tuple[Callable[..., "ShardIndex"], tuple[Any, ...]]:
        """By the file that it is mapped from, where there is one."""
        if self.mapped is None:
            return ShardIndex, (self.paths, self.first, self.offsets, self.lengths)
        return _map_again, (self.paths, self.mapped)

    def shard_of(self, record: int) -> int:
        """The number of the shard that holds ``record``."""
        return int(np.searchsorted(self.first, record, side="right")) - 1


def _map_again(paths: tuple[str, ...], mapped: tuple[str, bytes]) -> ShardIndex:
    arrays = index_files.read(*mapped, is_proven=True)
    if arrays is None:
        raise UserError(
            f"the index {mapped[0]} has changed since the dataset was opened: somebody is writing "
            "to the dataset; wait for them, and start again"
        )
    return ShardIndex(paths, *arrays, mapped)


def load_index(
    paths: Sequence[str | os.PathLike[str]],
    counts: Sequence[int],
    cache: str | os.PathLike[str],
) -> ShardIndex:
    """Maps the index from ``cache`` if it fits the shards, else builds it and tries to keep it.

    Args:
        paths: the shards; local, or addresses for fsspec.
        counts: how many records each shard should hold.
        cache: file beside the shards to keep the index in. It is replaced in one step, so that
            several processes may do this at once. Where it cannot be written, or is remote, the
            index is kept in ``$XDG_CACHE_HOME/adamae_jax``, else in memory.

    Raises:
        UserError: a shard is missing, is damaged between records, or holds another number of
            records than it should; or the storage keeps failing.
    """
    names, beside = tuple(os.fspath(path) for path in paths), os.fspath(cache)
    states = _states(names)
    digest = index_files.digest_of(_signature(names, states, beside))
    found = index_files.load(beside, digest)
    if found is None:
        arrays = _scan_shards(names, [state.size for state in states])
        found = index_files.keep(beside, digest, arrays) or (arrays, "")
    arrays, file = found
    for path, here, expected in zip(names, np.diff(arrays.first), counts, strict=True):
        if here != expected:
            raise UserError(
                f"shard {path} holds {here} records, but dataset_info.json says {expected}: "
                f"{COPY_AGAIN}"
            )
    return ShardIndex(names, *arrays, (file, digest) if file else None)


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


def _signature(paths: Sequence[str], states: Sequence[storage.FileState], beside: str) -> str:
    """What the kept index belongs to: names, sizes and versions of the shards.

    And the place, if the index may be among those of other datasets; one that lies beside its data
    stays good where both are copied (as long as modification times are).
    """
    shards = [[path.rpartition("/")[2], *state] for path, state in zip(paths, states, strict=True)]
    return json.dumps([beside if storage.is_remote(beside) else "", shards])


def _scan_shards(paths: Sequence[str], sizes: Sequence[int]) -> Arrays:
    """Follows the chains of all shards, many at a time."""
    remote = any(map(storage.is_remote, paths))
    threads = min(REMOTE_SCANS if remote else LOCAL_SCANS, max(1, len(paths)))
    with ThreadPoolExecutor(threads, "scan") as pool:
        parts = list(pool.map(_scan_shard, paths, sizes))
    first = np.cumsum([0, *(len(offsets) for offsets, _ in parts)], dtype=np.int64)
    whole = Arrays(first, np.empty(first[-1], np.int64), np.empty(first[-1], np.int32))
    for shard, start in enumerate(first[:-1]):
        offsets, lengths = parts[shard]
        whole.offsets[start : start + len(offsets)] = offsets
        whole.lengths[start : start + len(lengths)] = lengths
        parts[shard] = (array.array("q"), array.array("i"))  # never all of it twice in memory
    return whole


def _scan_shard(path: str, size: int) -> tuple["array.array[int]", "array.array[int]"]:
    """Follows one shard's chain of records; reads little more than headers."""
    block = REMOTE_BLOCK if storage.is_remote(path) else LOCAL_BLOCK
    offsets, lengths = array.array("q"), array.array("i")
    try:
        file = storage.retried(functools.partial(storage.open_file, path), path)
        position, block_start, data = 0, 0, b""
        while position < size:
            if position - block_start + HEADER_BYTES > len(data):
                data = storage.retried(functools.partial(file.read, position, block), path)
                block_start = position
            length = _checked_length(data, position - block_start)
            end = position + HEADER_BYTES + (length or 0) + CHECKSUM_BYTES
            if length is None or end > size or length > MAX_LENGTH:
                raise UserError(
                    f"shard {path} is damaged or cut off at byte {position}, after "
                    f"{len(offsets)} whole records: {COPY_AGAIN}"
                )
            offsets.append(position + HEADER_BYTES)
            lengths.append(length)
            position = end
    except OSError as error:
        raise UserError(f"shard {path} cannot be read ({error}): {SEE_TO_STORAGE}") from error
    return offsets, lengths


def masked_checksum(data: bytes) -> int:
    """The masked CRC32C that TFRecord files store (rotated right by 15 bits, plus a constant)."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _checked_length(data: bytes, start: int) -> int | None:
    """The length in a header, or None where the header is incomplete or fails its checksum."""
    if start + HEADER_BYTES > len(data):
        return None
    length, checksum = _HEADER.unpack_from(data, start)
    if checksum != masked_checksum(data[start : start + LENGTH_BYTES]):
        return None
    return int(length)
