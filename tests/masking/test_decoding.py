"""A share of the masked tokens is decoded: which, how many, and whose reward it is."""

import dataclasses
import itertools
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from adamae_jax import experiment, masking, pretraining
from adamae_jax.config import masking_config
from adamae_jax.errors import UserError
from adamae_jax.masking import TokenMask, adaptive
from adamae_jax.masking.decoding import DECODE_ORDERS, Decoding
from adamae_jax.pretraining import Pretraining
from adamae_jax.task import fold
from tests import helpers
from tests.configs import tiny
from tests.masking.test_base import masks

GRID = (4, 4, 6)


def decoded(
    name: str, order: Any, ratio: float = 0.5, count: int = 8, **options: Any
) -> tuple[TokenMask, TokenMask]:
    """A strategy's mask before and after."""
    strategy = masking.create(name, 0.75, options)
    keys = helpers.example_keys(count)
    mask = masks(strategy, helpers.mask_inputs(count, GRID), keys)
    found = jax.jit(lambda mask: Decoding(ratio, order)(mask, fold(keys, 9), GRID))(mask)
    return mask, found


CASES = [
    (name, order)
    for name, order in itertools.product(("random", "tube", "frame", "adaptive"), DECODE_ORDERS)
    if order != "sampler" or name == "adaptive"
]


@pytest.mark.parametrize(("name", "order"), CASES)
def test_as_many_masked_tokens_of_every_clip_are_decoded(name: str, order: str) -> None:
    mask, found = decoded(name, order, 0.3)
    np.testing.assert_array_equal(found.visible, mask.visible)
    np.testing.assert_array_equal(found.masked, mask.masked)
    assert found.decode is not None and found.decode_weight is None
    assert found.decode.shape == (8, int(0.3 * 72))
    for chosen, masked in zip(np.asarray(found.decode), np.asarray(mask.masked), strict=True):
        assert (np.diff(chosen) > 0).all()
        assert np.isin(chosen, masked).all()
    assert len(np.unique(np.asarray(found.decode), axis=0)) == 8


def test_all_are_decoded_by_default() -> None:
    mask, _ = decoded("random", "random")
    assert Decoding()(mask, helpers.example_keys(8), GRID) is mask
    assert helpers.pretraining().decoding == Decoding(1.0, "random")


def test_which_are_decoded_depends_on_the_clips_own_key() -> None:
    strategy, keys = masking.create("random", 0.75, {}), helpers.example_keys(6)
    mask = masks(strategy, helpers.mask_inputs(6, GRID), keys)
    order = np.asarray([4, 2, 0, 5, 1, 3])
    for kind in ("random", "cells"):
        whole = Decoding(0.5, kind)(mask, keys, GRID)
        turned = Decoding(0.5, kind)(
            TokenMask(mask.visible[order], mask.masked[order]), keys[order], GRID
        )
        np.testing.assert_array_equal(turned.queries, whole.queries[order])


def test_running_cells_come_first_and_others_fill_up() -> None:
    """With V2's cells at 0.5, the places with turns 2 and 3 of VideoMAE V2's pattern."""
    mask, found = decoded("random", "cells", count=16)
    step, row, column = np.meshgrid(*map(np.arange, GRID), indexing="ij")
    place = (2 * (row % 2) + column % 2 + 1 + step).ravel()
    phases = set()
    for chosen, masked in zip(np.asarray(found.queries), np.asarray(mask.masked), strict=True):
        left = np.setdiff1d(masked, chosen)
        turns = enumerate((place + phase) % 4 for phase in range(4))
        fits = {phase for phase, turn in turns if turn[chosen].min() >= turn[left].max()}
        assert fits
        phases |= fits
    assert phases == {0, 1, 2, 3}


def test_v2s_own_tokens_keep_their_weights() -> None:
    mask, found = decoded("dual", "random")
    assert mask.decode is not None and mask.decode_weight is not None
    assert found.decode is not None and found.decode_weight is not None
    assert found.decode.shape == (8, 24)
    for row in range(8):
        tokens, weights = mask.decode[row].tolist(), mask.decode_weight[row].tolist()
        own = dict(zip(tokens, weights, strict=True))
        assert found.decode_weight[row].tolist() == [own[i] for i in found.decode[row].tolist()]


def test_random_tokens_are_any_tokens() -> None:
    """All pairs of four masked tokens are as likely."""
    count = 12_000
    mask = TokenMask(jnp.zeros((count, 1), int), jnp.tile(jnp.arange(1, 5), (count, 1)))
    found = Decoding(0.5)(mask, helpers.example_keys(count), (1, 1, 5)).queries
    pairs = Counter(map(tuple, np.asarray(found).tolist()))
    assert len(pairs) == 6
    assert scipy.stats.chisquare(list(pairs.values())).pvalue > 1e-3


def test_the_sampler_draws_among_the_masked_tokens_without_replacement() -> None:
    """Ordered pairs of three masked tokens, by hand; the visible token takes no part."""
    count, probs = 12_000, np.asarray([0.4, 0.3, 0.2, 0.1])
    mask = TokenMask(
        jnp.zeros((count, 1), int),
        jnp.tile(jnp.arange(1, 4), (count, 1)),
        log_probs=jnp.tile(jnp.log(jnp.asarray(probs)), (count, 1)),
    )
    found = Decoding(0.7, "sampler")(mask, helpers.example_keys(count), (1, 1, 4)).queries
    pairs = Counter(map(tuple, np.asarray(found).tolist()))
    own = dict(enumerate(probs[1:] / probs[1:].sum(), start=1))
    expected = {
        (i, j): own[i] * own[j] / (1 - own[i]) + own[j] * own[i] / (1 - own[j])
        for i, j in itertools.combinations(own, 2)
    }
    found_counts = [pairs[pair] for pair in expected]
    assert scipy.stats.chisquare(found_counts, [count * p for p in expected.values()]).pvalue > 1e-3


@pytest.mark.parametrize("order", DECODE_ORDERS)
def test_the_reward_is_of_decoded_tokens_alone(order: Any) -> None:
    """The gradient to the sampler's logits: ``-(r_j [j decoded] - P_j sum(r)) / K``, by hand."""
    strategy = adaptive.Strategy(mask_ratio=0.75, dropout=0.0)
    tiny_model = dataclasses.replace(
        helpers.autoencoder(), geometry=dataclasses.replace(helpers.GEOMETRY, image_size=(8, 16))
    )
    task = Pretraining(tiny_model, strategy, pretraining.Objective(), decoding=Decoding(0.4, order))
    variables = helpers.variables(task)
    video = jnp.asarray(helpers.clips(3, geometry=tiny_model.geometry))
    keys = helpers.example_keys(3)
    params = variables["params"]
    pixels = pretraining.normalize_pixels(video, task.objective)
    inputs = task.mask_inputs(params["autoencoder"], pixels)[0]

    def loss(own: Any) -> tuple[jax.Array, Any]:
        outcome = task.forward({"params": {**params, "masking": own}}, video, keys, True)
        return outcome.terms["loss_sampling"].sum(), outcome

    grads, outcome = jax.jit(jax.grad(loss, has_aux=True))(params["masking"])
    assert outcome.mask.queries.shape == (3, int(24 * 0.4))  # of 32 tokens 24 are masked
    logits, back = jax.vjp(
        lambda own: strategy.logits({"params": own}, inputs, None), params["masking"]
    )
    probs = np.asarray(jax.nn.softmax(logits))
    by_hand = np.zeros_like(probs)
    for row in range(3):
        chosen = np.asarray(outcome.mask.queries[row])
        reward = np.asarray(outcome.token_error[row])
        by_hand[row] = probs[row] * reward.sum() / len(chosen)
        by_hand[row, chosen] -= reward / len(chosen)
        expected = -(np.log(probs[row, chosen]) * reward).sum() / len(chosen)
        assert outcome.terms["loss_sampling"][row] == pytest.approx(expected, rel=1e-4)
        mean = float(outcome.terms["loss_reconstruction"][row])
        assert mean == pytest.approx(reward.sum() / len(chosen), rel=1e-5)
    expected_grads = helpers.named(back(jnp.asarray(by_hand))[0])
    for name, found in helpers.named(grads).items():
        wanted = np.asarray(expected_grads[name])
        assert np.linalg.norm(found - wanted) <= 1e-4 * np.linalg.norm(wanted) + 2e-6, name


def test_the_config_says_how_much_is_decoded() -> None:
    config = tiny.get_config()
    config.masking = masking_config("adaptive", 0.75)
    config.masking.update({"decode_ratio": 0.25, "decode_order": "sampler"})
    task = experiment.pretraining(config)
    assert task.decoding == Decoding(0.25, "sampler")
    assert experiment.pretraining(tiny.get_config()).decoding == Decoding()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decode_ratio": 0.0}, "masking.decode_ratio is 0.0: .* above 0 and at most 1"),
        ({"decode_ratio": 1.5}, "masking.decode_ratio is 1.5: .* above 0 and at most 1"),
        ({"decode_ratio": 0.01}, "decode_ratio 0.01 leaves none of 36 masked tokens to decode"),
        ({"decode_order": "best"}, "masking.decode_order is 'best': it must be one of 'random'"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    config = tiny.get_config()
    config.masking = masking_config("random", 0.75)
    config.masking.update(changes)
    with pytest.raises(UserError, match=message):
        experiment.pretraining(config)


def test_orders_need_cells_and_a_distribution() -> None:
    strategy = masking.create("random", 0.75, {})
    with pytest.raises(UserError, match="do not fill a grid of 3 x 4 patches"):
        Decoding(0.5, "cells").check(strategy, (2, 3, 4))
    Decoding(1.0, "cells").check(strategy, (2, 3, 4))
    with pytest.raises(UserError, match="decode_order 'sampler' draws .* this strategy has none"):
        decoded("random", "sampler")
