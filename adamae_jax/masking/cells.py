"""Running cells: space in cells of 2 x 2 patches whose places take turns over time.

VideoMAE V2's decoder mask (arXiv 2303.16727; github.com/OpenGVLab/VideoMAEv2).
"""

import jax.numpy as jnp
from jaxtyping import Array, Int

from adamae_jax.errors import UserError
from adamae_jax.models.tubelets import Grid

CELL = 4  # places in a cell


def check_cells(grid: Grid) -> None:
    """Raises a `UserError` where the cells do not fill a time step."""
    _, height, width = grid
    if height % 2 or width % 2:
        raise UserError(
            f"running cells of 2 x 2 patches do not fill a grid of {height} x {width} patches: "
            "choose data.image_size and model.patch_size that give even numbers"
        )


def turns(phase: Int[Array, "b"], grid: Grid) -> Int[Array, "b n"]:
    """The turn of each token, from 0 to 3: places of a cell differ, and so do successive steps.

    It is ``(q + phase + 1 + step) mod 4`` with the places q = 0 to 3 of a cell numbered row by row.

    Args:
      phase: of each clip, from 0 to 3.
      grid: tokens along time, height and width.
    """
    step, row, column = jnp.meshgrid(*(jnp.arange(size) for size in grid), indexing="ij")
    place = 2 * (row % 2) + column % 2
    return (phase[:, None] + (place + 1 + step).reshape(-1)) % CELL
