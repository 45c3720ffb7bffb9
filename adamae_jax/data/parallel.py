"""Work spread over processes, results in order, memory bounded."""

import collections
import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from adamae_jax.data.workers import WorkerDeathError

Item = TypeVar("Item")
Result = TypeVar("Result")
_Future = concurrent.futures.Future


def num_cores() -> int:
    """How many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_workers: int,
    on_death: Callable[[Item], Result] | None = None,
) -> Generator[Result, None, None]:
    """Yields ``function(item)`` for every item, in the order of the items.

    At most two results per worker are computed ahead of the one that is being used, so that large
    results do not pile up. The results are the same for any number of workers.

    Args:
        function: importable by name; it and the items are pickled where there are workers.
        items: may be endless.
        num_workers: processes to start; 0 does the work in this one.
        on_death: gives the result of an item that ends its process even when it is alone (a
            crash of a library, or too much memory).

    Raises:
        WorkerDeathError: a worker process died, and there is no `on_death`.
    """
    if num_workers == 0:
        yield from map(function, items)
        return
    remaining = iter(items)
    pending: collections.deque[tuple[Item, _Future[Result]]] = collections.deque()
    pool = _start_pool(num_workers)
    try:
        while True:
            try:
                while len(pending) <= 2 * num_workers:
                    try:
                        item = next(remaining)
                    except StopIteration:
                        break
                    # First noted, then handed over, which fails where the pool is broken.
                    pending.append((item, _Future()))
                    pending[-1] = (item, pool.submit(function, item))
                if not pending:
                    return
                result = pending[0][1].result()
            except BrokenProcessPool as error:
                if on_death is None:
                    raise _death() from error
                pool.shutdown(wait=True, cancel_futures=True)
                pending = _repeat_alone(function, pending, on_death)
                pool = _start_pool(num_workers)
            else:
                pending.popleft()
                yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_pool(num_workers: int) -> concurrent.futures.ProcessPoolExecutor:
    # Spawned, not forked: libraries that run threads, TensorFlow among them, do not survive a fork.
    return concurrent.futures.ProcessPoolExecutor(
        num_workers,
        multiprocessing.get_context("spawn"),
        initializer=_init_process,
    )


def _init_process() -> None:
    """Makes a worker leave Ctrl-C to its parent, and end when that does, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="watch-parent", daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _death() -> WorkerDeathError:
    return WorkerDeathError(
        "a worker process died, perhaps because memory ran out: use a smaller --num_workers"
    )


def _repeat_alone(
    function: Callable[[Item], Result],
    pending: Iterable[tuple[Item, _Future[Result]]],
    on_death: Callable[[Item], Result],
) -> collections.deque[tuple[Item, _Future[Result]]]:
    """The same items, all with a result; those that lack one are worked on one by one.

    A pool does not say whose work ended a process, and breaks for all.
    """
    done: collections.deque[tuple[Item, _Future[Result]]] = collections.deque()
    pool = _start_pool(1)
    try:
        for item, future in pending:
            if not future.done() or future.cancelled() or future.exception() is not None:
                future = _Future()
                try:
                    future.set_result(pool.submit(function, item).result())
                except BrokenProcessPool:
                    future.set_result(on_death(item))
                    pool.shutdown()
                    pool = _start_pool(1)
                except Exception as error:
                    future.set_exception(error)
            done.append((item, future))
        return done
    finally:
        pool.shutdown()
