"""Motion-selected tokens: what changes is kept, all else is left out (EVEREST, arXiv 2211.10636).

Written from the paper; its selection of frames is not here.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from adamae_jax.errors import UserError
from adamae_jax.masking import base
from adamae_jax.models.tubelets import Grid


@dataclasses.dataclass(frozen=True)
class Strategy(base.MaskingStrategy):
    """The most important tokens are kept; of them some, at random, are seen, and the rest decoded.

    A token is as important as its embedding is far from that of the same place one time step
    before. What is not kept is neither seen nor decoded. There are no parameters.

    Attributes:
      keep_ratio: share of the tokens that is kept, rounded down.
    """

    keep_ratio: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.keep_ratio <= 1.0:
            raise UserError(
                f"masking.options.keep_ratio {self.keep_ratio} is outside (0, 1]: give the share "
                "of tokens to keep, such as 0.3"
            )

    def num_kept(self, grid: Grid) -> int:
        """The number of tokens that are seen or decoded."""
        time, height, width = grid
        return int(time * height * width * self.keep_ratio)

    def check(self, grid: Grid, token_width: int) -> None:
        """Raises a `UserError` also for images, and where no kept token would be decoded."""
        super().check(grid, token_width)
        if grid[0] == 1:
            raise UserError(
                "masking 'motion' compares a time step with the one before, and the grid has one "
                "only: choose a larger data.num_frames"
            )
        kept, visible = self.num_kept(grid), self.num_visible(grid)
        if kept <= visible:
            raise UserError(
                f"masking.options.keep_ratio {self.keep_ratio} keeps {kept} tokens, and "
                f"masking.mask_ratio {self.mask_ratio} shows {visible}, so that none of them is "
                "left to decode: make one of the two larger"
            )

    def __call__(
        self,
        variables: base.Variables,
        inputs: base.MaskInputs,
        keys: base.ExampleKeys,
        train: bool,
    ) -> base.TokenMask:
        """Keeps the most important tokens, and draws those that are seen among them."""
        size = inputs.tokens.shape[1]
        kept, visible = self.num_kept(inputs.grid), self.num_visible(inputs.grid)
        is_kept = base.largest(importance(inputs.tokens, inputs.grid), kept)
        noise = jax.vmap(lambda key: jax.random.uniform(key, (size,)))(keys)
        is_visible = base.largest(jnp.where(is_kept, noise, -1.0), visible)
        rest = base.mask_from_visible(is_kept & ~is_visible, kept - visible)
        return base.TokenMask(**base.mask_from_visible(is_visible, visible), decode=rest["visible"])


def importance(tokens: Float[Array, "b n d"], grid: Grid) -> Float[Array, "b n"]:
    """The distance of each embedding to that of the same place one time step before.

    The first step has none before it: it takes its successor's distances. No gradient flows.
    """
    steps = jax.lax.stop_gradient(tokens).astype(jnp.float32)
    steps = steps.reshape(len(tokens), grid[0], -1, tokens.shape[-1])
    distance = jnp.linalg.norm(jnp.diff(steps, axis=1), axis=-1)
    return jnp.concatenate([distance[:, :1], distance], axis=1).reshape(len(tokens), -1)
