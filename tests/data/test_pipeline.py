import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamae_jax.data import cutting
from adamae_jax.data.batches import Batch, _piece_size
from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.pipeline import eval_batches, train_batches
from adamae_jax.data.records import Dataset
from adamae_jax.data.stream import REASON
from adamae_jax.data.tfrecord import BadRecordError
from adamae_jax.errors import UserError
from tests.data.fixtures import small_records, write_dataset
from tests.data.test_stream import NUMBERS

COUNT = 22
SPEC = ClipSpec(4, 1, (16, 16))
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 records in 3 shards; number 5 is damaged."""
    records = small_records(COUNT)
    records[5] = b"\xff"
    return write_dataset(tmp_path_factory.mktemp("dataset"), {"train": records}, shards=3)


def train(directory: Path, steps: int = 6, **changes: Any) -> list[Batch]:
    arguments = {"seed": 1, "videos_per_step": 8, "first_step": 0, "num_steps": steps} | changes
    with train_batches(Dataset(directory, "train"), SPEC, **arguments) as batches:
        return list(batches)


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name, values in one.items():
            assert type(values) is type(other[name]) is np.ndarray
            assert values.dtype == other[name].dtype
            np.testing.assert_array_equal(values, other[name], err_msg=name)


def shared_memory() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("psm_")}


def is_given_back(before: set[str]) -> bool:
    """Whether shared memory that is new soon goes; other tests may be making more meanwhile."""
    new = shared_memory() - before
    return until(lambda: not new & shared_memory(), 20)


def until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


# CRC-32 of pixels and masks at a few steps, from the code before there were repeats: batches with
# one clip of each video stay what they were, bit by bit (where Pillow makes frames smaller).
PINNED = {
    (SPEC, 1, 8, 1): (609135086, 3078190036),
    (SPEC, 1, 8, 2): (1118280111, 4130930032),
    (SPEC, 1, 8, 10**9): (319888665, 3837440452),
    (ClipSpec(3, 2, (12, 20), "center"), 7, 6, 5): (1178823101, 809267018),
}


@pytest.mark.parametrize(("case", "expected"), PINNED.items())
def test_pinned_batches(
    directory: Path,
    case: tuple[ClipSpec, int, int, int],
    expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cutting, "cykooz_resizer", None)
    spec, seed, videos, step = case
    arguments: dict[str, Any] = {"seed": seed, "videos_per_step": videos, "num_threads": 0}
    with train_batches(
        Dataset(directory, "train"), spec, first_step=step, num_steps=1, **arguments
    ) as batches:
        batch = next(batches)
    found = zlib.crc32(batch["video"].tobytes()), zlib.crc32(batch["foreground"].tobytes())
    assert found == expected


def test_batches_are_the_stream_in_order(directory: Path) -> None:
    batches = train(directory)
    assert {name: (v.shape, v.dtype) for name, v in batches[0].items()} == {
        "video": ((8, 4, 16, 16, 3), np.dtype(np.uint8)),
        "foreground": ((8, 4, 4, 4), np.dtype(np.uint8)),
        **{name: ((8,), np.dtype(np.int32)) for name in NUMBERS},
        "bad_reason": ((8,), REASON),
    }
    for batch in batches:
        assert batch["slot"].tolist() == list(range(8))
        assert not batch["repeat"].any()
    indices = np.concatenate([batch["example_index"] for batch in batches])
    replaced = np.concatenate([batch["replaced"] for batch in batches])
    assert len(set(indices[:COUNT][replaced[:COUNT] == 0])) == COUNT - 1
    assert sum(replaced > 0) == 2  # two epochs fit into 48 videos
    assert 5 not in indices


def test_clips_of_a_video_stand_next_to_each_other(directory: Path) -> None:
    once, thrice = train(directory), train(directory, repeats=3)
    for single, batch in zip(once, thrice, strict=True):
        assert batch["video"].shape == (24, *SPEC.video_shape)
        assert batch["foreground"].shape == (24, *SPEC.foreground_shape)
        assert batch["slot"].tolist() == [slot for slot in range(8) for _ in range(3)]
        assert batch["repeat"].tolist() == [0, 1, 2] * 8
        assert_same([{name: values[::3] for name, values in batch.items()}], [single])
        assert len({clip.tobytes() for clip in batch["video"]}) > 20


@pytest.mark.parametrize("repeats", [1, 3])
def test_workers_and_threads_do_not_change_the_batches(directory: Path, repeats: int) -> None:
    expected = train(directory, num_threads=0, repeats=repeats)
    assert_same(train(directory, num_threads=3, prefetch=1, repeats=repeats), expected)
    before = shared_memory()
    for num_workers, num_threads in ((1, 0), (2, 2)):
        batches = train(
            directory, num_workers=num_workers, num_threads=num_threads, repeats=repeats
        )
        assert_same(batches, expected)
        assert not multiprocessing.active_children()
        assert is_given_back(before)


def test_starting_at_a_step_is_skipping_to_it(directory: Path) -> None:
    assert_same(train(directory, 2, first_step=4), train(directory)[4:])
    late = train(directory, 1, first_step=10**9)
    assert late[0]["video"].any()


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_join_to_the_global_batch(directory: Path, hosts: int, repeats: int) -> None:
    parts = [
        train(directory, 3, process_index=p, process_count=hosts, repeats=repeats)
        for p in range(hosts)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, train(directory, 3, repeats=repeats))


def test_evaluation_covers_the_split_once(directory: Path) -> None:
    arguments: dict[str, Any] = {"batch_size": 8}
    with eval_batches(Dataset(directory, "train"), SPEC, **arguments) as batches:
        batch = list(batches)
    assert len(batch) == 3
    joined = {name: np.concatenate([b[name] for b in batch]) for name in batch[0]}
    assert joined["example_index"].tolist() == [*range(COUNT), -1, -1]
    assert np.flatnonzero(~joined["valid"]).tolist() == [5, 22, 23]
    assert np.flatnonzero(joined["unreadable"]).tolist() == [5]
    parts = []
    for host in range(2):
        hosts = arguments | {"process_index": host, "process_count": 2}
        with eval_batches(Dataset(directory, "train"), SPEC, **hosts) as batches:
            parts.append(list(batches))
    for both, whole in zip(zip(*parts, strict=True), batch, strict=True):
        assert_same([{n: np.concatenate([b[n] for b in both]) for n in whole}], [whole])
    with eval_batches(Dataset(directory, "train"), SPEC, num_examples=9, **arguments) as batches:
        assert [int(b["valid"].sum()) for b in batches] == [7, 1]
    with eval_batches(Dataset(directory, "train"), SPEC, num_examples=1000, **arguments) as batches:
        assert_same(list(batches), batch)


def test_what_cannot_be_is_refused(directory: Path) -> None:
    for complaint, changes in {
        "videos_per_step is 8, but must be a multiple of the number of hosts, 3": {
            "process_count": 3
        },
        "process_index is 2 of 2": {"process_index": 2, "process_count": 2},
        "first_step and num_steps are -1 and 6": {"first_step": -1},
        "repeats is 0, but must be at least 1": {"repeats": 0},
        "num_workers, num_threads and prefetch are 0, 2 and 0": {"prefetch": 0},
    }.items():
        with pytest.raises(UserError, match=complaint):
            train(directory, **changes)
    with pytest.raises(UserError, match="num_examples is 0"):
        eval_batches(Dataset(directory, "train"), SPEC, batch_size=8, num_examples=0)


def test_errors_reach_the_caller_and_end_the_pipeline(directory: Path) -> None:
    threads = threading.active_count()
    with pytest.raises(BadRecordError, match="record 5 of split 'train'"):
        train(directory, on_error="raise")
    assert until(lambda: threading.active_count() <= threads, 5)


def test_closing_early_and_twice(directory: Path) -> None:
    threads = threading.active_count()
    batches = train_batches(
        Dataset(directory, "train"), SPEC, seed=1, videos_per_step=8, first_step=0, num_steps=10**6
    )
    next(batches)
    batches.close()
    batches.close()
    assert until(lambda: threading.active_count() <= threads, 5)
    with pytest.raises(StopIteration):
        next(batches)


def test_a_worker_that_dies_is_an_error_within_seconds(directory: Path) -> None:
    batches = train_batches(
        Dataset(directory, "train"), SPEC,
        seed=1, videos_per_step=8, first_step=0, num_steps=10**6, num_workers=2,
    )  # fmt: skip
    with batches:
        next(batches)
        victim, survivor = multiprocessing.active_children()
        assert victim.pid
        os.kill(victim.pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(RuntimeError, match=f"data worker {victim.pid} ended with exit code -9"):
            for _ in batches:
                pass
        assert time.monotonic() - start < 20
    assert not survivor.is_alive()


def test_an_impossible_patience_is_refused(directory: Path) -> None:
    with pytest.raises(UserError, match="timeout_s is 0"):
        train(directory, timeout_s=0)
    with pytest.raises(UserError, match="timeout_s is -1"):
        eval_batches(Dataset(directory, "train"), SPEC, batch_size=8, timeout_s=-1)


# No `__main__` guard, and an import that would take long: workers run none of it.
SCRIPT = """
import sys, time
from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.pipeline import train_batches
from adamae_jax.data.records import Dataset
with open(sys.argv[2], "a") as file:
    print("started", file=file)
batches = train_batches(
    Dataset(sys.argv[1], "train"), ClipSpec(4, 1, (16, 16)),
    seed=1, videos_per_step=8, first_step=0, num_steps=10**6, num_workers=2,
)
next(batches)
import multiprocessing
print(*(process.pid for process in multiprocessing.active_children()), flush=True)
if sys.argv[3] == "wait":
    for batch in batches:
        time.sleep(0.01)
"""


@pytest.mark.parametrize("end", ["wait", "leave"])
def test_workers_import_no_script_and_outlive_no_parent(
    directory: Path, tmp_path: Path, end: str
) -> None:
    before = shared_memory()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(directory), str(tmp_path / "log"), end],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert parent.stdout and parent.stderr
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    if end == "wait":
        assert all(map(is_running, workers))
        parent.kill()
    else:  # by the end of the script, without closing
        assert parent.wait(30) == 0
        assert "Traceback" not in parent.stderr.read()
    assert until(lambda: not any(map(is_running, workers)), 10)
    assert is_given_back(before)
    parent.communicate()
    assert (tmp_path / "log").read_text() == "started\n"


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


def test_pieces_divide_the_batch() -> None:
    sizes = {batch: _piece_size(batch, 1) for batch in range(1, 100)}
    assert all(batch % size == 0 for batch, size in sizes.items())
    assert [sizes[batch] for batch in (1, 3, 8, 32, 48, 40, 34, 17)] == [
        1,
        3,
        8,
        16,
        16,
        10,
        34,
        17,
    ]
    # Of 4 clips to a video, pieces are of 4 videos; of 32 clips, of one.
    assert [_piece_size(batch, 4) for batch in (1, 6, 8, 17)] == [1, 3, 4, 1]
    assert _piece_size(8, 32) == 1
