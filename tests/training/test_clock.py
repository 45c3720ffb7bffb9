"""Where a run's time goes: the clock by itself, and in a loop whose parts take known times."""

import itertools
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from adamae_jax.training import clock, metrics
from adamae_jax.training.clock import CHECKPOINT, EVALUATION, Clock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A clock that goes on only when it is told to."""
    told = SimpleNamespace(time=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: told.time)

    def spend(seconds: float) -> None:
        told.time += seconds

    return spend


def slow(now: Any, seconds: float) -> Any:
    while True:
        now(seconds)
        yield {}


def test_each_part_of_an_interval_is_counted_once(now: Any) -> None:
    taken = Clock(clips=8, seconds=50.0, computed=20.0)
    batches = slow(now, 1.0)
    for _ in range(4):
        taken.next(batches)
        now(2.0)
    with taken.spending(EVALUATION):
        now(10.0)
    with pytest.raises(OSError), taken.spending(CHECKPOINT):
        now(5.0)
        raise OSError
    assert taken.read() == {
        "clips_per_second": 4 * 8 / 12,
        "data_wait_share": 4 / 12,
        "data_wait_seconds": 1.0,
        "compute_seconds": 2.0,
        "checkpoint_seconds": 5.0,
        "evaluation_seconds": 10.0,
        "computed_seconds": 20.0 + 8.0,
        "seconds": 50.0 + 27.0,
    }
    taken.next(batches)
    now(0.5)
    again = taken.read()
    assert (again["compute_seconds"], again["evaluation_seconds"]) == (0.5, 0.0)
    assert (again["computed_seconds"], again["seconds"]) == (28.5, 78.5)


@pytest.mark.parametrize("logged", [True, False])
def test_a_first_step_is_no_step_that_counts(now: Any, logged: bool) -> None:
    """It compiles; it counts in the seconds of the run alone."""
    taken = Clock(clips=8)
    batches = slow(now, 1.0)
    taken.next(batches)
    now(30.0)
    if logged:
        assert taken.read(compiled=True)["compute_seconds"] == 30.0
    else:
        taken.restart()
    taken.next(batches)
    now(2.0)
    found = taken.read()
    assert (found["computed_seconds"], found["seconds"]) == (2.0, 34.0)
    assert found["compute_seconds"] == 2.0


def test_all_of_it_stands_under_time_in_tensorboard(now: Any) -> None:
    for name in Clock(clips=8).read():
        assert metrics.tag(name) == f"time/{name}"


def test_device_memory_is_told_where_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fullest device counts."""
    assert clock.device_memory() == {}  # a CPU

    def devices(*stats: dict[str, int] | None) -> None:
        found = [SimpleNamespace(memory_stats=lambda own=own: own) for own in stats]
        monkeypatch.setattr(jax, "local_devices", lambda: found)

    devices({"bytes_in_use": 10**9, "peak_bytes_in_use": 4 * 10**9}, None)
    assert clock.device_memory() == {"device_memory_gb": 1.0, "device_memory_peak_gb": 4.0}
    devices({"bytes_in_use": 3 * 10**9}, {"bytes_in_use": 2 * 10**9, "peak_bytes_in_use": 1})
    assert clock.device_memory() == {"device_memory_gb": 3.0}
    assert all(metrics.tag(name).startswith("time/") for name in clock.device_memory())


def test_the_clock_costs_next_to_nothing() -> None:
    """1% of a step of 50 ms is 500 us; all that is measured takes some 5 us on a CPU."""
    taken = Clock(clips=8)
    batches: Iterator[dict[str, Any]] = itertools.repeat({})
    best = float("inf")
    for _ in range(5):
        begin = time.process_time()
        for _ in range(1000):
            taken.next(batches)
            with taken.spending(CHECKPOINT):
                pass
            taken.read()
            clock.device_memory()
        best = min(best, (time.process_time() - begin) / 1000)
    assert best < 200e-6
