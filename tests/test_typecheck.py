"""Shapes are checked while tests run."""

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from adamae_jax.masking import TokenMask
from adamae_jax.models.encoder import gather_tokens


def test_wrong_shapes_and_types_are_caught() -> None:
    gather_tokens(jnp.zeros((2, 3, 4)), jnp.zeros((2, 5), int))
    with pytest.raises(jaxtyping.TypeCheckError, match="'indices'"):
        gather_tokens(jnp.zeros((2, 3, 4)), jnp.zeros((3, 5), int))
    with pytest.raises(jaxtyping.TypeCheckError, match="'indices'"):
        gather_tokens(jnp.zeros((2, 3, 4)), jnp.zeros((2, 5)))


def test_pytrees_may_hold_anything() -> None:
    mask = TokenMask(jnp.zeros((2, 1), int), jnp.zeros((2, 3), int))
    assert jax.tree.map(lambda leaf: leaf.shape, mask).masked == (2, 3)
