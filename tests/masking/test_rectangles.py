"""The rectangles that adversarial masking takes for real, against the authors' distribution."""

import math
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st

from adamae_jax.masking import adversarial


def rectangles(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns, top and left of many rectangles, read off masks without noise."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.zeros(shape))
    keys = jax.random.split(jax.random.key(1), count)
    draw = jax.jit(jax.vmap(lambda key: adversarial.rectangle_mask(key, height, width)))
    masks = np.asarray(draw(keys)).reshape(count, height, width)
    np.testing.assert_allclose(masks.sum((1, 2)), 1.0, rtol=1e-5)
    inside = masks > masks.min((1, 2), keepdims=True) * 1.1
    # Raised by 0.5 before the softmax.
    ratio = masks.max((1, 2)) / masks.min((1, 2))
    np.testing.assert_allclose(ratio, math.exp(0.5), rtol=1e-4)
    by_row, by_column = inside.any(2), inside.any(1)
    rows, columns = by_row.sum(1), by_column.sum(1)
    # A whole rectangle, and nothing but it.
    assert (inside.sum((1, 2)) == rows * columns).all()
    top, left = by_row.argmax(1), by_column.argmax(1)
    assert (by_row[np.arange(count), top + rows - 1]).all()
    assert (by_column[np.arange(count), left + columns - 1]).all()
    return rows, columns, top, left


def test_rectangles_have_the_authors_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Area 40 to 160 and width 4 to 10, both ends included; the height follows."""
    count = 20_000
    rows, columns, top, left = rectangles(monkeypatch, 14, 14, count)
    expected: dict[tuple[int, int], float] = {}
    for wide in range(4, 11):
        for area in range(40, 161):
            size = (min(14, math.ceil(area / wide)), wide)
            expected[size] = expected.get(size, 0.0) + count / (7 * 121)
    found = {size: 0 for size in expected}
    for size in zip(rows.tolist(), columns.tolist(), strict=True):
        found[size] += 1  # a KeyError where the size is none of the authors'
    pvalue = scipy.stats.chisquare(list(found.values()), list(expected.values())).pvalue
    assert pvalue > 1e-3
    narrow, low = columns == 4, rows == 10
    assert set(left[narrow]) == set(range(11))
    assert scipy.stats.chisquare(np.bincount(left[narrow])).pvalue > 1e-3
    assert scipy.stats.chisquare(np.bincount(top[low])).pvalue > 1e-3
    assert len(np.bincount(top[low])) == 5


def test_the_ends_of_the_authors_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which end is drawn once more or less, no number of draws would show."""
    bounds: list[Any] = []
    randint = jax.random.randint

    def spy(key: Any, shape: Any, least: Any, end: Any) -> jax.Array:
        bounds.append((least, end))
        return randint(key, shape, least, end)

    monkeypatch.setattr(jax.random, "randint", spy)
    adversarial.rectangle_mask(jax.random.key(0), 14, 14)
    assert bounds[:2] == [(40, 161), (4, 11)]


@hypothesis.settings(max_examples=5)
@hypothesis.given(height=st.integers(12, 30), width=st.integers(12, 30))
def test_on_other_grids_the_ranges_are_shares(height: int, width: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        rows, columns, top, left = rectangles(monkeypatch, height, width, 300)
    least, largest = round(40 / 196 * height * width), round(160 / 196 * height * width)
    narrowest = round(4 / 14 * width)
    assert columns.min() == narrowest
    assert columns.max() == width - narrowest
    lowest = np.minimum(height, -(-least // columns))
    assert (lowest <= rows).all()
    assert ((rows - 1) * columns < largest).all()
    assert (top + rows).max() <= height
    assert (left + columns).max() <= width


def test_every_patch_of_a_rectangle_has_noise_of_its_own() -> None:
    keys = jax.random.split(jax.random.key(0), 200)
    masks = jax.vmap(lambda key: adversarial.rectangle_mask(key, 14, 14))(keys)
    np.testing.assert_allclose(masks.sum(1), 1.0, rtol=1e-5)
    assert len(np.unique(masks[0])) > 190
    spread = np.log(masks).max(1) - np.log(masks).min(1)
    assert 1.2 < spread.min() < spread.max() < 1.5  # 0.5, and noise in [0, 1)
