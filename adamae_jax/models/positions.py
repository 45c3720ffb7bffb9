"""Where a token is: fixed and learned position tables."""

from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32

from adamae_jax.errors import UserError
from adamae_jax.models.initializers import Init
from adamae_jax.models.tubelets import Grid

PositionKind = Literal["sincos_1d", "sincos_2d", "learned", "separable"]
POSITION_KINDS: tuple[str, ...] = get_args(PositionKind)
# Fixed tables are computed whole, in float64: a damaged or hostile size must not fill the memory.
# A ViT-H on 64 frames of 384 x 384 pixels has a tenth of this.
MOST_VALUES = 2**28


def sincos_1d(num_positions: int, width: int) -> Float32[np.ndarray, "n d"]:
    """The 1-D sine-cosine table over the flat token index (AdaMAE, VideoMAE).

    Channels ``2i`` and ``2i + 1`` share the frequency ``10000 ** (-2i / width)``: the sine stands
    on even channels, the cosine on odd ones. Computed in float64, as the authors do.

    Args:
      num_positions: number of tokens, row-major over (time, height, width).
      width: token width.
    """
    channel = np.arange(width)
    frequency = 10000.0 ** (-2.0 * (channel // 2) / width)
    angle = np.arange(num_positions)[:, None] * frequency[None, :]
    table = np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))
    return table.astype(np.float32)


def sincos_2d(rows: int, columns: int, width: int) -> Float32[np.ndarray, "n d"]:
    """The 2-D sine-cosine table of MAE (arXiv 2111.06377).

    The first half of the channels tells the column, the second the row; each is a block of sines,
    then one of cosines, of frequency ``10000 ** (-i / (width / 4))``.

    Args:
      rows: tokens along the height.
      columns: tokens along the width.
      width: token width, a multiple of 4.
    """
    quarter = width // 4
    frequency = 1.0 / 10000 ** (np.arange(quarter, dtype=np.float64) / (width / 4.0))

    def axis(places: np.ndarray) -> np.ndarray:
        angle = places[:, None] * frequency[None, :]
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    row, column = np.divmod(np.arange(rows * columns), columns)
    return np.concatenate([axis(column), axis(row)], axis=1).astype(np.float32)


class Positions(nn.Module):
    """The table of a grid, and the row of the class token.

    Attributes:
      kind: ``sincos_1d`` over the flat index, ``sincos_2d`` over height and width (one time step
        only), ``learned``: one table for everything, or ``separable``: one over height and width
        plus one over time (MAE-ST).
      grid: tokens along time, height and width.
      width: token width.
      class_token: whether there is a class token; in fixed tables its row is zero.
      table_init: of learned tables.

    Raises:
      UserError: where the kind does not fit grid or width.
    """

    kind: PositionKind
    grid: Grid
    width: int
    class_token: bool
    table_init: Init

    def __post_init__(self) -> None:
        check_positions(self.kind, self.grid, self.width)
        super().__post_init__()

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "n d"], Float[Array, "d"] | None]:
        """The rows of the tokens, row-major over (time, height, width), and of the class token."""
        time, height, width = self.grid
        count = time * height * width
        class_row = jnp.zeros(self.width) if self.class_token else None
        if self.kind == "sincos_1d":
            return jnp.asarray(sincos_1d(count, self.width)), class_row
        if self.kind == "sincos_2d":
            return jnp.asarray(sincos_2d(height, width, self.width)), class_row
        if self.kind == "learned":
            table = self.param("table", self.table_init, (count + self.class_token, self.width))
            return (table[1:], table[0]) if self.class_token else (table, None)
        spatial = self.param("spatial", self.table_init, (height * width, self.width))
        temporal = self.param("temporal", self.table_init, (time, self.width))
        if self.class_token:
            class_row = self.param("class_token", self.table_init, (self.width,))
        return (temporal[:, None] + spatial[None]).reshape(count, self.width), class_row


def check_positions(kind: str, grid: Grid, width: int) -> None:
    """Raises a `UserError` where a table cannot be made for a grid and a token width."""
    if kind not in POSITION_KINDS:
        raise UserError(f"model.positions is {kind!r}: use one of {', '.join(POSITION_KINDS)}")
    if grid[0] * grid[1] * grid[2] * width > MOST_VALUES:
        raise UserError(
            f"a grid of {grid[0]} x {grid[1]} x {grid[2]} tokens of width {width} is more than any "
            "position table here may hold: choose fewer frames, smaller images or larger patches"
        )
    if kind == "sincos_2d" and grid[0] != 1:
        raise UserError(
            f"model.positions 'sincos_2d' cannot tell the {grid[0]} time steps of the grid apart: "
            "it is for images; use 'sincos_1d', 'learned' or 'separable' for video"
        )
    if kind == "sincos_2d" and width % 4:
        raise UserError(
            f"model.positions 'sincos_2d' needs a width that is a multiple of 4, not {width}"
        )
