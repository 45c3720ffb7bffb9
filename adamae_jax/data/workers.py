"""What a worker process does first, whatever it is for."""

import contextlib
import ctypes
import multiprocessing
import multiprocessing.process
import os
import signal
import threading
import time

PARENT_CHECK_S = 0.5
KEPT_BYTES = 128 << 20
LARGEST_REUSED = 32 << 20  # the most that glibc takes
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def init_worker() -> None:
    """Runs first in each worker process: it will not outlive its parent, nor answer Ctrl-C.

    A worker whose parent is killed would wait for ever and keep its shared memory. It watches its
    parent instead of asking the kernel for a signal (``PR_SET_PDEATHSIG``), since that signal
    comes with the end of the *thread* that started the worker: grain's threads end first when a
    pipeline is closed, and the signal would cut the worker's own tidying short.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it, and closes its workers
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        threading.Thread(
            target=_exit_without, args=(parent.pid,), name="watch-parent", daemon=True
        ).start()


def init_reader(worker_index: int, worker_count: int) -> None:
    """Runs first in each worker process of a pipeline, as grain calls it."""
    del worker_index, worker_count
    init_worker()
    # A scheduler sends it to all processes; the job needs batches until it has saved its state.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    keep_freed_memory()


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
