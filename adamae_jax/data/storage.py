"""Files by ranges of bytes: local ones through the kernel, remote ones (``gs://``) through fsspec.

fsspec knows a file system by the protocol of its address; those of clouds are packages of their
own (``pip install -e '.[gcs]'`` or ``[s3]``), which are imported when they are needed.
"""

import contextlib
import errno
import functools
import os
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from absl import logging

from adamae_jax.errors import UserError

Result = TypeVar("Result")
File = TypeVar("File")
RETRY_DELAYS_S = (0.1, 0.5, 2.0, 5.0)
# What is no failure of the storage, but its answer.
_FINAL = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
# How many bytes are read in about the time that one more read takes: of a local file, a call of the
# kernel; of a remote one, a request.
LOCAL_GAP, REMOTE_GAP = 32 << 10, 1 << 20
MAX_OPEN = 128  # files of one process; well below the usual limit of 1,024
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}  # of our own package, by protocol
FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
# What a file system says that fails; a network's, mostly, and the network itself.
FAILING = frozenset(
    getattr(errno, name)
    for name in (
        *("ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "EIO"),
        *("ENETDOWN", "ENETUNREACH", "ENODEV", "ENOLINK", "ENOTCONN", "ENXIO", "EREMOTEIO"),
        *("EROFS", "ESHUTDOWN", "ESTALE", "ETIMEDOUT"),
    )
    if hasattr(errno, name)  # not every system has them all
)
# What has no room for a moment: a cache that a mounted bucket keeps, the kernel's tables.
_SHORT = frozenset((errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class RangedFile(Protocol):
    """An open file; any number of threads may read it."""

    def read(self, offset: int, count: int) -> bytes:
        """Returns ``count`` bytes from ``offset``, fewer only at the end of the file.

        Raises:
            OSError: reading failed, perhaps only for a moment.
        """
        ...


def is_outage(error: BaseException) -> bool:
    """Returns whether an error of reading is a failure of the storage, not a fault of the file.

    That a file is missing, may not be read, or holds nonsense (of which Pillow makes an `OSError`
    without a number) is a fault of the file.
    """
    return isinstance(error, OSError) and error.errno in FULL | FAILING | _SHORT


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is an address with a protocol."""
    return "://" in os.fspath(path)


def join(directory: str, name: str) -> str:
    """Returns the path of a file in a directory, remote or local."""
    return f"{directory.rstrip('/')}/{name}" if is_remote(directory) else f"{directory}/{name}"


def gap(path: str) -> int:
    """Returns how many unwanted bytes are cheaper to read than to make another read for."""
    return REMOTE_GAP if is_remote(path) else LOCAL_GAP


def open_file(path: str) -> RangedFile:
    """Opens a file.

    Raises:
        OSError: a local file cannot be opened; of a remote one, reading says so.
        UserError: nothing is installed for its protocol.
    """
    return _RemoteFile(path) if is_remote(path) else _LocalFile(path)


def read_file(path: str) -> bytes:
    """Returns all of a small file.

    Raises:
        OSError: it is not there, or cannot be read after several attempts.
        UserError: nothing is installed for its protocol.
    """
    return retried(lambda: _RemoteFile(path).read() if is_remote(path) else _read_local(path), path)


def _read_local(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def write_file(path: str, data: bytes) -> None:
    """Writes a file, whole or not at all, as object stores do it; others may do so meanwhile.

    Raises:
        OSError: it cannot be written.
    """
    if is_remote(path):
        system, name = file_system(path)
        with os_errors(path):
            system.pipe_file(name, data)
        return
    folder, name = os.path.split(path)
    os.makedirs(folder or ".", exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f"{name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide it from other users of the data
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def retried(
    read: Callable[[], Result], path: str, before_retry: Callable[[], None] = lambda: None
) -> Result:
    """Returns ``read()``, tried again for some seconds while the storage fails.

    Raises:
        OSError: with ``path``, after the last attempt; at once where there is no such file.
    """
    for delay in (*RETRY_DELAYS_S, None):
        try:
            return read()
        except _FINAL:
            raise
        except OSError as error:
            if delay is None:
                raise OSError(error.errno, error.strerror or str(error), path) from error
            logging.warning("reading %s failed (%s): again in %.1f s", path, error, delay)
            before_retry()
            time.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


def list_directory(directory: str) -> dict[str, int]:
    """Returns the sizes of a directory's files by name, not those below it; none if it is missing.

    Raises:
        OSError: it cannot be listed after several attempts.
        UserError: nothing is installed for its protocol.
    """
    list_once = _list_remote if is_remote(directory) else _list_local
    try:
        return retried(lambda: list_once(directory), directory)
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _list_local(directory: str) -> dict[str, int]:
    found: dict[str, int] = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            # Other processes write an index here at the same time, and rename it.
            with contextlib.suppress(FileNotFoundError):
                if entry.is_file():
                    found[entry.name] = entry.stat().st_size
    return found


def _list_remote(directory: str) -> dict[str, int]:
    system, name = file_system(directory)
    with os_errors(directory):
        entries = system.ls(name, detail=True, refresh=True)
    files = (entry for entry in entries if entry["type"] == "file")
    return {entry["name"].rpartition("/")[2]: int(entry["size"]) for entry in files}


def file_sizes(paths: Sequence[str]) -> list[int]:
    """Returns how many bytes files have.

    Raises:
        OSError: a file is missing, or cannot be asked for after several attempts.
        UserError: nothing is installed for its protocol.
    """
    listed: dict[str, dict[str, int]] = {}
    sizes = []
    for path in paths:
        if not is_remote(path):
            sizes.append(retried(functools.partial(os.path.getsize, path), path))
            continue
        directory, _, name = path.rpartition("/")
        if directory not in listed:  # one request instead of one for each file
            listed[directory] = list_directory(directory)
        if name not in listed[directory]:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        sizes.append(listed[directory][name])
    return sizes


@contextlib.contextmanager
def os_errors(path: str) -> Iterator[None]:
    """Makes an `OSError` of what a remote file system raises inside: each has kinds of its own."""
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", path) from error


def file_system(path: str) -> tuple[Any, str]:
    """Returns fsspec's file system for an address, and the name in it.

    Raises:
        OSError: it cannot be reached.
        UserError: nothing is installed for its protocol.
    """
    import fsspec

    with os_errors(path):
        try:
            return fsspec.core.url_to_fs(path)
        except (ImportError, ValueError) as error:
            # fsspec says which package is missing, or that the protocol is unknown.
            extra = _EXTRAS.get(path.partition("://")[0])
            remedy = (
                f"pip install -e '.[{extra}]' in the repository"
                if extra
                else "give a local path, gs://, s3://, or install what fsspec needs for it"
            )
            raise UserError(f"{path} cannot be opened: {error}: {remedy}") from error


class _LocalFile:
    """A file descriptor that closes with its last user, so that eviction needs no lock on reads."""

    def __init__(self, path: str):
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, count: int) -> bytes:
        data = os.pread(self._descriptor, count, offset)
        while len(data) < count and (
            more := os.pread(self._descriptor, count - len(data), offset + len(data))
        ):
            data += more
        return data

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # os may be gone by then
        if hasattr(self, "_descriptor"):
            close(self._descriptor)


class _RemoteFile:
    """Each read is one request for a range."""

    def __init__(self, path: str):
        self._path = path
        self._system, self._name = file_system(path)

    def read(self, offset: int = 0, count: int | None = None) -> bytes:
        """Returns the whole file, where no count is given."""
        end = None if count is None else offset + count
        with os_errors(self._path):
            return bytes(self._system.cat_file(self._name, start=offset, end=end))


class OpenFiles(Generic[File]):
    """Files by number, opened when they are needed, from any number of threads.

    At most `MAX_OPEN` are kept; a file that is dropped closes with its last user. It can be
    pickled; the copy opens its files anew.
    """

    def __init__(self, paths: Sequence[str], open_path: Callable[[str], File]):
        """Opens nothing yet; ``open_path`` must be a function that can be pickled."""
        self._paths = paths
        self._open_path = open_path
        self._lock = threading.Lock()
        self._open: OrderedDict[int, File] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        """Without files and lock, which belong to this process."""
        return OpenFiles, (self._paths, self._open_path)

    def __getitem__(self, number: int) -> File:
        """Returns the file, open; raises what opening raises."""
        with self._lock:
            file = self._open.pop(number, None) or self._open_path(self._paths[number])
            self._open[number] = file
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
            return file

    def forget(self, number: int) -> None:
        """Has the file opened anew: a stale handle of a network file system stays stale."""
        with self._lock:
            self._open.pop(number, None)
