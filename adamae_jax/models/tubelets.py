"""Clips to tubelets and back, and the embedding of tubelets as tokens.

A clip ``[T, H, W, C]`` is cut into tubelets of ``t x p x p`` pixels. Their grid is
``(T / t, H / p, W / p)``; tokens are in row-major (time, height, width) order, and the values of a
tubelet in the order ``(t, p, p, C)``.
"""

import dataclasses

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from adamae_jax.errors import UserError
from adamae_jax.models import initializers
from adamae_jax.models.dense import Dense

Grid = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class ClipGeometry:
    """The size of a clip and of the tubelets it is cut into.

    Attributes:
      num_frames: frames in a clip, ``T``.
      image_size: height and width in pixels, ``(H, W)``.
      tubelet_size: frames in a tubelet, ``t``.
      patch_size: side of a tubelet in pixels, ``p``.
      channels: colour channels, ``C``.

    Raises:
      UserError: where the tubelets do not divide the clip.
    """

    num_frames: int = 16
    image_size: tuple[int, int] = (224, 224)
    tubelet_size: int = 2
    patch_size: int = 16
    channels: int = 3

    def __post_init__(self) -> None:
        height, width = self.image_size
        for name, size, part_name, part in (
            ("num_frames", self.num_frames, "tubelet_size", self.tubelet_size),
            ("image height", height, "patch_size", self.patch_size),
            ("image width", width, "patch_size", self.patch_size),
        ):
            if part < 1 or size < 1 or size % part:
                raise UserError(
                    f"{name} {size} is not a positive multiple of {part_name} {part}: "
                    "choose sizes that divide"
                )

    @property
    def grid(self) -> Grid:
        """Tubelets along time, height and width."""
        height, width = self.image_size
        return (
            self.num_frames // self.tubelet_size,
            height // self.patch_size,
            width // self.patch_size,
        )

    @property
    def num_tokens(self) -> int:
        """``N``: the number of tubelets in a clip."""
        time, height, width = self.grid
        return time * height * width

    @property
    def tubelet_values(self) -> int:
        """Values in a tubelet: ``t * p * p * C``."""
        return self.tubelet_size * self.patch_size**2 * self.channels

    def predicting(self, num_frames: int) -> "ClipGeometry":
        """The geometry of a target of fewer frames, cut into the same grid (MAE-ST's ``pred_t``).

        Raises:
          UserError: where those frames cannot be shared out evenly among the tubelets.
        """
        depth, rest = divmod(self.tubelet_size * num_frames, self.num_frames)
        if rest or not 0 < num_frames <= self.num_frames:
            raise UserError(
                f"predicted_frames {num_frames} cannot be cut into the {self.grid[0]} steps of a "
                f"clip of {self.num_frames} frames: choose a multiple of {self.grid[0]}, at most "
                f"{self.num_frames}"
            )
        return dataclasses.replace(self, num_frames=num_frames, tubelet_size=depth)

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """``(T, H, W, C)``."""
        return (self.num_frames, *self.image_size, self.channels)


def to_tubelets(
    video: Shaped[Array, "b T H W C"], geometry: ClipGeometry
) -> Shaped[Array, "b n v"]:
    """Cuts clips into tubelets; ``v`` runs over ``(t, p, p, C)``."""
    return einops.rearrange(
        video,
        "b (T t) (H p) (W q) C -> b (T H W) (t p q C)",
        t=geometry.tubelet_size,
        p=geometry.patch_size,
        q=geometry.patch_size,
    )


def from_tubelets(
    tubelets: Shaped[Array, "b n v"], geometry: ClipGeometry
) -> Shaped[Array, "b T H W C"]:
    """The inverse of `to_tubelets`."""
    time, height, width = geometry.grid
    return einops.rearrange(
        tubelets,
        "b (T H W) (t p q C) -> b (T t) (H p) (W q) C",
        T=time,
        H=height,
        W=width,
        t=geometry.tubelet_size,
        p=geometry.patch_size,
        q=geometry.patch_size,
    )


def pool_to_tokens(
    coverage: Float[Array, "b T h w"], geometry: ClipGeometry
) -> Float[Array, "b n"]:
    """Averages a low-resolution map, such as a foreground mask, over each token's tubelet.

    ``h`` and ``w`` need not equal the clip's, nor be multiples of the grid's: the map is sampled
    up first (nearest neighbour) to the next multiple.
    """
    time, height, width = geometry.grid
    batch, frames, rows, columns = coverage.shape
    fine = (-(-rows // height) * height, -(-columns // width) * width)
    if fine != (rows, columns):
        coverage = jax.image.resize(coverage, (batch, frames, *fine), method="nearest")
    return einops.reduce(
        coverage, "b (T t) (H p) (W q) -> b (T H W)", "mean", T=time, H=height, W=width
    )


class TubeletEmbedding(nn.Module):
    """A 3-D convolution whose kernel equals its stride: one dense layer on each tubelet.

    Attributes:
      geometry: how clips are cut.
      width: token width.
      kernel_init: of the kernel, as a dense one; the bias starts as PyTorch's convolutions do.
      dtype: the type of the matmul.
    """

    geometry: ClipGeometry
    width: int
    kernel_init: initializers.Init
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, video: Float[Array, "b T H W C"]) -> Float[Array, "b n d"]:
        """Normalised pixels to tokens."""
        return Dense(
            self.width,
            kernel_init=self.kernel_init,
            bias_init=initializers.uniform_fan_in(self.geometry.tubelet_values),
            dtype=self.dtype,
            name="projection",
        )(to_tubelets(video, self.geometry))
