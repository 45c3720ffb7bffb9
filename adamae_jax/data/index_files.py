"""The index of a dataset's records as one file of numbers, mapped into memory by all who use it.

A file in NumPy's own format, one row of int64: a digest of what the index belongs to (4 numbers),
the CRC32C of all that follows, the number of shards, then ``first``, ``offsets`` and, two to a
number, ``lengths`` of a `adamae_jax.data.tfrecord.ShardIndex`. Processes that map it share the
memory.
"""

import contextlib
import hashlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from jaxtyping import Int32, Int64

from adamae_jax.data import storage

VERSION = 3
_DIGEST_WORDS = 4
_SHARDS = _DIGEST_WORDS + 1  # place of their number
_WORD_BYTES = 8
_BLOCK = 1 << 20  # numbers


class Arrays(NamedTuple):
    """See `adamae_jax.data.tfrecord.ShardIndex`."""

    first: Int64[np.ndarray, "shards_plus_1"]
    offsets: Int64[np.ndarray, "records"]
    lengths: Int32[np.ndarray, "records"]


def digest_of(text: str) -> bytes:
    """What stands for ``text`` in an index file."""
    return hashlib.sha256(f"{VERSION}\n{text}".encode()).digest()


def read(path: str, digest: bytes, is_proven: bool = False) -> Arrays | None:
    """Maps an index file; None where there is none, it is damaged, or belongs to something else.

    Args:
        path: of the file.
        digest: of what it must belong to.
        is_proven: whether another process has just read it, and proved its checksum.
    """
    try:
        words = _mapped(path)
        if words is None or words[:_DIGEST_WORDS].tobytes() != digest:
            return None
        if not is_proven and words[_DIGEST_WORDS] != _checksum(words[_SHARDS:]):
            return None
        shards = int(words[_SHARDS])
        start = _SHARDS + 1 + shards + 1
        first = words[_SHARDS + 1 : start]
        records = int(first[-1])
        offsets, rest = words[start : start + records], words[start + records :]
        if len(rest) != -(-records // 2):
            return None
        return Arrays(np.array(first), offsets, rest.view(np.int32)[:records])
    except (OSError, ValueError, IndexError):
        return None


def _mapped(path: str) -> Int64[np.memmap[Any, Any], "_"] | None:
    """The numbers of a file; None where its header is not the one that so many numbers have.

    NumPy would evaluate a header as Python source, and end a damaged one with whatever that ends
    with. Nothing in it is unknown.
    """
    with open(path, "rb") as file:
        start = len(_header(0))
        count, torn = divmod(os.fstat(file.fileno()).st_size - start, _WORD_BYTES)
        if count <= _SHARDS or torn or file.read(start) != _header(count):
            return None
        return np.memmap(file, np.int64, "r", offset=start, shape=(count,))


def write(path: str, digest: bytes, arrays: Arrays) -> bool:
    """Writes an index file in one step; whether that could be done.

    Several processes may do this at once.
    """
    folder = Path(path).parent
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f"{Path(path).name}.")
        with os.fdopen(descriptor, "wb") as file:
            _write_words(file, digest, arrays)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide it from other users of the data
        os.replace(temporary, path)
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        return False
    return True


def _write_words(file: io.BufferedIOBase | io.BufferedWriter, digest: bytes, a: Arrays) -> None:
    lengths = np.zeros(-(-len(a.lengths) // 2), np.int64)
    lengths.view(np.int32)[: len(a.lengths)] = a.lengths
    parts = (np.array([len(a.first) - 1]), a.first, a.offsets, lengths)
    count = _SHARDS + sum(map(len, parts))
    file.write(_header(count))
    file.write(digest)
    file.write(np.int64(_checksum(*parts)).tobytes())
    for part in parts:
        file.write(np.ascontiguousarray(part).data)


def _header(count: int) -> bytes:
    """That of so many numbers in a row; as long for any number, since NumPy leaves room to grow."""
    described = {"descr": np.dtype(np.int64).str, "fortran_order": False, "shape": (count,)}
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


def _checksum(*parts: Int64[np.ndarray, "_"]) -> int:
    """CRC32C of all numbers, one after the other."""
    found = 0
    for part in parts:
        for start in range(0, len(part), _BLOCK):
            found = google_crc32c.extend(found, part[start : start + _BLOCK].tobytes())
    return int(found)


def places(beside: str, digest: bytes) -> list[str]:
    """Where an index file may be: beside the data if that is local, else in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    own = os.path.join(cache, "adamae_jax", "indexes", f"{digest.hex()[:32]}.npy")
    return [own] if storage.is_remote(beside) else [beside, own]


def load(beside: str, digest: bytes) -> tuple[Arrays, str] | None:
    """The index, mapped, and the file that it is mapped from; None where there is none.

    Args:
        beside: where it is if it lies beside the data. A remote file is copied to the user's cache.
        digest: of what it must belong to.
    """
    candidates = places(beside, digest)
    for path in candidates:
        if (arrays := read(path, digest)) is not None:
            return arrays, path
    if storage.is_remote(beside):
        with contextlib.suppress(OSError):
            path = candidates[-1]
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _copy(storage.read_file(beside), path)
            if (arrays := read(path, digest)) is not None:
                return arrays, path
    return None


def keep(beside: str, digest: bytes, arrays: Arrays) -> tuple[Arrays, str] | None:
    """Writes the index where it can be written, and maps it; None where it cannot be."""
    for path in places(beside, digest):
        if path != beside:
            with contextlib.suppress(OSError):
                os.makedirs(os.path.dirname(path), exist_ok=True)
        if write(path, digest, arrays):
            if storage.is_remote(beside):
                with contextlib.suppress(OSError):
                    storage.write_file(beside, Path(path).read_bytes())
            mapped = read(path, digest)
            return None if mapped is None else (mapped, path)
    return None


def _copy(data: bytes, path: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
