"""The kernel for TPUs, its steps run as plain JAX, against what XLA makes of the formula."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax.benchmark.flops import used
from adamae_jax.models import attention, pallas_attention
from adamae_jax.models.attention import attend
from adamae_jax.models.transformer import Remat, Transformer, TransformerSpec
from adamae_jax.training.partitioning import create_mesh, on_mesh

KERNEL: Callable[..., jax.Array] = functools.partial(
    pallas_attention.pallas_attention, interpret=True
)
XLA: Callable[..., jax.Array] = functools.partial(attend, implementation="xla")

Arrays = tuple[jax.Array, ...]


def tensors(
    length: int, keys: int, *, scale: float = 1.0, batch: int = 2, heads: int = 3, width: int = 8
) -> Arrays:
    """Query, key, value and the gradient of the result."""
    rng = np.random.default_rng(0)
    shapes = [(batch, tokens, heads, width) for tokens in (length, keys, keys, length)]
    made = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    return made[0] * scale, *made[1:]


def result_and_gradients(
    attended: Callable[..., jax.Array], given: Arrays, *valid: jax.Array
) -> list[np.ndarray]:
    """Of queries, keys and values, in this order."""
    *arguments, gradient = given
    result, pull = jax.vjp(lambda *qkv: attended(*qkv, *valid), *arguments)
    return [np.asarray(each) for each in (result, *pull(gradient))]


def assert_same(given: Arrays, *valid: jax.Array, tolerance: float = 2e-5) -> None:
    """The kernel's numbers are XLA's, within a part of each array's norm."""
    theirs, ours = (result_and_gradients(each, given, *valid) for each in (XLA, KERNEL))
    for expected, found in zip(theirs, ours, strict=True):
        assert np.isfinite(found).all()
        norm = float(np.linalg.norm(expected))
        assert np.linalg.norm(found - expected) <= tolerance * norm


def test_rows_that_fill_no_block() -> None:
    assert_same(tensors(40, 150))


def test_rows_of_full_blocks() -> None:
    """Nothing is filled up, so that the kernel is told of no segments."""
    assert_same(tensors(128, 256))


def test_several_blocks_and_keys_that_are_not_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pallas_attention, "LONGEST_BLOCK", 128)
    valid = jnp.arange(300) < jnp.array([[290], [1]])
    valid = valid.at[0, 3].set(False)
    assert_same(tensors(200, 300), valid)


def test_extreme_scores() -> None:
    """One key takes all, and nothing overflows; see the test of blockwise attention."""
    assert_same(tensors(40, 60, scale=1e3), tolerance=1e-3)


def test_a_row_of_the_paper_s_length() -> None:
    """1568 tokens, in one block of 1664."""
    assert pallas_attention.block_size(1568) == 1664
    assert_same(tensors(1568, 1568, batch=1, heads=1, width=64))


@pytest.mark.parametrize(
    ("length", "block"),
    [(1, 128), (128, 128), (129, 256), (1792, 1792), (1793, 1024), (3136, 1664)],
)
def test_blocks_are_equal_parts(length: int, block: int) -> None:
    assert pallas_attention.block_size(length) == block


def test_bfloat16_is_near() -> None:
    """Products of 8 bits: a hundredth is what rounding the inputs alone gives."""
    given = tensors(40, 40)
    exact, *gradients = result_and_gradients(XLA, given)
    found = result_and_gradients(KERNEL, tuple(each.astype(jnp.bfloat16) for each in given))
    for ours, theirs in zip(found, (exact, *gradients), strict=True):
        assert ours.dtype == jnp.bfloat16
        error = np.linalg.norm(ours.astype(np.float32) - theirs) / np.linalg.norm(theirs)
        assert error < 2e-2


@pytest.mark.parametrize("heads", [2, 3])
def test_a_mesh_computes_the_same(heads: int) -> None:
    """Batch and heads split, or heads whole where they do not divide; nothing is gathered."""
    mesh = create_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    given = tensors(40, 50, batch=4, heads=heads)
    valid = jnp.arange(50) < jnp.array([[50], [3], [20], [1]])

    def all_of(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        *arguments, gradient, valid = arrays
        result, pull = jax.vjp(lambda *qkv: KERNEL(*qkv, valid), *arguments)
        return result, *pull(gradient)

    rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp"), None, "tensor" if heads == 2 else None))
    places = (*[rows] * 4, jax.NamedSharding(mesh, jax.P(("data", "fsdp"))))
    arrays = [
        jax.device_put(each, place) for each, place in zip((*given, valid), places, strict=True)
    ]
    compiled = jax.jit(on_mesh(all_of, mesh)).lower(*arrays).compile()
    assert "all-gather" not in str(compiled.as_text())
    for split, whole in zip(compiled(*arrays), jax.jit(all_of)(*given, valid), strict=True):
        assert split.sharding.is_equivalent_to(rows, 4)
        np.testing.assert_allclose(split, whole, rtol=1e-5, atol=1e-5)


def test_it_is_lowered_for_tpus_on_a_mesh() -> None:
    """Where no compiler for TPUs is there: Mosaic takes the kernels, one program per device."""
    given = tensors(600, 600, batch=4, heads=2, width=64)[:3]

    def loss(*qkv: jax.Array) -> jax.Array:
        return attend(*qkv, implementation="pallas").sum()

    mesh = create_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp"), None, "tensor"))
    split = [jax.ShapeDtypeStruct(each.shape, jnp.bfloat16, sharding=rows) for each in given]
    traced = jax.jit(on_mesh(jax.grad(loss, (0, 1, 2)), mesh)).trace(*split)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@tpu_custom_call") == 2
    # One example and one head: that of a device.
    assert "tensor<1x1x640x64xbf16>" in text


def kernels(program: Any) -> Iterator[str]:
    """The names of the kernels that a traced program needs, at any depth."""
    for equation in used(getattr(program, "jaxpr", program)):
        if equation.primitive.name == "pallas_call":
            yield str(equation.params["name"])
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                if hasattr(getattr(part, "jaxpr", part), "eqns"):
                    yield from kernels(part)


@pytest.mark.parametrize(("remat", "forward"), [("none", 1), ("elementwise", 1), ("full", 2)])
@pytest.mark.parametrize("mesh", [{"data": 1}, {"data": 2, "tensor": 2}])
def test_the_backward_pass_runs_the_forward_kernel_for_whole_blocks_only(
    remat: Remat, forward: int, mesh: dict[str, int]
) -> None:
    spec = TransformerSpec(width=16, depth=2, num_heads=2, attention_implementation="pallas")
    model = Transformer(dataclasses.replace(spec, remat=remat))
    tokens = jnp.zeros((4, attention.SHORT_ROW + 1, 16))
    parameters = jax.eval_shape(model.init, jax.random.key(0), tokens)
    devices = create_mesh(mesh, jax.devices()[: math.prod(mesh.values())])
    step = on_mesh(jax.grad(lambda variables, x: model.apply(variables, x).sum()), devices)
    names = list(kernels(jax.make_jaxpr(step)(parameters, tokens)))
    assert sum("fwd" in name for name in names) == forward
    assert sum("dkv" in name for name in names) == len(names) - forward == 1


def test_short_rows_are_left_to_xla() -> None:
    def names(length: int) -> list[str]:
        query, key, value, _ = tensors(length, length)
        attended = functools.partial(attend, implementation="pallas")
        return list(kernels(jax.make_jaxpr(attended)(query, key, value)))

    assert names(attention.SHORT_ROW) == []
    assert len(names(attention.SHORT_ROW + 1)) == 1
