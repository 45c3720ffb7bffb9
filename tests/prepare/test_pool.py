import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import psutil
import pytest

from adamae_jax.prepare.pool import num_cores, ordered_map

REPOSITORY = Path(__file__).parents[2]


def square_late(number: int) -> int:
    """The lower a number, the longer it takes."""
    time.sleep(0.02 * (5 - number % 5))
    return number**2


def die_at_three(number: int) -> int:
    if number == 3:
        os._exit(0)
    return number


def die_at_first(item: tuple[Path, int]) -> tuple[int, int]:
    """Numbers 3 and 4 end their process when they are tried first; then it is said who is busy."""
    folder, number = item
    if number in (3, 4) and not (folder / f"{number}").exists():
        (folder / f"{number}").touch()
        os._exit(0)
    marker = folder / f"busy-{number}"
    marker.touch()
    busy = len(list(folder.glob("busy-*")))
    time.sleep(0.1 if number < 5 else 0.7)  # longer than a new process takes to start
    marker.unlink()
    return number, busy


def forget_at_three(item: tuple[Path, int]) -> int:
    """Number 3 finds too little memory the first time, number 5 every time."""
    folder, number = item
    if number == 5 or (number == 3 and not (folder / "tried").exists()):
        (folder / "tried").touch()
        raise MemoryError
    return number


def only_after_three(item: tuple[Path, int]) -> int:
    """Ten times number 3; number 5 finds too little memory."""
    return 10 * item[1] if item[1] == 3 else forget_at_three(item)


class TooLarge:
    """What there is too little memory to send."""

    def __reduce__(self) -> str:
        raise MemoryError


def too_large(number: int) -> TooLarge:
    return TooLarge()


def sleep_at_three(number: int) -> int:
    time.sleep(3600 if number == 3 else 0)
    return number


def megabytes(number: int) -> str:
    return str(number) * (1 << 20)


def unsendable(number: int) -> Callable[[], int]:
    return lambda: number


def print_process_and_sleep(number: int) -> None:
    print(os.getpid(), flush=True)
    time.sleep(3600)


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number


@pytest.mark.parametrize("num_workers", [0, 2])
def test_results_come_in_order(num_workers: int) -> None:
    assert list(ordered_map(square_late, range(12), num_workers)) == [n**2 for n in range(12)]


def test_items_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            taken.append(len(taken))
            yield taken[-1]

    results = ordered_map(square_late, endless(), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert isinstance(results, Generator)
    results.close()
    assert len(taken) <= 3 + 2 * 2


def test_a_failure_reaches_the_caller() -> None:
    results = ordered_map(fail_at_three, range(9), 1)
    with pytest.raises(ValueError, match="three"):
        list(results)


def test_a_dead_worker_does_not_hang_the_caller() -> None:
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"worker process \d+ ended with exit code 0"):
        list(ordered_map(die_at_three, range(9), 2))
    assert time.monotonic() - start < 20


def test_a_killed_worker_does_not_hang_the_caller() -> None:
    results = ordered_map(sleep_at_three, range(9), 2)
    assert next(results) == 0
    for worker in multiprocessing.active_children():
        worker.kill()
    with pytest.raises(RuntimeError, match="ended with exit code -9"):
        list(results)


def test_an_item_that_ends_its_process_costs_nothing_else() -> None:
    results = list(ordered_map(die_at_three, range(9), 2, lambda number: -number))
    assert results == [0, 1, 2, -3, 4, 5, 6, 7, 8]


def test_who_dies_is_tried_again_and_alone(tmp_path: Path) -> None:
    """Perhaps it was ended for the memory that others took."""
    items = [(tmp_path, number) for number in range(8)]
    results = list(ordered_map(die_at_first, items, 3, lambda item: (-1, 0)))
    assert [number for number, _ in results] == list(range(8))
    assert [busy for number, busy in results if number in (3, 4)] == [1, 1]
    assert max(busy for _, busy in results) > 1


def test_who_finds_too_little_memory_is_tried_again_and_alone(tmp_path: Path) -> None:
    """As if the system had ended it: others may have taken the memory."""
    items = [(tmp_path, number) for number in range(8)]
    results = ordered_map(forget_at_three, items, 2, lambda item: -item[1])
    assert list(results) == [0, 1, 2, 3, 4, -5, 6, 7]
    with pytest.raises(RuntimeError, match="ended with exit code 1"):
        list(ordered_map(forget_at_three, items, 1))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_second_attempt_may_be_another_function(tmp_path: Path, num_workers: int) -> None:
    items = [(tmp_path, number) for number in (3, 4, 5, 6)]
    results = ordered_map(
        forget_at_three, items, num_workers, lambda item: -1, retry=only_after_three
    )
    assert list(results) == [30, 4, -1, 6]


def test_too_little_memory_to_send_a_result() -> None:
    assert list(ordered_map(too_large, [1], 1, lambda number: None)) == [None]


def test_too_little_memory_without_workers(tmp_path: Path) -> None:
    (tmp_path / "tried").touch()
    items = [(tmp_path, number) for number in range(8)]
    assert list(ordered_map(forget_at_three, items, 0, lambda item: -item[1])) == [
        *range(5), -5, 6, 7
    ]  # fmt: skip
    with pytest.raises(MemoryError):
        list(ordered_map(forget_at_three, items, 0))


def test_what_takes_too_long_is_ended() -> None:
    start, processor = time.monotonic(), time.process_time()
    results = ordered_map(
        sleep_at_three, range(9), 2, max_seconds=1.0, on_timeout=lambda number: -number
    )
    assert list(results) == [0, 1, 2, -3, 4, 5, 6, 7, 8]
    assert time.monotonic() - start < 15
    assert time.process_time() - processor < 0.6  # it waits, and does not spin
    assert not multiprocessing.active_children()
    with pytest.raises(RuntimeError, match="took longer than 0.5 s"):
        list(ordered_map(sleep_at_three, range(9), 2, max_seconds=0.5))


def test_a_slow_caller_is_not_taken_for_a_slow_worker() -> None:
    """Results of a megabyte, which wait in their workers until somebody takes them."""
    results = ordered_map(megabytes, range(4), 2, max_seconds=0.3, on_timeout=lambda number: "")
    for number in range(4):
        assert next(results) == str(number) * (1 << 20)
        time.sleep(0.5)


def test_what_cannot_be_sent_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="cannot be sent"):
        list(ordered_map(unsendable, [1], 1))


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


@pytest.mark.parametrize("after", ["start", "item"])
def test_workers_have_nothing_to_say_when_their_parent_has_gone(after: str) -> None:
    ours, theirs = multiprocessing.Pipe()
    script = (
        "import sys\n"
        "from multiprocessing.connection import Connection\n"
        "from adamae_jax.prepare import pool\n"
        "from tests.prepare.test_pool import megabytes\n"
        "pool.init_worker = lambda: None  # it would have this process killed\n"
        "pool._work(megabytes, megabytes, Connection(int(sys.argv[1])))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(theirs.fileno())],
        cwd=REPOSITORY, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True,
    ) as worker:  # fmt: skip
        theirs.close()
        if after == "item":
            assert ours.recv() is None
            ours.send((1, False))
            time.sleep(0.5)  # more than a pipe holds is on its way
        ours.close()
        _, printed = worker.communicate(timeout=60)
    assert (worker.returncode, printed) == (0, "")


def test_a_failure_is_not_taken_for_a_death() -> None:
    results = ordered_map(fail_at_three, range(9), 1, lambda number: -number)
    with pytest.raises(ValueError, match="three"):
        list(results)


def test_there_are_cores() -> None:
    assert 1 <= num_cores() <= (os.cpu_count() or 1)


def sleep_a_second(number: int) -> int:
    time.sleep(1.0)
    return number


def test_a_job_that_was_stopped_takes_nobody_for_late() -> None:
    script = (
        "from adamae_jax.prepare import pool\n"
        "from tests.prepare.test_pool import sleep_a_second\n"
        "pool._LOOK_S = 0.5\n"
        "for result in pool.ordered_map(sleep_a_second, range(3), 1, max_seconds=2.0):\n"
        "    print(result, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as parent:  # fmt: skip
        assert parent.stdout and parent.stdout.readline() == "0\n"
        time.sleep(0.2)  # the next one is in work
        os.killpg(parent.pid, signal.SIGSTOP)
        time.sleep(3.0)
        os.killpg(parent.pid, signal.SIGCONT)
        assert parent.stdout.read() == "1\n2\n"
