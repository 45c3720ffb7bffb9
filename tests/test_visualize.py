"""The visualize job, on a model directory and a small dataset."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from adamae_jax import config as configs
from adamae_jax import experiment, pretrained
from tests import jobs
from tests.configs import tiny
from tests.data import fixtures
from tests.runs import ROOT, environment

NAMES = [f"step_0000007_{i}.{kind}" for i in (0, 1) for kind in ("png", "gif")]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips, the second damaged.

    Of noise: in a flat tubelet the normalised target is rounding error, which is not the same in
    batches of different sizes.
    """
    directory = tmp_path_factory.mktemp("data") / "small"
    clips = np.random.default_rng(0).integers(0, 256, (3, 6, 24, 32, 3), np.uint8)
    records = [fixtures.serialize(clip, f"noise-{i}", i) for i, clip in enumerate(clips)]
    fixtures.write_dataset(directory, {"train": records, "validation": records}, with_masks=False)
    first = len(fixtures.frame_record(records[0]))
    fixtures.flip_byte(fixtures.shard_path(directory, "validation"), first + 200)
    return directory


@pytest.fixture(scope="module")
def model(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model, as if after 7 steps."""
    config = tiny.get_config()
    config.data.dir = str(dataset)
    config = configs.resolve(config, 3)
    variables = jax.jit(experiment.pretraining(config).init)(jax.random.key(0))
    directory = tmp_path_factory.mktemp("run") / "model"
    pretrained.save(directory, variables, config, 7)
    return directory


@pytest.fixture(scope="module")
def drawn(model: Path) -> list[Path]:
    """The files that the job, in a process of its own, says it has written for three clips."""
    done = subprocess.run(
        [sys.executable, "-m", "adamae_jax.visualize", f"--workdir={model}", "--num_clips=3"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [Path(line) for line in done.stdout.splitlines()]


def test_pictures_of_what_can_be_read(model: Path, drawn: list[Path]) -> None:
    assert [path.name for path in drawn] == NAMES
    assert sorted((model / "pictures").iterdir()) == sorted(drawn)
    first, second = (np.asarray(Image.open(path)) for path in drawn[::2])
    assert first.shape == second.shape
    assert (first != second).any()


def test_elsewhere_and_again_the_same_masks(model: Path, drawn: list[Path], tmp_path: Path) -> None:
    # Both splits begin with the same clip.
    words = (f"--workdir={model}", f"--output={tmp_path}", "--num_clips=1", "--split=train")
    assert jobs.run("adamae_jax.visualize", *words).status == 0
    assert len(list(tmp_path.iterdir())) == 2
    here, there = (np.asarray(Image.open(p)).astype(int) for p in (drawn[0], tmp_path / NAMES[0]))
    # A batch of another size may round differently.
    assert np.abs(here - there).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data_dir=nowhere"], "nowhere"),
        (["--num_clips=0"], "--num_clips=0"),
        (["--step=3"], "model directory"),
    ],
)
def test_mistakes(model: Path, options: list[str], message: str) -> None:
    assert message in jobs.run("adamae_jax.visualize", f"--workdir={model}", *options).refusal


def test_without_a_workdir(tmp_path: Path) -> None:
    for options, message in (([], "--workdir"), ([f"--workdir={tmp_path}"], str(tmp_path))):
        assert message in jobs.run("adamae_jax.visualize", *options).refusal
