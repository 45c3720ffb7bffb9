"""Random masking: any tokens, uniformly (MAE-ST's spacetime-agnostic mask)."""

import dataclasses

from adamae_jax.masking import base


@dataclasses.dataclass(frozen=True)
class Strategy(base.MaskingStrategy):
    """``N_v`` tokens are drawn uniformly without replacement."""

    def __call__(
        self,
        variables: base.Variables,
        inputs: base.MaskInputs,
        keys: base.ExampleKeys,
        train: bool,
    ) -> base.TokenMask:
        """Draws the visible tokens."""
        time, height, width = inputs.grid
        count = self.num_visible(inputs.grid)
        is_visible = base.random_subset(keys, time * height * width, count)
        return base.TokenMask(**base.mask_from_visible(is_visible, count))
