"""The decoder: its class token, parameters and padding. What it computes: tests/parity."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax.models.decoder import CLASS_TOKENS, Decoder
from adamae_jax.models.transformer import TransformerSpec
from tests import helpers

GRID = (2, 2, 3)
SPEC = TransformerSpec(width=12, depth=1, num_heads=3, attention_bias="qkv")
VISIBLE = jnp.asarray([[1, 4, 9], [0, 2, 11]])
QUERIES = jnp.asarray([[0, 3, 5, 10], [1, 3, 4, 9]])


def decoder(kind: Any, **choices: Any) -> Decoder:
    """A decoder with learned positions and that kind of class token."""
    return Decoder(GRID, SPEC, 7, **{"positions": "learned", "class_token": kind, **choices})


def latents_for(kind: str, count: int = 3) -> jax.Array:
    """Random latents, with the class token's where the encoder has one."""
    values = np.random.default_rng(0).normal(size=(2, count + (kind != "none"), 8))
    return jnp.asarray(values, jnp.float32)


def parameters(module: Decoder) -> Any:
    """Random ones."""
    latents = latents_for(module.class_token)
    shapes = jax.eval_shape(module.init, jax.random.key(0), latents, VISIBLE, QUERIES)
    return helpers.filled(shapes["params"])


@functools.partial(jax.jit, static_argnums=0)
def decode(module: Decoder, params: Any, *arguments: Any, **named: Any) -> jax.Array:
    """Predictions."""
    return module.apply({"params": params}, *arguments, **named)


def test_there_are_three_kinds() -> None:
    assert CLASS_TOKENS == ("none", "shared", "separate")


@pytest.mark.parametrize("kind", CLASS_TOKENS)
def test_parameters(kind: str) -> None:
    shapes = {name: leaf.shape for name, leaf in helpers.named(parameters(decoder(kind))).items()}
    expected = {
        "projection/kernel": (8, 12),
        "mask_token": (12,),
        "positions/table": (12 + (kind != "none"), 12),
        "norm/scale": (12,),
        "norm/bias": (12,),
        "head/kernel": (12, 7),
        "head/bias": (7,),
    }
    if kind == "separate":
        expected["class_token"] = (12,)
    assert {name: s for name, s in shapes.items() if not name.startswith("trans")} == expected
    biased = parameters(decoder(kind, projection_bias=True))
    assert biased["projection"]["bias"].shape == (12,)


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_the_encoder_s_class_latent_goes_on_only_where_it_is_shared(kind: str) -> None:
    module, latents = decoder(kind), latents_for(kind)
    params = parameters(module)
    predicted = decode(module, params, latents, VISIBLE, QUERIES)
    other = decode(module, params, latents.at[:, 0, 2].add(1.0), VISIBLE, QUERIES)
    assert (np.abs(other - predicted).max() > 1e-3) == (kind == "shared")
    if kind == "separate":
        np.testing.assert_array_equal(other, predicted)
        changed = {**params, "class_token": params["class_token"].at[2].add(1.0)}
        own = decode(module, changed, latents, VISIBLE, QUERIES)
        assert np.abs(own - predicted).max() > 1e-3


@pytest.mark.parametrize("kind", CLASS_TOKENS)
def test_padding_of_the_visible_tokens_changes_nothing(kind: str) -> None:
    module, latents = decoder(kind), latents_for(kind, count=5)
    params = parameters(module)
    shorter = latents[:, : 3 + (kind != "none")]
    plain = decode(module, params, shorter, VISIBLE, QUERIES)
    padded = jnp.concatenate([VISIBLE, QUERIES[:, :2]], axis=1)
    valid = jnp.arange(5)[None] < jnp.full((2, 1), 3)
    found = decode(module, params, latents, padded, QUERIES, visible_valid=valid)
    np.testing.assert_allclose(found, plain, rtol=1e-3, atol=1e-5)
    assert np.abs(decode(module, params, latents, padded, QUERIES) - plain).max() > 1e-3
    # Each padded place is told apart from its neighbours: the third is no padding.
    fewer = decode(
        module, params, latents, padded, QUERIES, visible_valid=valid.at[:, 2].set(False)
    )
    assert np.abs(fewer - plain).max() > 1e-3


def test_the_defaults_are_those_of_videomae() -> None:
    module = Decoder(GRID, SPEC, 7)
    assert set(parameters(module)) == {"projection", "mask_token", "transformer", "norm", "head"}
    assert set(parameters(module)["projection"]) == {"kernel"}
