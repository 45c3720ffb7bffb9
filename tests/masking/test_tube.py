"""Tube masking."""

import numpy as np
import pytest

from adamae_jax import masking
from tests import helpers
from tests.masking.test_base import masks


@pytest.mark.parametrize(
    ("ratio", "height", "width", "masked"),
    [
        (0.9, 14, 14, 176),
        (0.75, 14, 14, 147),
        # The product of the sides comes first: (0.29 * 10) * 10 would give 29.
        (0.29, 10, 10, 28),
    ],
)
def test_masked_positions_are_counted_as_the_authors_do(
    ratio: float, height: int, width: int, masked: int
) -> None:
    strategy = masking.create("tube", ratio, {})
    assert strategy.num_visible((8, height, width)) == 8 * (height * width - masked)


def test_the_same_positions_are_visible_in_every_step() -> None:
    grid = (4, 3, 5)
    strategy = masking.create("tube", 0.6, {})
    mask = masks(strategy, helpers.mask_inputs(8, grid, width=1), helpers.example_keys(8))
    by_step = np.asarray(mask.visible).reshape(8, 4, 6)
    np.testing.assert_array_equal(by_step // 15, np.broadcast_to([[0], [1], [2], [3]], (8, 4, 6)))
    positions = by_step % 15
    assert (positions == positions[:, :1]).all()
    assert len(np.unique(positions[:, 0])) > 6
