"""Random masking."""

import numpy as np
import scipy.stats

from adamae_jax import masking
from tests import helpers
from tests.masking.test_base import masks


def test_every_token_is_equally_often_visible() -> None:
    grid, count = (2, 2, 3), 6000
    strategy = masking.create("random", 0.75, {})
    mask = masks(strategy, helpers.mask_inputs(count, grid, width=1), helpers.example_keys(count))
    counts = np.bincount(np.asarray(mask.visible).ravel(), minlength=12)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_time_steps_are_drawn_apart() -> None:
    """Unlike a tube's: the places seen in one step say nothing about the next."""
    grid, count = (2, 1, 4), 4000
    strategy = masking.create("random", 0.5, {})
    mask = masks(strategy, helpers.mask_inputs(count, grid, width=1), helpers.example_keys(count))
    seen = np.zeros((count, 8))
    np.put_along_axis(seen, np.asarray(mask.visible), 1.0, axis=1)
    correlation = np.asarray(np.corrcoef(seen, rowvar=False))
    # Drawing 4 of 8 without replacement: every pair has correlation -1/7.
    off_diagonal = correlation[~np.eye(8, dtype=bool)]
    np.testing.assert_allclose(off_diagonal, -1 / 7, atol=5 / count**0.5)
