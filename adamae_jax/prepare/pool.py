"""Work spread over processes, results in order, memory bounded."""

import collections
import contextlib
import dataclasses
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterable
from multiprocessing import connection
from typing import Any, Generic, TypeVar

from adamae_jax.data.workers import init_worker
from adamae_jax.errors import WorkerDeathError

Item = TypeVar("Item")
Result = TypeVar("Result")
_LOOK_S = 5.0  # how often it is looked whether a worker is late
# Spawned, not forked: libraries that run threads, TensorFlow among them, do not survive a fork.
_SPAWN = multiprocessing.get_context("spawn")


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
    *,
    retry: Callable[[Item], Result] | None = None,
    max_seconds: float | None = None,
    on_timeout: Callable[[Item], Result] | None = None,
) -> Generator[Result, None, None]:
    """Yields ``function(item)`` for every item, in the order of the items.

    At most two results per worker are computed ahead of the one that is being used, so that large
    results do not pile up. The results are the same for any number of workers.

    Args:
        function: importable by name; it and the items are pickled where there are workers.
        items: may be endless.
        num_workers: processes to start; 0 does the work in this one, which nothing can end then.
        on_death: gives the result of an item that ends its process even when it is alone (a
            crash of a library, or too much memory, which a `MemoryError` stands for, too).
        retry: the function for items that have ended a process and are tried alone; None: the same.
        max_seconds: after so many an item's process is ended; None waits for ever.
        on_timeout: gives the result of an item that took longer.

    Raises:
        WorkerDeathError: a worker process died, or took too long, and nothing gives the result.
        MemoryError: without workers, in the same case.
    """
    if num_workers == 0:
        for item in items:
            yield _do_alone(function, item, retry, on_death)
        return
    pool = _Pool((function, retry or function), num_workers, on_death, max_seconds, on_timeout)
    remaining = iter(items)
    pending: collections.deque[_Task[Item, Result]] = collections.deque()
    try:
        while True:
            while len(pending) <= 2 * num_workers:
                try:
                    pending.append(_Task(next(remaining)))
                except StopIteration:
                    break
                pool.todo.append(pending[-1])
            if not pending:
                return
            pool.turn(wait=not pending[0].done)
            while pending and pending[0].done:
                yield pending.popleft().outcome()
    finally:
        pool.close()


def _do_alone(
    function: Callable[[Item], Result],
    item: Item,
    retry: Callable[[Item], Result] | None,
    on_death: Callable[[Item], Result] | None,
) -> Result:
    try:
        return function(item)
    except MemoryError:
        if on_death is None:
            raise
    try:
        if retry is not None:
            return retry(item)
    except MemoryError:
        pass
    return on_death(item)


@dataclasses.dataclass(eq=False)
class _Task(Generic[Item, Result]):
    """An item and what has become of it.

    Attributes:
        item: what is worked on.
        done: whether there is a result, or an error.
        result: of the function, if it returned.
        error: that it raised.
        ended_a_process: whether a worker has died of it, or while another one was greedy.
    """

    item: Item
    done: bool = False
    result: Any = None
    error: Exception | None = None
    ended_a_process: bool = False

    def finish(self, result: Any, error: Exception | None = None) -> None:
        self.done, self.result, self.error = True, result, error

    def outcome(self) -> Result:
        if self.error is not None:
            raise self.error
        result: Result = self.result
        return result


class _Worker(Generic[Item, Result]):
    """A process and what it is working on: one item at a time, so that its end has one cause.

    Attributes:
        pipe: to it.
        process: itself.
        ready: whether it has said that it can begin.
        task: what it is working on.
        seconds: for how long.
    """

    def __init__(self, functions: tuple[Callable[[Item], Result], Callable[[Item], Result]]):
        """Starts it, with the function and that for retries; it says when it is ready."""
        self.pipe, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_work, args=(*functions, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.ready = False
        self.task: _Task[Item, Result] | None = None
        self.seconds = 0.0

    def give(self, task: _Task[Item, Result]) -> None:
        self.task, self.seconds = task, 0.0
        with contextlib.suppress(OSError):  # it has died, as its sentinel will tell
            self.pipe.send((task.item, task.ended_a_process))

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class _Pool(Generic[Item, Result]):
    """Workers, and what is to be done by them.

    Attributes:
        todo: tasks that nobody works on yet.
    """

    def __init__(
        self,
        functions: tuple[Callable[[Item], Result], Callable[[Item], Result]],
        num_workers: int,
        on_death: Callable[[Item], Result] | None,
        max_seconds: float | None,
        on_timeout: Callable[[Item], Result] | None,
    ):
        """Starts no process yet; see `ordered_map`."""
        self.todo: collections.deque[_Task[Item, Result]] = collections.deque()
        self._suspects: collections.deque[_Task[Item, Result]] = collections.deque()
        self._functions, self._num_workers = functions, num_workers
        self._on_death, self._on_timeout = on_death, on_timeout
        self._max_seconds = max_seconds
        self._counted = time.monotonic()
        self._workers: list[_Worker[Item, Result]] = []

    def turn(self, wait: bool) -> None:
        """Hands out tasks and takes in results; if asked to, waits until something happens."""
        self._count_time()
        self._hand_out()
        ends: list[Any] = [worker.pipe for worker in self._workers]
        ends += [worker.process.sentinel for worker in self._workers]
        ready = set(connection.wait(ends, self._time_left() if wait else 0))
        self._count_time()
        for worker in list(self._workers):
            if worker.pipe in ready or worker.process.sentinel in ready:
                self._take_in(worker)
            elif worker.task and self._max_seconds and worker.seconds > self._max_seconds:
                self._give_up(worker)
        self._hand_out()

    def close(self) -> None:
        """Ends all processes, whatever they are doing."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def _hand_out(self) -> None:
        tasks = [worker.task for worker in self._workers if worker.task is not None]
        waiting = len(self.todo) + len(self._suspects)
        idle = len(self._workers) - len(tasks)
        for _ in range(min(self._num_workers - len(self._workers), waiting - idle)):
            self._workers.append(_Worker(self._functions))
        if any(task.ended_a_process for task in tasks) or (self._suspects and tasks):
            return  # alone: who is ended for lack of memory is not always who took it
        queue = self._suspects or self.todo
        for worker in self._workers:
            if queue and worker.ready and worker.task is None:
                worker.give(queue.popleft())
                if queue is self._suspects:
                    return

    def _take_in(self, worker: _Worker[Item, Result]) -> None:
        try:
            if not worker.pipe.poll():
                raise EOFError
            message = worker.pipe.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        if worker.task is not None:
            worker.task.finish(*message)
        worker.ready, worker.task = True, None

    def _bury(self, worker: _Worker[Item, Result]) -> None:
        worker.end()
        self._workers.remove(worker)
        task = worker.task
        if self._on_death is None or not worker.ready:
            raise WorkerDeathError(
                f"worker process {worker.process.pid} ended with exit code "
                f"{worker.process.exitcode} (-9: killed, mostly for lack of memory): use a smaller "
                "--num_workers, or look for its message above"
            )
        if task is None:
            return
        if task.ended_a_process:
            task.finish(self._on_death(task.item))
        else:
            task.ended_a_process = True
            self._suspects.append(task)

    def _count_time(self) -> None:
        """Adds the time since it was last counted to that of each worker which has a task.

        Not all of it where that was long ago: the whole job may have been stopped meanwhile.
        """
        now = time.monotonic()
        passed, self._counted = min(now - self._counted, _LOOK_S), now
        for worker in self._workers:
            if worker.task is not None:
                worker.seconds += passed

    def _time_left(self) -> float | None:
        """Seconds until somebody has to look whether a worker is late."""
        busy = [worker.seconds for worker in self._workers if worker.task is not None]
        if self._max_seconds is None or not busy:
            return None
        return min(max(0.0, self._max_seconds - max(busy)), _LOOK_S)

    def _give_up(self, worker: _Worker[Item, Result]) -> None:
        worker.end()
        self._workers.remove(worker)
        if self._on_timeout is None:
            raise WorkerDeathError(f"a worker process took longer than {self._max_seconds:g} s")
        assert worker.task is not None
        worker.task.finish(self._on_timeout(worker.task.item))


def _work(
    function: Callable[[Any], Any], retry: Callable[[Any], Any], pipe: connection.Connection
) -> None:
    """What a worker does: one item after the other, until nobody gives any more."""
    init_worker()
    try:
        with contextlib.suppress(EOFError, ConnectionError):  # nobody is there any more
            _serve(function, retry, pipe)
    except MemoryError:
        # Others may have taken it; and only its end gives back all that this process holds.
        sys.exit("a worker process has run out of memory")


def _serve(
    function: Callable[[Any], Any], retry: Callable[[Any], Any], pipe: connection.Connection
) -> None:
    pipe.send(None)  # ready: what it took to start is no item's time
    while True:
        item, again = pipe.recv()
        try:
            result, error = (retry if again else function)(item), None
        except MemoryError:
            raise
        except Exception as caught:
            caught.add_note(f"in a worker process:\n{traceback.format_exc()}")
            result, error = None, caught
        try:
            pipe.send((result, error))
        except (MemoryError, ConnectionError):
            raise
        except Exception as unsendable:  # what cannot be pickled, of libraries mostly
            pipe.send((None, RuntimeError(f"{error or result!r} cannot be sent: {unsendable}")))
