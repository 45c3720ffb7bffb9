"""The real step, compiled for virtual devices: what is said of it is what is there."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from adamae_jax import config as configs
from adamae_jax import experiment, run_data
from adamae_jax.data.mixture import open_dataset
from adamae_jax.errors import UserError
from adamae_jax.planning import chips, fit, plan, report, topology
from adamae_jax.planning.plan import Memory, Plan
from adamae_jax.training import partitioning
from adamae_jax.training.partitioning import create_mesh
from adamae_jax.training.program import abstract_batch, program
from tests.configs import tiny
from tests.data import fixtures
from tests.runs import moving_waves

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def eight() -> Plan:
    return plan.make(tiny.get_config(), topology.describe("cpu:8"))


def test_the_step_is_the_one_that_is_trained(eight: Plan) -> None:
    config = tiny.get_config()
    mesh = create_mesh({"data": 8})
    config = configs.resolve(config, 0)
    task = experiment.pretraining(config)
    planned = program(config, task, experiment.optimizers(config, task), mesh)
    assert eight.chips == 8
    assert (eight.batch_size, eight.clips_at_once, eight.accumulation) == (8, 1, 1)
    assert eight.parameters == sum(leaf.size for leaf in jax.tree.leaves(planned.abstract.params))
    assert eight.memory is not None
    # The state and a clip are its arguments; the state is written in the place of the old one.
    state = partitioning.bytes_per_device(planned.abstract, planned.shardings)
    clip = int(np.prod(task.model.geometry.clip_shape))
    assert state + clip <= eight.memory.arguments <= state + clip + 1000
    assert eight.memory.aliased == state
    assert eight.memory.total > eight.memory.arguments + eight.memory.temporaries


def test_gradients_are_summed_once(eight: Plan) -> None:
    floats = [one for one in eight.collectives if one.dtype == "f32"]
    assert {one.kind for one in floats} == {"all-reduce"}
    gradients = 4 * eight.parameters
    assert gradients <= sum(one.bytes for one in floats) <= gradients + 1000


def test_of_several_mask_ratios_the_dearest_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.get_config()
    config.masking = configs.masking_config("random", mask_ratio=0.75)
    alone = plan.make(config, topology.describe("cpu:1"))
    config.masking.mask_ratio_start, config.masking.mask_ratio_stages = 0.25, 2
    found = plan.make(config, topology.describe("cpu:1"))
    assert (alone.mask_ratio, found.mask_ratio) == (0.75, 0.25)
    assert found.memory is not None and alone.memory is not None
    assert found.memory.total > alone.memory.total
    assert found.model_flops > alone.model_flops
    assert "mask_ratio 0.25" in report.table(found)

    def gives_up(config: Any, *arguments: Any, **known: Any) -> Plan:
        late = config.masking.mask_ratio == 0.75
        return as_if(alone, mask_ratio=0.75, memory=None) if late else found

    monkeypatch.setattr(plan, "make_stage", gives_up)
    assert not plan.make(config, topology.describe("cpu:1")).fits


def test_parameters_that_are_split_are_gathered() -> None:
    config = tiny.get_config()
    config.mesh.update({"data": 2, "fsdp": 4})
    found = plan.make(config, topology.describe("cpu:8"))
    assert "all-gather" in {one.kind for one in found.collectives}
    assert found.mesh == {"data": 2, "fsdp": 4, "tensor": 1}


def test_the_abstract_batch_is_that_of_a_run(tmp_path: Path) -> None:
    dataset = str(fixtures.write_dataset(tmp_path / "data", {"train": moving_waves(8)}))
    config = tiny.get_config()
    config.data.dir = dataset
    config.data.num_workers = 0
    mesh = create_mesh({"data": 8})
    train = open_dataset(dataset, "train")
    config = configs.resolve(config, len(train))
    data = run_data.RunData(config, mesh, tmp_path, train, None)
    with data.training_from(0) as batches:
        placed = partitioning.put_batch(next(batches), mesh)
    placed.pop("foreground")
    shape = experiment.geometry(config).clip_shape
    abstract = abstract_batch(shape, config.batch_size, mesh)
    assert {name: (array.shape, array.dtype) for name, array in placed.items()} == {
        name: (array.shape, array.dtype) for name, array in abstract.items()
    }
    assert all(placed[name].sharding == abstract[name].sharding for name in abstract)


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The job in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "adamae_jax.compile", *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_the_job_says_in_one_line_that_it_does_not_fit() -> None:
    options = ("--config=tests/configs/tiny.py", "--topology=cpu:4", "--memory_gb=0.001")
    done = start(*options, "--json")
    assert done.returncode == 3, done.stderr
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert found["chips"] == 4 and found["clips_at_once"] == 2
    assert found["memory_total"] > found["memory_limit"] == 1_000_000
    (error,) = done.stderr.splitlines()
    assert error.startswith("error: does not fit: a chip needs ")
    assert "--config.optimizer.accumulation=2, or --config.model.remat=elementwise" in error


def test_wrong_topologies_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--topology=v9:2x2 is none that is known.*v5e:4x4"):
        topology.describe("v9:2x2")
    with pytest.raises(UserError, match="cpu:9 cannot be described.*8 of them"):
        topology.describe("cpu:9")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install libtpu"):
        topology.describe("v5e:2x2")
    with pytest.raises(UserError, match=r'pip install "jax\[cuda12\]=='):
        topology.describe("h100:1x1x8")


def as_if(found: Plan, **changes: Any) -> Plan:
    return dataclasses.replace(found, **changes)


def test_the_table_and_the_bounds(eight: Plan) -> None:
    fast = as_if(
        eight,
        topology="h100:1x1x8",
        memory=Memory(1_000_000_000, 64_000_000_000, 500_000_000, 400_000_000, 0),
        memory_limit=80_000_000_000,
        model_flops=8 * 10**12,
        peak=1e14,
        seconds={"compute": 0.01, "memory": 0.02, "links": 0.001},
    )
    lines = dict(line.split("  ", 1) for line in report.table(fast).splitlines() if line[0] != " ")
    assert lines["bytes a chip"].strip() == "65.1 GB of 80 GB (81%)"
    assert lines["a step, at least"].strip() == "20.0 ms (compute 10.0, memory 20.0, links 1.0)"
    assert lines["clips a second, at most"].strip() == "400"
    # 8 TFLOP in 20 ms are half of what 8 chips can do.
    assert lines["model FLOPs utilisation, at most"].strip() == "50%"
    config = tiny.get_config()
    assert report.verdict(fast, config).startswith("fits; JAX takes 75% of a GPU's memory")
    verdict = report.verdict(as_if(fast, memory_limit=60_000_000_000), config)
    assert "a chip needs 65.1 GB of 60 GB" in verdict
    gave_up = as_if(fast, memory=None, compiler_says="ran out of memory")
    assert "ran out of memory" in report.table(gave_up)
    assert not gave_up.fits


def test_the_largest_batch_is_found() -> None:
    config = tiny.get_config()
    config.mesh.data = 2
    tried: dict[int, int] = {}

    def note(clips: int, found: Plan) -> None:
        assert found.memory is not None
        assert clips not in tried
        tried[clips] = found.memory.total

    found, best = fit.largest(
        config, topology.describe("cpu:2"), memory_limit=4_000_000, tried=note
    )
    assert best.batch_size == found.batch_size == 2 * found.clips_at_once
    assert found.fits and tried[found.clips_at_once] <= 4_000_000
    following = fit.LADDER[fit.LADDER.index(found.clips_at_once) + 1]
    assert tried[following] > 4_000_000


@pytest.mark.parametrize("start", [0, 1, 5, 9, 1000])
@pytest.mark.parametrize("last", range(-1, 10))
def test_the_last_that_holds(start: int, last: int) -> None:
    asked: list[int] = []

    def holds(value: int) -> bool:
        asked.append(value)
        return value <= last

    found = fit.last_that_holds(range(10), holds, start)
    assert found == (last if last >= 0 else None)
    assert len(asked) == len(set(asked))


def test_chips_and_their_descriptions() -> None:
    for name, chip in chips.CHIPS.items():
        if chip.platform == "gpu":
            text = chips.target_config(name)
            assert f"device_memory_size: {chip.memory}\n" in text
            assert text.count("{") == text.count("}")
