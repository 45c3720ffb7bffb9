"""What the adaptive strategy has beyond the released code, against gradients worked out by hand.

All in NumPy's float64, for a sampling network whose logits are the first column of its positions.
"""

import dataclasses
import itertools
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jaxtyping import Array, Float

from adamae_jax.errors import UserError
from adamae_jax.masking import MaskInputs, TokenMask
from adamae_jax.masking.adaptive import Strategy
from adamae_jax.masking.base import Variables
from adamae_jax.masking.decoding import Decoding
from adamae_jax.masking.distribution import draw_in_order, draw_log_prob, entropy_share
from adamae_jax.pretraining import ForwardOutput
from adamae_jax.task import fold
from tests import helpers

CLIPS, TOKENS, VISIBLE, WIDTH = 3, 5, 2, 8
LOGITS = np.asarray([0.3, -0.6, 1.1, 0.0, -0.2])
# Of every clip's tokens, were they decoded.
ERRORS = np.random.default_rng(0).uniform(0.2, 2.0, (CLIPS, TOKENS))
KEYS = helpers.example_keys(CLIPS)
RELEASED = Strategy(mask_ratio=0.6)
NOTHING = jnp.zeros((), jnp.float32)
AT_FIRST = {"reward_mean": NOTHING, "reward_weight": NOTHING}

Numbers = Float[np.ndarray, "..."]


def softmax(logits: Numbers) -> Numbers:
    """By hand."""
    return np.exp(logits) / np.exp(logits).sum()


def variables(logits: Any, state: Any) -> Variables:
    """Of a sampling network that answers with the same logits for every clip."""
    inputs = MaskInputs(*no_tokens(1), grid=(1, 1, TOKENS))
    shapes = jax.eval_shape(RELEASED.init, jax.random.key(0), inputs)["params"]
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    params["position_table"] = params["position_table"].at[:, 0].set(logits)
    params["head"]["kernel"] = params["head"]["kernel"].at[0].set(1.0)
    return {"params": params, "state": state}


def no_tokens(clips: int) -> tuple[Array, Array]:
    """Pixels that are not looked at, and tokens that say nothing."""
    return jnp.zeros((clips, 1, 1, 1, 1)), jnp.zeros((clips, TOKENS, WIDTH))


def judged(
    strategy: Strategy, logits: Any, state: Any = None, errors: Any = ERRORS, keys: Any = KEYS
) -> ForwardOutput:
    """Draws from the logits, and judges predictions that are as wrong as ``errors`` says."""
    inputs = MaskInputs(*no_tokens(len(keys)), grid=(1, 1, TOKENS))
    mask = strategy(variables(logits, state), inputs, keys, False)
    error = jnp.take_along_axis(jnp.asarray(errors, jnp.float32), mask.queries, axis=1)
    predictions = jnp.broadcast_to(jnp.sqrt(error)[..., None], (*error.shape, 4))
    return helpers.pretraining(strategy).judge(predictions, jnp.zeros_like(predictions), mask)


def gradient(
    strategy: Strategy, term: str, state: Any = None, errors: Any = ERRORS, keys: Any = KEYS
) -> tuple[Numbers, ForwardOutput]:
    """The gradient of a loss, summed over the clips, with respect to the logits."""

    def loss(logits: Any, errors: Any, keys: Any) -> tuple[Array, ForwardOutput]:
        outcome = judged(strategy, logits, state, errors, keys)
        return outcome.terms[term].sum(), outcome

    given = (jnp.asarray(LOGITS, jnp.float32), jnp.asarray(errors, jnp.float32), keys)
    found, outcome = jax.jit(jax.grad(loss, has_aux=True))(*given)
    return np.asarray(found, np.float64), outcome


def by_hand(tokens: Any, rewards: Numbers) -> Numbers:
    """The gradient of minus the mean of ``log P_i * reward_i``, summed over clips.

    ``d log P_i / d z_j`` is ``[i = j] - P_j``.
    """
    found = np.zeros(TOKENS)
    for row, own in zip(np.asarray(tokens), rewards, strict=True):
        for token, reward in zip(row, own, strict=True):
            found -= reward * (np.eye(TOKENS)[token] - softmax(LOGITS)) / len(row)
    return found


def errors_at(tokens: Any) -> Numbers:
    """The errors of some tokens of each clip."""
    return np.take_along_axis(ERRORS, np.asarray(tokens), axis=1)


def close(found: Any, expected: Any) -> None:
    """Equal to the rounding of float32."""
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_defaults_add_nothing() -> None:
    found, outcome = gradient(RELEASED, "loss_sampling")
    close(found, by_hand(outcome.mask.masked, errors_at(outcome.mask.masked)))
    assert set(outcome.terms) == {"loss_reconstruction", "loss_sampling"}
    left = (outcome.mask.credit, outcome.mask.decode, outcome.mask.decode_weight)
    assert left == (None, None, None) and "state" not in RELEASED.init(
        jax.random.key(0), MaskInputs(*no_tokens(1), grid=(1, 1, TOKENS))
    )


def test_temperature_sharpens_the_draw_and_not_what_is_learned() -> None:
    sharp = dataclasses.replace(RELEASED, temperature=0.5)
    found, outcome = gradient(sharp, "loss_sampling")
    close(found, by_hand(outcome.mask.masked, errors_at(outcome.mask.masked)))
    close(np.exp(np.asarray(outcome.mask.log_probs)), np.tile(softmax(LOGITS / 0.5), (CLIPS, 1)))
    many = helpers.example_keys(400)
    errors = np.ones((400, TOKENS))
    drawn = judged(sharp, LOGITS, errors=errors, keys=many).mask.visible
    twice = judged(RELEASED, 2 * LOGITS, errors=errors, keys=many).mask.visible
    np.testing.assert_array_equal(drawn, twice)
    assert (drawn != judged(RELEASED, LOGITS, errors=errors, keys=many).mask.visible).any()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_entropy_is_pulled_to_a_share_of_log_n(temperature: float) -> None:
    strategy = dataclasses.replace(
        RELEASED, entropy_weight=0.3, entropy_target=0.3, temperature=temperature
    )
    found, outcome = gradient(strategy, "loss_entropy")
    p = softmax(LOGITS / temperature)
    entropy = -(p * np.log(p)).sum()
    distance = entropy / np.log(TOKENS) - 0.3
    close(outcome.terms["loss_entropy"], np.full(CLIPS, 0.3 * distance**2))
    # dH/dz_j = -P_j (log P_j + H) / temperature
    slope = -p * (np.log(p) + entropy) / temperature / np.log(TOKENS)
    close(found, CLIPS * 2 * 0.3 * distance * slope)
    assert np.abs(found).max() > 0.01
    parts = outcome.terms["loss_reconstruction"] + 1e-4 * outcome.terms["loss_sampling"]
    close(outcome.loss, parts + outcome.terms["loss_entropy"])


def test_a_clips_mean_is_subtracted() -> None:
    found, outcome = gradient(dataclasses.replace(RELEASED, baseline="clip"), "loss_sampling")
    errors = errors_at(outcome.mask.masked)
    close(found, by_hand(outcome.mask.masked, errors - errors.mean(1, keepdims=True)))


def test_a_running_mean_is_subtracted_and_kept() -> None:
    strategy = dataclasses.replace(RELEASED, baseline="running", baseline_decay=0.8)
    found, outcome = gradient(strategy, "loss_sampling", AT_FIRST)
    errors = errors_at(outcome.mask.masked)
    # No past as yet: the batch's own mean.
    close(found, by_hand(outcome.mask.masked, errors - errors.mean()))
    close(outcome.mask.state["reward_mean"], 0.2 * errors.mean())
    close(outcome.mask.state["reward_weight"], 0.2)
    past = {"reward_mean": jnp.float32(0.27), "reward_weight": jnp.float32(0.36)}
    found, outcome = gradient(strategy, "loss_sampling", past)
    close(found, by_hand(outcome.mask.masked, errors - 0.75))
    close(outcome.mask.state["reward_mean"], 0.8 * 0.27 + 0.2 * errors.mean())
    close(outcome.mask.state["reward_weight"], 0.8 * 0.36 + 0.2)


def draws(count: int) -> list[tuple[int, ...]]:
    """All ordered draws of some tokens."""
    return list(itertools.permutations(range(TOKENS), count))


def chance(order: tuple[int, ...], logits: Numbers) -> float:
    """The probability of an ordered draw, one after the other without replacement."""
    left, found = np.exp(logits), 1.0
    for token in order:
        found *= left[token] / left.sum()
        left[token] = 0.0
    return found


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_log_probability_of_an_ordered_draw(count: int) -> None:
    orders = draws(count)
    rows = jnp.broadcast_to(jnp.asarray(LOGITS, jnp.float32), (len(orders), TOKENS))
    found, slopes = jax.vmap(
        jax.value_and_grad(lambda z, order: draw_log_prob(z[None], order[None])[0])
    )(rows, jnp.asarray(orders))
    chances = np.asarray([chance(order, LOGITS) for order in orders])
    assert chances.sum() == pytest.approx(1.0)
    close(found, np.log(chances))
    for order, slope in zip(orders, slopes, strict=True):
        step = 1e-5 * np.eye(TOKENS)
        ahead = [np.log(chance(order, LOGITS + s) / chance(order, LOGITS - s)) for s in step]
        np.testing.assert_allclose(slope, np.asarray(ahead) / 2e-5, atol=1e-5)


def test_the_log_probability_of_a_draw_of_unlikely_tokens_is_finite() -> None:
    logits, order = jnp.asarray([[200.0, 0.0, -200.0]]), jnp.asarray([[2, 1]])
    found, slope = jax.value_and_grad(lambda z: draw_log_prob(z, order)[0])(logits)
    assert found == pytest.approx(-600.0)
    close(slope, [[-2.0, 1.0, 1.0]])


def by_draws(order: Any, logits: Numbers) -> tuple[float, Numbers]:
    """The log-probability of an ordered draw and its slope, in float64, one draw after another.

    ``d log P / d z_j`` is, summed over the draws, ``[j is drawn] - P_j`` among what is left.
    """
    left, value, slope = logits.astype(np.float64), 0.0, np.zeros(len(logits))
    for token in order:
        shares = np.exp(left - left.max())
        value += left[token] - left.max() - np.log(shares.sum())
        slope -= shares / shares.sum()
        slope[token] += 1.0
        left[token] = -np.inf
    return value, slope


valued = jax.jit(jax.value_and_grad(lambda z, order: draw_log_prob(z[None], order[None])[0]))
EXTREMES = {
    "a constant in common": [1e6 + 1, 1e6 + 2, 1e6, 1e6 - 1, 1e6 + 3],
    "ties, far from 0": [-1e9] * 5,
    "one peak": [0.5, 0.0, 1e6, -1.0, 0.25],
    "most cannot be drawn": [0.5, -np.inf, -np.inf, 0.25, -1.0],
    "only the drawn ones can be": [-np.inf, -0.5, -np.inf, 1.0, -np.inf],
    "one alone can be": [-np.inf, -np.inf, -np.inf, 1.0, -np.inf],
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("logits", EXTREMES.values(), ids=EXTREMES)
def test_extreme_logits_have_their_log_probability_and_slope(logits: Any, dtype: Any) -> None:
    given = jnp.asarray(logits, dtype)
    order = np.argsort(-np.asarray(given, np.float32), kind="stable")
    order = order[: max(1, min(3, int(np.isfinite(logits).sum())))]
    value, slope = valued(given, jnp.asarray(order))
    expected = by_draws(order, np.asarray(given.astype(jnp.float32)))
    np.testing.assert_allclose(value, expected[0], rtol=1e-5, atol=1e-5)
    rounded = 2.0**-8 if dtype == jnp.bfloat16 else 1e-6  # a slope has the logits' type
    np.testing.assert_allclose(np.asarray(slope, np.float64), expected[1], atol=3 * rounded)


@hypothesis.given(data=st.data())
def test_no_logits_make_a_draw_that_is_not_finite(data: st.DataObject) -> None:
    number = st.floats(width=32, allow_nan=False)
    near = st.floats(-30, 30, width=32)
    logits = np.asarray(
        data.draw(st.lists(st.one_of(near, number), min_size=TOKENS, max_size=TOKENS)), np.float32
    )
    order = data.draw(st.permutations(range(TOKENS)))[:VISIBLE]
    value, slope = valued(jnp.asarray(logits), jnp.asarray(order))
    assert np.isfinite(value) and np.isfinite(slope).all()
    if np.abs(logits).max() <= 30:
        expected = by_draws(order, logits)
        np.testing.assert_allclose(value, expected[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(slope, expected[1], atol=1e-5)


def test_the_entropy_of_a_distribution_with_tokens_that_cannot_be_drawn() -> None:
    logits = jnp.asarray([[0.0, -jnp.inf, np.log(3.0), -jnp.inf]])
    found, slope = jax.value_and_grad(lambda z: entropy_share(z)[0])(logits)
    p = np.asarray([0.25, 0.75])
    entropy = -(p * np.log(p)).sum()
    assert found == pytest.approx(entropy / np.log(4))
    close(slope[0, ::2], -p * (np.log(p) + entropy) / np.log(4))
    close(slope[0, 1::2], np.zeros(2))


@pytest.mark.parametrize("reward", ["masked", "visible"])
def test_the_credit_of_a_draw_is_a_policy_gradient(reward: Any) -> None:
    """Minus the mean reward times the slope of the draw's log-probability, over its length."""
    temperature, keys = 0.5, helpers.example_keys(CLIPS, seed=2)
    strategy = dataclasses.replace(RELEASED, credit="draw", reward=reward, temperature=temperature)
    found, outcome = gradient(strategy, "loss_sampling", keys=keys)
    log_probs = jnp.log(jnp.tile(jnp.asarray(softmax(LOGITS / temperature)), (CLIPS, 1)))
    orders = np.asarray(draw_in_order(fold(keys, 0), log_probs, VISIBLE))
    np.testing.assert_array_equal(np.sort(orders), outcome.mask.visible)
    assert (orders != np.sort(orders)).any()
    rewards = errors_at(getattr(outcome.mask, reward)).mean(1)

    def loss(logits: Numbers) -> float:
        chances = [chance(tuple(order), logits / temperature) for order in orders]
        return float(-(rewards * np.log(chances)).sum() / VISIBLE)

    steps = 1e-5 * np.eye(TOKENS)
    close(found, [(loss(LOGITS + step) - loss(LOGITS - step)) / 2e-5 for step in steps])


@pytest.mark.parametrize("baseline", ["none", "clip", "running"])
def test_visible_tokens_are_decoded_and_earn_their_own_errors(baseline: Any) -> None:
    strategy = dataclasses.replace(RELEASED, reward="visible", baseline=baseline)
    found, outcome = gradient(strategy, "loss_sampling", AT_FIRST)
    mask: TokenMask = outcome.mask
    np.testing.assert_array_equal(mask.queries, np.tile(np.arange(TOKENS), (CLIPS, 1)))
    close(outcome.terms["loss_reconstruction"], errors_at(mask.masked).mean(1))
    errors = errors_at(mask.visible)
    means = {"none": 0.0, "clip": errors.mean(1, keepdims=True), "running": errors.mean()}
    close(found, by_hand(mask.visible, errors - means[baseline]))


def test_visible_tokens_that_are_not_decoded_earn_nothing() -> None:
    strategy = dataclasses.replace(RELEASED, reward="visible")
    mask = Decoding(ratio=0.6)(judged(strategy, LOGITS).mask, KEYS, (1, 1, TOKENS))
    _, weight, _ = strategy.rewards(mask, jnp.zeros(mask.queries.shape))
    assert weight is not None and weight.shape == (CLIPS, 3)
    seen = [np.isin(*pair) for pair in zip(mask.queries, mask.visible, strict=True)]
    np.testing.assert_array_equal(weight, np.asarray(seen))
    assert np.asarray(seen).any() and not np.asarray(seen).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"credit": "order"}, "options.credit 'order' is unknown: use 'tokens' or 'draw'"),
        ({"reward": "all"}, "options.reward 'all' is unknown: use 'masked' or 'visible'"),
        ({"baseline": "mean"}, "options.baseline 'mean' is unknown: use 'none' or 'clip' or 'run"),
        ({"temperature": 0.0}, "options.temperature is 0.0: it must be above 0"),
        ({"temperature": float("nan")}, "options.temperature is nan"),
        ({"entropy_weight": -1.0}, "options.entropy_weight is -1.0: it must be at least 0"),
        ({"entropy_target": 1.5}, r"options.entropy_target 1.5 is outside \[0, 1\]"),
        ({"baseline_decay": 1.0}, r"options.baseline_decay 1.0 is outside \[0, 1\)"),
        ({"credit": "draw", "baseline": "clip"}, "baseline 'clip' leaves nothing .* 'running'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Strategy(mask_ratio=0.6, **options)
