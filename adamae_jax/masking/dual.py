"""Dual masking: tubes for the encoder, running cells for the decoder (VideoMAE V2, 2303.16727)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from adamae_jax.errors import UserError
from adamae_jax.masking import base, tube
from adamae_jax.masking.cells import CELL, check_cells, turns
from adamae_jax.models.tubelets import Grid

_PHASE = 1  # folded into an example's key; the tube's draw takes the key itself


@dataclasses.dataclass(frozen=True)
class Strategy(tube.Strategy):
    """VideoMAE's tubes, and a decoder that is asked for a part of the tokens, seen or not.

    What is decoded is drawn independently of what is seen: running cells, whose phase is the only
    draw. A decoded token that the encoder saw has weight 0 in the loss.

    Attributes:
      decoder_mask_ratio: share of the tokens that are not decoded, rounded down to quarters; from
        0.25 and below 1.
    """

    decoder_mask_ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 / CELL <= self.decoder_mask_ratio < 1.0:
            raise UserError(
                f"masking.options.decoder_mask_ratio {self.decoder_mask_ratio} is outside [0.25, 1)"
                ": give the share of tokens that are not decoded, such as 0.5; with masking 'tube' "
                "all that are masked are decoded"
            )

    def check(self, grid: Grid, token_width: int) -> None:
        """Raises a `UserError` also where cells of 2 x 2 patches do not fill a time step."""
        super().check(grid, token_width)
        check_cells(grid)

    def __call__(
        self,
        variables: base.Variables,
        inputs: base.MaskInputs,
        keys: base.ExampleKeys,
        train: bool,
    ) -> base.TokenMask:
        """Draws tubes and a phase."""
        mask = super().__call__(variables, inputs, keys, train)
        phase = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, _PHASE), (), 0, 4))
        return self.with_decoded(mask, phase(keys), inputs.grid)

    def decoded(self, phase: Int[Array, "b"], grid: Grid) -> Bool[Array, "b n"]:
        """Marks the tokens that are decoded: the complement of the authors' decoder mask."""
        return turns(phase, grid) >= int(CELL * self.decoder_mask_ratio)

    def with_decoded(
        self, mask: base.TokenMask, phase: Int[Array, "b"], grid: Grid
    ) -> base.TokenMask:
        """Adds the tokens to decode, and their weights, to a mask."""
        marks = self.decoded(phase, grid)
        # In every cell and time step as many: the number is the same for every phase.
        count = marks.shape[1] * (CELL - int(CELL * self.decoder_mask_ratio)) // CELL
        decode = base.mask_from_visible(marks, count)["visible"]
        hidden = jax.vmap(lambda row: jnp.zeros(marks.shape[1]).at[row].set(1.0))(mask.masked)
        return mask.replace(
            decode=decode, decode_weight=jnp.take_along_axis(hidden, decode, axis=1)
        )
