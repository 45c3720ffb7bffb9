"""Draws without replacement from a distribution over tokens, and what they are worth."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from adamae_jax.masking import base
from adamae_jax.models.transformer import ExampleKeys

# Where PyTorch's Categorical clamps probabilities: float32's epsilon from 0 and from 1.
PROBABILITY_FLOOR = float(jnp.finfo(jnp.float32).eps)
# Sums of a million such numbers are still finite in float32.
LARGEST_LOGIT = 1e30


def clamped_log_probs(probabilities: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """``log P`` with P clamped to [eps, 1 - eps]; no gradient where the clamp acts."""
    return jnp.log(jnp.clip(probabilities, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR))


def draw_in_order(
    keys: ExampleKeys, log_probs: Float[Array, "b n"], count: int
) -> Int[Array, "b v"]:
    """Draws ``count`` places of each row from ``Categorical(exp(log_probs))``, none twice.

    Gumbel noise is added to the log-probabilities and the largest ``count`` are taken, which has
    exactly the distribution of drawing one after the other without replacement.

    Returns:
      The places in the order of the draw.
    """
    noise = jax.vmap(lambda key: jax.random.gumbel(key, log_probs.shape[1:]))(keys)
    return base.largest_first(log_probs + noise, count)


def sample_without_replacement(
    keys: ExampleKeys, log_probs: Float[Array, "b n"], count: int
) -> Bool[Array, "b n"]:
    """Marks the places that `draw_in_order` draws."""
    return base.marks(draw_in_order(keys, log_probs, count), log_probs.shape[1])


def finite(logits: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Returns float32 logits cut to +-`LARGEST_LOGIT`; no gradient flows where they are cut.

    The difference of two infinities is not a number, nor is then the gradient of whatever is
    computed from it.
    """
    return jnp.clip(logits.astype(jnp.float32), -LARGEST_LOGIT, LARGEST_LOGIT)


def draw_log_prob(logits: Float[Array, "b n"], order: Int[Array, "b v"]) -> Float[Array, "b"]:
    """Log-probability of an ordered draw without replacement (Plackett and Luce).

    ``sum_t (z[o_t] - log sum_j exp(z[j]))``, where ``j`` runs over all tokens that are not yet
    drawn before draw ``t``. The sums are added up from the last draw to the first, in logs.

    Args:
      logits: of the distribution that each draw is from; any constant may be added to a row.
        Minus infinity is for tokens that cannot be drawn; a draw of one has a very low
        result, not an infinite one.
      order: the places drawn, the first one first; fewer than there are.
    """
    logits = finite(logits)
    drawn = jnp.take_along_axis(logits, order, axis=1)
    # A constant that all logits share would take away the digits in which they differ. The first
    # draws and what is left may lie far from the rest; the draw in the middle lies among it.
    centre = jax.lax.stop_gradient(drawn[:, order.shape[1] // 2, None])
    drawn, logits = drawn - centre, logits - centre
    left = jnp.where(base.marks(order, logits.shape[1]), -jnp.inf, logits)
    left = jax.nn.logsumexp(left, axis=1, keepdims=True)
    before = jax.lax.cumlogsumexp(jnp.concatenate([drawn, left], axis=1), axis=1, reverse=True)
    return (drawn - before[:, :-1]).sum(-1)


def entropy_share(logits: Float[Array, "b n"]) -> Float[Array, "b"]:
    """Entropy of ``softmax(logits)`` over that of the even distribution, ``log n``: 0 to 1."""
    log_probs = jax.nn.log_softmax(finite(logits), axis=-1)
    return -(jnp.exp(log_probs) * log_probs).sum(-1) / jnp.log(logits.shape[1])
