"""Masks by semantic parts, from a portion of every part to whole parts (after SemMAE).

Written from the idea of the paper (arXiv 2206.10207), whose parts come from a network of their own
that is trained on the features of an iBOT ViT. Here they are clusters of what a frozen image MAE
says of the patches, found anew in every clip; nothing is trained.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from adamae_jax.errors import UserError
from adamae_jax.masking import base
from adamae_jax.masking.apportionment import largest_remainder
from adamae_jax.masking.frozen_vit import FrozenVitStrategy, middle_frames
from adamae_jax.models.tubelets import Grid

# What a purpose folds into an example's key.
_PARTS, _TOKENS = 0, 1


@dataclasses.dataclass(frozen=True)
class Strategy(FrozenVitStrategy):
    """Exactly ``N_v`` tokens are visible; how the masked ones lie in the parts changes in training.

    A part loses between two numbers of tokens. In the one extreme every part loses the same
    portion, so that its rest says what is missing. In the other whole parts are masked, one after
    the other in an order that is drawn, the last of them as far as needed. Of a part, the tokens
    that are masked are drawn. Of a video the parts are those of the clip: they go through time.

    Attributes:
      parts: clusters of a clip's tokens; some may come out empty.
      iterations: of k-means.
      whole_start: weight of the second extreme at the start of training; 0: the first alone.
      whole_end: the same at its end, and in evaluation; in between it changes linearly.
    """

    parts: int = 6
    iterations: int = 10
    whole_start: float = 0.0
    whole_end: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, smallest in (("parts", 2), ("iterations", 1)):
            if getattr(self, name) < smallest:
                raise UserError(
                    f"masking.options.{name} {getattr(self, name)} must be at least {smallest}"
                )
        for name in ("whole_start", "whole_end"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(
                    f"masking.options.{name} {getattr(self, name)} is outside [0, 1]: 0 masks a "
                    "portion of every part, 1 whole parts"
                )

    def check(self, grid: Grid, token_width: int) -> None:
        """Raises a `UserError` also where there are more parts than tokens."""
        super().check(grid, token_width)
        time, height, width = grid
        if self.parts > time * height * width:
            raise UserError(
                f"masking.options.parts {self.parts} are more than the tokens of a grid of "
                f"{time} x {height} x {width}: choose fewer"
            )

    def init(self, key: Array, inputs: base.MaskInputs) -> base.Variables:
        """A place for the frozen ViT."""
        return {"frozen": {"vit": self.vit_of(inputs).init(key, middle_frames(inputs))["params"]}}

    def features(self, frozen: Any, inputs: base.MaskInputs) -> Float[Array, "b n d"]:
        """The frozen ViT's latents of all patches, of the middle frame of each time step."""
        latents = self.vit_of(inputs).apply({"params": frozen["vit"]}, middle_frames(inputs))
        patches = jax.lax.stop_gradient(latents)[:, 1:].astype(jnp.float32)
        # Row-major over (time, height, width): the frames of a clip are one after the other.
        return patches.reshape(len(inputs.video), -1, patches.shape[-1])

    def __call__(
        self,
        variables: base.Variables,
        inputs: base.MaskInputs,
        keys: base.ExampleKeys,
        train: bool,
    ) -> base.TokenMask:
        """Finds the parts, and draws what is masked of each."""
        visible = self.num_visible(inputs.grid)
        progress = jnp.broadcast_to(jnp.asarray(inputs.progress, jnp.float32), keys.shape)
        whole = self.whole_start + (self.whole_end - self.whole_start) * progress
        features = directions(self.features(variables["frozen"], inputs))
        labels = jax.vmap(lambda rows: clusters(rows, self.parts, self.iterations))(features)
        is_masked = self.select(labels, whole, keys, labels.shape[1] - visible)
        return base.TokenMask(**base.mask_from_visible(~is_masked, visible))

    def select(
        self,
        labels: Int[Array, "b n"],
        whole: Float[Array, "b"],
        keys: base.ExampleKeys,
        masked: int,
    ) -> Array:
        """Marks the masked tokens, from the part of each.

        Args:
          labels: the part of each token.
          whole: weight of masking whole parts, from 0 to 1.
          keys: one key for each clip.
          masked: their number.
        """
        sizes = jax.vmap(lambda row: jnp.zeros(self.parts, jnp.int32).at[row].add(1))(labels)
        noise = _noise(keys, _PARTS, (self.parts,))
        shares = mixed_shares(sizes, noise, whole, masked)
        counts = largest_remainder(shares, jnp.full(len(labels), masked), noise)
        places = places_in_parts(labels, sizes, _noise(keys, _TOKENS, labels.shape[1:]))
        return places < jnp.take_along_axis(counts, labels, axis=1)


def _noise(keys: base.ExampleKeys, purpose: int, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, purpose), shape))(keys)


def mixed_shares(
    sizes: Int[Array, "b k"], order: Float[Array, "b k"], whole: Float[Array, "b"], masked: int
) -> Float[Array, "b k"]:
    """How many tokens each part loses, not rounded yet; together ``masked``.

    Args:
      sizes: of the parts; together all tokens.
      order: the part with the largest is the first that is masked as a whole.
      whole: weight of masking whole parts.
      masked: tokens that are masked.
    """
    ranked = jnp.argsort(-order, axis=-1, stable=True)
    in_order = jnp.take_along_axis(sizes, ranked, axis=-1)
    before = jnp.cumsum(in_order, axis=-1) - in_order
    taken = jnp.clip(masked - before, 0, in_order)
    wholes = jnp.take_along_axis(taken, jnp.argsort(ranked, axis=-1), axis=-1)
    portions = masked * sizes / sizes.sum(-1, keepdims=True)
    weight = whole[:, None]
    return (1.0 - weight) * portions + weight * wholes


def places_in_parts(
    labels: Int[Array, "b n"], sizes: Int[Array, "b k"], noise: Float[Array, "b n"]
) -> Int[Array, "b n"]:
    """The place of each token among those of its part, from 0, by noise: the smallest first."""
    order = jnp.lexsort((noise, labels), axis=-1)
    starts = jnp.cumsum(sizes, axis=-1) - sizes
    return jnp.argsort(order, axis=-1) - jnp.take_along_axis(starts, labels, axis=1)


def directions(features: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """Each clip's features without their mean, of length one: what sets a token apart."""
    centred = features - features.mean(1, keepdims=True)
    length = jnp.linalg.norm(centred, axis=-1, keepdims=True)
    return centred / jnp.maximum(length, 1e-6)


def clusters(points: Float[Array, "n d"], count: int, iterations: int) -> Int[Array, "n"]:
    """The number of each point's cluster, by k-means with a beginning that nothing is drawn for.

    The first centre is the point farthest from the mean of all, each further one the point farthest
    from its nearest centre so far; of equals the first. A cluster without points keeps its centre.
    """
    lengths = jnp.square(points).sum(-1, keepdims=True)

    def squared(centres: Float[Array, "k d"]) -> Float[Array, "n k"]:
        products = jnp.matmul(points, centres.T, precision=jax.lax.Precision.HIGHEST)
        return lengths + jnp.square(centres).sum(-1) - 2.0 * products

    first = points[jnp.argmax(squared(points.mean(0, keepdims=True))[:, 0])]

    def add(number: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        centres, nearest = found
        new = points[jnp.argmax(nearest)]
        return centres.at[number].set(new), jnp.minimum(nearest, squared(new[None])[:, 0])

    centres = jnp.zeros((count, points.shape[1])).at[0].set(first)
    centres, _ = jax.lax.fori_loop(1, count, add, (centres, squared(first[None])[:, 0]))

    def move(_: Array, centres: Array) -> Array:
        member = jax.nn.one_hot(jnp.argmin(squared(centres), axis=1), count)
        number = member.sum(0)[:, None]
        sums = jnp.matmul(member.T, points, precision=jax.lax.Precision.HIGHEST)
        return jnp.where(number > 0, sums / jnp.maximum(number, 1), centres)

    return jnp.argmin(squared(jax.lax.fori_loop(0, iterations, move, centres)), axis=1)
