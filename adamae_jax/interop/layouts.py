"""How PyTorch's arrays lie in memory and how ours do, both ways.

Each function returns a `Layout`: a pair of exact, inverse rearrangements of one array.
"""

import dataclasses
from collections.abc import Callable

import einops
import numpy as np

from adamae_jax.models.tubelets import ClipGeometry

Rearrange = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """One array's way in and out.

    Attributes:
      to_ours: from the PyTorch array to ours.
      to_theirs: the inverse.
    """

    to_ours: Rearrange
    to_theirs: Rearrange


SAME = Layout(lambda a: a, lambda a: a)
LINEAR = Layout(lambda a: a.T, lambda a: a.T)


def leading_ones(count: int) -> Layout:
    """``[1, ..., 1, *]`` against ``[*]``."""
    ones = (1,) * count

    def strip(array: np.ndarray) -> np.ndarray:
        return array.reshape(array.shape[count:])

    return Layout(strip, lambda a: a.reshape(ones + a.shape))


def qkv(num_heads: int) -> Layout:
    """A fused linear layer ``[3 d, d]`` against ``[d, 3, heads, head_dim]``."""
    return Layout(
        lambda a: einops.rearrange(a, "(c h k) d -> d c h k", c=3, h=num_heads),
        lambda a: einops.rearrange(a, "d c h k -> (c h k) d"),
    )


def head_bias(count: int, num_heads: int) -> Layout:
    """Biases of so many projections ``[count d]`` against ``[count, heads, head_dim]``."""
    return Layout(
        lambda a: einops.rearrange(a, "(c h k) -> c h k", c=count, h=num_heads),
        lambda a: einops.rearrange(a, "c h k -> (c h k)"),
    )


def tubelet_convolution(geometry: ClipGeometry, flat: bool = False) -> Layout:
    """A 3-D convolution ``[d, C, t, p, p]`` against a dense kernel ``[t p p C, d]``.

    Args:
      geometry: gives the sizes.
      flat: theirs is the 2-D convolution ``[d, C, p, p]`` of images.
    """
    sizes = {"t": geometry.tubelet_size, "p": geometry.patch_size, "q": geometry.patch_size}
    theirs = "d c p q" if flat else "d c t p q"
    if flat:
        del sizes["t"]
    ours = "(p q c) d" if flat else "(t p q c) d"
    return Layout(
        lambda a: einops.rearrange(a, f"{theirs} -> {ours}", **sizes),
        lambda a: einops.rearrange(a, f"{ours} -> {theirs}", **sizes, c=geometry.channels),
    )


CONVOLUTION = Layout(  # [outputs, inputs, height, width] against [height, width, inputs, outputs]
    lambda a: einops.rearrange(a, "o i h w -> h w i o"),
    lambda a: einops.rearrange(a, "h w i o -> o i h w"),
)


def flat_convolution_input(size: int) -> Layout:
    """A vector over a kernel's inputs, ``[i h w]`` against ``[h, w, i]``."""
    return Layout(
        lambda a: einops.rearrange(a, "(i h w) -> h w i", h=size, w=size),
        lambda a: einops.rearrange(a, "h w i -> (i h w)"),
    )
