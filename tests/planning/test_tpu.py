"""Compiling for TPUs, where libtpu is installed: small steps for v5e:2x2."""

import jax
import pytest
from ml_collections import ConfigDict

from adamae_jax import experiment
from adamae_jax.planning import hlo, plan, report, topology
from adamae_jax.training.program import abstract_batch, program
from tests.configs import tiny

pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu")


@pytest.fixture(autouse=True)
def no_flags_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """libtpu ends the process at a flag that it does not know; CPUs have read theirs by then."""
    jax.devices()
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def test_a_small_step_for_four_chips() -> None:
    config = tiny.get_config()
    config.model.dtype = "bfloat16"
    found = plan.make(config, topology.describe("v5e:2x2"))
    assert (found.chips, found.hosts, found.clips_at_once) == (4, 1, 2)
    assert found.memory is not None and found.fits
    assert found.memory_limit == int(15.75 * 2**30)
    # Gradients are added in float32, though the products are bfloat16; CPUs always do so.
    (sums,) = (one for one in found.collectives if one.dtype != "s32")
    assert (sums.kind, sums.dtype) == ("all-reduce", "f32")
    assert 4 * found.parameters <= sums.bytes <= 4 * found.parameters + 1000
    assert set(found.seconds) == {"compute", "memory", "links"}
    assert found.utilization is not None and 0 < found.utilization < 1
    assert report.verdict(found, config) == "fits"


def test_what_does_not_fit_is_said_by_the_compiler() -> None:
    config = tiny.get_config()
    config.batch_size = 4_000_000
    found = plan.make(config, topology.describe("v5e:2x2"))
    assert found.memory is None and not found.fits
    assert "exceeds available HBM" in found.compiler_says
    assert report.verdict(found, config).startswith("does not fit: a chip needs more memory than")


def long_rows(**model: str) -> ConfigDict:
    """A step whose sampler and decoder have rows of 640 tokens; nothing else is as long."""
    config = tiny.get_config()
    config.data.update({"num_frames": 20, "image_size": (32, 32)})
    config.model.decoder.update({"width": 128, "depth": 2, "num_heads": 2})
    config.model.update({"mlp_ratio": 1.0, "dtype": "bfloat16", **model})
    return config


def compiled(config: ConfigDict) -> hlo.Module:
    """The program of one chip of four."""
    config, mesh = plan.resolved(config, topology.describe("v5e:2x2"), None)
    task = experiment.pretraining(config)
    planned = program(config, task, experiment.optimizers(config, task), mesh)
    batch = abstract_batch(experiment.geometry(config).clip_shape, config.batch_size, mesh)
    # As jobs have it: Mosaic takes no float32 products of bfloat16, which tests ask for elsewhere.
    with jax.default_matmul_precision("default"):
        text = planned.step.lower(planned.abstract, batch).compile().as_text()
    assert text is not None
    return hlo.parse(text)


def scores(module: hlo.Module) -> set[tuple[int, ...]]:
    """The shapes of what has two long axes: queries and keys."""
    return {
        shape.dimensions
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
        for shape in instruction.shapes
        if sum(size >= 200 for size in shape.dimensions) > 1
    }


@pytest.mark.parametrize("remat", ["none", "elementwise"])
def test_scores_stay_on_the_chip(remat: str) -> None:
    """One kernel forward and one backward, in the sampler's block and the decoder's two."""
    module = compiled(long_rows(attention="pallas", remat=remat))
    assert plan.kernels(module) == {"tpu_custom_call": 2 * 3}
    assert not scores(module)


def test_blockwise_scores_do_not() -> None:
    """So that the test above would see them: 216 queries, 640 keys."""
    assert any(
        shape[-2:] == (216, 640) for shape in scores(compiled(long_rows(attention="blockwise")))
    )
