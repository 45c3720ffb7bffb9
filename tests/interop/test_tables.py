"""Tables of weight names: exact both ways, and every complaint they can make."""

from typing import Any

import numpy as np
import pytest

from adamae_jax.errors import UserError
from adamae_jax.interop import tables
from adamae_jax.interop.tables import Constant, Entry, Table
from tests import helpers

FIXED = np.linspace(0.0, 1.0, 6, dtype=np.float32).reshape(1, 2, 3)
TABLE = Table(
    [
        Entry("token", "cls_token", tables.leading_ones(2)),
        Entry("blocks/dense/kernel", "layers.{}.fc.weight", tables.LINEAR, depth=3),
        Entry("blocks/qkv", ("layers.{}.q", "layers.{}.k", "layers.{}.v"), tables.qkv(2), depth=3),
        Entry("pair", ("first", "second")),
    ],
    [Constant("pos_embed", FIXED)],
)
SHAPES: dict[str, tuple[int, ...]] = {
    "token": (4,),
    "blocks/dense/kernel": (3, 4, 5),
    "blocks/qkv": (3, 4, 3, 2, 2),
    "pair": (6, 2),
}


def state() -> dict[str, np.ndarray]:
    """Their arrays."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {"pos_embed": FIXED.copy()}
    arrays["cls_token"] = rng.normal(size=(1, 1, 4))
    for layer in range(3):
        arrays[f"layers.{layer}.fc.weight"] = rng.normal(size=(5, 4))
        arrays |= {f"layers.{layer}.{letter}": rng.normal(size=(4, 4)) for letter in "qkv"}
    return arrays | {name: rng.normal(size=(3, 2)) for name in ("first", "second")}


def without(*names: str, **changes: Any) -> dict[str, np.ndarray]:
    """`state` with arrays left out, and others put in."""
    kept = {name: array for name, array in state().items() if name not in names}
    return kept | {name.replace("__", "."): array for name, array in changes.items()}


def test_arrays_are_stacked_and_concatenated_in_order() -> None:
    theirs = state()
    ours = TABLE.from_authors(theirs, SHAPES)
    np.testing.assert_array_equal(ours["token"], theirs["cls_token"][0, 0])
    for layer in range(3):
        kernel = ours["blocks"]["dense"]["kernel"][layer]
        np.testing.assert_array_equal(kernel, theirs[f"layers.{layer}.fc.weight"].T)
        for index, letter in enumerate("qkv"):
            # [d, heads, head_dim] against PyTorch's [heads * head_dim, d].
            found = ours["blocks"]["qkv"][layer][:, index].reshape(4, 4)
            np.testing.assert_array_equal(found, theirs[f"layers.{layer}.{letter}"].T)
    np.testing.assert_array_equal(ours["pair"][:3], theirs["first"])
    np.testing.assert_array_equal(ours["pair"][3:], theirs["second"])


def test_there_and_back_is_exact_and_brings_the_constants_along() -> None:
    theirs = state()
    back = TABLE.to_authors(TABLE.from_authors(theirs))
    assert set(back) == set(theirs) == set(TABLE.names)
    for name, array in theirs.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)
        assert back[name].flags.c_contiguous
    back["pos_embed"][:] = -1.0  # the caller's own: the table's is not touched
    assert TABLE.constants[0].value.max() == 1.0
    gradients = TABLE.gradients_to_authors(TABLE.from_authors(theirs))
    assert set(theirs) - set(gradients) == {"pos_embed"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (without("layers.1.k"), "missing layers.1.k; not used none$"),
        (without("pos_embed"), "missing pos_embed; not used none$"),
        (without(layers__3__q=FIXED), "missing none; not used layers.3.q$"),
        (without(pos_embed=FIXED + 1e-3), "pos_embed is not the fixed table that it should be$"),
        (without(pos_embed=FIXED[0]), r"misshapen pos_embed \(2, 3\), expected \(1, 2, 3\)$"),
        # Layers that cannot be stacked, parts that cannot be joined.
        (without(layers__1__fc__weight=np.ones((6, 4))), r"misshapen layers.0.fc.weight \(5, 4\)"),
        (without(second=np.ones((3, 5))), r"misshapen first \(3, 2\), second \(3, 5\)"),
        # All layers alike, and all wrong: only the model's shapes tell.
        (
            without(**{f"layers__{i}__fc__weight": np.ones((6, 4)) for i in range(3)}),
            r"layers.2.fc.weight \(as blocks/dense/kernel: \(3, 4, 6\), expected \(3, 4, 5\)\)",
        ),
        # Parts that differ, and are together as long as they should be.
        (
            without(first=np.ones((4, 2)), second=np.ones((2, 2))),
            r"misshapen first \(4, 2\), second \(2, 2\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_listed(given: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UserError, match="the weights do not fit the model: .*" + message):
        TABLE.from_authors(given, SHAPES)


def test_our_parameters_that_do_not_fit_are_listed() -> None:
    ours = TABLE.from_authors(state())
    with pytest.raises(UserError, match="missing token; not used extra/bias$"):
        TABLE.to_authors(
            {name: a for name, a in ours.items() if name != "token"} | {"extra": {"bias": FIXED}}
        )
    with pytest.raises(UserError, match="missing none; not used extra$"):
        TABLE.gradients_to_authors({**ours, "extra": FIXED})


def test_under_puts_a_path_in_front_of_both() -> None:
    inner = TABLE.under("encoder", "vit.")
    assert inner.names == [f"vit.{name}" for name in TABLE.names]
    ours = inner.from_authors({f"vit.{name}": array for name, array in state().items()})
    assert set(ours) == {"encoder"}
    expected = helpers.named(TABLE.from_authors(state()))
    for name, array in helpers.named(ours["encoder"]).items():
        np.testing.assert_array_equal(array, expected[name])
    # Ours alone; and a sum of tables keeps both, with their constants.
    both = TABLE.under("a") + TABLE.under("b", "b.")
    assert both.names[: len(TABLE.entries)] != TABLE.names
    assert sorted(both.names) == sorted([*TABLE.names, *(f"b.{name}" for name in TABLE.names)])
    assert len(both.constants) == 2
