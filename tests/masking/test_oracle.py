"""Oracle masks: the odds of the foreground by hand, and how it reaches the strategy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from adamae_jax import masking
from adamae_jax.errors import UserError
from adamae_jax.masking.oracle import Strategy
from tests import helpers
from tests.masking.test_base import assert_partition, masks
from tests.masking.test_sampling import chi_square, subset_probabilities

SHARES = [1.0, 0.0, 0.5, 0.0, 0.25]
GRID = (1, 1, len(SHARES))


def drawn(weight: float, visible: int, count: int = 20_000, shares: Any = SHARES) -> np.ndarray:
    """Marks of the visible tokens of many clips with the same foreground."""
    size = len(shares)
    strategy = Strategy(mask_ratio=1 - (visible + 0.5) / size, foreground_weight=weight)
    inputs = helpers.mask_inputs(count, (1, 1, size), width=1)
    inputs = inputs.replace(foreground=jnp.tile(jnp.asarray(shares), (count, 1)))
    mask = masks(strategy, inputs, helpers.example_keys(count))
    marks = np.zeros((count, size), int)
    np.put_along_axis(marks, np.asarray(mask.visible), 1, axis=1)
    assert (marks.sum(1) == visible).all() and mask.log_probs is None
    return marks


@pytest.mark.parametrize(
    ("weight", "weights"),
    [(4.0, [4, 1, 2.5, 1, 1.75]), (0.25, [0.25, 1, 0.625, 1, 0.8125]), (1.0, [1, 1, 1, 1, 1])],
)
@pytest.mark.parametrize("visible", [1, 2])
def test_each_draw_has_the_odds_of_the_foreground(
    weight: float, weights: list[float], visible: int
) -> None:
    exact = subset_probabilities([one / sum(weights) for one in weights], visible)
    assert chi_square(drawn(weight, visible), exact) > 1e-3


def test_a_weight_of_0_hides_the_foreground_where_it_can() -> None:
    shares = [1.0, 0.0, 1.0, 0.0, 1.0]
    assert drawn(0.0, 2, 50, shares).sum(0).tolist() == [0, 50, 0, 50, 0]
    seen = drawn(0.0, 3, 3000, shares).sum(0)  # one too many: any of the foreground
    assert seen[1] == seen[3] == 3000
    assert scipy.stats.chisquare(seen[::2]).pvalue > 1e-3


def test_masks_depend_on_the_examples_own_key_and_foreground() -> None:
    grid = (4, 3, 5)
    foreground = jnp.asarray(np.random.default_rng(0).uniform(size=(6, 60)))
    inputs, keys = helpers.mask_inputs(6, grid), helpers.example_keys(6)
    strategy = masking.create("oracle", 0.8, {"foreground_weight": 10.0})
    whole = masks(strategy, inputs.replace(foreground=foreground), keys)
    assert_partition(whole, grid, strategy.num_visible(grid))
    order = np.asarray([4, 2, 0, 5, 1, 3])
    turned = masks(strategy, inputs.replace(foreground=foreground[order]), keys[order])
    np.testing.assert_array_equal(turned.visible, whole.visible[order])
    others = masks(strategy, inputs.replace(foreground=foreground[order]), keys)
    assert (np.asarray(others.visible) != np.asarray(whole.visible)).any()


def test_clips_without_foreground_are_refused() -> None:
    with pytest.raises(UserError, match="masking 'oracle' was given clips without foreground"):
        masks(Strategy(mask_ratio=0.5), helpers.mask_inputs(2, GRID), helpers.example_keys(2))


@pytest.mark.parametrize("weight", [-0.5, float("inf"), float("nan")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(UserError, match="options.foreground_weight is .* must be at least 0"):
        Strategy(mask_ratio=0.5, foreground_weight=weight)


def test_only_a_strategy_that_wants_it_is_given_the_foreground() -> None:
    """Two rows of three tokens in four time steps, each of 2 frames of 1 x 2 cells."""
    cells = np.zeros((2, 8, 2, 6), np.uint8)
    cells[1, 2, 1, 4] = 255  # a quarter of one token
    cells[1, 4:6, 0, 0:2] = 102  # two fifths of one, all over
    batch = {**helpers.batch(2), "foreground": cells}
    assert "foreground" not in helpers.pretraining().known(batch)
    task = helpers.pretraining(Strategy(mask_ratio=0.75))
    assert task.known(helpers.batch(2)) == {}
    expected = np.zeros((2, 4, 2, 3))
    expected[1, 1, 1, 2], expected[1, 2, 0, 0] = 0.25, 0.4
    found = np.asarray(task.known(batch)["foreground"]).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_it_trains_and_evaluates_with_the_batchs_foreground() -> None:
    """Weights that leave no choice: six tokens of 24 are foreground, and six are seen."""
    cells = np.zeros((4, 8, 2, 3), np.uint8)
    cells[:, :, 1, 0] = 255  # a place in all four time steps
    cells[:, [0, 1, 4, 5], 1, 2] = 255  # another in two of them
    arrays = {**helpers.batch(4), "foreground": cells}
    batch = {name: jnp.asarray(array) for name, array in arrays.items()}
    keys = helpers.example_keys(4)
    for weight, share in ((1e12, 1.0), (0.0, 0.0)):
        task = helpers.pretraining(Strategy(mask_ratio=0.75, foreground_weight=weight))
        variables = helpers.variables(task)
        loss = functools.partial(task.loss, "model", train=True)
        trained = jax.jit(loss)(variables, batch, keys)
        evaluated = jax.jit(task.evaluate)(variables, batch, keys)
        for figures in (trained.figures, evaluated):
            assert figures["foreground"].tolist() == [0.25] * 4
            assert figures["foreground_visible"].tolist() == [share] * 4
