"""What holds for the masks of every strategy."""

from typing import Any

import hypothesis
import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st

from adamae_jax import masking
from adamae_jax.errors import UserError
from adamae_jax.masking import adaptive, base
from tests import helpers

FIXED = ("random", "tube", "frame")
GRID = (4, 3, 5)
RATIO = {"adaptive": 0.8, "random": 0.8, "tube": 0.6, "frame": 0.75}


def masks(
    strategy: masking.MaskingStrategy,
    inputs: masking.MaskInputs,
    keys: Any,
    train: bool = True,
    seed: int = 0,
) -> masking.TokenMask:
    """A strategy's answer, with random parameters where it has any."""
    shapes = jax.eval_shape(strategy.init, jax.random.key(seed), inputs)
    variables = {"params": helpers.filled(shapes.get("params", {}))}
    return jax.jit(lambda inputs, keys: strategy(variables, inputs, keys, train))(inputs, keys)


def assert_partition(mask: masking.TokenMask, grid: tuple[int, int, int], visible: int) -> None:
    """Visible and masked are sorted, disjoint, and all tokens together."""
    tokens = int(np.prod(grid))
    assert mask.visible.shape[1] == visible
    assert mask.masked.shape[1] == tokens - visible
    for row in range(len(mask.visible)):
        seen, hidden = np.asarray(mask.visible[row]), np.asarray(mask.masked[row])
        assert (np.diff(seen) > 0).all()
        assert (np.diff(hidden) > 0).all()
        assert sorted([*seen, *hidden]) == list(range(tokens))


@pytest.mark.parametrize(
    ("grid", "ratio", "visible"),
    [
        ((8, 14, 14), 0.95, 78),
        ((10, 10, 10), 0.9, 99),  # 1 - 0.9 is a little less than 0.1
        ((8, 14, 14), 0.9, 156),
        ((8, 14, 14), 0.75, 392),
    ],
)
def test_visible_tokens_are_counted_as_the_authors_do(
    grid: tuple[int, int, int], ratio: float, visible: int
) -> None:
    for name in ("random", "adaptive"):
        assert masking.create(name, ratio, {}).num_visible(grid) == visible


@pytest.mark.parametrize("name", FIXED)
@hypothesis.settings(max_examples=12)  # each is a size of its own, and compiled
@hypothesis.given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5)),
    ratio=st.floats(0.02, 0.98),
    seed=st.integers(0, 2**31),
)
def test_masks_of_any_size_are_partitions(
    name: str, grid: tuple[int, int, int], ratio: float, seed: int
) -> None:
    strategy = masking.create(name, ratio, {})
    visible = strategy.num_visible(grid)
    if not 0 < visible < int(np.prod(grid)):
        with pytest.raises(UserError, match=r"leaves no (visible|masked) token"):
            strategy.check(grid, token_width=16)
        return
    strategy.check(grid, token_width=16)
    mask = masks(strategy, helpers.mask_inputs(2, grid, width=1), helpers.example_keys(2, seed))
    assert_partition(mask, grid, visible)
    assert (mask.log_probs, mask.visible_valid, mask.decode, mask.token_scale) == (None,) * 4
    assert mask.queries is mask.masked


@hypothesis.given(
    marked=st.lists(st.permutations([True] * 3 + [False] * 4), min_size=1, max_size=4)
)
def test_marks_become_sorted_indices(marked: list[list[bool]]) -> None:
    fields = base.mask_from_visible(jax.numpy.asarray(marked), 3)
    for row, visible, hidden in zip(marked, fields["visible"], fields["masked"], strict=True):
        assert visible.tolist() == [i for i, mark in enumerate(row) if mark]
        assert hidden.tolist() == [i for i, mark in enumerate(row) if not mark]


@pytest.mark.parametrize("name", ["adaptive", *FIXED])
def test_masks_depend_on_the_examples_own_key(name: str) -> None:
    strategy = masking.create(name, RATIO[name], {})
    inputs, keys = helpers.mask_inputs(6, GRID), helpers.example_keys(6)
    whole = masks(strategy, inputs, keys)
    assert_partition(whole, GRID, strategy.num_visible(GRID))
    order = np.asarray([4, 2, 0, 5, 1, 3])
    turned = masks(strategy, inputs.replace(tokens=inputs.tokens[order]), keys[order])
    np.testing.assert_array_equal(turned.visible, whole.visible[order])
    assert len(np.unique(whole.visible, axis=0)) > 1
    others = masks(strategy, inputs, helpers.example_keys(6, seed=1))
    assert (np.asarray(others.visible) != np.asarray(whole.visible)).any()


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize("name", masking.names())
def test_ratios_outside_the_unit_interval_are_named(name: str, ratio: float) -> None:
    with pytest.raises(UserError, match=rf"mask_ratio {ratio} is outside \(0, 1\)"):
        masking.create(name, ratio, {})


@pytest.mark.parametrize(
    ("name", "ratio", "kind"),
    [
        ("adaptive", 0.99, "visible"),
        ("random", 1e-17, "masked"),
        ("tube", 0.01, "masked"),
        ("frame", 0.2, "masked"),
    ],
)
def test_ratios_that_leave_nothing_are_named(name: str, ratio: float, kind: str) -> None:
    with pytest.raises(UserError, match=f"mask_ratio {ratio} leaves no {kind} token of the 60"):
        masking.create(name, ratio, {}).check(GRID, token_width=16)


def test_unknown_strategies_and_options_are_named() -> None:
    with pytest.raises(UserError, match=r"masking.name 'tubes' is unknown: .* tube"):
        masking.create("tubes", 0.9, {})
    with pytest.raises(UserError, match=r"masking.options.heads is unknown .* num_heads"):
        masking.create("adaptive", 0.9, {"heads": 4})
    with pytest.raises(UserError, match="'tube', which takes no options"):
        masking.create("tube", 0.9, {"depth": 1})


def test_options_are_handed_on() -> None:
    defaults = masking.option_defaults("adaptive")
    assert defaults == {
        "network": "attention",
        "width": 0,
        "depth": 1,
        "num_heads": 8,
        "dropout": 0.1,
        "norm_epsilon": 1e-5,
        "temperature": 1.0,
        "entropy_weight": 0.0,
        "entropy_target": 1.0,
        "credit": "tokens",
        "reward": "masked",
        "baseline": "none",
        "baseline_decay": 0.99,
    }
    strategy = masking.create("adaptive", 0.9, {"depth": 2})
    assert strategy == adaptive.Strategy(mask_ratio=0.9, depth=2, num_heads=8)


def test_random_subsets_are_uniform() -> None:
    marks = jax.jit(lambda keys: base.random_subset(keys, 5, 2))(helpers.example_keys(20000))
    counts = np.unique(np.asarray(marks) @ (1 << np.arange(5)), return_counts=True)[1]
    assert len(counts) == 10
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
