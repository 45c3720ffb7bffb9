"""Frame masking: whole time steps."""

import dataclasses

import einops

from adamae_jax.masking import base
from adamae_jax.models.tubelets import Grid


@dataclasses.dataclass(frozen=True)
class Strategy(base.MaskingStrategy):
    """``int(mask_ratio * T/t)`` time steps are masked, all their tokens together."""

    def _visible_steps(self, grid: Grid) -> int:
        return grid[0] - int(self.mask_ratio * grid[0])

    def num_visible(self, grid: Grid) -> int:
        """``N_v``: visible time steps times the tokens of one."""
        return self._visible_steps(grid) * grid[1] * grid[2]

    def __call__(
        self,
        variables: base.Variables,
        inputs: base.MaskInputs,
        keys: base.ExampleKeys,
        train: bool,
    ) -> base.TokenMask:
        """Draws the time steps that stay visible."""
        time, height, width = inputs.grid
        steps = base.random_subset(keys, time, self._visible_steps(inputs.grid))
        is_visible = einops.repeat(steps, "b t -> b (t s)", s=height * width)
        return base.TokenMask(**base.mask_from_visible(is_visible, self.num_visible(inputs.grid)))
