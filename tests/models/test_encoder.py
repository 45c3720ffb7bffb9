"""The encoder: its parameters, padding and LayerScale. What it computes: tests/parity."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax.models.encoder import Encoder
from adamae_jax.models.transformer import TransformerSpec
from tests import helpers

SPEC = TransformerSpec(width=16, depth=2, num_heads=4, attention_bias="qkv", norm_epsilon=1e-3)
ENCODER = Encoder(helpers.GEOMETRY, SPEC, positions="separable", class_token=True)
VISIBLE = jnp.asarray([[1, 4, 9, 20], [0, 2, 3, 23]])


def pixels() -> jax.Array:
    """Two normalised clips."""
    values = np.random.default_rng(3).normal(size=(2, *helpers.GEOMETRY.clip_shape))
    return jnp.asarray(values, jnp.float32)


def parameters(encoder: Encoder) -> Any:
    """Random ones."""
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), pixels())
    return helpers.filled(shapes["params"])


@pytest.fixture(scope="module")
def params() -> Any:
    """Of `ENCODER`."""
    return parameters(ENCODER)


@functools.partial(jax.jit, static_argnums=0)
def encode(encoder: Encoder, params: Any, placed: jax.Array, *where: Any, **named: Any) -> Any:
    """Latents of tokens that have their positions."""
    return encoder.apply({"params": params}, placed, *where, **named, method="encode")


def placed_tokens(encoder: Encoder, params: Any) -> jax.Array:
    """Tokens with positions."""

    def compute(module: Encoder) -> jax.Array:
        return module.add_positions(module.tokenize(pixels()))

    return encoder.apply({"params": params}, method=compute)


def test_parameters_of_a_class_token_and_of_separable_positions(params: Any) -> None:
    shapes = {name: leaf.shape for name, leaf in helpers.named(params).items()}
    assert {name: s for name, s in shapes.items() if not name.startswith("transformer")} == {
        "embedding/projection/kernel": (96, 16),
        "embedding/projection/bias": (16,),
        "class_token": (16,),
        "positions/class_token": (16,),
        "positions/spatial": (6, 16),
        "positions/temporal": (4, 16),
        "norm/scale": (16,),
        "norm/bias": (16,),
    }


def test_a_classifier_s_encoder_has_neither_norm_nor_class_token() -> None:
    plain = Encoder(helpers.GEOMETRY, SPEC, final_norm=False)
    assert set(parameters(plain)) == {"embedding", "transformer"}


def test_without_indices_all_tokens_are_seen(params: Any) -> None:
    placed = placed_tokens(ENCODER, params)
    everything = jnp.broadcast_to(jnp.arange(24), (2, 24))
    latents = encode(ENCODER, params, placed)
    assert latents.shape == (2, 25, 16)
    np.testing.assert_allclose(encode(ENCODER, params, placed, everything), latents, rtol=1e-5)
    whole = jax.jit(ENCODER.apply)({"params": params}, pixels())
    np.testing.assert_allclose(whole, latents, rtol=1e-4, atol=1e-5)


def test_padding_is_not_attended_to_but_the_class_token_is(params: Any) -> None:
    placed = placed_tokens(ENCODER, params)
    plain = encode(ENCODER, params, placed, VISIBLE)
    padded = jnp.concatenate([VISIBLE, VISIBLE[:, ::-1]], axis=1)
    valid = jnp.arange(8)[None] < jnp.full((2, 1), 4)
    found = encode(ENCODER, params, placed, padded, visible_valid=valid)
    np.testing.assert_allclose(found[:, :5], plain, rtol=1e-4, atol=1e-5)
    assert np.abs(encode(ENCODER, params, placed, padded)[:, :5] - plain).max() > 1e-3
    # Where nothing else is valid, every latent is made of the class token's values alone.
    alone = encode(ENCODER, params, placed, VISIBLE, visible_valid=jnp.zeros((2, 4), bool))
    np.testing.assert_allclose(alone[0, 0], alone[1, 0], rtol=1e-5)
    assert np.isfinite(alone).all()
    other = {**params, "class_token": params["class_token"].at[2].add(1.0)}
    assert np.abs(encode(ENCODER, other, placed, VISIBLE)[:, 1:] - plain[:, 1:]).max() > 1e-2


@pytest.mark.parametrize(("bias", "rows"), [("", 0), ("qv", 2), ("qkv", 3)])
def test_attention_has_the_biases_that_are_asked_for(bias: Any, rows: int) -> None:
    encoder = Encoder(helpers.GEOMETRY, dataclasses.replace(SPEC, attention_bias=bias))
    attention = parameters(encoder)["transformer"]["blocks"]["attention"]
    assert ("qkv_bias" in attention) == (rows > 0)
    if rows:
        assert attention["qkv_bias"].shape == (2, rows, 4, 4)


def test_layer_scale_starts_at_its_value_and_multiplies_both_branches() -> None:
    scaled = dataclasses.replace(SPEC, layer_scale=0.25)
    encoder = Encoder(helpers.GEOMETRY, scaled, final_norm=False)
    initial = jax.jit(encoder.init)(jax.random.key(0), pixels())["params"]["transformer"]
    for name in ("layer_scale1", "layer_scale2"):
        scale = initial["blocks"][name]["scale"]
        assert scale.shape == (2, 16)
        assert (np.asarray(scale) == 0.25).all()
    params = parameters(encoder)
    blocks = params["transformer"]["blocks"]
    # A factor on a branch's output is one on its last layer.
    folded = {**blocks}
    for name, path in (
        ("layer_scale1", ("attention", "projection")),
        ("layer_scale2", ("mlp", "fc2")),
    ):
        scale = folded.pop(name)["scale"]
        layer = blocks[path[0]][path[1]]
        layer = {"kernel": layer["kernel"] * scale[:, None], "bias": layer["bias"] * scale}
        folded[path[0]] = {**folded[path[0]], path[1]: layer}
    plain = Encoder(helpers.GEOMETRY, SPEC, final_norm=False)
    assert "layer_scale1" not in parameters(plain)["transformer"]["blocks"]
    placed = placed_tokens(encoder, params)
    expected = encode(plain, {**params, "transformer": {"blocks": folded}}, placed, VISIBLE)
    found = encode(encoder, params, placed, VISIBLE)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
