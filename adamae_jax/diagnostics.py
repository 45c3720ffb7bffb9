"""What masks look like: the sampler's distribution, and how often it picks what moves."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from adamae_jax.masking.base import MaskInputs, TokenMask, largest
from adamae_jax.masking.random import Strategy as RandomMasking
from adamae_jax.models.transformer import ExampleKeys
from adamae_jax.models.tubelets import ClipGeometry, Grid, pool_to_tokens
from adamae_jax.task import Batch, fold


def foreground_share(
    foreground: UInt8[Array, "b T h w"], geometry: ClipGeometry
) -> Float[Array, "b n"]:
    """Returns what share of each token is foreground, from 0 to 1."""
    return pool_to_tokens(foreground.astype(jnp.float32) / 255.0, geometry)


def foreground_tokens(
    foreground: UInt8[Array, "b T h w"], geometry: ClipGeometry
) -> Bool[Array, "b n"]:
    """Marks the tokens of which at least half is foreground."""
    return foreground_share(foreground, geometry) >= 0.5


def motion_tokens(video: UInt8[Array, "b T H W C"], geometry: ClipGeometry) -> Bool[Array, "b n"]:
    """Marks the quarter of the tokens with the largest change from frame to frame.

    Stands in for the foreground where a dataset has no masks; of images there is none.
    """
    if video.shape[1] == 1:  # images do not move
        return jnp.zeros((len(video), geometry.num_tokens), bool)
    frames = video.astype(jnp.float32)
    # The first frame has none before it: it takes its successor's change.
    frames = jnp.concatenate([frames[:, 1:2], frames], axis=1)
    change = jnp.abs(jnp.diff(frames, axis=1)).mean(-1)
    pooled = pool_to_tokens(change, geometry)
    return largest(pooled, max(1, geometry.num_tokens // 4))


def marked_tokens(batch: Batch, geometry: ClipGeometry) -> Bool[Array, "b n"]:
    """Marks the tokens that a good sampler is expected to prefer: foreground, else motion."""
    if "foreground" in batch:
        return foreground_tokens(batch["foreground"], geometry)
    return motion_tokens(batch["video"], geometry)


def visible_share(marked: Bool[Array, "b n"], mask: TokenMask) -> Float[Array, "b"]:
    """Returns the share of each example's visible tokens that is marked."""
    seen = jnp.take_along_axis(marked, mask.visible, axis=1).astype(jnp.float32)
    valid = jnp.ones_like(seen) if mask.visible_valid is None else mask.visible_valid
    return (seen * valid).sum(-1) / jnp.maximum(valid.sum(-1), 1)


def random_visible_share(
    marked: Bool[Array, "b n"], grid: Grid, mask_ratio: float, keys: ExampleKeys, draws: int
) -> Float[Array, "b"]:
    """Returns what `visible_share` would be under random masks, as the mean over some draws."""
    random = RandomMasking(mask_ratio)
    nothing = jnp.zeros((len(marked), 0, 0))  # random masks look at nothing
    inputs = MaskInputs(nothing[..., None, None], nothing, grid)

    def share(draw: Array) -> Float[Array, "b"]:
        return visible_share(marked, random({}, inputs, fold(keys, 1 + draw), False))

    return jax.lax.map(share, jnp.arange(draws)).mean(0)


def mask_figures(
    mask: TokenMask, batch: Batch, geometry: ClipGeometry
) -> dict[str, Float[Array, "b"]]:
    """Returns figures per example that say how its mask looks.

    Of the sampler's distribution, where there is one: its entropy in nats, largest probability and
    effective number of tokens. Of marked tokens, where something can be marked: their share among
    the visible tokens and among all.
    """
    figures: dict[str, Array] = {}
    if mask.log_probs is not None:
        probs = jnp.exp(mask.log_probs)
        figures["sampling_entropy"] = -(probs * mask.log_probs).sum(-1)
        figures["sampling_max_probability"] = probs.max(-1)
        figures["sampling_effective_size"] = 1.0 / jnp.square(probs).sum(-1)
    if "foreground" in batch or geometry.num_frames > 1:  # of images alone nothing is known
        marked = marked_tokens(batch, geometry)
        figures["foreground_visible"] = visible_share(marked, mask)
        figures["foreground"] = marked.astype(jnp.float32).mean(-1)
    return figures
