"""Adversarial masking: a generator learns where to mask (AutoMAE, arXiv 2303.06583).

The attention of a frozen image MAE becomes a distribution over the patches of a frame, which a
discriminator compares with rectangles. Patches that the generator picks are masked nearly always,
and the reconstruction loss reaches it by a straight-through scale on the tokens.

A video is masked frame by frame: each time step of the grid has a mask of its own, made from the
middle frame of its tubelets. That is ours; the paper has images only.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from adamae_jax.errors import UserError
from adamae_jax.masking import base
from adamae_jax.masking.frozen_vit import FrozenVitStrategy, middle_frames
from adamae_jax.models.encoder import class_attention
from adamae_jax.models.mask_networks import SMALLEST_GRID, Discriminator, MaskGenerator
from adamae_jax.models.transformer import ExampleKeys
from adamae_jax.models.tubelets import Grid

# What a purpose folds into an example's key; two purposes never share randomness.
_GUMBEL, _UNIFORM, _REAL = 0, 1, 2

# The authors' rectangles on their grid of 14 x 14, as shares of a grid: area from 40 to 160
# patches, width from 4 to 10.
LEAST_AREA, LARGEST_AREA = 40 / 196, 160 / 196
LEAST_WIDTH = 4 / 14
RECTANGLE_VALUE = 0.5


@dataclasses.dataclass(frozen=True)
class Strategy(FrozenVitStrategy):
    """AutoMAE's mask generator and its adversary; the defaults are the released code's.

    The generator reads the attention maps of the frozen ViT's heads.

    Attributes:
      mask_factor: weight of the generator's choice against uniform noise.
      adversarial_weight: weight of the generator's loss.
      gumbel_tau: temperature of the Gumbel-softmax.
    """

    mask_factor: float = 0.5
    adversarial_weight: float = 0.2
    gumbel_tau: float = 1.0

    sees_positions = True
    adversary = "discriminator"

    def num_visible(self, grid: Grid) -> int:
        """The same number in every time step."""
        return grid[0] * self._visible_patches(grid)

    def _visible_patches(self, grid: Grid) -> int:
        return int(grid[1] * grid[2] * (1 - self.mask_ratio))

    def check(self, grid: Grid, token_width: int) -> None:
        """Raises a `UserError` also for a grid that the discriminator cannot take."""
        super().check(grid, token_width)
        if min(grid[1:]) < SMALLEST_GRID:
            raise UserError(
                f"masking 'adversarial' needs a grid of at least {SMALLEST_GRID} x {SMALLEST_GRID} "
                f"patches, not {grid[1]} x {grid[2]}: choose a smaller model.patch_size or a "
                "larger data.image_size"
            )
        if not self.gumbel_tau > 0:
            raise UserError(f"masking.options.gumbel_tau {self.gumbel_tau} must be positive")

    def init(self, key: Array, inputs: base.MaskInputs) -> base.Variables:
        """Initial generator and discriminator, and a place for the frozen ViT."""
        generator_key, discriminator_key, vit_key = jax.random.split(key, 3)
        _, height, width = inputs.grid
        attention = jnp.zeros((1, height, width, self.vit_num_heads))
        mask = jnp.zeros((1, height, width))
        discriminator = Discriminator().init(discriminator_key, mask)
        return {
            "params": {
                "generator": MaskGenerator().init(generator_key, attention)["params"],
                "discriminator": discriminator["params"],
            },
            "state": discriminator["state"],
            "frozen": {"vit": self.vit_of(inputs).init(vit_key, middle_frames(inputs))["params"]},
        }

    def attention(
        self, frozen: Mapping[str, Any], inputs: base.MaskInputs
    ) -> Float[Array, "frames heads n"]:
        """What the frozen ViT's class token attends to in each frame of ``b * T``."""
        if inputs.context is not None:
            return einops.rearrange(inputs.context, "b T k n -> (b T) k n")
        return class_attention(self.vit_of(inputs), frozen["vit"], middle_frames(inputs))

    def context(
        self, frozen: Mapping[str, Any], inputs: base.MaskInputs
    ) -> Float[Array, "b T heads n"]:
        """The attention maps: one pass of the frozen ViT serves both updates of a step."""
        maps = self.attention(frozen, inputs)
        return einops.rearrange(maps, "(b T) k n -> b T k n", T=inputs.grid[0])

    def mask_probabilities(
        self,
        variables: base.Variables,
        inputs: base.MaskInputs,
        gumbel: Float[Array, "frames n"],
    ) -> Float[Array, "frames n"]:
        """The soft mask ``m`` of each frame: a Gumbel-softmax over its patches."""
        _, height, width = inputs.grid
        maps = einops.rearrange(
            self.attention(variables["frozen"], inputs), "f k (h w) -> f h w k", h=height, w=width
        )
        log_probs = MaskGenerator().apply({"params": variables["params"]["generator"]}, maps)
        return jax.nn.softmax((log_probs + gumbel) / self.gumbel_tau)

    def scores(
        self, variables: base.Variables, masks: Float[Array, "frames n"], grid: Grid, train: bool
    ) -> tuple[Float[Array, "frames i j"], Any]:
        """The discriminator's answer, and its new state: in training, every call updates it."""
        held = {"params": variables["params"]["discriminator"], "state": variables["state"]}
        square = masks.reshape(-1, *grid[1:])
        if not train:
            return Discriminator().apply(held, square), variables["state"]
        answer, new = Discriminator().apply(held, square, update=True, mutable=["state"])
        return answer, new["state"]

    def select(
        self, soft: Float[Array, "frames p"], uniform: Float[Array, "frames p"], grid: Grid
    ) -> tuple[Float[Array, "b n"], Float[Array, "b n"]]:
        """The noise that decides, smallest first, and which tokens stay visible (1 or 0).

        The patches of the largest ``m``, as many as stay visible, are raised by ``mask_factor``:
        a straight-through choice, whose gradient is that of ``m``.
        """
        count = self._visible_patches(grid)

        picked = base.largest(soft, count) + soft - jax.lax.stop_gradient(soft)
        noise = uniform + self.mask_factor * picked
        visible = base.largest(-jax.lax.stop_gradient(noise), count).astype(jnp.float32)
        # Row-major over (time, height, width): the frames of a clip are one after the other.
        tokens = grid[0] * soft.shape[-1]
        return noise.reshape(-1, tokens), visible.reshape(-1, tokens)

    def __call__(
        self, variables: base.Variables, inputs: base.MaskInputs, keys: ExampleKeys, train: bool
    ) -> base.TokenMask:
        """Draws a mask, and says how well it fooled the discriminator."""
        grid = inputs.grid
        of_frames = frame_keys(keys, grid[0])
        shape = (grid[1] * grid[2],)
        soft = self.mask_probabilities(variables, inputs, draw(of_frames, _GUMBEL, "gumbel", shape))
        noise, visible = self.select(soft, draw(of_frames, _UNIFORM, "uniform", shape), grid)
        scores, state = self.scores(variables, soft, grid, train)
        return base.TokenMask(
            **base.mask_from_visible(visible > 0.5, self.num_visible(grid)),
            token_scale=noise,
            aux={"generator": self.adversarial_weight * per_clip(scores, 1.0, grid)},
            state=state,
        )

    def adversary_loss(
        self, variables: base.Variables, inputs: base.MaskInputs, keys: ExampleKeys, train: bool
    ) -> tuple[Float[Array, "b"], Any]:
        """Least squares: rectangles should score 1, generated masks 0."""
        grid = inputs.grid
        of_frames = frame_keys(keys, grid[0])
        gumbel = draw(of_frames, _GUMBEL, "gumbel", (grid[1] * grid[2],))
        fake = self.mask_probabilities(variables, inputs, gumbel)

        def rectangle(key: Array) -> Array:
            return rectangle_mask(jax.random.fold_in(key, _REAL), *grid[1:])

        real = jax.vmap(rectangle)(of_frames)
        return self.discriminate(variables, real, fake, grid, train)

    def discriminate(
        self,
        variables: base.Variables,
        real: Float[Array, "frames n"],
        fake: Float[Array, "frames n"],
        grid: Grid,
        train: bool,
    ) -> tuple[Float[Array, "b"], Any]:
        """The discriminator's loss per clip and its new state."""
        real_scores, state = self.scores(variables, real, grid, train)
        fake = jax.lax.stop_gradient(fake)
        fake_scores, state = self.scores({**variables, "state": state}, fake, grid, train)
        return per_clip(real_scores, 1.0, grid) + per_clip(fake_scores, 0.0, grid), state


def frame_keys(keys: ExampleKeys, steps: int) -> Key[Array, "frames"]:
    """One key for each time step of each clip."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return jax.vmap(lambda key: fold(key, jnp.arange(steps)))(keys).reshape(-1)


def draw(keys: ExampleKeys, purpose: int, kind: str, shape: tuple[int, ...]) -> Array:
    """Noise of a kind of `jax.random`, one array per key."""
    sample = getattr(jax.random, kind)
    return jax.vmap(lambda key: sample(jax.random.fold_in(key, purpose), shape))(keys)


def per_clip(scores: Float[Array, "frames i j"], wanted: float, grid: Grid) -> Float[Array, "b"]:
    """The mean squared distance of a clip's scores from what they should be."""
    return jnp.square(scores - wanted).reshape(-1, grid[0] * scores[0].size).mean(-1)


def rectangle_mask(key: Array, height: int, width: int) -> Float[Array, "n"]:
    """What the discriminator takes for real: a softmax over noise with a raised rectangle.

    Area and width are drawn from the authors' ranges, which are given for 14 x 14 patches, as
    shares of the grid.
    """
    area_key, width_key, row_key, column_key, noise_key = jax.random.split(key, 5)
    patches, narrowest = height * width, round(LEAST_WIDTH * width)
    areas = round(LEAST_AREA * patches), round(LARGEST_AREA * patches)
    area = jax.random.randint(area_key, (), areas[0], areas[1] + 1)
    columns = jax.random.randint(width_key, (), narrowest, width - narrowest + 1)
    rows = jnp.minimum(height, -(-area // columns))
    top = jax.random.randint(row_key, (), 0, height - rows + 1)
    left = jax.random.randint(column_key, (), 0, width - columns + 1)
    row, column = jnp.arange(height)[:, None], jnp.arange(width)[None]
    inside = (row >= top) & (row < top + rows) & (column >= left) & (column < left + columns)
    noise = jax.random.uniform(noise_key, (height, width))
    return jax.nn.softmax((RECTANGLE_VALUE * inside + noise).reshape(-1))
