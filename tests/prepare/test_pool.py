import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from adamae_jax.errors import WorkerDeathError
from adamae_jax.prepare.pool import num_cores, ordered_map

REPOSITORY = Path(__file__).parents[2]


class KillsItsSender:
    """What a process that is out of memory for pickling its result looks like."""

    def __reduce__(self) -> str:
        os.kill(os.getpid(), 9)
        raise AssertionError


def work(number: int) -> object:
    """Squares, the lower numbers later; 3 kills its process, 13 while it sends, 23 hangs."""
    if number == 3:
        os._exit(0)
    if number == 13:
        return KillsItsSender()
    time.sleep(3600 if number == 23 else 0.01 * (5 - number % 5))
    return number**2


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number


def megabytes(number: int) -> str:
    return str(number) * (1 << 20)


def print_process_and_sleep(number: int) -> None:
    print(os.getpid(), flush=True)
    time.sleep(3600)


def test_lost_items_cost_nothing_else() -> None:
    """However their processes end: in order, with a reason, and the time limit is for each."""
    reasons: dict[int, str] = {}

    def lost(number: int, reason: str) -> object:
        reasons[number] = reason
        return -number

    results = ordered_map(work, range(26), 2, max_seconds=1.5, on_loss=lost)
    bad = {3: -3, 13: -13, 23: -23}
    assert list(results) == [bad.get(number, number**2) for number in range(26)]
    assert reasons == {
        3: "ended the process that read it (exit code 0)",
        13: "ended the process that read it (exit code -9)",
        23: "takes longer than 1.5 s",
    }
    assert not multiprocessing.active_children()


def test_items_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            taken.append(len(taken))
            yield taken[-1]

    for num_workers in (0, 2):
        taken.clear()
        results = ordered_map(fail_at_three, endless(), num_workers)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        results.close()
        assert len(taken) <= 3 + 2 * num_workers


def test_a_failure_reaches_the_caller_and_is_no_loss() -> None:
    results = ordered_map(fail_at_three, range(9), 1, on_loss=lambda number, reason: -number)
    with pytest.raises(ValueError, match="three") as caught:
        list(results)
    assert "in fail_at_three" in caught.value.__notes__[0]


def test_a_dead_worker_is_an_error_where_nobody_takes_the_loss() -> None:
    with pytest.raises(WorkerDeathError, match=r"ended .*exit code 0.* smaller --num_workers"):
        list(ordered_map(work, range(9), 1))


def test_a_slow_caller_is_not_taken_for_a_slow_worker() -> None:
    """Results of a megabyte, which wait in their workers until somebody takes them."""
    results = ordered_map(megabytes, range(3), 2, max_seconds=0.3)
    for number in range(3):
        assert next(results) == str(number) * (1 << 20)
        time.sleep(0.5)


def test_workers_end_with_their_parent() -> None:
    script = (
        "from adamae_jax.prepare.pool import ordered_map\n"
        "from tests.prepare.test_pool import print_process_and_sleep\n"
        "list(ordered_map(print_process_and_sleep, range(2), 2))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        workers = [psutil.Process(int(parent.stdout.readline())) for _ in range(2)]
        parent.kill()
    assert not psutil.wait_procs(workers, timeout=10)[1]


def test_there_are_cores() -> None:
    assert 1 <= num_cores() <= (os.cpu_count() or 1)
