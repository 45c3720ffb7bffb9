"""From pretraining to a classifier, and encoders that come alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamae_jax import pretrained
from adamae_jax.errors import UserError
from adamae_jax.interop import exports, imports, safetensors_files
from adamae_jax.interop.given import Given
from adamae_jax.interop.imports import Imported
from adamae_jax.interop.sources import Source
from adamae_jax.pretrained import Finetuned, Loaded
from tests import helpers
from tests.interop.convert_cases import CASES, LABELS, assert_same_arrays, bring, given, loaded
from tests.parity import reference

PRETRAINED = ("adamae", "videomae", "mae_st", "mae_st_joint", "mae")


def imported(name: str) -> Imported:
    """A pretrained model as an import leaves it."""
    model = loaded(name)
    variables = {name: part for name, part in model.variables.items() if part}
    arrays = {name: np.asarray(a) for name, a in pretrained.flatten(variables).items()}
    tree = imports.traverse_util.unflatten_dict(arrays, sep="/")
    return Imported("pretraining", tree, model.config, model.step, (), model.license, ())


def built(found: Imported) -> Loaded:
    return pretrained.build(
        *(found.variables, found.config, found.step, found.label_names, found.license), source="x"
    )


def flat(tree: Any) -> dict[str, Any]:
    return {name: np.asarray(array) for name, array in pretrained.flatten(dict(tree)).items()}


@pytest.fixture(params=PRETRAINED, scope="module")
def pair(request: pytest.FixtureRequest) -> tuple[str, Loaded, Finetuned, tuple[str, ...]]:
    """A pretrained model, the classifier that is made of it, and what is said about it."""
    made = imports.into_classifier(imported(request.param), num_classes=5, seed=3)
    classifier = built(made)
    assert isinstance(classifier, Finetuned)
    return request.param, loaded(request.param), classifier, made.remarks


def test_the_encoder_is_taken_bit_for_bit(pair: Any) -> None:
    name, model, classifier, _ = pair
    before, after = (flat(each.params["encoder"]) for each in (model, classifier))
    if CASES[name].family == "mae":
        table = after.pop("positions/table")  # which is trained from now on
        _, height, width = CASES[name].clip
        grid = (height // 4, width // 4)
        np.testing.assert_allclose(table, reference.table_2d(*grid, 16), atol=1e-6)
    norm = {part: before.pop(f"norm/{part}") for part in ("scale", "bias")}
    assert_same_arrays(after, before)
    found = flat(classifier.params["norm"])
    if CASES[name].family == "mae_st":  # its classifier calls its norm as the encoder does
        assert_same_arrays(found, norm)
    else:
        assert_same_arrays(found, {"scale": np.ones(16, "f4"), "bias": np.zeros(16, "f4")})
    assert classifier.params["head"]["kernel"].shape == (16, 5)
    assert (classifier.step, classifier.license) == (model.step, model.license)


def test_the_latents_are_the_same(pair: Any) -> None:
    """Of a classifier those before mean and norm; of an autoencoder those after its last norm."""
    _, model, classifier, _ = pair
    video = helpers.clips(2, geometry=model.model.geometry)
    norm = flat(model.params["encoder"])
    x = np.asarray(classifier.features(video), np.float64)
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + model.config.model.norm_epsilon)
    expected = x * norm["norm/scale"] + norm["norm/bias"]
    np.testing.assert_allclose(model.features(video), expected, rtol=1e-4, atol=1e-4)


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
    # Nor are clips cut as in pretraining: 5 classes are none of Something-Something V2's 174.
    data, sampling = classifier.config.data, {"mae": "dense", "mae_st": "time_scaled"}
    family = CASES[name].family
    assert data.frame_sampling == sampling.get(family, "stretched")
    assert (data.crop, data.crop_area) == ("random_resized", (0.08, 1.0))
    assert data.horizontal_flip
    assert (data.num_frames, data.image_size) == (
        *(model.config.data.num_frames, model.config.data.image_size),
    )


def test_its_clips_are_those_of_its_classes_and_nothing_else_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file.safetensors"
    safetensors_files.write(file, exports.to_authors(loaded("videomae")))
    ours = bring(file, tmp_path / "ours", "--num_classes=174", *given("videomae"))
    data = pretrained.load(ours).config.data
    assert (data.frame_sampling, data.crop) == ("segments", "random_resized")
    assert not data.horizontal_flip
    said = capsys.readouterr().out
    assert "frame_sampling segments, crop random_resized" in said
    assert "Something-Something V2" in said
    assert "Kinetics" not in said


def test_clips_that_are_given_go_before_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    safetensors_files.write(file, exports.to_authors(loaded("videomae")))
    own = ("--frame_sampling=dense", "--sampling_rate=3", *given("videomae"))
    data = pretrained.load(bring(file, tmp_path / "ours", "--num_classes=174", *own)).config.data
    assert (data.frame_sampling, data.sampling_rate) == ("dense", 3)
    assert data.crop == "random_resized"
    with pytest.raises(
        UserError, match="--sampling_rate=3 says nothing of the frame_sampling 'seg"
    ):
        bring(file, tmp_path / "no", "--num_classes=174", "--sampling_rate=3", *given("videomae"))


def test_the_seed_is_of_what_starts_fresh() -> None:
    first, same, other = (
        imports.into_classifier(imported("videomae"), 5, seed).variables["params"]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first["head"]["kernel"], same["head"]["kernel"])
    assert (first["head"]["kernel"] != other["head"]["kernel"]).all()
    assert_same_arrays(flat(first["encoder"]), flat(other["encoder"]))


def test_a_classifier_is_not_made_of_a_classifier() -> None:
    model = imported("videomae")
    made = imports.into_classifier(model, 5, seed=0)
    with pytest.raises(UserError, match="is a classifier already"):
        imports.into_classifier(made, 5, seed=0)


def encoder_of(name: str) -> dict[str, np.ndarray]:
    """What MAE's authors publish of a pretrained model: embedding, positions, blocks and norm."""
    state = exports.to_authors(loaded(name))
    parts = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")
    plain = {n.removeprefix("encoder."): a for n, a in state.items()}
    decoder = ("encoder_to_decoder", "decoder")
    return {n: a for n, a in plain.items() if n.startswith(parts) and not n.startswith(decoder)}


ENCODERS = pytest.mark.parametrize("name", ["mae", "mae_st", "mae_st_joint", "videomae"])


@ENCODERS
def test_an_encoder_alone_becomes_a_classifier(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same as the whole checkpoint does, decoder and all."""
    safetensors_files.write(tmp_path / "encoder.safetensors", encoder_of(name))
    own = [*given(name, fine_tuned=True), "--num_classes=3", "--seed=4"]
    ours = bring(tmp_path / "encoder.safetensors", tmp_path / "ours", *own)
    expected = built(imports.into_classifier(imported(name), len(LABELS), seed=4))
    assert_same_arrays(flat(pretrained.load(ours).variables), flat(expected.variables))
    said = capsys.readouterr().out
    assert "taken from pretraining: encoder/embedding" in said
    assert "decoder" not in said


@ENCODERS
def test_an_encoder_alone_is_no_model(tmp_path: Path, name: str) -> None:
    safetensors_files.write(tmp_path / "encoder.safetensors", encoder_of(name))
    message = "holds an encoder alone.*: give --num_classes to make a classifier of it$"
    if name == "mae":
        message = (
            r"holds an encoder alone.*--num_classes.*, or give it as --pretrained_vit in importing "
            r"a finished AutoMAE; to train one \(masking.options.pretrained\), .*with its decoder"
        )
    with pytest.raises(UserError, match=message):
        bring(tmp_path / "encoder.safetensors", tmp_path / "ours", *given(name, fine_tuned=True))
    assert not (tmp_path / "ours").exists()


def test_of_an_encoder_alone_every_tensor_is_accounted_for() -> None:
    state = encoder_of("mae")
    del state["blocks.1.attn.proj.bias"]
    state["extra"] = np.zeros(1, np.float32)
    config = Given(num_heads=2)
    message = "missing blocks.1.attn.proj.bias; not used extra"
    with pytest.raises(UserError, match=message):
        imports.convert(Source(state, given=config))
