"""A run that goes on with another number of devices or processes, or on another mesh."""

import math
import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest
from ml_collections import ConfigDict

from adamae_jax import job, pretrain
from adamae_jax.cli import PREEMPTED_STATUS
from adamae_jax.config import masking_config
from adamae_jax.errors import PreemptedError, UserError
from adamae_jax.training import loop, metrics, rundir
from adamae_jax.training.checkpoints import checkpoint_steps
from adamae_jax.training.partitioning import create_mesh
from tests.configs import tiny
from tests.data import fixtures
from tests.processes import Job
from tests.runs import lines, moving_waves

STEPS, CLIPS = 20, 8
# What a step is made of and by how much it counts; and what it comes to, but for the order of sums.
SAME, ALIKE = ("step", "learning_rate", "epoch", "replaced"), ("loss", "grad_norm")


class Segment(NamedTuple):
    """A part of a run: until which step, on how many devices, and how they share the work."""

    until: int
    devices: int
    mesh: dict[str, int]
    accumulation: int = 1


WHOLE = [Segment(STEPS, 8, {"data": 8})]
# The batch stays: what a device has of it, or accumulation, absorbs the change.
QUICK = [
    Segment(5, 8, {"data": 8}),
    Segment(9, 4, {"data": 2, "fsdp": 2}),
    Segment(13, 1, {"data": 1}, accumulation=4),
    Segment(STEPS, 8, {"data": 4, "tensor": 2}),
]
WIDE = [
    Segment(2, 8, {"data": 8}),
    Segment(4, 4, {"data": 1, "fsdp": 4}),
    Segment(6, 4, {"data": 4}, accumulation=2),
    Segment(9, 2, {"data": 1, "tensor": 2}, accumulation=8),
    Segment(11, 2, {"data": 2}),
    Segment(13, 1, {"data": 1}),
    Segment(15, 8, {"data": 2, "fsdp": 2, "tensor": 2}, accumulation=2),
    Segment(17, 6, {"data": 2, "tensor": 3}),  # more parts than there are heads: some stay whole
    Segment(STEPS, 8, {"data": 8}),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures.write_dataset(
        tmp_path_factory.mktemp("data") / "waves",
        {"train": moving_waves(24), "validation": moving_waves(8)},
    )


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "drawing", lambda *_: None)
    monkeypatch.setattr(metrics, "_summary_writer", lambda directory: None)  # TensorFlow


def config_of(data: Path, masking: str = "random") -> ConfigDict:
    config: ConfigDict = tiny.get_config()
    with config.unlocked():
        config.masking = masking_config(masking, mask_ratio=0.75)
    config.data.dir, config.data.num_workers = str(data), 0
    config.model.encoder.depth = config.eval.random_draws = 1
    config.steps, config.optimizer.learning_rate, config.eval.knn = STEPS, 3e-3, False
    config.checkpoint_every, config.eval_every, config.pictures_every = 1000, 10, 0
    return config


def run(data: Path, workdir: Path, segments: list[Segment], masking: str) -> list[list[int]]:
    """Runs the segments one after the other, each told to end; returns each step's examples."""
    seen: list[list[int]] = []
    put_batch, log = loop.put_batch, loop.Loop._log

    def put(batch: Any, mesh: Any) -> Any:
        if "damage" in batch:  # not an evaluation's
            seen.append(batch["example_index"].tolist())
        return put_batch(batch, mesh)

    for segment in segments:

        def logged(self: loop.Loop, step: int, figures: Any, until: int = segment.until) -> None:
            log(self, step, figures)
            if step == until != STEPS:
                os.kill(os.getpid(), signal.SIGTERM)

        config = config_of(data, masking)
        config.mesh.update(segment.mesh)
        config.optimizer.accumulation = segment.accumulation
        devices = jax.devices()[: segment.devices]
        assert math.prod(segment.mesh.values()) == segment.devices
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "put_batch", put)
            patch.setattr(loop.Loop, "_log", logged)
            patch.setattr(job, "create_mesh", lambda sizes, d=devices: create_mesh(sizes, d))
            try:
                pretrain.pretrain(config, workdir)
            except PreemptedError:
                assert checkpoint_steps(workdir / rundir.CHECKPOINTS)[-1] == segment.until
    return seen


def check_alike(ours: Path, theirs: Path) -> None:
    found, expected = lines(ours), lines(theirs)
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    for line, other in zip(found, expected, strict=True):
        assert line.keys() == other.keys()
        for name in SAME:
            assert line[name] == other[name], (line["step"], name)
        for name in line.keys() & {*ALIKE, "eval_loss_reconstruction"}:
            assert line[name] == pytest.approx(other[name], rel=1e-3), (line["step"], name)


@pytest.mark.parametrize(
    ("segments", "masking"),
    [
        pytest.param(QUICK, "random", id="quick"),
        pytest.param(WIDE, "random", id="wide", marks=pytest.mark.full),
        pytest.param(QUICK, "adaptive", id="adaptive", marks=pytest.mark.full),
    ],
)
def test_a_run_moves_between_devices_and_meshes(
    data: Path, tmp_path: Path, segments: list[Segment], masking: str
) -> None:
    whole = run(data, tmp_path / "whole", WHOLE, masking)
    moved = run(data, tmp_path / "moved", segments, masking)
    # The same examples step by step, and each once in an epoch of three steps.
    assert moved == whole and len(whole) == STEPS
    for first in range(0, STEPS, 3):
        epoch = moved[first : first + 3]
        assert len({example for step in epoch for example in step}) == CLIPS * len(epoch)
    check_alike(tmp_path / "moved", tmp_path / "whole")


def test_devices_that_do_not_divide_the_batch_are_refused(data: Path, tmp_path: Path) -> None:
    """With what may be changed, since the batch may not."""
    run(data, tmp_path, [Segment(2, 8, {"data": 8})], "random")
    before = (tmp_path / rundir.CONFIG).read_bytes()
    for segment, number in (
        (Segment(4, 3, {"data": 3}), 3),
        (Segment(4, 8, {"data": 8}, accumulation=2), 16),
    ):
        with pytest.raises(UserError, match=rf"a multiple of {number}, or other devices .*goes on"):
            run(data, tmp_path, [segment], "random")
    assert (tmp_path / rundir.CONFIG).read_bytes() == before


PROCESSES = """
from pathlib import Path
from tests import test_elastic

def get_config():
    return test_elastic.config_of(Path())
"""


@pytest.mark.full
def test_a_run_moves_between_processes(data: Path, tmp_path: Path) -> None:
    """Two, with a device each; this one, with eight; two again, split the other way."""
    whole = run(data, tmp_path / "whole", WHOLE, "random")
    workdir, moved = tmp_path / "moved" / "run", []
    (tmp_path / "moved").mkdir()

    def logged() -> int:
        return len(lines(workdir)) if (workdir / rundir.METRICS).exists() else 0

    with Job(workdir, data, config=PROCESSES) as two:
        two.wait_for(lambda: logged() >= 4)
        two.processes[1].send_signal(signal.SIGTERM)
        assert two.wait() == [PREEMPTED_STATUS] * 2, two.said()
        parts = [two.examples(index) for index in range(2)]
    (first,) = checkpoint_steps(workdir / rundir.CHECKPOINTS)
    moved = [a + b for a, b in zip(*parts, strict=True)][:first]
    second = min(first + 3, STEPS - 2)
    moved += run(data, workdir, [Segment(second, 8, {"data": 8})], "random")
    options = ("--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.optimizer.accumulation=2")
    with Job(workdir, data, *options, config=PROCESSES) as two:
        assert two.wait() == [0, 0], two.said()
        parts = [two.examples(index) for index in range(2)]
    moved += [a + b for a, b in zip(*parts, strict=True)]
    assert moved == whole
    check_alike(workdir, tmp_path / "whole")
