"""Weights in and out without PyTorch: every system, both ways, as files and as jobs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamae_jax import experiment, pretrained
from adamae_jax.errors import UserError
from adamae_jax.interop import exports, huggingface, imports, safetensors_files, sources
from adamae_jax.pretrained import Loaded
from tests.interop import convert_cases
from tests.interop.convert_cases import (
    CASES,
    HUGGING_FACE,
    LABELS,
    LICENSE,
    MODELS,
    STEP,
    assert_same_arrays,
    assert_same_config,
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
def test_names_and_shapes_are_the_authors(model: tuple[str, bool]) -> None:
    state = exports.to_authors(loaded(*model))
    assert {name: array.shape for name, array in state.items()} == shapes_of(*model)


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
    flags, *rest = capsys.readouterr().out.splitlines()
    assert rest == [
        *(f"license: {LICENSE}", str(file)),
        *(f"license: {LICENSE}", str(again)),
    ]
    assert flags.startswith("note: without the description beside the weights, give --")


@ALL
def test_their_file_to_ours_to_their_file(tmp_path: Path, model: tuple[str, bool]) -> None:
    """A file that says nothing beside its weights, and the flags that make up for it."""
    theirs = exports.to_authors(loaded(*model))
    safetensors_files.write(tmp_path / "theirs.safetensors", theirs)
    ours = bring(tmp_path / "theirs.safetensors", tmp_path / "ours", *given(*model))
    found = pretrained.load(ours)
    assert_same_model(found, loaded(*model))
    assert (found.step, found.license, found.label_names) == (0, "", ())
    file = export(ours, tmp_path / "again.safetensors")
    assert_same_arrays(safetensors_files.read(file, strip_prefixes=False), theirs)


def told(output: str) -> list[str]:
    """The flags that an export says are needed without its description."""
    begins = "note: without the description beside the weights, give "
    (line,) = [line for line in output.splitlines() if line.startswith(begins)] or [begins]
    return line.removeprefix(begins).split()


def is_found(directory: Path, source: Path, flags: list[str], expected: Loaded) -> bool:
    """Whether an import of bare weights, with these flags, is the model."""
    try:
        found = pretrained.load(bring(source, directory, *flags))
        found.config.model.decoder_norm_epsilon = expected.config.model.decoder_norm_epsilon
        found.config.classifier.norm_epsilon = expected.config.classifier.norm_epsilon
        assert_same_model(found, expected)
    except (AssertionError, UserError):
        return False
    return True


@ALL
def test_the_flags_that_are_told_are_needed_and_enough(
    tmp_path: Path, model: tuple[str, bool], capsys: pytest.CaptureFixture[str]
) -> None:
    ours = written(tmp_path / "ours", *model)
    forms = {"authors": "file.safetensors", "huggingface": "directory"}
    for form in ("authors", *["huggingface"] * (model in HUGGING_FACE)):
        source = export(ours, tmp_path / forms[form], f"--format={form}")
        flags = told(capsys.readouterr().out)
        if form == "huggingface":
            (source / sources.DESCRIPTION_FILE).unlink()
        else:
            safetensors_files.write(source, exports.to_authors(loaded(*model)))
        assert is_found(tmp_path / f"{form}-all", source, flags, loaded(*model)), flags
        for flag in flags:
            rest = [other for other in flags if other != flag]
            output = tmp_path / f"{form}-{flag[2:9]}"
            assert not is_found(output, source, rest, loaded(*model)), flag


@WITH_CLASS
def test_ours_to_a_directory_to_ours(tmp_path: Path, model: tuple[str, bool]) -> None:
    ours = written(tmp_path / "ours", *model)
    theirs = export(ours, tmp_path / "theirs", "--format=huggingface")
    again = bring(theirs, tmp_path / "again")
    found = pretrained.load(again)
    assert_same_model(found, loaded(*model))
    said = json.loads((ours / "model.json").read_text())
    assert json.loads((again / "model.json").read_text()) == said


@pytest.mark.parametrize("model", [m for m in HUGGING_FACE if m[0] != "adamae"], ids=identity)
def test_their_directory_to_ours_to_their_directory(
    tmp_path: Path, model: tuple[str, bool]
) -> None:
    """A directory as transformers writes it: nothing of ours in it, all sizes in its config."""
    exports.write_hugging_face(loaded(*model), tmp_path / "theirs")
    (tmp_path / "theirs" / sources.DESCRIPTION_FILE).unlink()
    ratio = ["--mask_ratio=0.75"] * (model == ("videomae", False))
    ours = bring(tmp_path / "theirs", tmp_path / "ours", *ratio)
    found, expected = pretrained.load(ours), loaded(*model)
    if model[1]:  # their class has an epsilon of its own
        epsilon = 1e-6 if model[0] == "videomae_first" else 1e-5
        assert found.config.classifier.norm_epsilon == epsilon
        found.config.classifier.norm_epsilon = 1e-6
    elif model[0] == "videomae":
        assert found.config.model.decoder_norm_epsilon == 1e-5
        found.config.model.decoder_norm_epsilon = 1e-6
    assert_same_arrays(
        pretrained.flatten(dict(found.variables)), pretrained.flatten(dict(expected.variables))
    )
    assert_same_config(found.config, expected.config)
    assert found.label_names == (LABELS if model[1] else ())
    assert found.license == LICENSE
    again = export(ours, tmp_path / "again", "--format=huggingface")
    before, after = (huggingface.read(path) for path in (tmp_path / "theirs", again))
    assert_same_arrays(after.state, before.state)
    assert after.facts == before.facts


def test_what_has_no_place_lies_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = written(tmp_path / "ours", "adamae")
    theirs = export(ours, tmp_path / "theirs", "--format=huggingface")
    beside = safetensors_files.read(theirs / sources.MASKING_FILE, strip_prefixes=False)
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
        with pytest.raises(convert_cases.exporting.UserError, match=message[name]):
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
    safetensors_files.write(file, state | twice)
    found = pretrained.load(bring(file, tmp_path / "ours", *given("automae")))
    assert_same_model(found, loaded("automae"))
    name = next(iter(twice))
    safetensors_files.write(file, state | {**twice, name: twice[name] + 1})
    with pytest.raises(convert_cases.exporting.UserError, match=f"{name} should be a second name"):
        bring(file, tmp_path / "other", *given("automae"))


def test_the_frozen_vit_comes_from_a_file_of_its_own(tmp_path: Path) -> None:
    """As in the authors' form: an image MAE, whole, or its encoder alone."""
    state = exports.to_authors(loaded("automae"))
    vit = {n.removeprefix("pretrained_vit."): a for n, a in state.items() if "pretrained_vit" in n}
    whole = {**vit, "mask_token": np.ones((1, 1, 4)), "decoder_embed.weight": np.ones((4, 16))}
    rest = {name: array for name, array in state.items() if "pretrained_vit" not in name}
    safetensors_files.write(tmp_path / "rest.safetensors", rest)
    for number, arrays in enumerate((vit, whole)):
        safetensors_files.write(tmp_path / "vit.safetensors", arrays)
        flag = f"--pretrained_vit={tmp_path / 'vit.safetensors'}"
        output = tmp_path / f"ours{number}"
        bring(tmp_path / "rest.safetensors", output, flag, *given("automae"))
        assert_same_model(pretrained.load(output), loaded("automae"))


@pytest.mark.parametrize("prefix", ["module.", "module.encoder.", "_orig_mod."])
def test_prefixes_of_wrappers_are_taken_away(tmp_path: Path, prefix: str) -> None:
    file = tmp_path / "file.safetensors"
    state = exports.to_authors(loaded("videomae", True))
    safetensors_files.write(file, {prefix + name: array for name, array in state.items()})
    found = pretrained.load(bring(file, tmp_path / "ours", *given("videomae", True)))
    assert_same_model(found, loaded("videomae", True))


def test_what_was_assumed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file.safetensors"
    safetensors_files.write(file, exports.to_authors(loaded("mae")))
    bring(file, tmp_path / "ours", *given("mae"))
    assert capsys.readouterr().out.splitlines() == [
        "note: crop random_resized, crop_area 0.2-1, crop_aspect 0.75-1.33, interpolation bicubic, "
        "horizontal_flip True: as published for ImageNet",
        "note: mask_ratio 0.75: as published",
        "license: unknown; give --license where you know it",
        str(tmp_path / "ours"),
    ]


def test_how_clips_are_cut_is_taken_from_the_recipe_or_said(tmp_path: Path) -> None:
    """The model directory says it to every job."""
    file = tmp_path / "file.safetensors"
    safetensors_files.write(file, exports.to_authors(loaded("mae_st")))
    data = pretrained.load(bring(file, tmp_path / "ours", *given("mae_st"))).config.data
    assert (data.frame_sampling, data.sampling_rate, data.crop) == (
        *("time_scaled", 4, "random_resized"),
    )
    own = ("--sampling_rate=2", "--frame_sampling=dense", *given("mae_st"))
    data = pretrained.load(bring(file, tmp_path / "other", *own)).config.data
    assert (data.frame_sampling, data.sampling_rate) == ("dense", 2)


@pytest.mark.parametrize(
    "fields",
    [
        {"crop": "random_resized", "crop_area": (0.2, 0.9), "crop_aspect": (0.5, 1.5)},
        {"interpolation": "bicubic", "horizontal_flip": True, "target_fps": 25.0},
    ],
)
def test_how_clips_were_cut_comes_back(tmp_path: Path, fields: dict[str, Any]) -> None:
    model = loaded("mae")
    config = model.config.copy_and_resolve_references()
    config.data.update(fields)
    pretrained.save(tmp_path / "model", model.variables, config, 0)
    found = pretrained.load(tmp_path / "model").config
    assert {name: found.data[name] for name in fields} == fields
    assert experiment.clip_spec(found) == experiment.clip_spec(config)


def test_labels_and_license_are_given_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file.safetensors"
    safetensors_files.write(file, exports.to_authors(loaded("mae", True)))
    (tmp_path / "names.txt").write_text("walking\nrunning\n\nresting\n")
    flags = (f"--label_names={tmp_path / 'names.txt'}", "--license=Our own, 1")
    ours = bring(file, tmp_path / "ours", *flags, *given("mae", True))
    found = pretrained.load(ours)
    assert (found.label_names, found.license) == (LABELS, "Our own, 1")
    assert "license: Our own, 1" in capsys.readouterr().out
    for output in ("file2.safetensors",):
        export(ours, tmp_path / output)
        assert "license: Our own, 1" in capsys.readouterr().out
        metadata = safetensors_files.read_metadata(tmp_path / output)
        assert metadata["license"] == "Our own, 1"


@pytest.mark.parametrize(
    ("license", "line"),
    [
        ("mit", "license: mit"),
        ("Our own: v1", 'license: other\nlicense_name: "Our own: v1"'),
        ('Jürgen\'s "own" # 1', 'license_name: "J\\u00fcrgen\'s \\"own\\" # 1"'),
    ],
)
def test_the_model_card_has_the_license(tmp_path: Path, license: str, line: str) -> None:
    model = loaded("videomae")
    own = pretrained.build(model.variables, model.config, 0, (), license, "x")
    exports.write_hugging_face(own, tmp_path)
    assert line in (tmp_path / sources.MODEL_CARD).read_text()
    (tmp_path / sources.DESCRIPTION_FILE).unlink()
    assert sources.read(tmp_path).license == license


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlicense: 'cc-by-nc-4.0'\ntags:\n- video\n---\n", "cc-by-nc-4.0"),
        ("---\ntags:\n- x\nlicense:\ntitle: y\n---\nlicense: mit\n", ""),
        ("---\nlicense: mit # of the weights\n---\n", "mit"),
        ("---\nlicense: # later\n---\n", ""),
        ("---\nlicense: other\nlicense_name: 'Anna''s' # own\n---\n", "Anna's"),
        ('---\nlicense: other\nlicense_name: "a\\xe9" # own\n---\n', "a\\xe9"),
        ("license: mit\n", ""),
        ("---\nlicense: mit", ""),
        ("", ""),
    ],
)
def test_licenses_of_model_cards(tmp_path: Path, card: str, license: str) -> None:
    exports.write_hugging_face(loaded("videomae"), tmp_path)
    (tmp_path / sources.DESCRIPTION_FILE).unlink()
    (tmp_path / sources.MODEL_CARD).write_text(card)
    assert sources.read(tmp_path).license == license


def test_labels_without_names_stay_without(tmp_path: Path) -> None:
    model = loaded("videomae", True)
    nameless = pretrained.build(model.variables, model.config, 0, (), "", "x")
    exports.write_hugging_face(nameless, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["id2label"]["2"] == "LABEL_2"
    (tmp_path / sources.DESCRIPTION_FILE).unlink()
    assert imports.convert(sources.read(tmp_path)).label_names == ()


def test_the_jobs_in_processes_of_their_own(tmp_path: Path) -> None:
    ours = written(tmp_path / "ours", "videomae")

    def job(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "adamae_jax.convert", *words],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    file = tmp_path / "file.safetensors"
    done = job("export", f"--source={ours}", f"--output={file}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [f"license: {LICENSE}", str(file)]
    done = job("import", f"--source={file}", f"--output={ours}")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: --output={ours} is there already: give a path that is not"
    ]


def test_every_case_is_a_system() -> None:
    """A name that is misspelled would test nothing."""
    assert {case.family for case in CASES.values()} == {"videomae", "mae", "mae_st"}
