"""Attention without scores against the one that XLA makes of the plain formula."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamae_jax.models import attention
from adamae_jax.models.attention import AttentionImplementation, attend, blockwise_attention
from adamae_jax.training.partitioning import create_mesh

IMPLEMENTATIONS: tuple[AttentionImplementation, ...] = ("xla", "blockwise")


def tensors(length: int, keys: int, scale: float = 1.0, seed: int = 0) -> tuple[jax.Array, ...]:
    """Query, key, value and the gradient of the result."""
    rng = np.random.default_rng(seed)
    shapes = ((2, length, 3, 8), (2, keys, 3, 8), (2, keys, 3, 8), (2, length, 3, 8))
    made = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    return made[0] * scale, *made[1:]


def both(
    given: tuple[jax.Array, ...], valid: jax.Array | None = None
) -> list[tuple[np.ndarray, ...]]:
    """Result and gradients, of XLA's attention and of ours."""
    query, key, value, gradient = given
    found = []
    with jax.default_matmul_precision("highest"):
        for name in IMPLEMENTATIONS:

            def attended(q: Any, k: Any, v: Any, name: AttentionImplementation = name) -> Any:
                return attend(q, k, v, valid, implementation=name)

            result, pull = jax.vjp(attended, query, key, value)
            found.append(tuple(map(np.asarray, (result, *pull(gradient)))))
    return found


def assert_same(found: list[tuple[np.ndarray, ...]], tolerance: float = 2e-5) -> None:
    for theirs, ours in zip(*found, strict=True):
        assert np.isfinite(ours).all()
        # With one key the gradient of queries is zero, but for rounding.
        assert np.linalg.norm(ours - theirs) <= tolerance * max(1.0, float(np.linalg.norm(theirs)))


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([0.01, 1.0, 30.0]))
def test_results_and_gradients_are_xla_s(length: int, keys: int, scale: float) -> None:
    assert_same(both(tensors(length, keys, scale)))


@pytest.mark.parametrize("length", [13, 24, 25, 48])
def test_rows_of_several_blocks(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the last block is full or not."""
    monkeypatch.setattr(attention, "SHORT_ROW", 8)
    monkeypatch.setattr(attention, "BLOCK", 16)
    assert attention.block_size(length) < length or length < 16
    valid = jnp.arange(length) < jnp.array([[length - 3], [1]])
    assert_same(both(tensors(length, length)))
    assert_same(both(tensors(length, length), valid))


def test_extreme_scores() -> None:
    """One key takes all, and nothing overflows.

    Softmax's own gradient is then a small difference of large numbers, whose subtrahend comes from
    the rounded result here: 4e-4 of it is noise, of XLA's 4e-5.
    """
    assert_same(both(tensors(20, 20, scale=1e3)), tolerance=1e-3)


def test_bfloat16_is_near() -> None:
    """Products of 8 bits: a hundredth is what rounding the inputs alone gives."""
    exact = both(tensors(40, 40))[0][0]
    query, key, value, _ = (each.astype(jnp.bfloat16) for each in tensors(40, 40))
    result = blockwise_attention(query, key, value)
    assert result.dtype == jnp.bfloat16
    error = np.linalg.norm(np.asarray(result, np.float32) - exact) / np.linalg.norm(exact)
    assert error < 1e-2


def test_no_scores_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the gradient needs of a row grows with its length, not with its square."""
    monkeypatch.setattr(attention, "SHORT_ROW", 64)

    def temporaries(implementation: Any) -> int:
        def loss(*qkv: jax.Array) -> jax.Array:
            return jnp.square(attend(*qkv, implementation=implementation)).sum()

        arguments = tensors(1024, 1024)[:3]
        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arguments).compile()
        memory: Any = compiled.memory_analysis()
        return int(memory.temp_size_in_bytes)

    assert temporaries("blockwise") < 0.5 * temporaries("xla")


def test_a_mesh_gathers_nothing() -> None:
    """Batch and heads stay split, in the loop over blocks too."""
    mesh = create_mesh({"data": 2, "tensor": 3}, jax.devices()[:6])
    split = jax.NamedSharding(mesh, jax.P(("data", "fsdp"), None, "tensor"))

    def loss(*qkv: jax.Array) -> jax.Array:
        return jnp.square(attend(*qkv, implementation="blockwise")).sum()

    arguments = [jax.device_put(each, split) for each in tensors(600, 600)[:3]]
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arguments).compile()
    assert "all-gather" not in str(compiled.as_text())


@pytest.mark.parametrize(
    ("backend", "length", "meshed", "chosen"),
    [
        ("cpu", 78, True, "blockwise"),
        ("cpu", 1568, True, "blockwise"),
        ("gpu", 512, True, "xla"),
        ("gpu", 513, True, "blockwise"),
        ("tpu", 160, True, "xla"),
        ("tpu", 1568, True, "pallas"),
        ("tpu", 1568, False, "blockwise"),
    ],
)
def test_what_auto_chooses(backend: str, length: int, meshed: bool, chosen: str) -> None:
    assert attention.choose(backend, length, meshed=meshed) == chosen
