"""Imported models for clips of another size: tables interpolated, everything else as it was."""

from typing import Any

import jax
import numpy as np
import pytest

from adamae_jax import pretrained
from adamae_jax.convert.classifier import into_classifier
from adamae_jax.errors import UserError
from adamae_jax.interop import resizing
from adamae_jax.interop.imports import Imported
from adamae_jax.models.tubelets import Grid
from adamae_jax.pretrained import Loaded
from tests.interop.convert_cases import loaded
from tests.parity import reference


def imported(name: str, fine_tuned: bool = False) -> Imported:
    """A model as an import leaves it."""
    model = loaded(name, fine_tuned)
    tree = jax.tree.map(np.asarray, {part: tree for part, tree in model.variables.items() if tree})
    kind: Any = "classifier" if fine_tuned else "pretraining"
    return Imported(kind, tree, model.config, model.step, (), model.license, ())


def built(found: Imported) -> Loaded:
    return pretrained.build(
        *(found.variables, found.config, found.step, found.label_names, found.license), source="x"
    )


GRID: Grid = (4, 4, 6)
WIDTH = 5
KINDS = {
    "learned": "params/autoencoder/encoder/positions/table",
    "sampler": "params/masking/position_table",
    "spatial": "params/autoencoder/decoder/positions/spatial",
    "temporal": "params/encoder/positions/temporal",
}


def coordinates(grid: Grid) -> np.ndarray:
    """Time, height and width of every token, each from 0 to 1 at the middles of the outer cells."""
    axes = np.meshgrid(*((np.arange(n) + 0.5) / n for n in grid), indexing="ij")
    return np.stack(axes, -1).reshape(-1, 3)


def plane_of(kind: str, grid: Grid) -> Grid:
    """The part of a grid that a kind of table is over."""
    return {"spatial": (1, *grid[1:]), "temporal": (grid[0], 1, 1)}.get(kind, grid)


def table_of(kind: str, grid: Grid, slopes: np.ndarray) -> np.ndarray:
    """A table that is linear in the coordinates."""
    return (1.0 + coordinates(plane_of(kind, grid)) @ slopes).astype(np.float32)


def resized(kind: str, table: np.ndarray, new: Grid) -> np.ndarray:
    found = resizing.resize_tables({KINDS[kind]: table, "params/other": table}, GRID, new)
    assert found["params/other"] is table
    return np.asarray(found[KINDS[kind]])


@pytest.mark.parametrize(
    ("kind", "axis", "new"),
    [
        *((kind, 0, (11, 4, 6)) for kind in ("learned", "sampler", "temporal")),
        *((kind, axis, (4, 12, 15)) for kind in ("learned", "spatial") for axis in (1, 2)),
    ],
)
def test_a_ramp_stays_a_ramp_along_its_axis(kind: str, axis: int, new: Grid) -> None:
    """Away from the edges, beyond which nothing is made up."""
    slopes = np.zeros((3, WIDTH))
    slopes[axis] = np.arange(WIDTH)
    table = table_of(kind, GRID, slopes)
    assert resized(kind, table, GRID) is table
    found = resized(kind, table, new)
    places = coordinates(plane_of(kind, new))[:, axis]
    edge = (0.5 if axis == 0 else 1.5) / GRID[axis]
    inside = (places >= edge) & (places <= 1 - edge)
    assert inside.sum() >= 3
    np.testing.assert_allclose(found[inside], table_of(kind, new, slopes)[inside], atol=1e-5)


def test_the_class_tokens_row_stays() -> None:
    table = np.concatenate([np.full((1, WIDTH), 9.0), table_of("learned", GRID, np.ones((3, 5)))])
    found = resized("learned", table.astype(np.float32), (4, 8, 12))
    assert len(found) == 4 * 8 * 12 + 1
    np.testing.assert_array_equal(found[0], 9.0)
    assert found[1:].max() < 8


@pytest.mark.parametrize(
    ("name", "fine_tuned", "frames", "size", "changed"),
    [
        ("adamae", False, 16, None, "params/masking/position_table interpolated, fixed ones"),
        ("videomae", True, None, (16, 16), "fixed ones computed anew"),
        ("mae_st", False, 16, (32, 32), "params/autoencoder/decoder/positions/spatial, "),
        ("mae_st_joint", False, 8, None, "params/autoencoder/decoder/positions/table, "),
        ("mae", True, None, (16, 8), "params/encoder/positions/table interpolated"),
    ],
)
def test_models_of_another_size_are_whole(
    name: str, fine_tuned: bool, frames: int | None, size: tuple[int, int] | None, changed: str
) -> None:
    before = imported(name, fine_tuned)
    after = resizing.resize(before, frames, size)
    (remark,) = after.remarks
    assert remark.startswith("position tables from a grid of (")
    assert changed in remark
    clip = built(after).model.geometry  # every shape was compared
    assert clip.num_frames == (frames or before.config.data.num_frames)
    assert clip.image_size == (size or tuple(before.config.data.image_size))
    same = resizing.resize(before, before.config.data.num_frames, None)
    assert same.remarks == ()


def test_predicted_frames_keep_their_share() -> None:
    assert resizing.resize(imported("mae_st"), 16, None).config.model.predicted_frames == 8
    with pytest.raises(UserError, match=r"4 of 8 frames are predicted, a share that 7 frames"):
        resizing.resize(imported("mae_st"), 7, None)


def test_a_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="image height 10 is not a positive multiple"):
        resizing.resize(imported("mae"), None, (10, 8))
    with pytest.raises(UserError, match="--to_num_frames=4: the model is one of images; leave"):
        resizing.resize(imported("mae"), 4, None)
    with pytest.raises(UserError, match="needs a grid of at least 12 x 12"):
        resizing.resize(imported("automae"), None, (44, 48))


def test_a_fixed_table_becomes_the_larger_grids_own() -> None:
    """MAE's classifier after --to_image_size: made of the new grid's fixed table, not stretched."""
    larger = resizing.resize(imported("mae"), None, (16, 12))
    made = into_classifier(larger, 3, seed=0)
    table = made.variables["params"]["encoder"]["positions"]["table"]
    np.testing.assert_allclose(table, reference.table_2d(4, 3, 16), atol=1e-6)
