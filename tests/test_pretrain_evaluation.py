"""What a run's evaluations count: every held-out video once, and those that cannot be read."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from adamae_jax import pretrain
from adamae_jax.data.records import Dataset
from adamae_jax.errors import UserError
from adamae_jax.run_data import HeldOutClips, RunData
from adamae_jax.training import metrics, program
from tests.data import fixtures
from tests.test_pretrain_data import tiny_run

SHORT = {"steps": 2, "optimizer.warmup_steps": 1, "eval_every": 2, "data.max_bad_fraction": 0.5}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Compiled programs, from one run to the next."""
    return str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of one class, of which two held-out ones are torn."""
    records = [fixtures.serialize(fixtures.video(number, 10), label=1) for number in range(16)]
    records[10] = records[13] = b"\xff"
    folder = tmp_path_factory.mktemp("data")
    splits = {"train": records[:8], "validation": records[8:]}
    return fixtures.write_dataset(folder, splits, with_masks=False)


@pytest.fixture(autouse=True)
def nothing_but_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that does nothing, for it takes longest to compile; no pictures, no TensorFlow."""
    monkeypatch.setattr(
        program, "jit_train_step", lambda *_, **__: lambda state, batch: (state, {"skipped": 0})
    )
    monkeypatch.setattr(pretrain, "drawing", lambda *_: None)
    monkeypatch.setattr(metrics, "_summary_writer", lambda directory: None)


def test_an_unreadable_video_counts_as_wrong(data: Path, compiled: str, tmp_path: Path) -> None:
    summary = tiny_run(tmp_path / "run", data, compiled, **SHORT)
    assert (summary["eval_examples"], summary["eval_unreadable"]) == (6, 2)
    assert summary["eval_knn_accuracy"] == 6 / 8  # neighbours of one class cannot be wrong


@pytest.mark.parametrize("split", ["validation", "train"])
def test_an_evaluation_that_does_not_see_all_videos_ends_the_run(
    data: Path, compiled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    """Neither the held-out losses nor, of the training videos, the bank of neighbours."""
    evaluated = RunData._evaluated

    @contextlib.contextmanager
    def shortened(
        self: RunData, dataset: Dataset, most: int, views: None = None
    ) -> Iterator[HeldOutClips]:
        with evaluated(self, dataset, 7 if dataset.split == split else most) as clips:
            yield dataclasses.replace(clips, num_examples=8)

    monkeypatch.setattr(RunData, "_evaluated", shortened)
    changes = SHORT | {"eval.knn": split == "train"}
    with pytest.raises(UserError, match="an evaluation of 8 clips has counted 7: "):
        tiny_run(tmp_path / "run", data, compiled, **changes)
