"""The promise of the stream, all at once: a run's videos whatever happens to it."""

import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from adamae_jax.data.batches import Batch
from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.pipeline import train_batches
from adamae_jax.data.records import Dataset
from adamae_jax.errors import WorkerDeathError
from tests.data.fixtures import small_records, write_dataset

SPEC = ClipSpec(4, 1, (16, 16))
COUNT, BAD, VIDEOS = 22, 5, 8


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 videos in 3 shards, one of which is damaged."""
    records = small_records(COUNT)
    records[BAD] = b"\xff"
    return write_dataset(tmp_path_factory.mktemp("dataset"), {"train": records}, shards=3)


def read(
    directory: Path, first: int, count: int, host: int = 0, hosts: int = 1, workers: int = 0
) -> list[Batch]:
    """A host's batches of some steps."""
    with train_batches(
        Dataset(directory, "train"), SPEC, seed=3, videos_per_step=VIDEOS, first_step=first,
        num_steps=count, num_workers=workers, num_threads=1, prefetch=1, process_index=host,
        process_count=hosts,
    ) as batches:  # fmt: skip
        return list(batches)


def read_killed(directory: Path, workers: int) -> list[Batch]:
    """The batches that come before it is noticed that a worker has been killed."""
    got = []
    with train_batches(
        Dataset(directory, "train"), SPEC, seed=3, videos_per_step=VIDEOS, first_step=0,
        num_steps=10**6, num_workers=workers, num_threads=1, prefetch=1,
    ) as batches:  # fmt: skip
        got.append(next(batches))
        multiprocessing.active_children()[0].kill()
        with pytest.raises(WorkerDeathError, match="ended with exit code -9"):
            for batch in batches:
                got.append(batch)
    return got


def joined(hosts: Sequence[Sequence[Batch]]) -> list[Batch]:
    """The global batches of the steps that all hosts have."""
    steps = min(map(len, hosts))
    return [
        {name: np.concatenate([host[step][name] for host in hosts]) for name in hosts[0][0]}
        for step in range(steps)
    ]


def test_batches_are_those_of_the_step_on_any_hosts_with_any_workers_through_a_kill(
    directory: Path,
) -> None:
    """A run of one host with 2 workers is killed, and goes on with two, and then with eight."""
    run = read_killed(directory, workers=2)
    run += joined([read(directory, len(run), 2, host, 2, workers=1 - host) for host in range(2)])
    run += joined([read(directory, len(run), 2, host, 8) for host in range(8)])

    expected = read(directory, 0, len(run))
    dataset = Dataset(directory, "train")
    ids = [[dataset[index].id for index in batch["example_index"]] for batch in run]
    assert ids == [[dataset[index].id for index in batch["example_index"]] for batch in expected]
    for batch, wanted in zip(run, expected, strict=True):
        for name, values in wanted.items():
            np.testing.assert_array_equal(batch[name], values, err_msg=name)
    # The epoch of 22 videos has been read, and the damaged one was met.
    assert set(np.concatenate([batch["bad_record"] for batch in run]).tolist()) == {-1, BAD}
    assert {name for step in ids for name in step} == {
        f"video-{number}" for number in range(COUNT) if number != BAD
    }
