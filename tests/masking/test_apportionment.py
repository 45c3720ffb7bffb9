"""Whole numbers from shares, by hand and for any weights."""

from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from adamae_jax.masking.apportionment import largest_remainder, water_level


def rounded(shares: Any, total: int, precedence: Any = None) -> list[int]:
    row = jnp.asarray([shares], jnp.float32)
    first = jnp.zeros_like(row) if precedence is None else jnp.asarray([precedence], jnp.float32)
    found: list[int] = largest_remainder(row, jnp.asarray([total]), first)[0].tolist()
    return found


def test_what_is_missing_goes_to_those_that_lost_most() -> None:
    assert rounded([2.25, 1.5, 1.75, 0.5], 6) == [2, 2, 2, 0]  # of two equals the first
    assert rounded([2.25, 1.5, 1.75, 0.5], 6, [0, 1, 0, 2]) == [2, 1, 2, 1]
    assert rounded([3.0, 0.5, 0.5], 4, [9, 0, 1]) == [3, 0, 1]  # whole numbers stay
    assert rounded([3.0, 0.0, 2.0], 5) == [3, 0, 2]


def test_rows_are_rounded_apart() -> None:
    shares = jnp.asarray([[0.5, 1.5], [2.0, 1.0]])
    found = largest_remainder(shares, jnp.asarray([2, 3]), jnp.zeros((2, 2)))
    assert found.tolist() == [[1, 1], [2, 1]]


@pytest.mark.parametrize(
    ("weights", "least", "most", "total", "shares"),
    [
        ([1, 1, 2], 1, 4, 8, [2, 2, 4]),
        ([1, 1, 2], 1, 3, 8, [2.5, 2.5, 3]),  # the last has its most
        ([1, 1, 8], 2, 20, 14, [2, 2, 10]),  # the first two have their least
        ([1, 2, 9], 2, 5, 9, [2, 2, 5]),
        ([5, 1, 1], 1, 3, 9, [3, 3, 3]),
        ([5, 1, 1], 1, 3, 3, [1, 1, 1]),
    ],
)
def test_shares_are_in_proportion_within_bounds(
    weights: list[float], least: float, most: float, total: int, shares: list[float]
) -> None:
    floats = jnp.asarray(weights, jnp.float32)
    bounds = jnp.full(3, least, jnp.float32), jnp.full(3, most, jnp.float32)
    found = water_level(floats, *bounds, jnp.asarray(total))
    np.testing.assert_allclose(found, shares, rtol=1e-6)


@jax.jit
def apportioned(weights: Any, least: Any, most: Any, total: Any) -> Any:
    shares = water_level(weights, least, most, total)
    return largest_remainder(shares[None], total[None], weights[None])[0]


def assert_apportioned(weights: Any, least: int, most: int, total: int) -> None:
    """The sum is the total, bounds are kept, and a larger weight gets no less."""
    floats = np.asarray(weights, np.float32)
    bounds = (np.full(len(floats), bound, np.float32) for bound in (least, most))
    found = np.asarray(apportioned(floats, *bounds, total))
    assert found.sum() == total
    assert least <= found.min() and found.max() <= most
    by_weight = np.lexsort((found, floats))
    assert (np.diff(found[by_weight])[np.diff(floats[by_weight]) > 0] >= 0).all()
    for weight in np.unique(floats):
        assert np.ptp(found[floats == weight]) <= 1  # equals differ by the rounding


@hypothesis.given(
    weights=st.lists(st.floats(2.0**-10, 2.0**10, width=32), min_size=12, max_size=12),
    least=st.integers(0, 20),
    room=st.integers(0, 60),
    share=st.floats(0, 1),
)
@hypothesis.settings(max_examples=200)
def test_any_weights_add_up_within_bounds(
    weights: list[float], least: int, room: int, share: float
) -> None:
    assert_apportioned(weights, least, least + room, 12 * least + round(12 * room * share))


@pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-6, 1e-3, 1.0])
def test_large_batches_add_up_too(spread: float) -> None:
    """More tokens than the sum of their shares in float32 could tell apart."""
    noise = np.random.default_rng(0).normal(size=8192)
    assert_apportioned(np.exp(spread * noise), 196, 784, 8192 * 392)
    assert_apportioned(np.exp(spread * noise), 196, 784, 8192 * 392 + 1)
