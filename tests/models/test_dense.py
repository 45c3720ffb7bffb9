"""A dense layer against Flax's, and the type in which its gradients are summed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jaxtyping import Array, Float

from adamae_jax.models.dense import Dense
from tests import helpers

X: Float[Array, "b n i"] = jax.random.normal(jax.random.key(0), (4, 7, 6))
INIT = nn.initializers.lecun_normal()


@pytest.mark.parametrize("use_bias", [True, False])
def test_in_float32_it_is_flax_s(use_bias: bool) -> None:
    own, other = (layer(5, use_bias=use_bias, kernel_init=INIT) for layer in (Dense, nn.Dense))
    params = own.init(jax.random.key(1), X)
    np.testing.assert_array_equal(
        params["params"]["kernel"], other.init(jax.random.key(1), X)["params"]["kernel"]
    )
    filled = helpers.filled(params)

    def loss(layer: nn.Module, params: Any, x: Any) -> Any:
        return jnp.square(layer.apply(params, x) + 1).sum()

    for wanted in (0, 1):
        found, expected = (
            jax.grad(loss, argnums=wanted + 1)(layer, filled, X) for layer in (own, other)
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected
        )


def test_gradients_of_parameters_are_not_rounded() -> None:
    layer = Dense(5, kernel_init=INIT, dtype=jnp.bfloat16)
    params = helpers.filled(layer.init(jax.random.key(1), X))
    weights = jax.random.normal(jax.random.key(2), (4, 7, 5)).astype(jnp.bfloat16)

    def loss(params: Any) -> Any:
        return (layer.apply(params, X) * weights).astype(jnp.float32).sum()

    found = jax.grad(loss)(params)["params"]
    x, gradient = X.astype(jnp.bfloat16).astype(jnp.float32), weights.astype(jnp.float32)
    # Rounding to bfloat16 would be off by one part in 500.
    np.testing.assert_allclose(
        found["kernel"], jnp.einsum("bni,bno->io", x, gradient), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(found["bias"], gradient.sum((0, 1)), rtol=1e-5, atol=1e-5)
    assert layer.apply(params, X).dtype == jnp.bfloat16

    layer = layer.clone(gradient_dtype=None)
    rounded = jax.grad(loss)(params)["params"]
    jax.tree.map(
        lambda leaf: np.testing.assert_array_equal(leaf, leaf.astype(jnp.bfloat16)), rounded
    )
    assert not np.array_equal(rounded["kernel"], found["kernel"])
