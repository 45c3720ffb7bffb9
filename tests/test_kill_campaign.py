"""Twenty kills of one run, at moments that nobody chose: it ends as if nothing had been."""

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from adamae_jax.training import rundir
from tests.data import fixtures
from tests.runs import DEADLINE_S, ROOT, command, environment, lines, moving_waves, run

KILLS = 20
# A checkpoint every second step, so that many kills come while one is being written; a record that
# cannot be read; a worker process, which is killed with its parent.
OPTIONS = (
    *("--config.checkpoint_every=2", "--config.eval_every=0", "--config.pictures_every=0"),
    *("--config.data.num_workers=1", "--config.data.max_bad_fraction=0.5"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 clips in two shards, one of each cannot be read."""
    data = fixtures.write_dataset(
        tmp_path_factory.mktemp("data") / "waves", {"train": moving_waves(16)}, shards=2
    )
    for shard in data.glob("*.tfrecord*"):
        fixtures.flip_byte(shard, 200)
    return data


def kill_after(workdir: Path, data: Path, step: int, seconds: float) -> None:
    """Starts the run and kills all its processes some time after a step is logged."""
    process = subprocess.Popen(
        command(workdir, data, *OPTIONS),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    metrics, deadline = workdir / rundir.METRICS, time.monotonic() + DEADLINE_S
    begin = time.time()

    def logged() -> bool:
        """By this process: the one before it may have come further than its checkpoint."""
        is_new = metrics.exists() and metrics.stat().st_mtime > begin
        return is_new and f'"step": {step},' in metrics.read_text()

    try:
        while not logged():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, f"step {step} was not reached"
            time.sleep(0.01)
        time.sleep(seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.full
def test_twenty_kills_change_nothing(data: Path, tmp_path: Path) -> None:
    undisturbed, workdir = tmp_path / "undisturbed", tmp_path / "killed"
    done = run(undisturbed, data, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert any(line["replaced"] for line in lines(undisturbed))
    draw = random.Random(0)
    for step in sorted(draw.sample(range(1, 59), KILLS)):
        kill_after(workdir, data, step, draw.uniform(0, 0.1))
    done = run(workdir, data, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert lines(workdir) == lines(undisturbed)
    first, second = (
        load_file(path / "model" / "model.safetensors") for path in (undisturbed, workdir)
    )
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].tobytes() == second[name].tobytes(), name
