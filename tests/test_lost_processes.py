"""What happens to several real processes when a scheduler ends them, or one of them is gone."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from adamae_jax.cli import LOST_STATUS, PREEMPTED_STATUS
from adamae_jax.training import rundir
from adamae_jax.training.checkpoints import checkpoint_steps
from tests.data import fixtures
from tests.processes import Job, stop_line
from tests.runs import lines, moving_waves

STEPS = 400
CONFIG = f"""
from adamae_jax.config import masking_config
from tests.configs import tiny

def get_config():
    config = tiny.get_config()
    with config.unlocked():
        config.masking = masking_config("random", mask_ratio=0.75)
    config.model.encoder.depth = 1
    config.steps, config.optimizer.warmup_steps = {STEPS}, 2
    config.eval_every, config.checkpoint_every, config.pictures_every = 0, 1000, 0
    return config
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour waves."""
    return fixtures.write_dataset(
        tmp_path_factory.mktemp("data") / "waves", {"train": moving_waves(32)}
    )


def steps(workdir: Path) -> int:
    """How many have been logged."""
    return len(lines(workdir)) if (workdir / rundir.METRICS).exists() else 0


@pytest.mark.parametrize("to_all", [False, True])
def test_all_save_the_same_step_when_they_are_told_to_end(
    data: Path, tmp_path: Path, to_all: bool
) -> None:
    """The signal comes to process 1, or to all with their data workers, as SLURM sends it."""
    workdir = tmp_path / "run"
    with Job(workdir, data, config=CONFIG) as job:
        job.wait_for(lambda: steps(workdir) >= 5)
        if to_all:
            for process in job.processes:
                os.killpg(process.pid, signal.SIGTERM)
        else:
            job.processes[1].send_signal(signal.SIGTERM)
        assert job.wait() == [PREEMPTED_STATUS] * 2, job.said()
        assert not job.left_over()
    (step,) = checkpoint_steps(workdir / rundir.CHECKPOINTS)
    assert 5 < step < STEPS
    for index in range(2):
        assert f"preempted: the state of step {step} is saved in" in job.errors(index)
    if to_all:
        return
    with Job(workdir, data, config=CONFIG) as job:
        job.wait_for(lambda: steps(workdir) > step)
        assert all(re.search(rf"resumed from step {step}\b", job.errors(i)) for i in range(2))
    assert [line["step"] for line in lines(workdir)][: step + 1] == list(range(1, step + 2))


@pytest.mark.parametrize(
    ("index", "number", "count"),
    [(0, signal.SIGKILL, 2), (1, signal.SIGKILL, 3), (1, signal.SIGSTOP, 2)],
)
def test_the_others_end_with_one_line_when_a_process_is_gone(
    data: Path, tmp_path: Path, index: int, number: signal.Signals, count: int
) -> None:
    workdir = tmp_path / "run"
    with Job(workdir, data, "--config.batch_size=6", config=CONFIG, count=count) as job:
        job.wait_for(lambda: steps(workdir) >= 3)
        job.processes[index].send_signal(number)
        others = [other for other in range(count) if other != index]
        for other in others:
            assert job.processes[other].wait(90) == LOST_STATUS, job.said()
            line = stop_line(job, other)
            assert f"process {other} of {count} ends, since process {index} is gone" in line
            assert "Check failure stack trace" not in job.errors(other)
            assert "Traceback" not in job.errors(other)


def test_all_write_out_what_was_not_finite(data: Path, tmp_path: Path) -> None:
    """A rate that no model survives: each process lists its own part of each batch."""
    workdir = tmp_path / "run"
    options = ("--config.optimizer.learning_rate=1e30", "--config.max_bad_steps=3")
    with Job(workdir, data, *options, config=CONFIG) as job:
        statuses = job.wait()
        # Whoever comes first leaves word, and the other one may end by it.
        assert 2 in statuses and set(statuses) <= {1, 2}, job.said()
        for index in range(2):
            assert "were not finite and were skipped (max_bad_steps is 3)" in stop_line(job, index)
            text = (workdir / f"bad_steps_{index}.jsonl").read_text()
            listed = [json.loads(line) for line in text.splitlines()]
            assert len(listed) >= 3
            trained = job.examples(index)
            assert all(trained[line["step"] - 1] == line["examples"] for line in listed)
