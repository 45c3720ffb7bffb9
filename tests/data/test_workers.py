"""What becomes of those who wait for batches when those who make them die or hang."""

import inspect
import multiprocessing
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamae_jax.data import batches as batches_module
from adamae_jax.data import storage, watchdog
from adamae_jax.data.batches import TIMEOUT_S, Batches
from adamae_jax.data.pipeline import eval_batches, train_batches
from adamae_jax.data.stream import HostSlice
from adamae_jax.data.watchdog import HUNG_STATUS
from adamae_jax.data.workers import Workers
from adamae_jax.errors import WorkerDeathError
from tests.data.fixtures import ExitingStream, SleepingStream
from tests.data.test_pipeline import until

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("function", [Batches, train_batches, eval_batches])
def test_the_patience_outlasts_storage_that_fails(function: Callable[..., Batches]) -> None:
    """Which is tried again meanwhile: it has an error of its own, with the file's name."""
    assert inspect.signature(function).parameters["timeout_s"].default == TIMEOUT_S == 25.0
    assert sum(storage.RETRY_DELAYS_S) < TIMEOUT_S


@pytest.fixture
def heartbeats(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files by which the pipelines of a test share their heartbeats with their workers."""
    made: list[Path] = []
    make = tempfile.mkstemp

    def note(*arguments: Any, **options: Any) -> tuple[int, str]:
        descriptor, path = make(*arguments, **options)
        if "heartbeat" in path:  # Python's own multiprocessing makes some as well
            made.append(Path(path))
        return descriptor, path

    monkeypatch.setattr(watchdog.tempfile, "mkstemp", note)
    return made


@pytest.mark.parametrize("num_workers", [0, 1])
def test_nothing_is_left_in_the_folder_for_temporary_files(
    heartbeats: list[Path], num_workers: int
) -> None:
    """Not even of a process that is killed: the file has no name any more when all have it open."""
    part = HostSlice(SleepingStream(), 4, 0, 1)
    with Batches(part, num_steps=2, num_workers=num_workers, num_threads=0, prefetch=1) as batches:
        next(batches)
        (path,) = heartbeats
        assert not path.exists()
        assert len(list(batches)) == 1
    assert not path.exists()


def test_a_worker_that_exits_with_status_0_is_an_error_too() -> None:
    part = HostSlice(ExitingStream(last=40), 4, 0, 1)
    batches = Batches(part, num_steps=100, num_workers=1, num_threads=0, prefetch=1)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="ended with exit code 0"):
        for count, batch in enumerate(batches):
            assert batch["slot"].tolist() == list(range(4 * count, 4 * count + 4))
    assert time.monotonic() - start < 30
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("with_signal", "status"), [(0, 0), (signal.SIGKILL, -9)])
def test_a_worker_that_dies_of_its_first_video_is_an_error_too(
    monkeypatch: pytest.MonkeyPatch, heartbeats: list[Path], with_signal: int, status: int
) -> None:
    monkeypatch.setattr(batches_module, "START_S", 25.0)
    part = HostSlice(ExitingStream(0, with_signal), 4, 0, 1)
    batches = Batches(part, num_steps=9, num_workers=2, num_threads=0, prefetch=1)
    start = time.monotonic()
    with pytest.raises(WorkerDeathError, match=f"ended with exit code {status} "):
        next(batches)
    assert time.monotonic() - start < 30
    assert until(lambda: not multiprocessing.active_children(), 5)
    assert len(heartbeats) == 1 and not heartbeats[0].exists()
    again = Batches(  # what is left of a failed start is in nobody's way
        HostSlice(SleepingStream(), 4, 0, 1), num_steps=1, num_workers=1, num_threads=0, prefetch=1
    )
    assert next(again)["slot"].tolist() == [0, 1, 2, 3]
    again.close()


def test_a_death_that_grain_alone_has_seen_is_an_error_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Workers, "death", lambda self: None)
    part = HostSlice(ExitingStream(0, signal.SIGKILL), 4, 0, 1)
    batches = Batches(part, num_steps=9, num_workers=1, num_threads=0, prefetch=1)
    with pytest.raises(WorkerDeathError, match=r"a data worker died: .* exit code -9"):
        next(batches)


def test_a_worker_that_hangs_is_an_error_with_the_place(
    capfd: pytest.CaptureFixture[str],
) -> None:
    part = HostSlice(SleepingStream(last=60), 4, 0, 1)
    batches = Batches(part, num_steps=100, num_workers=2, num_threads=1, prefetch=1, timeout_s=2.0)
    start = time.monotonic()
    with pytest.raises(
        RuntimeError, match=r"no video could be read for 2 s: .* data worker \d+ hangs where"
    ):
        for count, batch in enumerate(batches):
            assert batch["slot"].tolist() == list(range(4 * count, 4 * count + 4))
    assert time.monotonic() - start < 30
    assert until(lambda: not multiprocessing.active_children(), 5)
    assert "in __getitem__" in capfd.readouterr().err


HANGING = """
from adamae_jax.data.batches import Batches
from adamae_jax.data.stream import HostSlice
from tests.data.fixtures import SleepingStream
part = HostSlice(SleepingStream(last=9), 4, 0, 1)
for batch in Batches(part, num_steps=9, num_workers=0, num_threads=2, prefetch=1, timeout_s=5.0):
    print(batch["slot"].tolist(), flush=True)
"""


def test_a_thread_that_hangs_does_not_keep_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGING],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines() == ["[0, 1, 2, 3]", "[4, 5, 6, 7]"]
    assert "WorkerDeathError: no video could be read for 5 s" in done.stderr
    assert done.returncode == HUNG_STATUS


def test_slow_reading_and_slow_training_are_no_hang() -> None:
    part = HostSlice(SleepingStream(every=0.6), 2, 0, 1)  # 1.2 s for a batch
    batches = Batches(part, num_steps=4, num_workers=0, num_threads=0, prefetch=1, timeout_s=1.0)
    next(batches)
    time.sleep(3.8)  # two are made in 2.4 s, and then nobody reads for longer than the patience
    assert len(list(batches)) == 3


def test_workers_that_never_begin_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "START_S", 3.0)
    part = HostSlice(SleepingStream(last=0), 4, 0, 1)
    batches = Batches(part, num_steps=1, num_workers=1, num_threads=0, prefetch=1, timeout_s=1.0)
    with pytest.raises(RuntimeError, match="no video could be read"):
        next(batches)
    assert until(lambda: not multiprocessing.active_children(), 5)
