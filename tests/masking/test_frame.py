"""Frame masking."""

import numpy as np
import pytest

from adamae_jax import masking
from tests import helpers
from tests.masking.test_base import masks


@pytest.mark.parametrize(
    ("ratio", "steps", "visible"), [(0.875, 8, 1), (0.5, 8, 4), (0.9, 8, 1), (0.75, 6, 2)]
)
def test_whole_time_steps_are_visible(ratio: float, steps: int, visible: int) -> None:
    grid = (steps, 2, 3)
    strategy = masking.create("frame", ratio, {})
    assert strategy.num_visible(grid) == visible * 6
    mask = masks(strategy, helpers.mask_inputs(8, grid, width=1), helpers.example_keys(8))
    by_step = np.asarray(mask.visible).reshape(8, visible, 6)
    np.testing.assert_array_equal(by_step % 6, np.broadcast_to(np.arange(6), by_step.shape))
    assert (by_step // 6 == by_step[..., :1] // 6).all()
    assert len(np.unique(by_step[..., 0])) > visible
