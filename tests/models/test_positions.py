"""Position tables, fixed and learned, against values written out."""

import math
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import strategies as st

from adamae_jax.errors import UserError
from adamae_jax.models.positions import (
    POSITION_KINDS,
    Positions,
    check_positions,
    sincos_1d,
    sincos_2d,
)
from tests import helpers

GRID = (2, 3, 4)


def rows_of(kind: Any, class_token: bool, grid: tuple[int, int, int] = GRID) -> Any:
    """Rows of tokens and class token, and the parameters (random)."""
    module = Positions(kind, grid, 8, class_token, nn.initializers.normal(1.0))
    given = helpers.filled(jax.eval_shape(module.init, jax.random.key(0)))
    params = {name: np.asarray(leaf) for name, leaf in given.get("params", {}).items()}
    return *module.apply(given), params


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


def test_a_small_table_of_two_dimensions_written_out() -> None:
    """Two rows of three columns: the column in the first half, the row in the second."""
    s, c = math.sin, math.cos
    row0, row1 = [0.0, 0.0, 1.0, 1.0], [s(1), s(0.01), c(1), c(0.01)]
    expected = [
        [0.0, 0.0, 1.0, 1.0, *row0],
        [s(1), s(0.01), c(1), c(0.01), *row0],
        [s(2), s(0.02), c(2), c(0.02), *row0],
        [0.0, 0.0, 1.0, 1.0, *row1],
        [s(1), s(0.01), c(1), c(0.01), *row1],
        [s(2), s(0.02), c(2), c(0.02), *row1],
    ]
    found = sincos_2d(2, 3, 8)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@hypothesis.given(
    rows=st.integers(1, 15), columns=st.integers(1, 15), quarter=st.integers(1, 8), data=st.data()
)
def test_tables_of_two_dimensions_agree_with_a_plain_loop(
    rows: int, columns: int, quarter: int, data: st.DataObject
) -> None:
    table = sincos_2d(rows, columns, 4 * quarter)
    assert table.shape == (rows * columns, 4 * quarter)
    row = data.draw(st.integers(0, rows - 1))
    column = data.draw(st.integers(0, columns - 1))
    expected = []
    for place in (column, row):
        for function in (math.sin, math.cos):
            for i in range(quarter):
                expected.append(function(place * 10000 ** (-i / quarter)))
    np.testing.assert_allclose(table[row * columns + column], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "grid"), [("sincos_1d", GRID), ("sincos_2d", (1, 3, 4))])
def test_fixed_tables_have_no_parameters_and_a_class_token_of_zeros(
    kind: str, grid: tuple[int, int, int]
) -> None:
    rows, none, params = rows_of(kind, False, grid)
    assert (none, params) == (None, {})
    expected = sincos_1d(24, 8) if kind == "sincos_1d" else sincos_2d(3, 4, 8)
    np.testing.assert_array_equal(rows, expected)
    same, class_row, params = rows_of(kind, True, grid)
    np.testing.assert_array_equal(same, expected)
    assert params == {}
    assert np.asarray(class_row).tolist() == [0.0] * 8


def test_a_learned_table_has_a_row_for_every_token_and_the_class_token_s_first() -> None:
    rows, none, params = rows_of("learned", False)
    assert none is None
    assert params["table"].shape == (24, 8)
    np.testing.assert_array_equal(rows, params["table"])
    rows, class_row, params = rows_of("learned", True)
    assert set(params) == {"table"}
    assert params["table"].shape == (25, 8)
    np.testing.assert_array_equal(class_row, params["table"][0])
    np.testing.assert_array_equal(rows, params["table"][1:])


@pytest.mark.parametrize("class_token", [False, True])
def test_separable_positions_are_the_sum_of_place_and_time(class_token: bool) -> None:
    rows, class_row, params = rows_of("separable", class_token)
    assert params["spatial"].shape == (12, 8)
    assert params["temporal"].shape == (2, 8)
    for time in range(2):
        for height in range(3):
            for width in range(4):
                place = height * 4 + width
                expected = params["spatial"][place] + params["temporal"][time]
                np.testing.assert_allclose(rows[time * 12 + place], expected, rtol=1e-6)
    assert (class_row is None) is not class_token
    assert len(params) == 2 + class_token
    if class_token:
        np.testing.assert_array_equal(class_row, params["class_token"])


@pytest.mark.parametrize("kind", ["learned", "separable"])
def test_learned_tables_start_as_they_are_told(kind: Any) -> None:
    module = Positions(kind, (2, 16, 16), 64, True, nn.initializers.constant(0.5))
    params = module.init(jax.random.key(0))["params"]
    assert all(bool(jnp.all(leaf == 0.5)) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("kind", "grid", "width", "message"),
    [
        ("sincos_2d", (2, 3, 4), 8, "'sincos_2d' cannot tell the 2 time steps .* 'separable'"),
        ("sincos_2d", (1, 3, 4), 6, "needs a width that is a multiple of 4, not 6"),
        ("sincos", (1, 3, 4), 8, "model.positions is 'sincos': use one of sincos_1d, sincos_2d"),
    ],
)
def test_what_does_not_fit_is_named(
    kind: Any, grid: tuple[int, int, int], width: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_positions(kind, grid, width)
    if kind in POSITION_KINDS:
        with pytest.raises(UserError, match=message):
            Positions(kind, grid, width, False, nn.initializers.zeros)


def test_other_kinds_take_any_grid_and_width() -> None:
    for kind in ("sincos_1d", "learned", "separable"):
        check_positions(kind, (3, 5, 7), 6)
