"""Oracle masks: the foreground, where it is known, is seen more often, or less (a reference)."""

import dataclasses
import math

import jax.numpy as jnp

from adamae_jax.errors import UserError
from adamae_jax.masking import base
from adamae_jax.masking.distribution import sample_without_replacement

# In place of a weight of 0: far below what noise can make up for.
_SMALLEST_WEIGHT = 1e-30


@dataclasses.dataclass(frozen=True)
class Strategy(base.MaskingStrategy):
    """The visible tokens are drawn one after the other, foreground with odds of its own.

    A token of which the share ``s`` is foreground weighs ``1 + s * (foreground_weight - 1)`` in
    each draw. There are no parameters. It needs clips with foreground masks.

    Attributes:
      foreground_weight: the odds of a token of foreground to those of one of background: above 1
        the foreground is seen more often, below 1 it is masked more often, at 1 masks are random.
        At 0 it is seen only where all else is.
    """

    foreground_weight: float = 4.0
    sees_foreground = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.foreground_weight < math.inf:
            raise UserError(
                f"masking.options.foreground_weight is {self.foreground_weight}: it must be at "
                "least 0; above 1 the foreground is seen more often, below 1 less often"
            )

    def __call__(
        self,
        variables: base.Variables,
        inputs: base.MaskInputs,
        keys: base.ExampleKeys,
        train: bool,
    ) -> base.TokenMask:
        """Draws the visible tokens.

        Raises:
          UserError: where the foreground of the clips is not known.
        """
        if inputs.foreground is None:
            raise UserError(
                "masking 'oracle' was given clips without foreground masks: it needs a dataset "
                "that has them, such as the embedded moving objects, and no data.rand_augment"
            )
        weights = 1.0 + inputs.foreground * (self.foreground_weight - 1.0)
        log_weights = jnp.log(jnp.maximum(weights, _SMALLEST_WEIGHT))
        count = self.num_visible(inputs.grid)
        is_visible = sample_without_replacement(keys, log_weights, count)
        return base.TokenMask(**base.mask_from_visible(is_visible, count))
