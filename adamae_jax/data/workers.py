"""The manners of worker processes: they do not outlive their parent; grain's start light."""

import contextlib
import ctypes
import faulthandler
import importlib.machinery
import multiprocessing
import multiprocessing.process
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Set

from adamae_jax.data.watchdog import Heartbeat

PARENT_CHECK_S = 0.5
START_CHECK_S = 0.05  # an interpreter that imports nothing yet takes longer to start
TELL_STACK = signal.SIGUSR1
TELL_S = 0.5
KEPT_BYTES = 128 << 20
LARGEST_REUSED = 32 << 20  # the most that glibc takes
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_GRAIN_WORKER = "grain-process-prefetch"
_starting = threading.Lock()


def init_worker() -> None:
    """Runs in each worker process of any kind: it will not outlive its parent, nor answer Ctrl-C.

    A worker whose parent is killed would wait for ever and keep its shared memory. It watches its
    parent instead of asking the kernel for a signal (``PR_SET_PDEATHSIG``), since that signal
    comes with the end of the *thread* that started the worker: grain's threads end first when a
    pipeline is closed, and the signal would cut the worker's own tidying short. Nor does it wait
    for the end of multiprocessing's pipe to its parent, which any fork of the parent holds open.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it, and closes its workers
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        threading.Thread(
            target=_exit_without, args=(parent.pid,), name="watch-parent", daemon=True
        ).start()


def init_reader(heartbeat: Heartbeat, worker_index: int, worker_count: int) -> None:
    """Runs in each worker of a pipeline: as `init_worker`; if it hangs, it can be asked where."""
    del worker_count
    init_worker()
    keep_freed_memory()
    faulthandler.register(TELL_STACK)  # even where the interpreter is stuck
    heartbeat.introduce(worker_index)


def keep_freed_memory() -> None:
    """Has the C library reuse large blocks of memory instead of giving them back each time.

    Clips and video files have megabytes, and are made, copied and dropped one after the other:
    fetching their pages from the kernel anew took longer than reading them. What is kept is at most
    `KEPT_BYTES` above what is in use, of each of the allocator's arenas.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, LARGEST_REUSED)


def _exit_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(1)


@contextlib.contextmanager
def without_main_module() -> Iterator[None]:
    """Around the code that spawns processes, in one thread at a time: they start light.

    A spawned process imports the parent's main module again: a job, with all of its libraries, or
    a script without a ``__main__`` guard, which would start over. No worker needs it. Main modules
    named ``*.__main__`` are exempt, so this process's takes such a name for the time being.
    """
    with _starting:
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        main.__spec__ = importlib.machinery.ModuleSpec("adamae_jax.__main__", None)
        try:
            yield
        finally:
            main.__spec__ = spec


def describe_end(process: multiprocessing.process.BaseProcess) -> str:
    """Words on a process that has ended."""
    return (
        f"{process.pid} ended with exit code {process.exitcode} (negative: killed by that signal, "
        "-9 mostly for lack of memory, -7 of shared memory, /dev/shm)"
    )


class Workers:
    """The worker processes of one pipeline, from their start on."""

    def __init__(self) -> None:
        """None have started."""
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._all_started = threading.Event()

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Around the code during which grain starts the workers; one pipeline at a time.

        What that asks for is in the hands of another thread, since grain waits for ever for the
        first element of a worker that ends with status 0: then `kill` gives it back.
        """
        may_start = threading.Event()
        watch = threading.Thread(
            target=self._watch_start, args=(may_start,), name="watch-start", daemon=True
        )
        watch.start()
        may_start.wait()
        try:
            yield
        finally:
            self._all_started.set()
            watch.join()

    def _watch_start(self, may_start: threading.Event) -> None:
        """Notes the processes as they start, before Python forgets those that have died."""
        with without_main_module():
            others = set(multiprocessing.active_children())
            may_start.set()
            while not self._all_started.wait(START_CHECK_S):
                self._note(others)
            self._note(others)

    def _note(self, others: Set[multiprocessing.process.BaseProcess]) -> None:
        self._processes += [
            process
            for process in multiprocessing.active_children()
            if process not in others
            and process not in self._processes
            and process.name.startswith(_GRAIN_WORKER)
        ]

    def death(self) -> str | None:
        """Words on the first dead worker, if there is one; grain itself misses exit status 0."""
        for process in self._processes:
            if process.exitcode is not None:
                return (
                    f"data worker {describe_end(process)}: use fewer workers or a smaller batch, "
                    "or look for its message above"
                )
        return None

    def tell_stack(self, pid: int) -> bool:
        """Makes a worker print where it is; whether it is one of these workers."""
        if pid not in {process.pid for process in self._processes}:
            return False
        os.kill(pid, TELL_STACK)
        time.sleep(TELL_S)
        return True

    def kill(self) -> None:
        """Ends those that are left, without their consent."""
        self._all_started.set()
        for process in self._processes:
            process.kill()
