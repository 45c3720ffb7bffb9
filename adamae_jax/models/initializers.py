"""The authors' initial distributions, by name."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Key

Init = Callable[..., Array]


def xavier_uniform() -> Init:
    """Xavier-uniform for a dense kernel ``[inputs, outputs]``."""
    return nn.initializers.xavier_uniform()


def xavier_uniform_qkv() -> Init:
    """Xavier-uniform for the fused ``[d, 3, heads, head_dim]`` kernel: its fan-out is ``3 d``."""
    return nn.initializers.variance_scaling(
        1.0, "fan_avg", "uniform", in_axis=0, out_axis=(1, 2, 3)
    )


def uniform_fan_in(fan_in: int) -> Init:
    """Uniform in ``+-1 / sqrt(fan_in)``: what PyTorch gives a convolution or linear by default."""
    bound = fan_in**-0.5

    def init(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def clipped_normal(stddev: float) -> Init:
    """Normal with ``stddev``, truncated at one standard deviation (the mask token)."""

    def init(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return stddev * jax.random.truncated_normal(key, -1.0, 1.0, shape, dtype)

    return init
