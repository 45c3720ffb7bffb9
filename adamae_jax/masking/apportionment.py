"""Whole numbers from shares: as many tokens as there are, each share rounded up or down."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Of an interval that holds the level: more than a float32 has digits for.
HALVINGS = 64


def largest_remainder(
    shares: Float[Array, "b k"], total: Int[Array, "b"], precedence: Float[Array, "b k"]
) -> Int[Array, "b k"]:
    """Rounds the shares of each row so that they add up to its total.

    All are rounded down, and what is then missing goes, one each, to those that lost most. Of
    equal losses the one with the larger precedence comes first, then the one that stands first.
    A share that is a whole number stays as it is.

    Args:
      shares: at least 0; each row adds up to its total, but for the rounding of float32.
      total: of each row.
      precedence: who comes first among equals.
    """
    # Computed twice, in two fused loops, a share could be rounded otherwise in each.
    shares = jax.lax.optimization_barrier(shares)
    whole = jnp.floor(shares)
    lost = shares - whole
    counts = whole.astype(jnp.int32)
    order = jnp.lexsort((-precedence, -lost), axis=-1)
    place = jnp.argsort(order, axis=-1)
    missing = total - counts.sum(-1)
    return counts + (place < missing[:, None])


def water_level(
    weights: Float[Array, "k"],
    least: Float[Array, "k"],
    most: Float[Array, "k"],
    total: Int[Array, ""],
) -> Float[Array, "k"]:
    """Shares in proportion to weights, but within bounds: ``clip(level * weight, least, most)``.

    Args:
      weights: above 0.
      least: the smallest share of each; a whole number.
      most: its largest share; a whole number.
      total: what the shares add up to, at least the sum of ``least`` and at most that of ``most``.

    Returns:
      The shares under the largest level with which they add up to no more than the total.
    """

    def shares(level: Array) -> Float[Array, "k"]:
        return jnp.clip(level * weights, least, most)

    def fits(found: Float[Array, "k"]) -> Array:
        whole = jnp.floor(found)
        # Whole tokens are counted exactly: a float32 sum of a large batch's would be off by some.
        missing = total - whole.astype(jnp.int32).sum()
        return (found - whole).sum() <= missing.astype(jnp.float32)

    def halve(_: Array, search: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, best = search
        middle = low + (high - low) / 2
        found = shares(middle)
        fit = fits(found)
        return (
            jnp.where(fit, middle, low),
            jnp.where(fit, high, middle),
            jnp.where(fit, found, best),
        )

    highest = 2.0 * most.max() / weights.min()  # all have their most
    start = jnp.zeros_like(highest), highest, shares(jnp.zeros_like(highest))
    return jax.lax.fori_loop(0, HALVINGS, halve, start)[2]
