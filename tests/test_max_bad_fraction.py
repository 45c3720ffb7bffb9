"""The `data.max_bad_fraction` of its config decides when damaged records end a run."""

from collections import deque
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from adamae_jax.config import resolve
from adamae_jax.errors import UserError
from adamae_jax.run_data import RunData, open_training, open_validation
from adamae_jax.training.partitioning import create_mesh
from tests.configs import tiny
from tests.data.fixtures import small_records, write_dataset

DAMAGED = {"train": (3, 5, 8, 9), "validation": (1, 6)}  # of 16 and of 8: a quarter of both


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = {"train": small_records(16), "validation": small_records(8)}
    for split, numbers in DAMAGED.items():
        for number in numbers:
            records[split][number] = b"\xff"
    return write_dataset(tmp_path_factory.mktemp("damaged"), records)


def open_data(damaged: Path, workdir: Path, fraction: float) -> RunData:
    """Two epochs of 16 records, and 8 that are held out."""
    config: ConfigDict = tiny.get_config()
    config.data.dir, config.data.num_workers = str(damaged), 0
    config.steps, config.optimizer.warmup_steps, config.eval.batch_size = 4, 1, 8
    config.data.max_bad_fraction = fraction
    train = open_training(config)
    config = resolve(config, len(train))
    return RunData(config, create_mesh({"data": -1}), workdir, train, open_validation(config))


@pytest.mark.parametrize("fraction", [0.24, 0.01, 0.0])
def test_more_damage_than_the_config_allows_ends_a_run(
    damaged: Path, tmp_path: Path, fraction: float
) -> None:
    data = open_data(damaged, tmp_path, fraction)
    said = f"of 16 are more than .*fraction {fraction:g} "
    with pytest.raises(UserError, match=said), data.training_from(0) as batches:
        deque(batches, maxlen=0)
    said = f"^2 damaged records of 8 .*fraction {fraction:g} "
    with pytest.raises(UserError, match=said), data.held_out() as clips:
        deque(clips, maxlen=0)
        clips.check(2)


@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_as_much_damage_as_the_config_allows_ends_none(
    damaged: Path, tmp_path: Path, fraction: float
) -> None:
    data = open_data(damaged, tmp_path, fraction)
    with data.training_from(0) as batches:
        deque(batches, maxlen=0)
    listed = (tmp_path / "damaged_records.txt").read_text().splitlines()
    assert len(listed) == len(DAMAGED["train"])
    with data.held_out() as clips:
        unreadable = sum(int(batch["unreadable"].sum()) for batch in clips)
        clips.check(unreadable)
    assert unreadable == 2
