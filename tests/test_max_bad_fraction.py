"""The `data.max_bad_fraction` of its config decides when damaged records end a run.

Without a model: the real datasets, batches and counts, and the run's own way from one to the next.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from adamae_jax import pretrain
from adamae_jax.data.damage import Listing
from adamae_jax.errors import UserError
from adamae_jax.splits import Data
from tests.configs import tiny
from tests.data.fixtures import small_records, write_dataset

# Attributes of a run that only the parts have a use for which are replaced here.
UNUSED = ("clock", "evaluate_sums", "log", "mesh", "optimizers", "pretraining", "state", "validate")
DAMAGED = {"train": (3, 5, 8, 9), "validation": (1, 6)}  # of 16 and of 8: a quarter of both


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = {"train": small_records(16), "validation": small_records(8)}
    for split, numbers in DAMAGED.items():
        for number in numbers:
            records[split][number] = b"\xff"
    return write_dataset(tmp_path_factory.mktemp("damaged"), records)


class Loop:
    """In the place of the training loop: takes batch after batch, and does nothing with them."""

    def __init__(self, **options: Any):
        pass

    def run(self, state: Any, first_step: int, batches: Iterable[Any]) -> Any:
        for _ in batches:
            pass
        return state


def evaluated(
    sums_of: Any, state: Any, batches: Iterable[Mapping[str, np.ndarray]], put: Any
) -> dict[str, float]:
    """In the place of an evaluation: counts."""
    sums = [(batch["valid"].sum(), batch["unreadable"].sum()) for batch in batches]
    valid, unreadable = map(float, np.sum(sums, axis=0))
    return {"eval_examples": valid, "eval_unreadable": unreadable}


@pytest.fixture
def run(damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `pretrain.Run` needs of itself to train and to evaluate."""
    config: ConfigDict = tiny.get_config()
    config.data.dir, config.data.num_workers, config.eval.knn = str(damaged), 0, False
    config.steps, config.eval.batch_size = 5, 8  # two epochs of 16 records, behind the first step
    monkeypatch.setattr(pretrain.loop, "Loop", Loop)
    monkeypatch.setattr(pretrain.evaluation, "run", evaluated)
    monkeypatch.setattr(pretrain, "make_train_step", lambda *_, **options: None)
    monkeypatch.setattr(pretrain, "jit_train_step", lambda *_: None)
    return SimpleNamespace(
        config=config,
        data=Data.open(config),
        damaged=Listing(tmp_path / "damaged_records.txt"),
        first_step=1,
        _actions=list,
        draw=lambda *_: None,
        **dict.fromkeys(UNUSED),
    )


@pytest.mark.parametrize("fraction", [0.24, 0.01, 0.0])
def test_more_damage_in_training_than_the_config_allows_ends_a_run(
    run: Any, fraction: float
) -> None:
    run.config.data.max_bad_fraction = fraction
    with pytest.raises(UserError, match=f"of 16 records are more than .*fraction {fraction:g} "):
        pretrain.Run.train(run)


@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_as_much_damage_in_training_as_the_config_allows_ends_none(
    run: Any, tmp_path: Path, fraction: float
) -> None:
    run.config.data.max_bad_fraction = fraction
    pretrain.Run.train(run)
    listed = (tmp_path / "damaged_records.txt").read_text().splitlines()
    assert len(listed) == len(DAMAGED["train"])


@pytest.mark.parametrize("fraction", [0.24, 0.01, 0.0])
def test_more_damage_in_an_evaluation_than_the_config_allows_ends_a_run(
    run: Any, fraction: float
) -> None:
    run.config.data.max_bad_fraction = fraction
    with pytest.raises(UserError, match=f"^2 damaged records of 8 .*fraction {fraction:g} "):
        pretrain.Run.validate(run, run.config.steps, run.state)


@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_as_much_damage_in_an_evaluation_as_the_config_allows_ends_none(
    run: Any, fraction: float
) -> None:
    run.config.data.max_bad_fraction = fraction
    figures = pretrain.Run.validate(run, run.config.steps, run.state)
    assert figures == {"eval_examples": 6.0, "eval_unreadable": 2.0}
