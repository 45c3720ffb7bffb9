"""Batches are those of the step whatever happens, and whoever waits for one gets it or an error."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamae_jax.data import storage
from adamae_jax.data.batches import TIMEOUT_S, Batches, Reading, first_clips, piece_size
from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.damage import BadRecordError
from adamae_jax.data.records import Dataset
from adamae_jax.data.stream import Element
from adamae_jax.errors import UserError, WorkerDeathError
from tests.data.fixtures import SleepingStream, evaluation, small_records, training, write_dataset

COUNT, BAD = 22, 5
SPEC = ClipSpec(4, 1, (16, 16))
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 records in 3 shards; number 5 is damaged."""
    records = small_records(COUNT)
    records[BAD] = b"\xff"
    return write_dataset(tmp_path_factory.mktemp("dataset"), {"train": records}, shards=3)


def stream(directory: Path, steps: int = 6, **changes: Any) -> Batches:
    arguments = {"seed": 1, "videos_per_step": 8, "first_step": 0, "num_steps": steps} | changes
    return training(Dataset(directory, "train"), SPEC, **arguments)


def train(directory: Path, steps: int = 6, **changes: Any) -> list[Element]:
    with stream(directory, steps, **changes) as batches:
        return list(batches)


def joined(parts: Sequence[Sequence[Element]]) -> list[Element]:
    """The global batches of several hosts."""
    return [
        {name: np.concatenate([batch[name] for batch in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]


def assert_same(first: list[Element], second: list[Element]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name, values in one.items():
            assert type(values) is type(other[name]) is np.ndarray
            assert values.dtype == other[name].dtype
            np.testing.assert_array_equal(values, other[name], err_msg=name)


def shared_memory() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith(("psm_", "sem."))}


def until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_batches_are_the_stream_in_order(directory: Path) -> None:
    batches = train(directory)
    numbers = ("label", "example_index", "slot", "repeat", "replaced", "bad_record", "damage")
    assert {name: (v.shape, v.dtype) for name, v in batches[0].items()} == {
        "video": ((8, 4, 16, 16, 3), np.dtype(np.uint8)),
        "foreground": ((8, 4, 4, 4), np.dtype(np.uint8)),
        **{name: ((8,), np.dtype(np.int32)) for name in numbers},
    }
    for batch in batches:
        assert batch["slot"].tolist() == list(range(8))
        assert not batch["repeat"].any()
    indices = np.concatenate([batch["example_index"] for batch in batches])
    replaced = np.concatenate([batch["replaced"] for batch in batches])
    assert len(set(indices[:COUNT][replaced[:COUNT] == 0])) == COUNT - 1
    assert sum(replaced > 0) == 2  # two epochs fit into 48 videos
    assert BAD not in indices
    bad = [set(batch["bad_record"].tolist()) for batch in batches]
    assert set.union(*bad) == {-1, BAD}


@pytest.mark.parametrize("repeats", [1, 3])
def test_workers_threads_hosts_and_restarts_do_not_change_the_batches(
    directory: Path, repeats: int
) -> None:
    expected = train(directory, num_threads=0, repeats=repeats)
    assert_same(train(directory, num_threads=3, prefetch=1, repeats=repeats), expected)
    assert_same(train(directory, 2, first_step=4, repeats=repeats), expected[4:])
    for count in (2, 8):
        parts = [
            train(directory, 3, host=p, num_hosts=count, repeats=repeats) for p in range(count)
        ]
        assert_same(joined(parts), expected[:3])
    if repeats == 1:
        return
    before = shared_memory()
    assert_same(train(directory, num_workers=2, num_threads=1, repeats=repeats), expected)
    assert not multiprocessing.active_children()
    assert until(lambda: not shared_memory() - before, 20)


def test_clips_of_a_video_stand_next_to_each_other(directory: Path) -> None:
    once, thrice = train(directory), train(directory, repeats=3)
    for single, batch in zip(once, thrice, strict=True):
        assert batch["video"].shape == (24, *SPEC.video_shape)
        assert batch["foreground"].shape == (24, *SPEC.foreground_shape)
        assert batch["slot"].tolist() == [slot for slot in range(8) for _ in range(3)]
        assert batch["repeat"].tolist() == [0, 1, 2] * 8
        assert_same([{name: values[::3] for name, values in batch.items()}], [single])
        assert len({clip.tobytes() for clip in batch["video"]}) > 20


def test_any_step_can_be_the_first(directory: Path) -> None:
    assert train(directory, 1, first_step=10**9)[0]["video"].any()


def test_evaluation_covers_the_split_once(directory: Path) -> None:
    def evaluate(**changes: Any) -> list[Element]:
        with evaluation(Dataset(directory, "train"), SPEC, batch_size=8, **changes) as batches:
            return list(batches)

    whole = evaluate()
    assert len(whole) == 3
    everything = {name: np.concatenate([b[name] for b in whole]) for name in whole[0]}
    assert everything["example_index"].tolist() == [*range(COUNT), -1, -1]
    assert np.flatnonzero(~everything["valid"]).tolist() == [BAD, 22, 23]
    assert np.flatnonzero(everything["unreadable"]).tolist() == [BAD]
    parts = [evaluate(host=host, num_hosts=2) for host in range(2)]
    assert_same(joined(parts), whole)
    assert [int(batch["valid"].sum()) for batch in evaluate(num_examples=9)] == [7, 1]
    assert_same(evaluate(num_examples=1000), whole)


def test_first_clips_leave_out_what_cannot_be_read(directory: Path) -> None:
    batch = first_clips(Dataset(directory, "train"), SPEC, 7)
    assert batch["example_index"].tolist() == [0, 1, 2, 3, 4, 6]
    assert batch["video"].shape == (6, *SPEC.video_shape)


def test_what_cannot_be_is_refused(directory: Path) -> None:
    for complaint, changes in {
        "a batch has 8 videos, but must have a multiple of the number of hosts, 3": {
            "num_hosts": 3
        },
        "host is 2 of 2 hosts": {"host": 2, "num_hosts": 2},
        "first_step and num_steps are -1 and 6": {"first_step": -1},
        "num_workers, num_threads and prefetch are 0, 2 and 0": {"prefetch": 0},
        "timeout_s is 0": {"timeout_s": 0},
    }.items():
        with pytest.raises(UserError, match=complaint):
            train(directory, **changes)
    with pytest.raises(UserError, match="num_examples is 0"):
        evaluation(Dataset(directory, "train"), SPEC, batch_size=8, num_examples=0)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_reach_the_caller_and_end_the_pipeline(directory: Path, num_workers: int) -> None:
    threads = threading.active_count()
    with pytest.raises(BadRecordError, match="record 5 of split 'train'"):
        train(directory, on_error="raise", num_workers=num_workers)
    assert not multiprocessing.active_children()
    assert num_workers or until(lambda: threading.active_count() <= threads, 5)


def test_storage_that_fails_for_good_is_told(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any) -> bytes:
        raise OSError(5, "Input/output error")

    assert sum(storage.RETRY_DELAYS_S) < TIMEOUT_S  # it is tried again meanwhile
    monkeypatch.setattr(storage, "RETRY_DELAYS_S", (0.0,))
    batches = stream(directory, 10**6)
    next(batches)
    monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(UserError, match=r"cannot be read any more: .*error: .*small-train"):
        list(batches)


def test_closing_early_and_twice(directory: Path) -> None:
    threads = threading.active_count()
    batches = stream(directory, 10**6)
    next(batches)
    batches.close()
    batches.close()
    assert until(lambda: threading.active_count() <= threads, 5)
    with pytest.raises(StopIteration):
        next(batches)


def test_a_worker_that_dies_is_an_error_within_seconds(directory: Path) -> None:
    with stream(directory, 10**6, num_workers=2) as batches:
        next(batches)
        victim, survivor = multiprocessing.active_children()
        victim.kill()
        start = time.monotonic()
        with pytest.raises(WorkerDeathError, match="exit code -9.*data.num_workers"):
            list(batches)
        assert time.monotonic() - start < 20
    assert not survivor.is_alive()


def test_slow_training_is_no_hang() -> None:
    stream: Any = SleepingStream(every=0.1)
    reading = Reading(num_threads=0, prefetch=1, timeout_s=1.0)
    with Batches(stream, 2, 1, 0, 3, reading) as batches:
        next(batches)
        time.sleep(2)  # nobody waits meanwhile
        assert len(list(batches)) == 2


# What a run does whose reading ends in the way that is named; it must end, with one line.
SCRIPT = """
import sys
from adamae_jax import cli
from adamae_jax.data.batches import Batches, Reading
from tests.data.fixtures import ExitingStream, SleepingStream

def job(argv):
    streams = {"sleep": SleepingStream(last=41), "exit": ExitingStream(last=41)}
    workers, timeout_s = map(float, sys.argv[2:])
    reading = Reading(int(workers), prefetch=1, timeout_s=timeout_s)
    for batch in Batches(streams[sys.argv[1]], 4, 1, 0, 99, reading):
        print(batch["slot"].tolist(), flush=True)

if __name__ == "__main__":
    cli.END_S = 1.0
    cli.run(job, ["job"])
"""


@pytest.mark.parametrize(
    ("how", "workers", "timeout_s"), [("sleep", 0, 2), ("sleep", 1, 8), ("exit", 1, 8)]
)
def test_a_process_ends_where_reading_hangs_or_a_worker_leaves(
    tmp_path: Path, how: str, workers: int, timeout_s: int
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), how, str(workers), str(timeout_s)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        timeout=60,
        check=False,
    )
    # A worker that exits takes along what it has not sent yet.
    assert workers or done.stdout.startswith("[0, 1, 2, 3]\n[4, 5, 6, 7]\n")
    assert "40" not in done.stdout
    assert done.stderr.startswith(f"error: no batch came for {timeout_s} s: ")
    assert done.returncode == 2


LEAVING = """
import multiprocessing, sys, time
from pathlib import Path
from tests.data.test_batches import stream

if __name__ == "__main__":
    batches = stream(Path(sys.argv[1]), 10**6, num_workers=2)
    next(batches)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    if sys.argv[2] == "wait":
        time.sleep(60)
"""


@pytest.mark.parametrize("end", ["wait", "leave"])
def test_workers_outlive_no_parent(directory: Path, tmp_path: Path, end: str) -> None:
    """Whether it is killed or ends without closing."""
    before = shared_memory()
    script = tmp_path / "script.py"
    script.write_text(LEAVING)
    with subprocess.Popen(
        [sys.executable, str(script), str(directory), end],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    ) as parent:
        assert parent.stdout and parent.stderr
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        if end == "wait":
            parent.kill()
        else:
            assert parent.wait(60) == 0
        assert until(lambda: not any(map(is_running, workers)), 10)
    assert until(lambda: not shared_memory() - before, 20)


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


def test_pieces_divide_the_batch() -> None:
    sizes = {batch: piece_size(batch, 1) for batch in range(1, 100)}
    assert all(batch % size == 0 for batch, size in sizes.items())
    expected = {1: 1, 3: 3, 8: 8, 32: 16, 48: 16, 40: 10, 34: 34, 17: 17}
    assert {batch: sizes[batch] for batch in expected} == expected
    # Of 4 clips to a video, pieces are of 4 videos; of 32 clips, of one.
    assert [piece_size(batch, 4) for batch in (1, 6, 8, 17)] == [1, 3, 4, 1]
    assert piece_size(8, 32) == 1
