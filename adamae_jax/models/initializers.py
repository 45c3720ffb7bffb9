"""The authors' initial distributions, by name."""

import dataclasses
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


def xavier_uniform_qkv_separate() -> Init:
    """Xavier-uniform for query, key and value on their own: each has a fan-out of ``d``."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -((3.0 / shape[0]) ** 0.5), (3.0 / shape[0]) ** 0.5
    )


def uniform_fan_in(fan_in: int = 0) -> Init:
    """Uniform in ``+-1 / sqrt(fan_in)``: what PyTorch gives a convolution or linear by default.

    Args:
      fan_in: inputs of the layer; 0 takes the first axis of the array, which must be a kernel.
    """

    def init(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        bound = (fan_in or shape[0]) ** -0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def clipped_normal(stddev: float) -> Init:
    """Normal with ``stddev``, truncated at one standard deviation (the mask token)."""

    def init(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return stddev * jax.random.truncated_normal(key, -1.0, 1.0, shape, dtype)

    return init


@dataclasses.dataclass(frozen=True)
class Initialization:
    """In what the families' released code differs.

    Attributes:
      embedding: the tubelet embedding's kernel. Its bias is `uniform_fan_in` in all of them.
      qkv: the fused kernel of the attention.
      dense: the other kernels of the blocks, and the heads.
      projection: the kernel from encoder to decoder.
      token: class and mask tokens and learned positions.
    """

    embedding: Init
    qkv: Init
    dense: Init
    projection: Init
    token: Init


_MAE = Initialization(
    embedding=xavier_uniform(),
    qkv=xavier_uniform_qkv(),
    dense=xavier_uniform(),
    projection=xavier_uniform(),
    token=nn.initializers.normal(0.02),
)

INITIALIZATIONS = {
    "videomae": Initialization(  # AdaMAE's too
        embedding=uniform_fan_in(),
        qkv=xavier_uniform_qkv(),
        dense=xavier_uniform(),
        projection=uniform_fan_in(),
        token=clipped_normal(0.02),
    ),
    "mae": _MAE,
    "mae_st": dataclasses.replace(_MAE, qkv=xavier_uniform_qkv_separate()),
    "classifier": Initialization(  # fine-tuning from nothing, in all of them
        embedding=uniform_fan_in(),
        qkv=nn.initializers.normal(0.02),
        dense=nn.initializers.normal(0.02),
        projection=nn.initializers.normal(0.02),
        token=nn.initializers.normal(0.02),
    ),
}
