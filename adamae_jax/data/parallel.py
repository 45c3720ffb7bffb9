"""Work spread over processes, results in order, memory bounded."""

import collections
import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from adamae_jax.data.workers import init_worker

Item = TypeVar("Item")
Result = TypeVar("Result")


def num_cores() -> int:
    """How many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], num_workers: int
) -> Iterator[Result]:
    """Yields ``function(item)`` for every item, in the order of the items.

    At most two results per worker are computed ahead of the one that is being used, so that large
    results do not pile up. The results are the same for any number of workers.

    Args:
        function: importable by name; it and the items are pickled where there are workers.
        items: may be endless.
        num_workers: processes to start; 0 does the work in this one.

    Raises:
        RuntimeError: a worker process died, for instance because memory ran out.
    """
    if num_workers == 0:
        yield from map(function, items)
        return
    # Spawned, not forked: libraries that run threads, TensorFlow among them, do not survive a fork.
    pool = concurrent.futures.ProcessPoolExecutor(
        num_workers,
        multiprocessing.get_context("spawn"),
        initializer=init_worker,
        initargs=(0, num_workers),
    )
    pending: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError("a worker process died, perhaps because memory ran out") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
