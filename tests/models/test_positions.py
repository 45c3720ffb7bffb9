"""The fixed position table, against values written out."""

import math

import numpy as np

from adamae_jax.models.positions import sincos_1d


def test_small_table_written_out() -> None:
    expected = [
        [0.0, 1.0, 0.0, 1.0],
        [math.sin(1.0), math.cos(1.0), math.sin(0.01), math.cos(0.01)],
        [math.sin(2.0), math.cos(2.0), math.sin(0.02), math.cos(0.02)],
    ]
    np.testing.assert_allclose(sincos_1d(3, 4), expected, rtol=1e-6)


def test_released_size_at_chosen_places() -> None:
    table = sincos_1d(1568, 768)
    assert table.shape == (1568, 768)
    assert table.dtype == np.float32
    for position, channel in ((1567, 0), (1567, 1), (1000, 383), (1000, 384), (1567, 767)):
        angle = position * 10000.0 ** (-2 * (channel // 2) / 768)
        expected = math.cos(angle) if channel % 2 else math.sin(angle)
        # float64 all the way: in float32 the angle alone would be off by 1e-4.
        assert abs(table[position, channel] - expected) < 1e-6
