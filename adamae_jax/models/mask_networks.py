"""The small convolutional networks of AutoMAE: mask generator and discriminator.

Source: arXiv 2303.06583 and its released code, github.com/hyperea/automae.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from adamae_jax.models.initializers import uniform_fan_in

INITIAL_POWER_ITERATIONS = 15  # as many as PyTorch's spectral norm makes before the first step
SPECTRAL_EPSILON = 1e-12
SMALLEST_GRID = 12  # tokens along a side that leave the last convolution its 3 x 3 window


class MaskGenerator(nn.Module):
    """Two 3x3 convolutions from attention maps to a distribution over patches."""

    hidden: int = 6

    @nn.compact
    def __call__(self, attention: Float[Array, "b h w heads"]) -> Float[Array, "b n"]:
        """The logarithm of the distribution, in float32."""
        x = nn.relu(_convolution(self.hidden, attention.shape[-1], "conv1")(attention))
        x = _convolution(1, self.hidden, "conv2")(x)
        return jax.nn.log_softmax(x.reshape(len(x), -1))


def _convolution(features: int, inputs: int, name: str) -> nn.Conv:
    """3x3, same size, with PyTorch's default start."""
    init = uniform_fan_in(9 * inputs)
    return nn.Conv(features, (3, 3), kernel_init=init, bias_init=init, name=name)


class SpectralConv(nn.Module):
    """A convolution without bias whose kernel, as a matrix ``[outputs, rest]``, has norm one.

    The norm is ``u @ W @ v`` with ``u`` and ``v`` of the collection ``state``, which a step of the
    power iteration brings nearer to the singular vectors (arXiv 1802.05957). It is differentiated
    with respect to the kernel, as in PyTorch; `flax.linen.SpectralNorm` does so only in the very
    call that updates the vectors.
    """

    features: int
    size: int
    stride: int
    padding: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, update: bool = False
    ) -> Float[Array, "b i j k"]:
        """Convolves; ``update`` makes one power iteration first."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", uniform_fan_in(self.size**2 * x.shape[-1]), shape)
        held = jax.lax.stop_gradient(kernel)

        def start() -> dict[str, Array]:
            return _singular_vectors(held, self.make_rng("params"))

        vectors = self.variable("state", "singular_vectors", start)
        if update:
            vectors.value = _power_iteration(held, vectors.value["u"])
        norm = jnp.einsum("hwio,o,hwi->", kernel, vectors.value["u"], vectors.value["v"])
        return jax.lax.conv_general_dilated(
            x,
            kernel / norm,
            (self.stride, self.stride),
            [(self.padding, self.padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


def _unit(vector: Array) -> Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), SPECTRAL_EPSILON)


def _power_iteration(
    kernel: Float[Array, "h w i o"], u: Float[Array, "o"]
) -> dict[str, Float[Array, "..."]]:
    v = _unit(jnp.einsum("hwio,o->hwi", kernel, u))
    return {"u": _unit(jnp.einsum("hwio,hwi->o", kernel, v)), "v": v}


def _singular_vectors(kernel: Float[Array, "h w i o"], key: Key[Array, ""]) -> dict[str, Array]:
    u = _unit(jax.random.normal(key, kernel.shape[-1:]))
    vectors = _power_iteration(kernel, u)
    for _ in range(INITIAL_POWER_ITERATIONS - 1):
        vectors = _power_iteration(kernel, vectors["u"])
    return vectors


class Discriminator(nn.Module):
    """Tells a generated mask from a rectangle: three spectral-normed convolutions, no sigmoid.

    A mask of 14 x 14 gives one number; sides below `SMALLEST_GRID` give none, larger ones a map.
    """

    @nn.compact
    def __call__(
        self, mask: Float[Array, "b h w"], *, update: bool = False
    ) -> Float[Array, "b i j"]:
        """Scores, near 1 for what looks like a rectangle; ``update`` as in `SpectralConv`."""
        x = mask[..., None]
        x = SpectralConv(16, 4, 2, 1, name="conv1")(x, update=update)
        x = SpectralConv(32, 4, 2, 1, name="conv2")(nn.leaky_relu(x, 0.2), update=update)
        x = SpectralConv(1, 3, 1, 0, name="conv3")(nn.leaky_relu(x, 0.2), update=update)
        return x[..., 0]
