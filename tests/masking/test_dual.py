"""Dual masking: running cells beside tubes. The tables of the authors' code: tests/test_parity."""

import numpy as np
import pytest

from adamae_jax import masking
from adamae_jax.config import masking_config
from adamae_jax.errors import UserError
from tests import helpers
from tests.masking.test_base import assert_partition, masks

GRID = (8, 4, 6)


def drawn(count: int = 12, seed: int = 0) -> masking.TokenMask:
    strategy = masking.create("dual", 0.75, {"decoder_mask_ratio": 0.5})
    inputs, keys = helpers.mask_inputs(count, GRID, width=1), helpers.example_keys(count, seed)
    return masks(strategy, inputs, keys)


def test_the_encoder_sees_tubes() -> None:
    mask = drawn()
    tube = masks(
        masking.create("tube", 0.75, {}),
        helpers.mask_inputs(12, GRID, width=1),
        helpers.example_keys(12),
    )
    np.testing.assert_array_equal(mask.visible, tube.visible)
    assert_partition(mask, GRID, 8 * 6)


def test_half_of_every_cell_is_decoded_in_turn() -> None:
    """A row of each cell, a diagonal, the other row, the other diagonal, and so on."""
    rounds = ([1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1])
    starts = set()
    for decode in np.asarray(drawn().decode):
        marks = np.zeros(np.prod(GRID), int)
        marks[decode] = 1
        assert marks.sum() == len(decode) == 96
        cells = marks.reshape(8, 2, 2, 3, 2).transpose(0, 1, 3, 2, 4).reshape(8, 6, 4)
        assert (cells == cells[:, :1]).all()  # all cells are alike
        first = [list(cells[0, 0]) == turn for turn in rounds].index(True)
        starts.add(first)
        for step in range(8):
            assert list(cells[step, 0]) == rounds[(first - step) % 4], step
    assert starts == {0, 1, 2, 3}


def test_decoded_tokens_that_are_seen_weigh_nothing() -> None:
    mask = drawn()
    assert mask.decode is not None and mask.decode_weight is not None
    arrays = (mask.decode, mask.decode_weight, mask.visible)
    rows = zip(*(np.asarray(array) for array in arrays), strict=True)
    for decode, weight, visible in rows:
        assert (np.diff(decode) > 0).all()
        np.testing.assert_array_equal(weight, ~np.isin(decode, visible))
        assert weight.sum() == 96 - 24  # 8 steps: the same for every draw


def test_what_is_decoded_does_not_follow_from_what_is_seen() -> None:
    """Clips whose tubes begin at the same place have any phase."""
    mask = drawn(count=64, seed=1)
    assert mask.decode is not None
    seen, asked = np.asarray(mask.visible)[:, 0], np.asarray(mask.decode)[:, :4]
    for place in (0, 1):
        assert len(np.unique(asked[seen == place], axis=0)) == 4


@pytest.mark.parametrize("ratio", [0.0, 0.2, 1.0, float("nan")])
def test_a_decoder_ratio_without_cells_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match=r"decoder_mask_ratio .* is outside \[0.25, 1\).*'tube'"):
        masking.create("dual", 0.9, {"decoder_mask_ratio": ratio})


def test_cells_must_fill_a_step() -> None:
    with pytest.raises(UserError, match="do not fill a grid of 3 x 4 patches"):
        masking.create("dual", 0.75, {}).check((4, 3, 4), 8)


def test_it_is_a_strategy_with_one_option() -> None:
    assert "dual" in masking.names() and "cells" not in masking.names()
    assert masking_config("dual", 0.9).options.to_dict() == {"decoder_mask_ratio": 0.5}
