"""Imported models made into others: classifiers, and models for clips of another size."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from adamae_jax import pretrained
from adamae_jax.errors import UserError
from adamae_jax.interop import exports, files, imports, transfer
from adamae_jax.interop.imports import Imported
from adamae_jax.interop.sources import Source
from adamae_jax.interop.weight_reader import ImportOptions
from adamae_jax.models.tubelets import Grid
from adamae_jax.pretrained import Finetuned, Loaded
from tests.interop.convert_cases import CASES, LABELS, assert_same_arrays, bring, given, loaded
from tests.parity import reference

PRETRAINED = ("adamae", "videomae", "mae_st", "mae_st_joint", "mae")


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


def flat(tree: Any) -> dict[str, Any]:
    return {name: np.asarray(array) for name, array in pretrained.flatten(dict(tree)).items()}


# Classifiers.


@pytest.fixture(params=PRETRAINED, scope="module")
def pair(request: pytest.FixtureRequest) -> tuple[str, Loaded, Finetuned, tuple[str, ...]]:
    """A pretrained model, the classifier that is made of it, and what is said about it."""
    made = transfer.into_classifier(imported(request.param), num_classes=5, seed=3)
    classifier = built(made)
    assert isinstance(classifier, Finetuned)
    return request.param, loaded(request.param), classifier, made.remarks


def test_the_encoder_is_taken_bit_for_bit(pair: Any) -> None:
    name, model, classifier, _ = pair
    before, after = (flat(each.params["encoder"]) for each in (model, classifier))
    if CASES[name].family == "mae":
        table = after.pop("positions/table")  # which is trained from now on
        _, height, width = CASES[name].clip
        np.testing.assert_allclose(
            table, reference.table_2d(height // 4, width // 4, 16), atol=1e-6
        )
    norm = {part: before.pop(f"norm/{part}") for part in ("scale", "bias")}
    assert_same_arrays(after, before)
    found = flat(classifier.params["norm"])
    if CASES[name].family == "mae_st":  # its classifier calls its norm as the encoder does
        assert_same_arrays(found, norm)
    else:
        assert_same_arrays(found, {"scale": np.ones(16, "f4"), "bias": np.zeros(16, "f4")})
    assert classifier.params["head"]["kernel"].shape == (16, 5)
    assert (classifier.step, classifier.license) == (model.step, model.license)


def test_it_is_said_what_is_taken_fresh_and_left_out(pair: Any) -> None:
    name, _, _, remarks = pair
    family = CASES[name].family
    has_class = family == "mae" or name == "mae_st"
    taken = ["embedding", *["class_token"] * has_class]
    taken += ["positions"] * (family == "mae_st")
    taken += ["transformer", *["norm"] * (family == "mae_st")]
    expected = [
        "taken from pretraining: " + ", ".join(f"encoder/{part}" for part in taken),
        "fresh: head" if family == "mae_st" else "fresh: head, norm",
    ]
    left = ["encoder/norm"] * (family != "mae_st") + ["decoder"]
    left += ["masking"] * (name == "adamae")
    expected.append(f"left out: {', '.join(left)}")
    expected += ["encoder/positions: trained from now on, from the fixed table"] * (family == "mae")
    assert list(remarks) == expected


def test_its_config_is_the_authors_classifiers(pair: Any) -> None:
    name, model, classifier, _ = pair
    options = classifier.config.classifier
    assert options.num_classes == 5
    assert options.norm_epsilon == model.config.model.norm_epsilon
    # The released code leaves the first token out, which without a class token is a patch.
    assert options.skip_first_patch == (name == "mae_st_joint")
    data, sampling = classifier.config.data, {"mae": "dense", "mae_st": "time_scaled"}
    assert data.frame_sampling == sampling.get(CASES[name].family, "stretched")
    assert (data.crop, data.crop_area, data.horizontal_flip) == ("random_resized", (0.08, 1), True)
    assert data.num_frames == model.config.data.num_frames


def test_clips_are_cut_for_its_classes_or_as_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file.safetensors"
    files.write_safetensors(file, exports.to_authors(loaded("videomae")))
    own = ("--num_classes=174", *given("videomae"))
    data = pretrained.load(bring(file, tmp_path / "ours", *own)).config.data
    assert (data.frame_sampling, data.horizontal_flip) == ("segments", False)
    said = capsys.readouterr().out
    assert "frame_sampling segments, crop random_resized" in said
    assert "Something-Something V2" in said and "Kinetics" not in said
    dense = ("--frame_sampling=dense", "--sampling_rate=3")
    data = pretrained.load(bring(file, tmp_path / "dense", *dense, *own)).config.data
    assert (data.frame_sampling, data.sampling_rate, data.crop) == ("dense", 3, "random_resized")
    with pytest.raises(UserError, match="--sampling_rate=3 says nothing of the frame_sampling 's"):
        bring(file, tmp_path / "no", "--sampling_rate=3", *own)


def test_the_seed_is_of_what_starts_fresh() -> None:
    first, same, other = (
        transfer.into_classifier(imported("videomae"), 5, seed) for seed in (0, 0, 1)
    )
    heads = [each.variables["params"]["head"]["kernel"] for each in (first, same, other)]
    np.testing.assert_array_equal(heads[0], heads[1])
    assert (heads[0] != heads[2]).all()
    with pytest.raises(UserError, match="is a classifier already"):
        transfer.into_classifier(first, 5, seed=0)


def encoder_of(name: str) -> dict[str, np.ndarray]:
    """What MAE's authors publish of a pretrained model: embedding, positions, blocks and norm."""
    state = exports.to_authors(loaded(name))
    parts = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")
    plain = {n.removeprefix("encoder."): a for n, a in state.items()}
    return {n: a for n, a in plain.items() if n.startswith(parts)}


@pytest.mark.parametrize("name", ["mae", "mae_st", "mae_st_joint", "videomae"])
def test_an_encoder_alone_becomes_a_classifier(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same as the whole checkpoint does; as it is, it is no model."""
    file = tmp_path / "encoder.safetensors"
    files.write_safetensors(file, encoder_of(name))
    own = given(name, fine_tuned=True)
    message = "holds an encoder alone.*: give --num_classes to make a classifier of it$"
    if name == "mae":
        message = r"holds an encoder alone.*--num_classes.*, or give it as --pretrained_vit"
    with pytest.raises(UserError, match=message):
        bring(file, tmp_path / "ours", *own)
    ours = bring(file, tmp_path / "ours", *own, "--num_classes=3", "--seed=4")
    expected = built(transfer.into_classifier(imported(name), len(LABELS), seed=4))
    assert_same_arrays(flat(pretrained.load(ours).variables), flat(expected.variables))
    said = capsys.readouterr().out
    assert "taken from pretraining: encoder/embedding" in said
    assert "decoder" not in said


def test_of_an_encoder_alone_every_tensor_is_accounted_for() -> None:
    state = encoder_of("mae")
    del state["blocks.1.attn.proj.bias"]
    state["extra"] = np.zeros(1, np.float32)
    message = "missing blocks.1.attn.proj.bias; not used extra"
    with pytest.raises(UserError, match=message):
        imports.convert(Source(state, ImportOptions(num_heads=2)))


# Other sizes.

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
    found = transfer.resize_tables({KINDS[kind]: table, "params/other": table}, GRID, new)
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
    after = transfer.resize(before, frames, size)
    (remark,) = after.remarks
    assert remark.startswith("position tables from a grid of (")
    assert changed in remark
    clip = built(after).model.geometry  # every shape was compared
    assert clip.num_frames == (frames or before.config.data.num_frames)
    assert clip.image_size == (size or tuple(before.config.data.image_size))
    same = transfer.resize(before, before.config.data.num_frames, None)
    assert same.remarks == ()


def test_predicted_frames_keep_their_share() -> None:
    assert transfer.resize(imported("mae_st"), 16, None).config.model.predicted_frames == 8
    with pytest.raises(UserError, match=r"4 of 8 frames are predicted, a share that 7 frames"):
        transfer.resize(imported("mae_st"), 7, None)


def test_a_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="image height 10 is not a positive multiple"):
        transfer.resize(imported("mae"), None, (10, 8))
    with pytest.raises(UserError, match="--to_num_frames=4: the model is one of images; leave"):
        transfer.resize(imported("mae"), 4, None)
    with pytest.raises(UserError, match="needs a grid of at least 12 x 12"):
        transfer.resize(imported("automae"), None, (44, 48))


def test_a_fixed_table_becomes_the_larger_grids_own() -> None:
    """MAE's classifier after --to_image_size: made of the new grid's fixed table, not stretched."""
    larger = transfer.resize(imported("mae"), None, (16, 12))
    made = transfer.into_classifier(larger, 3, seed=0)
    table = made.variables["params"]["encoder"]["positions"]["table"]
    np.testing.assert_allclose(table, reference.table_2d(4, 3, 16), atol=1e-6)
