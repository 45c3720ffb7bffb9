import os
import time
from collections.abc import Generator, Iterator

import pytest

from adamae_jax.data.parallel import num_cores, ordered_map


def square_late(number: int) -> int:
    """The lower a number, the longer it takes."""
    time.sleep(0.02 * (5 - number % 5))
    return number**2


def die_at_three(number: int) -> int:
    if number == 3:
        os._exit(0)
    return number


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
    with pytest.raises(RuntimeError, match="a worker process died"):
        list(ordered_map(die_at_three, range(9), 2))


def test_an_item_that_ends_its_process_costs_nothing_else() -> None:
    results = list(ordered_map(die_at_three, range(9), 2, lambda number: -number))
    assert results == [0, 1, 2, -3, 4, 5, 6, 7, 8]


def test_a_failure_is_not_taken_for_a_death() -> None:
    results = ordered_map(fail_at_three, range(9), 1, lambda number: -number)
    with pytest.raises(ValueError, match="three"):
        list(results)


def test_there_are_cores() -> None:
    assert 1 <= num_cores() <= (os.cpu_count() or 1)
