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


def head_bias(num_heads: int) -> Layout:
    """A bias ``[d]`` against ``[heads, head_dim]``."""
    return Layout(
        lambda a: einops.rearrange(a, "(h k) -> h k", h=num_heads),
        lambda a: einops.rearrange(a, "h k -> (h k)"),
    )


def tubelet_convolution(geometry: ClipGeometry) -> Layout:
    """A 3-D convolution ``[d, C, t, p, p]`` against a dense kernel ``[t p p C, d]``."""
    sizes = {"t": geometry.tubelet_size, "p": geometry.patch_size, "q": geometry.patch_size}
    return Layout(
        lambda a: einops.rearrange(a, "d c t p q -> (t p q c) d", **sizes),
        lambda a: einops.rearrange(a, "(t p q c) d -> d c t p q", **sizes, c=geometry.channels),
    )
