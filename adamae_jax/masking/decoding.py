"""Dual masking for every strategy: decode a share of the tokens that the strategy asks for."""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from adamae_jax.errors import UserError
from adamae_jax.masking import base
from adamae_jax.masking.cells import CELL, check_cells, turns
from adamae_jax.models.tubelets import Grid

DecodeOrder = Literal["random", "cells", "sampler"]
DECODE_ORDERS: tuple[str, ...] = get_args(DecodeOrder)

# What a purpose folds into an example's key.
_NOISE, _PHASE = 0, 1


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Which of the masked tokens are decoded.

    What is left out is nowhere: neither in the decoder's attention nor in a loss. The losses are
    means over what is decoded.

    Attributes:
      ratio: the share of the strategy's tokens that is decoded; 1: all. Their number is rounded
        down, and the same for every clip.
      order: which come first. "random": any, uniformly. "cells": running cells
        (`adamae_jax.masking.cells`) with a phase of each clip's own, the places with the last turn
        first; within a turn, any. "sampler": drawn without replacement from the strategy's
        distribution over the tokens, among those that are masked.
    """

    ratio: float = 1.0
    order: DecodeOrder = "random"

    def check(self, strategy: base.MaskingStrategy, grid: Grid) -> None:
        """Raises a `UserError` where it does not fit the model."""
        if self.ratio == 1.0:
            return
        masked = strategy.num_masked(grid)
        if not int(masked * self.ratio):
            raise UserError(
                f"masking.decode_ratio {self.ratio} leaves none of {masked} masked tokens to "
                "decode: choose a larger one"
            )
        if self.order == "cells":
            check_cells(grid)

    def __call__(self, mask: base.TokenMask, keys: base.ExampleKeys, grid: Grid) -> base.TokenMask:
        """Returns the mask with fewer tokens to decode.

        Raises:
          UserError: where the strategy has no distribution, and the order asks for one.
        """
        if self.ratio == 1.0:
            return mask
        queries, weight = mask.queries, mask.decode_weight
        count = int(queries.shape[1] * self.ratio)
        chosen = base.largest(self._scores(mask, keys, grid), count)
        places = base.mask_from_visible(chosen, count)["visible"]  # sorted, as the queries are
        return mask.replace(
            decode=jnp.take_along_axis(queries, places, axis=1),
            decode_weight=None if weight is None else jnp.take_along_axis(weight, places, axis=1),
        )

    def _scores(
        self, mask: base.TokenMask, keys: base.ExampleKeys, grid: Grid
    ) -> Float[Array, "b k"]:
        """Returns scores of the tokens: those with the largest are decoded."""
        queries = mask.queries
        shape = queries.shape[1:]

        def noise(key: Array) -> Array:
            key = jax.random.fold_in(key, _NOISE)
            draw = jax.random.gumbel if self.order == "sampler" else jax.random.uniform
            return draw(key, shape)

        scores = jax.vmap(noise)(keys)
        if self.order == "cells":
            phases = jax.vmap(
                lambda key: jax.random.randint(jax.random.fold_in(key, _PHASE), (), 0, CELL)
            )(keys)
            return scores + jnp.take_along_axis(turns(phases, grid), queries, axis=1)
        if self.order == "sampler":
            if mask.log_probs is None:
                raise UserError(
                    "masking.decode_order 'sampler' draws from the strategy's distribution, and "
                    "this strategy has none: use 'random' or 'cells'"
                )
            log_probs = jax.lax.stop_gradient(mask.log_probs)
            return scores + jnp.take_along_axis(log_probs, queries, axis=1)
        return scores


ALL_DECODED = Decoding()
