"""Tube masking: the same spatial positions in every time step (VideoMAE, arXiv 2203.12602)."""

import dataclasses

import einops

from adamae_jax.masking import base
from adamae_jax.models.tubelets import Grid


@dataclasses.dataclass(frozen=True)
class Strategy(base.MaskingStrategy):
    """``int(mask_ratio * H/p * W/p)`` spatial positions are masked in all time steps."""

    def _visible_per_step(self, grid: Grid) -> int:
        _, height, width = grid
        return height * width - int(self.mask_ratio * (height * width))

    def num_visible(self, grid: Grid) -> int:
        """``N_v``: time steps times the visible spatial positions."""
        return grid[0] * self._visible_per_step(grid)

    def __call__(
        self,
        variables: base.Variables,
        inputs: base.MaskInputs,
        keys: base.ExampleKeys,
        train: bool,
    ) -> base.TokenMask:
        """Draws spatial positions and repeats them over time."""
        time, height, width = inputs.grid
        plane = base.random_subset(keys, height * width, self._visible_per_step(inputs.grid))
        is_visible = einops.repeat(plane, "b s -> b (t s)", t=time)
        return base.TokenMask(**base.mask_from_visible(is_visible, self.num_visible(inputs.grid)))
