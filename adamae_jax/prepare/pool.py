"""Work spread over processes: results in order, memory bounded, and no item can end the job.

Each worker has a pipe of its own and works on one item at a time, so that a process that dies costs
the item in its hands and nothing else. Pools whose workers share one queue (pebble's,
concurrent.futures') break as a whole when a worker is killed while it sends a result, which is when
it needs the most memory.
"""

import collections
import contextlib
import math
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Generator, Iterable
from multiprocessing import connection
from typing import Any, TypeVar

from adamae_jax.data.workers import init_worker
from adamae_jax.errors import WorkerDeathError

Item = TypeVar("Item")
Result = TypeVar("Result")
# Spawned, not forked: libraries that run threads, TensorFlow among them, do not survive a fork.
_SPAWN = multiprocessing.get_context("spawn")


def num_cores() -> int:
    """Returns how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_workers: int,
    max_seconds: float = math.inf,
    on_loss: Callable[[Item, str], Result] | None = None,
) -> Generator[Result, None, None]:
    """Yields ``function(item)`` for every item, in the order of the items.

    At most about two items per worker are ahead of the one whose result is used, so that large
    results do not pile up. Close the generator to end the workers early.

    Args:
        function: importable by name; it and the items are pickled where there are workers.
        items: may be endless.
        num_workers: processes to start; 0 does the work in this one, without a time limit.
        max_seconds: after this time an item's process is ended.
        on_loss: takes an item whose process died or was ended, and the reason in words, and returns
            the result to use in its place. None: such an item is an error.

    Raises:
        WorkerDeathError: a process could not start, or died or was late and `on_loss` is None.
        Exception: whatever `function` raises.
    """
    if num_workers == 0:
        yield from map(function, items)
        return
    remaining = iter(items)
    pending: collections.deque[_Task] = collections.deque()  # in order: waiting, in work or done
    waiting: collections.deque[_Task] = collections.deque()
    workers: list[_Worker] = []
    try:
        while True:
            while len(pending) <= 2 * num_workers:
                try:
                    pending.append(_Task(next(remaining)))
                except StopIteration:
                    break
                waiting.append(pending[-1])
            if not pending:
                return
            while len(workers) < min(num_workers, len(pending)):
                workers.append(_Worker(function))
            for worker in workers:
                if waiting and worker.ready and worker.task is None:
                    worker.give(waiting.popleft(), max_seconds)
            for worker, loss in _events(workers, wait=not pending[0].done):
                if loss:
                    workers.remove(worker)
                    _replace_result(worker, loss, on_loss)
            while pending and pending[0].done:
                yield pending.popleft().outcome()
    finally:
        for worker in workers:
            worker.end()


class _Task:
    """An item and what has become of it."""

    def __init__(self, item: Any):
        self.item = item
        self.done = False
        self._result: Any = None
        self._error: Exception | None = None

    def finish(self, result: Any, error: Exception | None = None) -> None:
        self.done, self._result, self._error = True, result, error

    def outcome(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result


class _Worker:
    """A process with its pipe, and the task that it works on."""

    def __init__(self, function: Callable[[Any], Any]):
        self.pipe, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(function, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.ready = False  # the time that it takes to start is not an item's
        self.task: _Task | None = None
        self.max_seconds = self.deadline = math.inf

    def give(self, task: _Task, max_seconds: float) -> None:
        self.task = task
        self.max_seconds, self.deadline = max_seconds, time.monotonic() + max_seconds
        with contextlib.suppress(OSError):  # it has died, which reading the pipe will show
            self.pipe.send(task.item)

    def receive(self) -> str | None:
        """Takes what it has sent; returns a reason where it has died instead."""
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            self.end()
            return f"ended the process that read it (exit code {self.process.exitcode})"
        if self.task is not None:
            self.task.finish(*message)
        self.ready, self.task, self.deadline = True, None, math.inf
        return None

    def end(self) -> None:
        self.deadline = math.inf
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _events(workers: list[_Worker], wait: bool) -> list[tuple[_Worker, str | None]]:
    """Returns the workers that have sent something, died or are late, the latter with a reason."""
    first = min(worker.deadline for worker in workers) - time.monotonic()
    timeout = None if math.isinf(first) else max(0.0, first)
    ready = connection.wait([worker.pipe for worker in workers], timeout if wait else 0)
    # What has been sent is taken first: a caller that is slow to ask makes no worker late.
    events = [(worker, worker.receive()) for worker in workers if worker.pipe in ready]
    now = time.monotonic()
    for worker in workers:
        if worker.deadline <= now:
            worker.end()
            events.append((worker, f"takes longer than {worker.max_seconds:g} s"))
    return events


def _replace_result(worker: _Worker, loss: str, on_loss: Callable[[Any, str], Any] | None) -> None:
    if not worker.ready:
        raise WorkerDeathError(
            f"a worker process could not start (exit code {worker.process.exitcode}): look for its "
            "message above, or use a smaller --num_workers"
        )
    if worker.task is None:
        return  # it was idle, and another one takes its place
    if on_loss is None:
        raise WorkerDeathError(
            f"an item {loss} (negative: killed by that signal, -9 mostly for lack of memory): use "
            "a smaller --num_workers, or look for its message above"
        )
    worker.task.finish(on_loss(worker.task.item, loss))


def _serve(function: Callable[[Any], Any], pipe: connection.Connection) -> None:
    """Runs in a worker: one item after the other, until the parent closes the pipe."""
    init_worker()
    with contextlib.suppress(EOFError, ConnectionError):  # the parent has gone
        pipe.send(None)
        while True:
            item = pipe.recv()
            answer: tuple[Any, Exception | None]
            try:
                answer = function(item), None
            except Exception as error:
                error.add_note(f"in a worker process:\n{traceback.format_exc()}")
                answer = None, error
            pipe.send(answer)
