"""The stack of blocks against one written a second time, and its ways of being executed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax.benchmark.flops import matmul_flops
from adamae_jax.models.attention import AttentionImplementation
from adamae_jax.models.transformer import (
    ExampleDropout,
    LayerNorm,
    Remat,
    Transformer,
    TransformerSpec,
)
from tests import helpers
from tests.parity import reference

SPEC = TransformerSpec(width=12, depth=3, num_heads=3)


def tokens(count: int = 2, length: int = 5) -> jax.Array:
    """Random tokens."""
    values = np.random.default_rng(7).normal(size=(count, length, SPEC.width))
    return jnp.asarray(values, jnp.float32)


def parameters(spec: TransformerSpec) -> Any:
    """Parameters with no zero bias and no plain norm."""
    shapes = jax.eval_shape(Transformer(spec).init, jax.random.key(0), tokens())
    return helpers.filled(shapes["params"])


def apply(spec: TransformerSpec, params: Any, x: jax.Array, **arguments: Any) -> jax.Array:
    """Runs the stack."""
    return jax.jit(Transformer(spec).apply)({"params": params}, x, **arguments)


def stack_by_hand(spec: TransformerSpec, params: Any, x: Any) -> Any:
    """The stack as the authors' code computes it."""
    w: dict[str, Any] = {}
    for index in range(spec.depth):
        layer = jax.tree.map(lambda a, index=index: a[index], params["blocks"])
        dense = {"mlp.fc1": layer["mlp"]["fc1"], "mlp.fc2": layer["mlp"]["fc2"]}
        if spec.attention:
            attention = layer["attention"]
            dense["attn.proj"] = attention["projection"]
            for number, letter in enumerate("qkv"):
                kernel = attention["qkv_kernel"][:, number].reshape(spec.width, -1)
                dense[f"attn.{letter}"] = {"kernel": kernel}
                if letter in spec.attention_bias:
                    bias = attention["qkv_bias"][spec.attention_bias.index(letter)]
                    dense[f"attn.{letter}"]["bias"] = bias.ravel()
        else:  # theirs always attends: to nothing
            nothing = {"kernel": jnp.zeros((spec.width, spec.width))}
            dense |= {f"attn.{part}": nothing for part in ("q", "k", "v", "proj")}
            layer["norm1"] = layer["norm2"]
        for name, part in dense.items():
            w[f"{index}.{name}.weight"] = part["kernel"].T
            w[f"{index}.{name}.bias"] = part.get("bias", 0.0)
        for name in ("norm1", "norm2"):
            w[f"{index}.{name}.weight"] = layer[name]["scale"]
            w[f"{index}.{name}.bias"] = layer[name]["bias"]
    w = {f"blocks.{name}": array for name, array in w.items()}
    return reference.blocks(w, "blocks", x, spec.num_heads, spec.norm_epsilon)[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_bias": "", "norm_epsilon": 0.1},
        {"attention_bias": "qkv", "mlp_ratio": 2.0, "num_heads": 4},
        {"attention": False},
    ],
    ids=["released", "no bias", "qkv bias", "mlp only"],
)
def test_blocks_agree_with_those_written_a_second_time(changes: dict[str, Any]) -> None:
    spec = dataclasses.replace(SPEC, **changes)
    params = parameters(spec)
    expected = stack_by_hand(spec, params, tokens())
    np.testing.assert_allclose(apply(spec, params, tokens()), expected, rtol=1e-4, atol=1e-5)


def test_parameters_are_stacked_over_depth() -> None:
    params = parameters(SPEC)["blocks"]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(params)} == {SPEC.depth}
    assert params["attention"]["qkv_kernel"].shape == (3, 12, 3, 3, 4)
    assert set(params["attention"]) == {"qkv_kernel", "qkv_bias", "projection"}


def value_and_grad(execution: dict[str, Any]) -> Any:
    """A loss with dropout on, and its gradients, under some way of being executed."""
    spec = dataclasses.replace(SPEC, dropout=0.2, **execution)

    def loss(params: Any) -> jax.Array:
        out = Transformer(spec).apply({"params": params}, tokens(), keys=helpers.example_keys(2))
        return jnp.square(out).mean()

    return jax.jit(jax.value_and_grad(loss))(parameters(SPEC))


@pytest.fixture(scope="module")
def scanned() -> Any:
    """The default: one block at a time, activations kept."""
    return value_and_grad({})


@pytest.mark.parametrize(
    "execution", [{"unroll": 99}, {"unroll": 2}, {"remat": "full"}, {"remat": "elementwise"}]
)
def test_execution_options_change_neither_values_nor_gradients(
    scanned: Any, execution: dict[str, Any]
) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        value_and_grad(execution),
        scanned,
    )


@pytest.mark.parametrize("attention", ["blockwise", "xla"])
def test_remat_trades_work_for_memory(attention: AttentionImplementation) -> None:
    """Norms and activations are kept or computed again; then products of matrices, too."""
    deep = dataclasses.replace(SPEC, depth=16, attention_implementation=attention)
    params = parameters(deep)

    def cost(remat: Remat) -> tuple[int, float]:
        spec = dataclasses.replace(deep, remat=remat)
        step = jax.jit(jax.grad(lambda p: apply(spec, p, tokens(4, 64)).sum())).trace(params)
        memory = step.lower().compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes, matmul_flops(step.jaxpr)

    (most, least), (less, same), (fewest, more) = cost("none"), cost("elementwise"), cost("full")
    assert most > 1.5 * less and less > 1.5 * fewest
    assert more > same
    # jax's own attention is made of products, of which the scores are computed again.
    assert same == least if attention == "blockwise" else least < same


def test_a_stack_of_depth_zero_is_the_identity() -> None:
    spec = dataclasses.replace(SPEC, depth=0)
    np.testing.assert_array_equal(apply(spec, {}, tokens()), tokens())


def test_tokens_that_are_not_valid_are_not_attended_to() -> None:
    params = parameters(SPEC)
    padding = 100.0 * jnp.ones((2, 3, SPEC.width))
    valid = jnp.asarray([[True] * 5 + [False] * 3] * 2)
    padded = apply(SPEC, params, jnp.concatenate([tokens(), padding], axis=1), key_valid=valid)
    alone = apply(SPEC, params, tokens())
    np.testing.assert_allclose(padded[:, :5], alone, rtol=1e-4, atol=1e-5)


def test_matmuls_in_bfloat16_leave_parameters_in_float32() -> None:
    spec = dataclasses.replace(SPEC, dtype=jnp.bfloat16)
    params = parameters(spec)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    out = apply(spec, params, tokens())
    assert out.dtype == jnp.float32  # the residual path
    expected = np.asarray(apply(SPEC, params, tokens()))
    difference = np.linalg.norm(np.asarray(out, np.float32) - expected) / np.linalg.norm(expected)
    assert 1e-4 < difference < 3e-2


def test_layer_norm_keeps_its_precision_far_from_zero() -> None:
    x = 1000.0 + np.random.default_rng(0).normal(size=(4, 16))
    params = {"scale": jnp.full(16, 2.0), "bias": jnp.full(16, 0.5)}
    found = LayerNorm(1e-6).apply({"params": params}, jnp.asarray(x, jnp.float32))
    # A variance by E[x^2] - E[x]^2 would be off by several per cent here.
    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-6) * 2 + 0.5
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def test_layer_norm_computes_in_float32_for_bfloat16() -> None:
    x = jax.random.normal(jax.random.key(0), (4, 16)).astype(jnp.bfloat16)
    params = {"scale": jnp.ones(16), "bias": jnp.zeros(16)}
    found = LayerNorm(1e-6, jnp.bfloat16).apply({"params": params}, x)
    exact = LayerNorm(1e-6).apply({"params": params}, x.astype(jnp.float32))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


def test_dropout_without_keys_or_rate_is_the_identity() -> None:
    keys = helpers.example_keys(2)
    np.testing.assert_array_equal(ExampleDropout(0.5).apply({}, tokens(), None), tokens())
    np.testing.assert_array_equal(ExampleDropout(0.0).apply({}, tokens(), keys), tokens())


def test_dropout_drops_at_its_rate_and_keeps_the_mean() -> None:
    x = jnp.ones((8, 100, 50))
    dropped = np.asarray(ExampleDropout(0.1).apply({}, x, helpers.example_keys(8)))
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.9)}
    assert (dropped == 0).mean() == pytest.approx(0.1, abs=5 * (0.09 / dropped.size) ** 0.5)


def test_dropout_depends_on_the_examples_key_alone() -> None:
    spec = dataclasses.replace(SPEC, dropout=0.5)
    params, x = parameters(spec), tokens(4)
    keys = helpers.example_keys(4)
    whole = apply(spec, params, x, keys=keys)
    order = jnp.asarray([2, 0, 3, 1])
    np.testing.assert_allclose(
        apply(spec, params, x[order], keys=keys[order]), whole[order], rtol=1e-5, atol=1e-6
    )
    others = apply(spec, params, x, keys=helpers.example_keys(4, seed=1))
    assert np.abs(others - whole).max() > 0.1


def test_every_branch_of_every_layer_drops_on_its_own() -> None:
    """With the branches' output fixed to ones, the places that were dropped can be read off."""
    spec = dataclasses.replace(SPEC, depth=2, dropout=0.5)
    params = jax.tree.map(jnp.zeros_like, parameters(spec))
    blocks = params["blocks"]
    blocks["attention"]["projection"]["bias"] = jnp.asarray([[1.0], [4.0]]) * jnp.ones((2, 12))
    blocks["mlp"]["fc2"]["bias"] = jnp.asarray([[2.0], [8.0]]) * jnp.ones((2, 12))
    x = jnp.zeros((1, 50, 12))
    out = np.asarray(apply(spec, params, x, keys=helpers.example_keys(1))) / 2  # 1 / (1 - rate)
    kept = np.stack([(out.astype(int) >> bit) & 1 for bit in range(4)]).reshape(4, -1)
    correlation = np.corrcoef(kept)
    assert np.abs(correlation - np.eye(4)).max() < 5 / kept.shape[1] ** 0.5


def test_drop_path_skips_branches_of_whole_examples() -> None:
    """At a rate that grows from 0; what is kept makes up for what is not."""
    spec = dataclasses.replace(SPEC, depth=2, drop_path=0.5)
    params, count = parameters(spec), 4000
    x = jnp.tile(tokens(1), (count, 1, 1))
    keys = helpers.example_keys(count)
    plain = apply(spec, params, x[:1])
    np.testing.assert_array_equal(
        plain, apply(dataclasses.replace(spec, drop_path=0.0), params, x[:1])
    )
    found = np.asarray(apply(spec, params, x, keys=keys))
    # The first block is never left out: four results, by which of the last block's branches are.
    different = np.unique(found.round(3).reshape(count, -1), axis=0, return_counts=True)[1]
    assert len(different) == 4
    np.testing.assert_allclose(different / count, 0.25, atol=0.03)
    # Attention and MLP both left out: what the first block gives alone.
    first = jax.tree.map(lambda leaf: leaf[:1], params)
    alone = np.asarray(apply(dataclasses.replace(spec, depth=1), first, x[:1]))[0]
    share = np.isclose(found, alone, atol=1e-4).all((1, 2)).mean()
    assert share == pytest.approx(0.25, abs=0.03)
