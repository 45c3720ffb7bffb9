"""The step benchmark as users start it: what it prints, needs and refuses."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from adamae_jax.models.tubelets import ClipGeometry
from adamae_jax.training.partitioning import create_mesh
from tests import jobs
from tests.runs import ROOT, environment

TINY = "--config=tests/configs/tiny.py"

# What a machine without the data libraries is like.
WITHOUT_DATA_LIBRARIES = """
import importlib.abc, runpy, sys

MISSING = {"av", "clu", "grain", "orbax", "simplejpeg", "tensorflow", "tensorflow_datasets"}

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in MISSING:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)

sys.meta_path.insert(0, Missing())
runpy.run_module("adamae_jax.benchmark", run_name="__main__", alter_sys=True)
"""


@pytest.mark.smoke
def test_it_runs_without_the_data_libraries() -> None:
    words = ("step", TINY, "--batch_size=2", "--steps=3", "--warmup=1")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DATA_LIBRARIES, *words],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    line, figures = done.stdout.splitlines()
    report = json.loads(figures)
    assert "s per step" in line
    assert report["batch_size"] == 2
    assert report["devices"] == 1
    assert report["dtype"] == "float32"
    assert report["jax_version"] == jax.__version__
    assert 0 < report["step_seconds_min"] <= report["step_seconds"] <= report["step_seconds_max"]
    assert report["clips_per_second"] == pytest.approx(2 / report["step_seconds"])
    assert report["flops_per_second"] == pytest.approx(
        2 * report["flops_per_clip"] / report["step_seconds"]
    )
    assert report["compile_seconds"] > 0.1
    # At least the parameters and both of their moments; the process holds all of JAX besides.
    assert 3 * 4 * report["parameters"] < report["peak_bytes"] < report["host_bytes_max"]
    assert np.isfinite(report["loss"])


def test_a_batch_that_does_not_divide_is_one_line() -> None:
    words = ("step", TINY, "--batch_size=3", "--config.optimizer.accumulation=2")
    assert jobs.run("adamae_jax.benchmark", *words).refusal.startswith("batch_size 3 ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command is given: use one of step, data, compare"),
        (["stp"], "'stp' is not a command"),
    ],
)
def test_unknown_commands(arguments: list[str], message: str) -> None:
    assert message in jobs.run("adamae_jax.benchmark", *arguments).refusal


def test_a_random_batch_is_sharded_over_the_devices() -> None:
    from adamae_jax.benchmark.step import random_batch

    mesh = create_mesh({"data": -1})
    geometry = ClipGeometry(num_frames=2, image_size=(4, 8), tubelet_size=2, patch_size=4)
    batch = random_batch(geometry, 2 * mesh.size, mesh)
    assert batch["video"].shape == (2 * mesh.size, 2, 4, 8, 3)
    assert batch["video"].dtype == np.uint8
    assert len({shard.device for shard in batch["video"].addressable_shards}) == mesh.size
    assert np.asarray(batch["slot"]).tolist() == list(range(2 * mesh.size))
    assert 100 < float(np.asarray(batch["video"]).mean()) < 155
