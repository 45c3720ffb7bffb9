"""The trainer with a task that it was not written for: a classifier, from config to `load`."""

import dataclasses
import errno
import itertools
import json
import math
import os
import re
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from adamae_jax import experiment
from adamae_jax.classification import Classification
from adamae_jax.config import resolve
from adamae_jax.data.mixture import open_dataset
from adamae_jax.data.order import record_order
from adamae_jax.errors import PreemptedError, UserError, WorkerDeathError
from adamae_jax.models.transformer import ExampleKeys
from adamae_jax.run_data import RunData, open_training, open_validation
from adamae_jax.task import PROGRESS, Batch, TaskLoss, Variables
from adamae_jax.training import clock, loop, metrics, program, rundir, trainer
from adamae_jax.training.checkpoints import checkpoint_steps, read_subtree
from adamae_jax.training.partitioning import create_mesh
from tests.configs import tiny
from tests.data import fixtures
from tests.runs import lines

CLASSES = 3
STEPS = 30


@dataclasses.dataclass(frozen=True)
class Watched(Classification):
    """Logs how far training has come, which the step tells every task."""

    def loss(
        self, group: str, variables: Variables, batch: Batch, keys: ExampleKeys, train: bool
    ) -> TaskLoss:
        found = super().loss(group, variables, batch, keys, train)
        return found.replace(figures={**found.figures, PROGRESS: batch[PROGRESS]})


class KilledError(Exception):
    """In the place of a SIGKILL."""


def coloured(number: int) -> bytes:
    """A noisy video of one colour, which is its class; every seventh has no label."""
    label = number % CLASSES
    frames = fixtures.video(number, 10).astype(np.float32) * 0.5
    frames[..., label] += 100
    known = number % 7 != 6
    return fixtures.serialize(frames.astype(np.uint8), str(number), label if known else -1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [coloured(number) for number in range(48)]
    splits = {"train": records[:32], "validation": records[32:]}
    return fixtures.write_dataset(tmp_path_factory.mktemp("data"), splits, with_masks=False)


@pytest.fixture(autouse=True)
def without_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_summary_writer", lambda directory: None)


def classify(
    workdir: Path,
    data: Path,
    mesh: dict[str, int] | None = None,
    hooks: dict[str, Any] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """A whole job in its smallest form; ``hooks`` are further fields of `trainer.Run`."""
    config: ConfigDict = tiny.get_config()
    config.data.dir, config.data.num_workers = str(data), 0
    config.classifier.num_classes = CLASSES
    config.steps, config.checkpoint_every, config.eval_every = STEPS, 10, 15
    config.eval.num_examples, config.eval.knn = 0, False
    config.optimizer.learning_rate = 0.3
    config.update(fields)
    task = Watched(**vars(experiment.classification(config)))
    train = open_training(config)
    config = resolve(config, len(train))
    sizes = {"data": 1, **(mesh or {})}
    devices = create_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
    return trainer.train(
        trainer.Run(
            config,
            workdir,
            task,
            experiment.optimizers(config, task),
            devices,
            RunData(config, devices, workdir, train, open_validation(config)),
            metadata={},
            **(hooks or {}),
        )
    )


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("classify") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_summary_writer", lambda directory: None)
        classify(workdir, data)
    return workdir


def test_a_classifier_learns(undisturbed: Path) -> None:
    summary = json.loads((undisturbed / rundir.SUMMARY).read_text())
    assert summary["loss_first"] == pytest.approx(np.log(CLASSES), abs=0.2)
    assert summary["loss_last"] < 0.5 * summary["loss_first"]
    # Two of the 16 held-out clips have no label: they are counted, and wrong.
    assert summary["eval_examples"] == 16
    assert 10 / 16 <= summary["eval_accuracy"] <= 14 / 16
    logged = lines(undisturbed)
    assert {"grad_norm_encoder", "grad_norm_head", "accuracy", "epoch"} <= set(logged[0])
    assert [line["step"] for line in logged if "eval_loss" in line] == [15, 30]
    timed = rundir.read_metrics(undisturbed)
    assert [line["step"] for line in timed if line["evaluation_seconds"]] == [15, 30]
    assert [line["step"] for line in timed if line["checkpoint_seconds"]] == [11, 21]
    assert all(line["compute_seconds"] > 0 for line in timed)
    expected = sum(line["compute_seconds"] for line in timed[1:])  # the first step compiles
    assert timed[-1]["computed_seconds"] == pytest.approx(expected)


def test_the_task_is_told_how_far_training_has_come(undisturbed: Path) -> None:
    found = [line[PROGRESS] for line in lines(undisturbed)]
    np.testing.assert_allclose(found, np.arange(STEPS) / STEPS, rtol=1e-6)


@pytest.mark.parametrize("mesh", [{}, {"fsdp": 2, "tensor": 2}], ids=["same", "other"])
def test_a_run_that_was_killed_goes_on(
    undisturbed: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mesh: dict[str, int],
) -> None:
    """Bitwise on the same mesh; on another one, the sums are taken in another order."""
    log = loop.Loop._log

    def killed(self: loop.Loop, step: int, figures: dict[str, float]) -> None:
        log(self, step, figures)
        if step == 17:
            raise KilledError

    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_log", killed)
        with pytest.raises(KilledError):
            classify(workdir, data)
    assert checkpoint_steps(workdir / rundir.CHECKPOINTS)[-1] == 10
    classify(workdir, data, mesh)
    ours, theirs = lines(workdir), lines(undisturbed)
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    summary = json.loads((workdir / rundir.SUMMARY).read_text())
    assert summary["starts"] == 2 and 0 < summary["goodput"] < 1
    assert summary["goodput"] == summary["computed_seconds"] / summary["wall_seconds"]
    if mesh:
        assert ours[-1]["loss"] == pytest.approx(theirs[-1]["loss"], rel=1e-2)
        return
    assert ours == theirs
    first, second = (
        read_subtree(place / rundir.CHECKPOINTS, "params")[1]["head"]["kernel"]
        for place in (workdir, undisturbed)
    )
    assert first.tobytes() == second.tobytes()


def test_a_run_that_is_told_to_end_saves_its_state(
    undisturbed: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM, as a scheduler sends it; the same command goes on, bitwise."""
    log = loop.Loop._log

    def told(self: loop.Loop, step: int, figures: dict[str, float]) -> None:
        log(self, step, figures)
        if step == 13:
            os.kill(os.getpid(), signal.SIGTERM)

    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_log", told)
        with pytest.raises(PreemptedError, match="the state of step 13 is saved"):
            classify(workdir, data)
    assert checkpoint_steps(workdir / rundir.CHECKPOINTS) == [10, 13]
    classify(workdir, data)
    assert lines(workdir) == lines(undisturbed)


def test_the_steps_that_are_asked_for_are_traced(data: Path, tmp_path: Path) -> None:
    """The trace names its steps; a wrong order is told."""
    config: ConfigDict = tiny.get_config()
    config.profile.steps = (3, 4)
    classify(tmp_path / "run", data, steps=7, eval_every=0, profile=config.profile)
    (trace,) = (tmp_path / "run" / rundir.PROFILE).glob("plugins/profile/*/*.xplane.pb")
    events = [
        dict(event.stats)
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    ]
    assert sorted(int(stats["step_num"]) for stats in events) == [3, 4]
    config.profile.steps = (4, 3)
    with pytest.raises(UserError, match=r"profile.steps is \(4, 3\): give the first step"):
        classify(tmp_path / "other", data, steps=7, eval_every=0, profile=config.profile)


def test_permanent_checkpoints_are_made_between_the_others(data: Path, tmp_path: Path) -> None:
    classify(tmp_path, data, steps=12, keep_every=4, keep_checkpoints=1, eval_every=0)
    assert checkpoint_steps(tmp_path / rundir.CHECKPOINTS) == [4, 8, 12]


def test_workers_that_end_with_the_run_are_no_error(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal to the whole group of processes reaches the workers too."""
    take, calls = clock.Clock.next, itertools.count()

    def killed(self: clock.Clock, batches: Any) -> Any:
        if next(calls) == 12:
            os.kill(os.getpid(), signal.SIGTERM)
            raise WorkerDeathError("a worker has ended")
        return take(self, batches)

    monkeypatch.setattr(clock.Clock, "next", killed)
    with pytest.raises(PreemptedError, match="the state of step 12 is saved"):
        classify(tmp_path / "run", data)
    assert checkpoint_steps(tmp_path / "run" / rundir.CHECKPOINTS) == [10, 12]


def test_a_run_that_is_not_finite_any_more_ends(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From step 18 on; the checkpoint of step 20 is not written, and none makes room."""
    make = program.make_train_step

    def poisoned(*arguments: Any, **options: Any) -> Any:
        step = make(*arguments, **options)

        def poison(state: Any, batch: Any) -> Any:
            shade = jnp.where(state.step >= 17, jnp.nan, 1.0)
            variables = jax.tree.map(lambda leaf: leaf * shade, state.params)
            new, figures = step(state.replace(params=variables), batch)
            return new.replace(params=state.params), figures

        return poison

    monkeypatch.setattr(program, "make_train_step", poisoned)
    workdir = tmp_path / "run"
    with pytest.raises(UserError, match=r"1[01] updates \(steps 18 to 2[78]\) were not") as caught:
        classify(workdir, data)
    assert "saved as step 17" in str(caught.value)
    assert re.search(r"this process's examples \d+, \d+", str(caught.value))
    written = [
        json.loads(line) for line in (workdir / "bad_steps_0.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in written] == list(range(18, 18 + len(written)))
    assert len(written) >= 10 and all(len(set(line["examples"])) == 8 for line in written)
    order = record_order(open_dataset(str(data), "train"), tiny.get_config().seed)
    assert written[0]["examples"] == [order[17 * 8 + slot] for slot in range(8)]
    assert str(workdir / "bad_steps_0.jsonl") in str(caught.value)
    assert checkpoint_steps(workdir / rundir.CHECKPOINTS) == [10, 17]
    counters = read_subtree(workdir / rundir.CHECKPOINTS, "counters")[1]
    assert int(counters["skipped"]) == 0
    assert not (workdir / rundir.SUMMARY).exists()


@pytest.mark.parametrize("damaged", ["", "null", "text", "[1]", "[" * 99_999])
def test_a_damaged_summary_is_made_anew(tmp_path: Path, damaged: str) -> None:
    config = tiny.get_config()
    (tmp_path / rundir.SUMMARY).write_text(damaged)
    assert trainer.finished(config, tmp_path, [config.steps]) is None


def on_a_full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_pictures_on_a_full_disk_end_no_run(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = {"draw": on_a_full_disk}
    assert classify(tmp_path / "run", data, hooks=hooks, steps=6)["steps"] == 6
    said = [record.getMessage() for record in caplog.records]
    assert any(
        "step 6: pictures cannot be written" in text and "No space left" in text for text in said
    )


def test_a_model_on_a_full_disk_is_one_line_and_made_by_the_same_command(
    data: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    with pytest.raises(UserError, match=r"complete, but what .*/run cannot .*No space left.*again"):
        classify(workdir, data, hooks={"export": on_a_full_disk}, steps=6)
    assert checkpoint_steps(workdir / rundir.CHECKPOINTS) == [6]
    exported: list[Any] = []
    assert classify(workdir, data, hooks={"export": exported.append}, steps=6)["steps"] == 6
    assert len(exported) == 1
