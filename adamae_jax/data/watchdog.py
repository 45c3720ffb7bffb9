"""Signs of life from those who read videos, wherever they run."""

import contextlib
import mmap
import os
import struct
import tempfile
import threading
import time
from typing import Protocol

from adamae_jax.data.stream import Element

GRACE_S = 3.0
HUNG_STATUS = 2  # as of other errors that a user can put right
_TIME = struct.Struct("d")
_PID = struct.Struct("q")


class Heartbeat:
    """When somebody last got on: numbers in shared memory, which processes share by its file.

    Grain keeps its queues to itself, and a worker that sleeps for ever looks like one that is busy.
    """

    def __init__(self, num_workers: int):
        """Starts now."""
        descriptor, self._path = tempfile.mkstemp(prefix="adamae_jax_heartbeat_")
        os.truncate(descriptor, _TIME.size + num_workers * _PID.size)
        self._map = mmap.mmap(descriptor, 0)
        os.close(descriptor)
        self.beat()

    def __getstate__(self) -> str:
        """The file's name."""
        return self._path

    def __setstate__(self, path: str) -> None:
        """Opens the same file."""
        self._path = path
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def beat(self) -> None:
        """Gets on."""
        _TIME.pack_into(self._map, 0, time.monotonic())  # one clock for all processes of a machine

    def age(self) -> float:
        """Seconds since the last beat, of whomever."""
        return time.monotonic() - float(_TIME.unpack_from(self._map)[0])

    def introduce(self, worker: int) -> None:
        """Notes that this process is the worker of that number."""
        _PID.pack_into(self._map, _TIME.size + worker * _PID.size, os.getpid())

    def worker(self, number: int) -> int:
        """The process of a worker; 0 before it has introduced itself."""
        return int(_PID.unpack_from(self._map, _TIME.size + number * _PID.size)[0])

    def unlink(self) -> None:
        """Removes the file's name, once all processes have opened it; may be called again."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)


class Elements(Protocol):
    """Elements by number."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, index: int) -> Element:
        """One of them."""
        ...


class Watched:
    """Elements, each of which is a sign of life."""

    def __init__(self, elements: Elements, heartbeat: Heartbeat):
        """Puts a heartbeat behind each element."""
        self._elements = elements
        self.heartbeat = heartbeat

    def __len__(self) -> int:
        """How many elements there are."""
        return len(self._elements)

    def __getitem__(self, index: int) -> Element:
        """The element of this number."""
        element = self._elements[index]
        self.heartbeat.beat()
        return element


def leave_without_threads(grace_s: float = GRACE_S) -> None:
    """Lets this process end although a thread of it hangs, for which Python would wait for ever.

    Args:
        grace_s: seconds for others, who may have something to tidy up.
    """
    ending = threading.Event()
    # Before the executors', which join their threads; atexit's own turn comes after those.
    with contextlib.suppress(RuntimeError):  # it is ending already
        threading._register_atexit(ending.set)  # type: ignore[attr-defined]
    threading.Thread(target=_leave_after, args=(ending, grace_s), name="leave", daemon=True).start()


def _leave_after(ending: threading.Event, grace_s: float) -> None:
    ending.wait()
    time.sleep(grace_s)
    os._exit(HUNG_STATUS)
