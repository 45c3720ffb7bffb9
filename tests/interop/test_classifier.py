"""A classifier of imported weights; what one takes of pretraining: tests/test_initial.py."""

from pathlib import Path

import numpy as np
import pytest

from adamae_jax import pretrained
from adamae_jax.errors import UserError
from adamae_jax.interop import exports, files, imports
from adamae_jax.interop.files import StateDict
from adamae_jax.interop.sources import Source
from adamae_jax.interop.weight_reader import ImportOptions
from tests.interop.convert_cases import CASES, bring, given, loaded


def encoder_of(name: str) -> StateDict:
    """What MAE's authors publish of a pretrained model: embedding, positions, blocks and norm."""
    state = exports.to_authors(loaded(name))
    parts = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")
    plain = {n.removeprefix("encoder."): a for n, a in state.items()}
    return {n: a for n, a in plain.items() if n.startswith(parts)}


@pytest.mark.parametrize("name", ["videomae", "mae", "mae_st_joint"])
def test_a_classifier_of_a_whole_model_or_its_encoder_alone(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, whole = tmp_path / "encoder.safetensors", tmp_path / "whole.safetensors"
    files.write_safetensors(encoder, encoder_of(name))
    files.write_safetensors(whole, exports.to_authors(loaded(name)))
    own = given(name, fine_tuned=True)
    message = "holds an encoder alone.*: give --num_classes to make a classifier of it"
    with pytest.raises(UserError, match=message + ", or give it as --pre" * (name == "mae")):
        bring(encoder, tmp_path / "ours", *own)
    ours = pretrained.load(bring(encoder, tmp_path / "ours", *own, "--num_classes=5", "--seed=4"))
    said = capsys.readouterr().out
    assert "fresh: the source is no classifier" in said and "decoder" not in said
    other = pretrained.load(bring(whole, tmp_path / "other", *given(name), "--num_classes=5"))
    assert "left in the source: autoencoder/decoder" in capsys.readouterr().out
    found, expected = (pretrained.flatten(dict(each.variables)) for each in (ours, other))
    assert found.keys() == expected.keys()
    for path, array in found.items():  # the seed is of the head
        assert np.array_equal(array, expected[path]) == (path != "params/head/kernel"), path
    for each in (ours, other):
        options, family = each.config.classifier, CASES[name].family
        assert (options.num_classes, options.norm_epsilon) == (5, 1e-6)
        # The released code leaves the first token out, which without a class token is a patch.
        assert options.skip_first_patch == (name == "mae_st_joint")
        data, sampling = each.config.data, {"mae": "dense", "mae_st": "time_scaled"}
        assert data.frame_sampling == sampling.get(family, "stretched")
        assert (data.crop_area, data.horizontal_flip) == ((0.08, 1), True)


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
    with pytest.raises(UserError, match="--sampling_rate=3 says nothing of the frame_sampling 's"):
        bring(file, tmp_path / "no", "--sampling_rate=3", *own)


def test_of_an_encoder_alone_every_tensor_is_accounted_for() -> None:
    state = encoder_of("mae")
    del state["blocks.1.attn.proj.bias"]
    state["extra"] = np.zeros(1, np.float32)
    message = "missing blocks.1.attn.proj.bias; not used extra"
    with pytest.raises(UserError, match=message):
        imports.convert(Source(state, ImportOptions(num_heads=2)))
