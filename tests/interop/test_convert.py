"""Weights in and out without PyTorch: every system, both ways, as files and as jobs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adamae_jax import pretrained
from adamae_jax.errors import UserError
from adamae_jax.interop import exports, files, sources
from tests.interop.convert_cases import (
    HUGGING_FACE,
    LABELS,
    LICENSE,
    MODELS,
    STEP,
    assert_same_arrays,
    assert_same_model,
    bring,
    export,
    given,
    loaded,
    shapes_of,
    written,
)

ROOT = Path(__file__).parent.parent.parent


def identity(model: tuple[str, bool]) -> str:
    return model[0] + " fine-tuned" * model[1]


ALL = pytest.mark.parametrize("model", MODELS, ids=identity)
WITH_CLASS = pytest.mark.parametrize("model", HUGGING_FACE, ids=identity)


@ALL
def test_ours_to_a_file_to_ours(
    tmp_path: Path, model: tuple[str, bool], capsys: pytest.CaptureFixture[str]
) -> None:
    ours = written(tmp_path / "ours", *model)
    file = export(ours, tmp_path / "file.safetensors")
    again = bring(file, tmp_path / "again")
    found = pretrained.load(again)
    assert_same_model(found, loaded(*model))
    assert (found.step, found.license) == (STEP, LICENSE)
    assert found.label_names == (LABELS if model[1] else ())
    said = json.loads((ours / "model.json").read_text())
    assert json.loads((again / "model.json").read_text()) == said
    note, *rest = capsys.readouterr().out.splitlines()
    assert note.startswith("note: file.safetensors holds the model's description")
    assert rest == [
        *(f"license: {LICENSE}", str(file)),
        *(f"license: {LICENSE}", str(again)),
    ]


@ALL
def test_their_file_to_ours(tmp_path: Path, model: tuple[str, bool]) -> None:
    """A file that says nothing beside its weights, and the flags that make up for it."""
    theirs = exports.to_authors(loaded(*model))
    assert {name: array.shape for name, array in theirs.items()} == shapes_of(*model)
    files.write_safetensors(tmp_path / "theirs.safetensors", theirs)
    found = pretrained.load(
        bring(tmp_path / "theirs.safetensors", tmp_path / "ours", *given(*model))
    )
    assert_same_model(found, loaded(*model))
    assert (found.step, found.license, found.label_names) == (0, "", ())
    assert_same_arrays(exports.to_authors(found), theirs)


@WITH_CLASS
def test_ours_to_a_directory_to_ours(tmp_path: Path, model: tuple[str, bool]) -> None:
    ours = written(tmp_path / "ours", *model)
    theirs = export(ours, tmp_path / "theirs", "--format=huggingface")
    again = bring(theirs, tmp_path / "again")
    found = pretrained.load(again)
    assert_same_model(found, loaded(*model))
    said = json.loads((ours / "model.json").read_text())
    assert json.loads((again / "model.json").read_text()) == said


def test_what_has_no_place_lies_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = written(tmp_path / "ours", "adamae")
    theirs = export(ours, tmp_path / "theirs", "--format=huggingface")
    beside = files.read_safetensors(theirs / sources.MASKING_FILE)
    state = exports.to_authors(loaded("adamae"))
    names = ("encoder.pos_embed_probs", "encoder.get_token_probs.")
    assert_same_arrays(beside, {n: state[n] for n in state if n.startswith(names)})
    assert f"has no place for {sources.MASKING_FILE}" in capsys.readouterr().out
    # Without our description it is AdaMAE still, with the sampler's heads as published.
    (theirs / sources.DESCRIPTION_FILE).unlink()
    found = pretrained.load(bring(theirs, tmp_path / "again", "--sampler_num_heads=4"))
    assert found.config.model.decoder_norm_epsilon == 1e-5  # as their class has it
    found.config.model.decoder_norm_epsilon = 1e-6
    assert_same_model(found, loaded("adamae"))


@pytest.mark.parametrize("name", ["mae_st", "videomae_scaled", "automae"])
def test_what_has_no_class_is_refused(tmp_path: Path, name: str) -> None:
    ours = written(tmp_path / "ours", name)
    message = {
        "mae_st": "no class for a pretraining model of the family 'mae_st'",
        "videomae_scaled": "Hugging Face has no class for blocks with LayerScale",
    }
    if name in message:
        with pytest.raises(UserError, match=message[name]):
            export(ours, tmp_path / "theirs", "--format=huggingface")
        assert not (tmp_path / "theirs").exists()
    else:  # AutoMAE is an MAE with networks beside
        theirs = export(ours, tmp_path / "theirs", "--format=huggingface")
        assert_same_model(pretrained.load(bring(theirs, tmp_path / "again")), loaded(name))


def test_the_discriminators_second_names_are_left_out(tmp_path: Path) -> None:
    """The authors' checkpoints hold its first convolution twice."""
    state = exports.to_authors(loaded("automae"))
    twice = {
        name.replace("conv1.", "features."): array
        for name, array in state.items()
        if name.startswith("discriminator.conv1.")
    }
    assert len(twice) == 3
    file = tmp_path / "file.safetensors"
    files.write_safetensors(file, state | twice)
    found = pretrained.load(bring(file, tmp_path / "ours", *given("automae")))
    assert_same_model(found, loaded("automae"))
    name = next(iter(twice))
    files.write_safetensors(file, state | {**twice, name: twice[name] + 1})
    with pytest.raises(UserError, match=f"{name} should be a second name"):
        bring(file, tmp_path / "other", *given("automae"))


def test_the_frozen_vit_comes_from_a_file_of_its_own(tmp_path: Path) -> None:
    """As in the authors' form: an image MAE, whole, or its encoder alone."""
    state = exports.to_authors(loaded("automae"))
    vit = {n.removeprefix("pretrained_vit."): a for n, a in state.items() if "pretrained_vit" in n}
    whole = {**vit, "mask_token": np.ones((1, 1, 4)), "decoder_embed.weight": np.ones((4, 16))}
    rest = {name: array for name, array in state.items() if "pretrained_vit" not in name}
    files.write_safetensors(tmp_path / "rest.safetensors", rest)
    for number, arrays in enumerate((vit, whole)):
        files.write_safetensors(tmp_path / "vit.safetensors", arrays)
        flag = f"--pretrained_vit={tmp_path / 'vit.safetensors'}"
        output = tmp_path / f"ours{number}"
        bring(tmp_path / "rest.safetensors", output, flag, *given("automae"))
        assert_same_model(pretrained.load(output), loaded("automae"))


def test_what_was_assumed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file.safetensors"
    files.write_safetensors(file, exports.to_authors(loaded("mae")))
    bring(file, tmp_path / "ours", *given("mae"))
    assert capsys.readouterr().out.splitlines() == [
        "note: crop random_resized, crop_area 0.2-1, crop_aspect 0.75-1.33, interpolation bicubic, "
        "horizontal_flip True: as published for ImageNet",
        "note: mask_ratio 0.75: as published",
        "license: unknown; give --license where you know it",
        str(tmp_path / "ours"),
    ]


def test_labels_and_license_are_given_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file.safetensors"
    files.write_safetensors(file, exports.to_authors(loaded("mae", True)))
    (tmp_path / "names.txt").write_text("walking\nrunning\n\nresting\n")
    flags = (f"--label_names={tmp_path / 'names.txt'}", "--license=Our own, 1")
    ours = bring(file, tmp_path / "ours", *flags, *given("mae", True))
    found = pretrained.load(ours)
    assert (found.label_names, found.license) == (LABELS, "Our own, 1")
    assert "license: Our own, 1" in capsys.readouterr().out
    for output in ("file2.safetensors",):
        export(ours, tmp_path / output)
        assert "license: Our own, 1" in capsys.readouterr().out
        metadata = files.read_metadata(tmp_path / output)
        assert metadata["license"] == "Our own, 1"


def test_a_job_in_a_process_of_its_own(tmp_path: Path) -> None:
    ours, file = written(tmp_path / "ours", "videomae"), tmp_path / "file.safetensors"
    words = ("adamae_jax.convert", "export", f"--source={ours}", f"--output={file}")
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [f"license: {LICENSE}", str(file)]


@pytest.mark.parametrize("license", ["mit", 'Jürgen\'s "own" # 1', ""])
def test_the_model_card_has_the_license(tmp_path: Path, license: str) -> None:
    model = loaded("videomae")
    own = pretrained.build(model.variables, model.config, 0, (), license, "x")
    exports.write_hugging_face(own, tmp_path)
    card = (tmp_path / sources.MODEL_CARD).read_text()
    assert ("license: other" in card) == (" " in license)
    assert ("license: unknown" in card) == (not license)
    (tmp_path / sources.DESCRIPTION_FILE).unlink()
    assert sources.read(tmp_path).license == license


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlicense: 'cc-by-nc-4.0' # of the weights\ntags:\n- video\n---\n", "cc-by-nc-4.0"),
        ("---\ntags:\n- x\nlicense:\ntitle: y\n---\nlicense: mit\n", ""),
        ("---\n: {\n---\n", ""),
        ("license: mit\n", ""),
    ],
)
def test_licenses_of_other_model_cards(tmp_path: Path, card: str, license: str) -> None:
    exports.write_hugging_face(loaded("videomae"), tmp_path)
    (tmp_path / sources.DESCRIPTION_FILE).unlink()
    (tmp_path / sources.MODEL_CARD).write_text(card)
    assert sources.read(tmp_path).license == license


def test_weights_that_were_trained_here_have_the_license_that_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = loaded("mae")
    pretrained.save(tmp_path / "own", model.variables, model.config, 0)
    export(tmp_path / "own", tmp_path / "unknown", "--format=huggingface")
    assert "license: unknown; give --license for weights" in capsys.readouterr().out
    own = ("--format=huggingface", "--license=apache-2.0")
    theirs = export(tmp_path / "own", tmp_path / "known", *own)
    assert sources.read(theirs).license == "apache-2.0"
    ours = written(tmp_path / "ours", "mae")
    with pytest.raises(UserError, match=f"under the licence {LICENSE}, which goes with them"):
        export(ours, tmp_path / "other", *own)


def test_published_checkpoints_of_mae_st_come_in(tmp_path: Path) -> None:
    """With the decoder's names, joint table and shared class token of SlowFast's code."""
    state = exports.to_authors(loaded("mae_st"))
    theirs = {
        re.sub(r"^decoder_blocks\.", "pred_head.transforms.0.", name)
        .replace("decoder_norm.", "pred_head.transforms.0.1.")
        .replace("decoder_pred.", "pred_head.projections.0."): array
        for name, array in state.items()
        if not name.startswith(("decoder_pos_embed", "decoder_cls_token"))
    }
    table = np.random.default_rng(0).normal(size=(1, 1 + 96, 12)).astype(np.float32)
    file = tmp_path / "file.safetensors"
    files.write_safetensors(file, {**theirs, "decoder_pos_embed": table})
    own = ("--num_heads=2", "--image_size=16,24")
    classifier = bring(file, tmp_path / "classifier", *own, "--num_classes=3")
    export(classifier, tmp_path / "classifier.safetensors")
    found = pretrained.load(bring(file, tmp_path / "ours", *own))
    with pytest.raises(UserError, match="no model with model.class_token='shared'"):
        export(tmp_path / "ours", tmp_path / "ours.safetensors")
    model = found.config.model
    assert (model.positions, model.class_token) == ("learned", "shared")
    assert (model.decoder.depth, model.decoder.num_heads, model.predicted_frames) == (1, 1, 4)
    encoder, decoder = (found.params[part]["positions"]["table"] for part in ("encoder", "decoder"))
    np.testing.assert_array_equal(decoder, table[0])
    before = loaded("mae_st").params["encoder"]["positions"]
    np.testing.assert_array_equal(encoder[0], before["class_token"])
    place = 2 * 24 + 7  # the third time step, the eighth patch
    np.testing.assert_array_equal(encoder[1 + place], before["temporal"][2] + before["spatial"][7])
    np.testing.assert_array_equal(
        found.params["decoder"]["norm"]["scale"],
        loaded("mae_st").params["decoder"]["norm"]["scale"],
    )
