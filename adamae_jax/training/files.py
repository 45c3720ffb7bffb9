"""The files of a run: in a directory or, where the workdir is ``gs://BUCKET/...``, in a bucket.

A file in a directory is a `Path`, an object in a bucket a path of etils, which has the same methods
for looking and reading. What the two do not share stands here. A bucket has no renaming at once, no
appending, no locks and no directories; but an object is there whole or not at all, and whoever
looks sees it at once. So a file that grows is kept in memory, and written anew when it must be
safe: `GrowingFile`.
"""

import contextlib
import io
import logging as python_logging
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

# Else etils would take TensorFlow's file systems, which know neither s3:// nor a server that is not
# Google's, and import TensorFlow in every process. It looks once, at its first path.
os.environ.setdefault("EPATH_USE_TF", "false")

from absl import logging
from etils import epath

from adamae_jax.data import storage
from adamae_jax.errors import UserError

AnyPath: TypeAlias = Path | epath.Path
BUCKETS = ("gs://", "s3://")
SENT_EVERY_S = 60.0  # what a person who watches a run in a bucket waits for its newest lines


def at(path: str | os.PathLike[str]) -> AnyPath:
    """Returns the path of a local file or directory, or of what an address names.

    Raises:
      UserError: for an address of another kind, or where a package for it is missing.
    """
    text = os.fspath(path)
    if not storage.is_remote(text):
        return Path(text)
    if not text.startswith(BUCKETS):
        raise UserError(f"{text} is no place for a run: give a directory, or gs://BUCKET/DIRECTORY")
    import fsspec

    for library in ("fsspec", "gcsfs"):  # they report each object that they open
        python_logging.getLogger(library).setLevel(python_logging.WARNING)
    # Others write into the bucket, too: what was listed before says nothing.
    for protocol in ("gs", "gcs", "s3", "s3a"):
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    try:
        storage.file_system(text)
    except OSError as error:
        raise UserError(f"{text} cannot be reached: {reason(error)}") from error
    return epath.Path(text)


def is_bucket(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is an address in a bucket."""
    return storage.is_remote(path)


def absolute(path: str | os.PathLike[str]) -> AnyPath:
    """Returns a path that does not depend on the current directory."""
    place = at(path)
    return place.absolute() if isinstance(place, Path) else place


def open_workdir(path: str | os.PathLike[str]) -> AnyPath:
    """Returns the path of a workdir; in a bucket, writes, reads, lists and removes an object there.

    Raises:
      UserError: where one of these cannot be done; of a local directory, nothing is looked at.
    """
    check_orbax(path)
    directory = at(path)
    if not is_bucket(directory):
        return directory
    mark = directory / f".usable_{secrets.token_hex(8)}"
    try:
        write(mark, b"usable\n")
        is_there = read(mark) == b"usable\n" and mark.name in storage.list_directory(str(directory))
        remove(mark)
    except OSError as error:
        raise UserError(
            f"--workdir={directory} cannot be used ({reason(error)}): the bucket must be there, "
            "and this machine's account be allowed to list, read, write and delete in it"
        ) from error
    if not is_there:
        raise UserError(f"--workdir={directory} does not give back what was written into it")
    return directory


def check_orbax(directory: str | os.PathLike[str]) -> None:
    """Raises a `UserError` where orbax can keep no checkpoints."""
    if os.fspath(directory).startswith("s3://"):
        raise UserError(
            f"{directory}: orbax, which writes and reads checkpoints, has no way into s3://: for a "
            "run give gs://BUCKET/DIRECTORY, or a directory on a disk that all hosts share (on "
            "AWS, EFS or FSx for Lustre); of a run that was copied there, its model directory"
        )


def make_directory(directory: AnyPath) -> None:
    """Makes a directory and those above it; a bucket has none, and needs none."""
    if not is_bucket(directory):
        directory.mkdir(parents=True, exist_ok=True)


def read(path: AnyPath) -> bytes:
    """Returns what a file holds.

    Raises:
      OSError: where it is not there, or cannot be read.
    """
    return storage.read_file(os.fspath(path)) if is_bucket(path) else Path(path).read_bytes()


def write(path: AnyPath, data: bytes) -> None:
    """Replaces ``path`` by a file that holds ``data``: a reader sees the old or the new, whole.

    Raises:
      OSError: where it cannot be written; then the old one is there still.
    """
    if is_bucket(path):
        storage.write_file(os.fspath(path), data)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk it would only be in the way
        raise


def append(path: AnyPath, data: bytes) -> None:
    """Adds to the end of a small file that one process writes, and makes one that is missing.

    Raises:
      OSError: where it cannot be written.
    """
    if not is_bucket(path):
        with open(path, "ab") as file:
            file.write(data)
        return
    try:
        before = read(path)
    except FileNotFoundError:
        before = b""
    write(path, before + data)


def remove(path: AnyPath) -> None:
    """Removes a file that may be missing.

    Raises:
      OSError: where that cannot be done.
    """
    with os_errors(path):
        path.unlink(missing_ok=True)


def size(path: AnyPath) -> int:
    """Returns how many bytes a file has.

    Raises:
      OSError: where it is not there, or cannot be asked for.
    """
    if isinstance(path, Path):
        return path.stat().st_size
    with os_errors(path):
        return int(path.stat().length)


def exists(path: AnyPath) -> bool:
    """Returns whether a file or a directory is there.

    Raises:
      OSError: where a bucket does not say.
    """
    with os_errors(path):
        return bool(path.exists())


def names(directory: AnyPath) -> list[str]:
    """Returns the names of what a directory holds, sorted; none where it is missing.

    Raises:
      OSError: where it cannot be listed, which `is_dir` of a bucket would take for missing.
    """
    if isinstance(directory, Path):
        return sorted(os.listdir(directory)) if directory.is_dir() else []
    system, name = storage.file_system(os.fspath(directory))
    try:
        with os_errors(directory):
            listed = system.ls(name, detail=False)
    except FileNotFoundError:
        return []
    return sorted(each.rstrip("/").rpartition("/")[2] for each in listed)


def list_files(directory: AnyPath) -> list[str]:
    """Returns the names of all files below a directory, relative to it and sorted."""
    if not is_bucket(directory):
        found = (path for path in directory.rglob("*") if path.is_file())
        return sorted(path.relative_to(directory).as_posix() for path in found)
    system, name = storage.file_system(os.fspath(directory))
    with os_errors(directory):
        return sorted(each.removeprefix(f"{name}/") for each in system.find(name))


def os_errors(path: AnyPath) -> contextlib.AbstractContextManager[None]:
    """Makes an `OSError` of whatever a bucket's library raises inside."""
    return storage.os_errors(os.fspath(path))


def reason(error: OSError) -> str:
    """Returns in words what went wrong."""
    return " ".join((error.strerror or str(error)).split())


@runtime_checkable
class GrowingFile(Protocol):
    """A file that one process adds to."""

    def append(self, data: bytes) -> None:
        """Adds to the end.

        Raises:
          OSError: where that cannot be done, or only a part was written.
        """

    def flush(self) -> None:
        """Returns when all that was added is safe.

        Raises:
          OSError: where it cannot be made so.
        """

    def close(self) -> None:
        """Flushes what a kill would lose, and closes; may be called twice."""


def growing(path: AnyPath) -> GrowingFile:
    """Opens a file to add to; what it holds stays.

    Raises:
      OSError: where that cannot be done.
    """
    return _GrowingObject(path) if is_bucket(path) else _AppendedFile(path)


class _AppendedFile:
    """Each piece is handed to the operating system at once, so that a killed process loses none."""

    def __init__(self, path: AnyPath) -> None:
        self._file = io.FileIO(path, "a")

    def append(self, data: bytes) -> None:
        if self._file.write(data) != len(data):  # the rest would follow only where there is room
            raise OSError("could not be written to its end: make room on the disk")

    def flush(self) -> None:
        """Forces it to the disk itself; a kill needs no flush, a power cut does."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _GrowingObject:
    """Is written anew by `flush` and now and then between, since nothing can be added to it."""

    def __init__(self, path: AnyPath) -> None:
        self._path = path
        try:
            self._data = bytearray(read(path))
        except FileNotFoundError:
            self._data = bytearray()
        self._sent, self._time = len(self._data), time.monotonic()

    def append(self, data: bytes) -> None:
        self._data += data
        if time.monotonic() - self._time < SENT_EVERY_S:
            return
        self._time = time.monotonic()
        try:
            self.flush()
        except OSError as error:  # what must be safe is written before the next checkpoint
            logging.warning("%s cannot be written now: %s", self._path, reason(error))

    def flush(self) -> None:
        if self._sent < len(self._data):
            write(self._path, bytes(self._data))
            self._sent, self._time = len(self._data), time.monotonic()

    def close(self) -> None:
        self.flush()


class GrowingDirectory:
    """A local directory into which a library writes files that grow, of a place for them.

    Attributes:
      local: what the library writes into.
    """

    def __init__(self, directory: AnyPath) -> None:
        self._directory = directory
        self._temporary: Any = None
        if isinstance(directory, Path):
            self.local = directory
        else:
            self._temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            self.local = Path(self._temporary.name)
        self._sent: dict[str, int] = {}

    def flush(self) -> None:
        """Writes the files that have grown into the bucket, where it is one.

        Raises:
          OSError: where that cannot be done.
        """
        if self._temporary is None:
            return
        for name in list_files(self.local):
            data = (self.local / name).read_bytes()
            if len(data) != self._sent.get(name):
                write(self._directory / name, data)
                self._sent[name] = len(data)

    def close(self) -> None:
        """Removes what is temporary; may be called twice."""
        if self._temporary is not None:
            self._temporary.cleanup()
