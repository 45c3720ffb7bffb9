"""Motion-selected tokens: importance by hand, and which tokens are seen, decoded and left out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax import masking
from adamae_jax.errors import UserError
from adamae_jax.masking.motion import Strategy, importance
from tests import helpers
from tests.masking.test_base import assert_partition, masks

GRID = (4, 3, 5)


def test_importance_is_the_distance_to_the_step_before() -> None:
    # Two places over three steps, two values each.
    tokens = [[[0, 0], [1, 1]], [[3, 4], [1, 1]], [[3, 4], [7, 9]]]
    found = importance(jnp.asarray(tokens, jnp.float32).reshape(1, 6, 2), (3, 1, 2))
    assert found.tolist() == [[5, 0, 5, 0, 0, 10]]  # the first step has the second's


def test_distances_are_taken_in_float32() -> None:
    tokens = jnp.asarray([256.0, 255.0, 257.0, 255.0], jnp.bfloat16).reshape(1, 4, 1)
    assert importance(tokens, (4, 1, 1)).dtype == jnp.float32


def test_nothing_flows_back_into_the_tokens() -> None:
    tokens = jax.random.normal(jax.random.key(0), (2, 60, 4))
    assert not jax.grad(lambda tokens: importance(tokens, GRID).sum())(tokens).any()


def drawn(count: int = 6, seed: int = 0) -> tuple[Any, masking.TokenMask]:
    strategy = masking.create("motion", 0.9, {})
    inputs = helpers.mask_inputs(count, GRID)
    return inputs, masks(strategy, inputs, helpers.example_keys(count, seed))


def test_the_most_important_tokens_are_seen_or_decoded() -> None:
    inputs, mask = drawn()
    assert_partition(mask, GRID, 5)  # int(60 * (1 - 0.9)), a little less than 6
    assert mask.decode is not None and mask.decode.shape == (6, 18 - 5)
    scores = np.asarray(importance(inputs.tokens, GRID))
    for row in range(6):
        kept = sorted([*np.asarray(mask.visible[row]), *np.asarray(mask.decode[row])])
        best = np.sort(np.argsort(-scores[row], kind="stable")[:18])
        np.testing.assert_array_equal(kept, best)
        assert (np.diff(mask.decode[row]) > 0).all()


def test_which_of_them_are_seen_is_drawn() -> None:
    """Every kept token is seen as often, whatever its importance."""
    count = 3000
    inputs, keys = helpers.mask_inputs(1, GRID), helpers.example_keys(count)
    inputs = inputs.replace(tokens=jnp.tile(inputs.tokens, (count, 1, 1)))
    mask = masks(Strategy(mask_ratio=0.9), inputs, keys)
    seen = np.bincount(np.asarray(mask.visible).ravel(), minlength=60)
    assert (seen > 0).sum() == 18
    expected = count * 5 / 18
    assert np.abs(seen[seen > 0] - expected).max() < 5 * np.sqrt(expected)


def test_masks_depend_on_the_examples_own_key() -> None:
    inputs, mask = drawn()
    order = np.asarray([4, 2, 0, 5, 1, 3])
    turned = masks(
        Strategy(mask_ratio=0.9),
        inputs.replace(tokens=inputs.tokens[order]),
        helpers.example_keys(6)[order],
    )
    np.testing.assert_array_equal(turned.visible, mask.visible[order])
    np.testing.assert_array_equal(turned.queries, mask.queries[order])


def test_counts_are_the_papers() -> None:
    """Of 1,568 tokens 470 are kept: 156 are seen, 314 decoded."""
    strategy, grid = Strategy(mask_ratio=0.9), (8, 14, 14)
    strategy.check(grid, 768)
    assert (strategy.num_visible(grid), strategy.num_kept(grid)) == (156, 470)


@pytest.mark.parametrize("ratio", [0.0, 1.1, float("nan")])
def test_a_ratio_that_keeps_no_tokens_or_too_many_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match=r"masking.options.keep_ratio .* is outside \(0, 1\]"):
        Strategy(mask_ratio=0.9, keep_ratio=ratio)


def test_what_does_not_fit_the_grid_is_refused() -> None:
    with pytest.raises(UserError, match="the grid has one only: choose a larger data.num_frames"):
        Strategy(mask_ratio=0.75).check((1, 8, 8), 8)
    with pytest.raises(UserError, match="keeps 18 tokens, and masking.mask_ratio 0.7 shows 18"):
        Strategy(mask_ratio=0.7).check(GRID, 8)
