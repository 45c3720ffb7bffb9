"""Dense layers that compute in a narrow type and give the gradients of their parameters in float32.

A gradient is a sum over all tokens of all examples on all devices. `flax.linen.Dense` rounds each
device's part of it to the type of the products, bfloat16 mostly, so that devices add rounded
numbers; here it leaves the product in float32, and is added so.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

PRODUCT = "product"  # what the results of products are called where some are to be kept

# As arrays of NumPy too, as they come from a file.
Parameter = Array | np.ndarray


class Dense(nn.Module):
    """A dense layer with the parameters of `flax.linen.Dense`.

    Attributes:
      features: width of the output.
      kernel_init: initial values of the kernel.
      use_bias: whether there is a bias.
      bias_init: initial values of the bias.
      dtype: the type that the product is computed in.
      output_dtype: of the result; None for ``dtype``.
      gradient_dtype: that the gradients of the parameters are summed in; None for ``dtype``.
    """

    features: int
    kernel_init: Callable[..., Any]
    use_bias: bool = True
    bias_init: Callable[..., Any] = nn.initializers.zeros
    dtype: DTypeLike = jnp.float32
    output_dtype: DTypeLike | None = None
    gradient_dtype: DTypeLike | None = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        """Maps the last axis."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        summed = self.gradient_dtype or self.dtype
        y = product(x.astype(self.dtype), kernel, self.output_dtype or self.dtype, summed)
        if not self.use_bias:
            return y
        return add_bias(y, self.param("bias", self.bias_init, (self.features,)), summed)


def product(
    x: Float[Array, "... i"],
    kernel: Float[Parameter, "i ..."],
    output_dtype: DTypeLike,
    gradient_dtype: DTypeLike = jnp.float32,
) -> Float[Array, "..."]:
    """Returns ``x @ kernel``, computed in the type of ``x``; a kernel may have several output axes.

    Args:
      x: what is mapped.
      kernel: a parameter.
      output_dtype: of the result.
      gradient_dtype: that the kernel's gradient is summed in, over tokens and over devices.
    """
    dtypes = jnp.dtype(output_dtype), jnp.dtype(gradient_dtype)
    return checkpoint_name(_product(x, kernel, *dtypes), PRODUCT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(
    x: Float[Array, "... i"],
    kernel: Float[Parameter, "i ..."],
    output_dtype: Any,
    gradient_dtype: Any,
) -> Float[Array, "..."]:
    del gradient_dtype
    return jnp.tensordot(
        x, jnp.asarray(kernel, x.dtype), axes=1, preferred_element_type=output_dtype
    )


def _product_forward(x: Any, kernel: Any, *dtypes: Any) -> tuple[Any, Any]:
    return _product(x, kernel, *dtypes), (x, kernel)


def _product_backward(
    output_dtype: Any, gradient_dtype: Any, saved: Any, gradient: Any
) -> tuple[Any, Any]:
    del output_dtype
    x, kernel = saved
    gradient = gradient.astype(x.dtype)
    summed = tuple(range(x.ndim - 1))
    of_kernel = jax.lax.dot_general(
        x, gradient, ((summed, summed), ((), ())), preferred_element_type=gradient_dtype
    )
    outputs = range(1, kernel.ndim)
    axes = ([axis + x.ndim - 2 for axis in outputs], list(outputs))
    of_x = jnp.tensordot(gradient, jnp.asarray(kernel, x.dtype), axes=axes)
    return of_x, of_kernel.astype(kernel.dtype)


_product.defvjp(_product_forward, _product_backward)


def add_bias(
    y: Float[Array, "... o"], bias: Float[Parameter, "..."], gradient_dtype: DTypeLike = jnp.float32
) -> Float[Array, "... o"]:
    """Returns ``y`` plus a parameter along its last axes, whose gradient is summed in a type."""
    return _add_bias(y, bias, jnp.dtype(gradient_dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _add_bias(
    y: Float[Array, "... o"], bias: Float[Parameter, "..."], gradient_dtype: Any
) -> Float[Array, "... o"]:
    del gradient_dtype
    return y + jnp.asarray(bias, y.dtype)


def _bias_forward(y: Any, bias: Any, gradient_dtype: Any) -> tuple[Any, Any]:
    return _add_bias(y, bias, gradient_dtype), bias


def _bias_backward(gradient_dtype: Any, bias: Any, gradient: Any) -> tuple[Any, Any]:
    summed = tuple(range(gradient.ndim - bias.ndim))
    return gradient, gradient.sum(summed, dtype=gradient_dtype).astype(bias.dtype)


_add_bias.defvjp(_bias_forward, _bias_backward)
