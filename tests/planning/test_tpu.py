"""Compiling for TPUs, where libtpu is installed: a small step for v5e:2x2."""

import pytest

from adamae_jax.planning import plan, report, topology
from tests.configs import tiny

pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu")


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
