"""Position tables for clips of another size."""

from typing import Any

import jax
import numpy as np
import pytest

from adamae_jax import pretrained
from adamae_jax.errors import UserError
from adamae_jax.interop import imports, resizing
from adamae_jax.interop.imports import Imported
from adamae_jax.models.tubelets import Grid
from tests import helpers
from tests.interop.convert_cases import Loaded, loaded
from tests.parity import reference

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


def table_of(kind: str, grid: Grid, slopes: np.ndarray, extra: int = 0) -> np.ndarray:
    """A table that is linear in the coordinates, after rows of a class token."""
    planes = {"spatial": (1, *grid[1:]), "temporal": (grid[0], 1, 1)}
    rows = 1.0 + coordinates(planes.get(kind, grid)) @ slopes
    return np.concatenate([np.full((extra, WIDTH), 9.0), rows]).astype(np.float32)


def resized(kind: str, table: np.ndarray, new: Grid) -> np.ndarray:
    found = resizing.resize_tables({KINDS[kind]: table, "params/other": table}, GRID, new)
    assert found["params/other"] is table
    return np.asarray(found[KINDS[kind]])


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_size_is_the_same_table(kind: str) -> None:
    table = table_of(kind, GRID, np.ones((3, WIDTH)))
    assert resized(kind, table, GRID) is table


@pytest.mark.parametrize("new", [(8, 4, 6), (2, 4, 6), (4, 7, 9), (4, 2, 3), (6, 6, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_constant_tables_stay_constant(kind: str, new: Grid) -> None:
    table = table_of(kind, GRID, np.zeros((3, WIDTH)))
    found = resized(kind, table, new)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, table_of(kind, new, np.zeros((3, WIDTH))), atol=1e-5)


def inside(old: Grid, new: Grid, margin: float) -> np.ndarray:
    """Tokens whose neighbours in the old grid all exist."""
    place = coordinates(new)
    edge = margin / np.asarray(old)
    return np.all((place >= edge) & (place <= 1 - edge), axis=1)


@pytest.mark.parametrize("new", [(8, 4, 6), (3, 4, 6), (11, 4, 6)])
@pytest.mark.parametrize("kind", ["learned", "sampler", "temporal"])
def test_a_ramp_in_time_stays_a_ramp(kind: str, new: Grid) -> None:
    slopes = np.zeros((3, WIDTH))
    slopes[0] = np.arange(WIDTH)
    found = resized(kind, table_of(kind, GRID, slopes), new)
    plane = {"temporal": (new[0], 1, 1)}.get(kind, new)
    places = coordinates(plane)[:, 0]
    kept = (places >= 0.5 / GRID[0]) & (places <= 1 - 0.5 / GRID[0])
    assert kept.sum() >= 3
    np.testing.assert_allclose(found[kept], table_of(kind, new, slopes)[kept], atol=1e-5)
    # Beyond the middles of the first and the last old cell nothing is made up.
    assert found[:, 1:].max() <= 1 + slopes[0, 1:].max() * (1 - 0.5 / GRID[0]) + 1e-5


@pytest.mark.parametrize("kind", ["learned", "spatial"])
def test_a_ramp_over_the_frame_stays_one_inside(kind: str) -> None:
    slopes = np.zeros((3, WIDTH))
    slopes[1], slopes[2] = 1.0, np.arange(WIDTH)
    new: Grid = (4, 12, 15)
    found = resized(kind, table_of(kind, GRID, slopes), new)
    plane: Grid = {"spatial": (1, 12, 15)}.get(kind, new)
    kept = inside((10**6, *GRID[1:]), plane, margin=1.5)
    assert kept.sum() > 10
    np.testing.assert_allclose(found[kept], table_of(kind, new, slopes)[kept], atol=1e-5)


def test_the_axes_are_not_confused() -> None:
    """Values that differ along one axis do so in the new table along the same."""
    for axis in range(3):
        slopes = np.zeros((3, WIDTH))
        slopes[axis] = 1.0
        found = resized("learned", table_of("learned", GRID, slopes), (5, 7, 8))
        spread = np.ptp(found[:, 0].reshape(5, 7, 8), axis=axis).min()
        others = [np.ptp(found[:, 0].reshape(5, 7, 8), axis=i).max() for i in range(3) if i != axis]
        assert spread > 0.5
        assert max(others) < 1e-5


def test_the_class_tokens_row_stays() -> None:
    slopes = np.ones((3, WIDTH))
    found = resized("learned", table_of("learned", GRID, slopes, extra=1), (4, 8, 12))
    assert len(found) == 4 * 8 * 12 + 1
    np.testing.assert_array_equal(found[0], 9.0)
    assert found[1:].max() < 8


def imported(name: str, fine_tuned: bool = False) -> Imported:
    model = loaded(name, fine_tuned)
    parts = {part: tree for part, tree in model.variables.items() if tree}
    tree = jax.tree.map(np.asarray, parts)
    kind: Any = "classifier" if fine_tuned else "pretraining"
    return Imported(kind, tree, model.config, 0, (), "", ())


def built(model: Imported) -> Loaded:
    return pretrained.build(
        *(model.variables, model.config, model.step, model.label_names, ""), source="x"
    )


@pytest.mark.parametrize(
    ("name", "fine_tuned", "frames", "size", "changed"),
    [
        ("adamae", False, 16, None, "params/masking/position_table interpolated, fixed ones"),
        ("videomae", False, 8, (16, 16), "fixed ones computed anew"),
        ("videomae", True, None, (16, 16), "fixed ones computed anew"),
        ("mae_st", False, 16, (32, 32), "params/autoencoder/decoder/positions/spatial, "),
        ("mae_st", True, None, (8, 8), "params/encoder/positions/spatial interpolated"),
        ("mae_st_joint", False, 8, None, "params/autoencoder/decoder/positions/table, "),
        ("mae", False, None, (16, 16), "fixed ones computed anew"),
        ("mae", True, None, (16, 8), "params/encoder/positions/table interpolated"),
    ],
)
def test_models_of_another_size_are_whole(
    name: str, fine_tuned: bool, frames: int | None, size: tuple[int, int] | None, changed: str
) -> None:
    before = imported(name, fine_tuned)
    after = imports.resize(before, frames, size)
    (remark,) = after.remarks
    assert remark.startswith("position tables from a grid of (")
    assert changed in remark
    model = built(after)
    clip = model.model.geometry
    assert clip.num_frames == (frames or before.config.data.num_frames)
    assert clip.image_size == (size or tuple(before.config.data.image_size))
    if name == "adamae":  # of the others the shapes say enough, and compiling takes long
        latents = np.asarray(model.features(helpers.clips(1, geometry=clip)))
        assert latents.shape == (1, clip.num_tokens, 16)


def test_predicted_frames_keep_their_share() -> None:
    assert imports.resize(imported("mae_st"), 16, None).config.model.predicted_frames == 8
    with pytest.raises(UserError, match=r"4 of 8 frames are predicted, a share that 7 frames"):
        imports.resize(imported("mae_st"), 7, None)


def test_a_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="image height 10 is not a positive multiple"):
        imports.resize(imported("mae"), None, (10, 8))
    with pytest.raises(UserError, match="--to_num_frames=4: the model is one of images; leave"):
        imports.resize(imported("mae"), 4, None)
    with pytest.raises(UserError, match="needs a grid of at least 12 x 12"):
        imports.resize(imported("automae"), None, (44, 48))


def test_a_fixed_table_becomes_the_larger_grids_own() -> None:
    """MAE's classifier after --to_image_size: made of the new grid's fixed table, not stretched."""
    larger = imports.resize(imported("mae"), None, (16, 12))
    made = imports.into_classifier(larger, 3, seed=0)
    table = made.variables["params"]["encoder"]["positions"]["table"]
    np.testing.assert_allclose(table, reference.table_2d(4, 3, 16), atol=1e-6)


def test_the_same_size_changes_nothing() -> None:
    before = imported("mae_st")
    after = imports.resize(before, 8, (16, 24))
    assert after.remarks == ()
    flat = pretrained.flatten(before.variables)
    for name, array in pretrained.flatten(after.variables).items():
        assert array is flat[name]
