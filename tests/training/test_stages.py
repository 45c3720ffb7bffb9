"""A mask ratio that changes in training: which steps have which, and a run that goes on."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from adamae_jax import experiment, pretrain
from adamae_jax.config import masking_config, resolve
from adamae_jax.pretraining import ForwardOutput, Pretraining
from adamae_jax.run_data import RunData, open_training, open_validation
from adamae_jax.training import metrics, rundir, trainer
from adamae_jax.training.checkpoints import checkpoint_steps, read_subtree
from adamae_jax.training.partitioning import create_mesh
from adamae_jax.training.program import stage_ends
from tests.configs import tiny
from tests.data import fixtures
from tests.runs import lines

STEPS = 9
# Of 48 tokens, at the ratios 0.5, 0.625 and 0.75.
VISIBLE = [24, 18, 12]
TRACED: list[int] = []  # visible tokens whenever a step is traced


class Watched(Pretraining):
    """Logs how many tokens are seen."""

    def forward(self, *arguments: Any, **known: Any) -> ForwardOutput:
        output = super().forward(*arguments, **known)
        seen = output.mask.visible.shape[1]
        if arguments[3]:
            TRACED.append(seen)
        terms = {**output.terms, "visible": jnp.full(len(output.loss), float(seen))}
        return output.replace(terms=terms)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {"train": fixtures.small_records(8), "validation": fixtures.small_records(8)}
    return fixtures.write_dataset(tmp_path_factory.mktemp("data"), splits)


@pytest.fixture(autouse=True)
def without_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_summary_writer", lambda directory: None)


def run(workdir: Path, data: Path) -> None:
    """A whole run in three stages, in its smallest form."""
    config = tiny.get_config()
    config.data.dir, config.data.num_workers = str(data), 0
    config.steps, config.checkpoint_every, config.eval_every = STEPS, 2, 3
    config.keep_checkpoints = STEPS
    config.eval.num_examples, config.eval.knn = 0, False
    config.masking = masking_config("random", mask_ratio=0.75)
    config.masking.mask_ratio_start, config.masking.mask_ratio_stages = 0.5, 3
    task = Watched(**vars(experiment.pretraining(config)))
    assert pretrain.describe_ratios(task, STEPS) == (
        "mask_ratio 0.5 until step 3, 0.625 until step 6, then 0.75"
    )
    train = open_training(config)
    config = resolve(config, len(train))
    devices = create_mesh({"data": 1}, jax.devices()[:1])
    trainer.train(
        trainer.Run(
            config,
            workdir,
            task,
            experiment.optimizers(config, task),
            devices,
            RunData(config, devices, workdir, train, open_validation(config)),
            metadata={},
        )
    )


def test_every_stage_has_its_ratio_also_in_a_run_that_goes_on(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """From a checkpoint in the second stage on, it is bitwise the undisturbed run."""
    TRACED.clear()
    run(tmp_path / "whole", data)
    # Each is compiled when its turn comes, and once.
    assert [seen for seen, _ in itertools.groupby(TRACED)] == VISIBLE
    assert len({TRACED.count(seen) for seen in VISIBLE}) == 1
    said = capfd.readouterr().err
    assert "compiling stage 2 of the training" in said and "and ran step 7" in said
    logged = lines(tmp_path / "whole")
    assert [line["visible"] for line in logged] == [seen for seen in VISIBLE for _ in range(3)]
    held_out = [line["eval_visible"] for line in logged if "eval_visible" in line]
    assert held_out == [VISIBLE[-1]] * 3
    ratios = [line["mask_ratio"] for line in logged]
    assert ratios == [ratio for ratio in (0.5, 0.625, 0.75) for _ in range(3)]
    assert not any("eval_mask_ratio" in line for line in logged)

    checkpoints = tmp_path / "again" / rundir.CHECKPOINTS
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    (tmp_path / "again" / rundir.SUMMARY).unlink()
    for step in checkpoint_steps(checkpoints):
        if step > 4:
            shutil.rmtree(checkpoints / str(step))
    TRACED.clear()
    run(tmp_path / "again", data)
    assert [seen for seen, _ in itertools.groupby(TRACED)] == VISIBLE[1:]
    assert json.dumps(lines(tmp_path / "again")) == json.dumps(logged)
    first, second = (
        read_subtree(tmp_path / name / rundir.CHECKPOINTS, "params")[1]
        for name in ("whole", "again")
    )
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    ("updates", "stages", "ends"),
    [(9, 1, (9,)), (9, 3, (3, 6, 9)), (10, 3, (4, 7, 10)), (1000, 4, (250, 500, 750, 1000))],
)
def test_stages_are_equally_long_but_for_rounding(
    updates: int, stages: int, ends: tuple[int, ...]
) -> None:
    assert stage_ends(updates, stages) == ends


def test_a_ratio_that_does_not_change_is_not_told() -> None:
    assert pretrain.describe_ratios(experiment.pretraining(tiny.get_config()), STEPS) == ""
