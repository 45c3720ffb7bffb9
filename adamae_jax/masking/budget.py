"""A token budget: clips in which more happens see more tokens, at the expense of the others.

No published system has it. How many tokens a clip sees is decided over the whole batch of an
update; which ones is drawn at random, so that nothing but their number differs from random masks.
"""

import dataclasses
from typing import Any, Literal, get_args

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from adamae_jax.errors import UserError
from adamae_jax.masking import base
from adamae_jax.masking.apportionment import largest_remainder, water_level
from adamae_jax.models.tubelets import Grid

Information = Literal["motion", "detail"]
INFORMATION: tuple[str, ...] = get_args(Information)

# Added to the information of each clip, as a share of the batch's mean: where all others have their
# most, those in which nothing happens share what is left.
_FLOOR = 1e-3


@dataclasses.dataclass(frozen=True)
class Strategy(base.MaskingStrategy):
    """``batch x N_v`` visible tokens are spread over the clips in proportion to their information.

    Every clip gets between a least and a most number, and the sum is kept exactly. Arrays have room
    for the most: what of it a clip does not see is padding, drawn as the seen tokens are, and not
    decoded either. So every clip decodes as many tokens, those that no draw of its size would show.
    There are no parameters, and no gradient flows through the numbers.

    Attributes:
      information: of a clip. "motion": the mean distance between the pixels of a token and those of
        the same place one time step before. "detail": the mean deviation of a token's pixels from
        their mean, of images too.
      least: the fewest visible tokens of a clip, as a share of ``N_v``; rounded down, at least 1.
      most: the largest number, as a share of ``N_v``; rounded down.
    """

    information: Information = "motion"
    least: float = 0.5
    most: float = 2.0

    sees_batch = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.information not in INFORMATION:
            raise UserError(
                f"masking.options.information {self.information!r} is unknown: use one of "
                f"{', '.join(INFORMATION)}"
            )
        if not 0.0 <= self.least <= 1.0:
            raise UserError(
                f"masking.options.least {self.least} is outside [0, 1]: give the fewest visible "
                "tokens of a clip as a share of their mean, such as 0.5"
            )
        if not 1.0 <= self.most < float("inf"):
            raise UserError(
                f"masking.options.most {self.most} must be at least 1: give the largest number of "
                "visible tokens of a clip as a share of their mean, such as 2"
            )

    def bounds(self, grid: Grid) -> tuple[int, int]:
        """The fewest and the most visible tokens of a clip."""
        mean = self.num_visible(grid)
        return max(1, int(self.least * mean)), int(self.most * mean)

    def num_masked(self, grid: Grid) -> int:
        """What is left where a clip sees its most."""
        time, height, width = grid
        return time * height * width - self.bounds(grid)[1]

    def check(self, grid: Grid, token_width: int) -> None:
        """Raises a `UserError` also where a clip could see all, and for motion of images."""
        super().check(grid, token_width)
        if self.num_masked(grid) < 1:
            raise UserError(
                f"masking.options.most {self.most} of {self.num_visible(grid)} visible tokens "
                f"leaves none of the others to decode in a grid of {' x '.join(map(str, grid))}: "
                "make it or the visible share smaller"
            )
        if self.information == "motion" and grid[0] == 1:
            raise UserError(
                "masking.options.information 'motion' needs clips of two time steps or more, and "
                "this model has one: use 'detail'"
            )

    def context(self, frozen: Any, inputs: base.MaskInputs) -> Float[Array, "b"]:
        """The information of each clip."""
        del frozen
        return information(inputs.video, inputs.grid, self.information)

    def share(
        self, context: Float[Array, "b"], grid: Grid, valid: Bool[Array, "b"] | None = None
    ) -> Int[Array, "b"]:
        """The number of visible tokens of each clip, from the information of all.

        The sum is ``N_v`` times the clips. What fills up a batch takes no part: it gets ``N_v``
        tokens of its own.
        """
        mean, bounds = self.num_visible(grid), self.bounds(grid)
        is_clip = jnp.ones(context.shape, bool) if valid is None else valid
        average = jnp.where(is_clip, context, 0.0).sum() / jnp.maximum(is_clip.sum(), 1)
        # Where nothing happens in any clip, all are alike.
        smallest = jnp.finfo(jnp.float32).tiny
        weights = jnp.where(is_clip, context / jnp.maximum(average, smallest), 0.0) + _FLOOR
        least, most = (jnp.where(is_clip, bound, 0).astype(jnp.float32) for bound in bounds)
        total = mean * is_clip.sum()
        shares = water_level(weights, least, most, total)
        counts = largest_remainder(shares[None], total[None], context[None])[0]
        return jnp.where(is_clip, counts, mean)

    def __call__(
        self,
        variables: base.Variables,
        inputs: base.MaskInputs,
        keys: base.ExampleKeys,
        train: bool,
    ) -> base.TokenMask:
        """Draws the visible tokens, and after them those that are neither seen nor decoded."""
        counts = inputs.context
        if counts is None:
            own = self.context(variables.get("frozen"), inputs)
            counts = self.share(own, inputs.grid, inputs.valid)
        time, height, width = inputs.grid
        size, most = time * height * width, self.bounds(inputs.grid)[1]
        # As random masks draw theirs: with N_v tokens the same key shows the same ones.
        noise = jax.vmap(lambda key: jax.random.uniform(key, (size,)))(keys)
        place = jnp.argsort(base.largest_first(noise, size), axis=-1)
        kind = (place >= counts[:, None]).astype(jnp.int32) + (place >= most)
        order = jnp.argsort(kind, axis=-1, stable=True)
        return base.TokenMask(
            visible=order[:, :most],
            masked=order[:, most:],
            visible_valid=jnp.arange(most) < counts[:, None],
        )


def information(
    video: Float[Array, "b T H W C"], grid: Grid, kind: Information
) -> Float[Array, "b"]:
    """How much there is to see in each clip; see `Strategy`.

    Args:
      video: normalised pixels.
      grid: tokens along time, height and width.
      kind: what is measured. Of motion there is none where the grid has one time step.
    """
    time, height, width = grid
    tokens = einops.rearrange(
        jax.lax.stop_gradient(video).astype(jnp.float32),
        "b (T t) (H p) (W q) C -> b T (H W) C (t p q)",
        T=time,
        H=height,
        W=width,
    )
    differences = (
        jnp.diff(tokens, axis=1) if kind == "motion" else tokens - tokens.mean(-1, keepdims=True)
    )
    distances = jnp.sqrt(jnp.square(differences).mean((-2, -1)))
    return distances.mean((1, 2))
