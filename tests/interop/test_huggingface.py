"""Hugging Face's directories without PyTorch and transformers: there and back, and refusals."""

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adamae_jax.errors import UserError
from adamae_jax.interop import huggingface
from adamae_jax.interop.huggingface import CLASSES, Facts, Kind
from tests.interop.huggingface_models import (
    FACTS,
    FIRST_TOKEN,
    assert_same,
    first_token_state,
    state,
)

ALL = pytest.mark.parametrize("kind", list(CLASSES))


@pytest.fixture(autouse=True)
def nothing_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports of PyTorch and transformers fail, whether they are installed or not."""
    for name in ("torch", "transformers", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    """One directory of each kind, to be copied."""
    root = tmp_path_factory.mktemp("originals")
    for kind, facts in FACTS.items():
        huggingface.write(root / kind, kind, state(kind), facts)
    return {kind: root / kind for kind in FACTS}


@pytest.fixture
def copy(originals: dict[Kind, Path], tmp_path: Path) -> Callable[[Kind], Path]:
    """A directory that may be changed."""
    return lambda kind: Path(shutil.copytree(originals[kind], tmp_path / kind))


def change(path: Path, **fields: Any) -> None:
    """Sets fields of a JSON file; those that are None go."""
    values = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: v for name, v in values.items() if v is not None}))


def rename(directory: Path, *renamings: tuple[str, str]) -> None:
    """Replaces parts of the names of a directory's tensors."""
    tensors = load_file(directory / "model.safetensors")
    for old, new in renamings:
        assert any(old in name for name in tensors), old
        tensors = {name.replace(old, new): value for name, value in tensors.items()}
    save_file(tensors, directory / "model.safetensors")


@ALL
def test_authors_there_and_back_is_exact(originals: dict[Kind, Path], kind: Kind) -> None:
    model = huggingface.read(originals[kind])
    assert model.kind == kind
    assert model.facts == FACTS[kind]
    assert_same(model.state, state(kind))


@ALL
def test_hugging_face_there_and_back_is_exact(copy: Any, tmp_path: Path, kind: Kind) -> None:
    directory = copy(kind)
    model = huggingface.read(directory)
    huggingface.write(tmp_path / "again", kind, model.state, model.facts)
    for path in directory.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_parts_of_fused_arrays_go_where_they_belong(originals: dict[Kind, Path]) -> None:
    video, image = state("videomae_pretraining"), state("mae_pretraining")
    tensors = load_file(originals["videomae_pretraining"] / "model.safetensors")
    attention = "decoder.decoder_layers.1.attention.attention"
    for i, part in enumerate(("query", "key", "value")):
        weight = video["decoder.blocks.1.attn.qkv.weight"][8 * i : 8 * (i + 1)]
        np.testing.assert_array_equal(tensors[f"{attention}.{part}.weight"], weight)
    np.testing.assert_array_equal(
        tensors[f"{attention}.v_bias"], video["decoder.blocks.1.attn.v_bias"]
    )
    np.testing.assert_array_equal(tensors["videomae.layernorm.bias"], video["encoder.norm.bias"])
    tensors = load_file(originals["mae_pretraining"] / "model.safetensors")
    attention = "vit.encoder.layer.2.attention.attention"
    for i, part in enumerate(("query", "key", "value")):
        bias = image["blocks.2.attn.qkv.bias"][12 * i : 12 * (i + 1)]
        np.testing.assert_array_equal(tensors[f"{attention}.{part}.bias"], bias)


def test_the_names_inside_transformers_5_are_read(copy: Any) -> None:
    directory = copy("videomae_classifier")
    rename(directory, (".q_bias", ".query.bias"), (".v_bias", ".value.bias"))
    assert_same(huggingface.read(directory).state, state("videomae_classifier"))
    directory = copy("mae_pretraining")
    rename(
        directory,
        ("vit.encoder.layer.", "vit.layers."),
        (".attention.attention.query.", ".attention.q_proj."),
        (".attention.attention.key.", ".attention.k_proj."),
        (".attention.attention.value.", ".attention.v_proj."),
        (".attention.output.dense.", ".attention.o_proj."),
        (".intermediate.dense.", ".mlp.fc1."),
        (".output.dense.", ".mlp.fc2."),
    )
    assert_same(huggingface.read(directory).state, state("mae_pretraining"))


def test_the_decoder_names_that_transformers_5_writes_are_read(copy: Any) -> None:
    directory = copy("mae_pretraining")
    rename(directory, ("decoder.decoder_layers.", "decoder.decoder_encoder.layer."))
    assert_same(huggingface.read(directory).state, state("mae_pretraining"))


def test_one_tensor_under_two_names_is_refused(copy: Any) -> None:
    directory = copy("mae_pretraining")
    tensors = load_file(directory / "model.safetensors")
    tensors["vit.layers.0.mlp.fc1.bias"] = tensors["vit.encoder.layer.0.intermediate.dense.bias"]
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(UserError, match=r"hold vit.encoder.layer.0.intermediate.dense.bias twice"):
        huggingface.read(directory)


def test_a_classifier_of_the_first_token(copy: Any, tmp_path: Path) -> None:
    """What transformers makes of a published pre-training model, if not told otherwise."""
    kind: Kind = "videomae_classifier"
    directory = copy(kind)
    change(directory / "config.json", use_mean_pooling=False)
    rename(directory, ("fc_norm", "videomae.layernorm"))
    model = huggingface.read(directory)
    assert model.facts == FIRST_TOKEN
    assert_same(model.state, first_token_state())
    assert huggingface.write(tmp_path / "again", kind, model.state, model.facts) == []
    for name in ("config.json", "model.safetensors"):
        ours, theirs = (each / name for each in (tmp_path / "again", directory))
        if name == "config.json":
            assert json.loads(ours.read_text()) == json.loads(theirs.read_text())
        else:
            assert_same(load_file(ours), load_file(theirs))


def test_a_norm_of_the_other_pooling_is_left_over(copy: Any) -> None:
    directory = copy("videomae_classifier")
    change(directory / "config.json", use_mean_pooling=False)
    with pytest.raises(UserError, match="missing videomae.layernorm.bias, .* not used fc_norm.b"):
        huggingface.read(directory)


@ALL
def test_models_without_attention_biases(tmp_path: Path, kind: Kind) -> None:
    biases = ("q_bias", "v_bias", "qkv.bias")
    weights = {name: v for name, v in state(kind).items() if not name.endswith(biases)}
    facts = dataclasses.replace(FACTS[kind], qkv_bias=False)
    huggingface.write(tmp_path, kind, weights, facts)
    model = huggingface.read(tmp_path)
    assert_same(model.state, weights)
    assert model.facts == facts


def test_frames_that_are_not_square(tmp_path: Path) -> None:
    facts = dataclasses.replace(FACTS["videomae_pretraining"], image_size=(8, 12))
    remarks = huggingface.write(
        tmp_path, "videomae_pretraining", state("videomae_pretraining"), facts
    )
    assert len(remarks) == 1
    assert "resizes frames to 8 x 12" in remarks[0]
    assert huggingface.read(tmp_path).facts == facts


@pytest.mark.parametrize(
    ("kind", "changes", "remark"),
    [
        (
            "videomae_classifier",
            {"classifier_norm_epsilon": 1e-6},
            "epsilon 1e-05 in fc_norm, this model 1e-06",
        ),
        ("videomae_pretraining", {"norm_pix_loss": False, "pixel_mean": (0.5,) * 3}, "its loss"),
    ],
)
def test_what_their_classes_compute_otherwise_is_remarked(
    tmp_path: Path, kind: Kind, changes: dict[str, Any], remark: str
) -> None:
    facts = FACTS[kind]
    assert huggingface.write(tmp_path, kind, state(kind), facts) == []
    (found,) = huggingface.write(tmp_path, kind, state(kind), dataclasses.replace(facts, **changes))
    assert CLASSES[kind] in found
    assert re.search(remark, found)


def test_the_first_tokens_norm_has_the_epsilon_of_all(tmp_path: Path) -> None:
    kind: Kind = "videomae_classifier"
    facts = dataclasses.replace(FIRST_TOKEN, classifier_norm_epsilon=1e-5)
    (found,) = huggingface.write(tmp_path, kind, first_token_state(), facts)
    assert "epsilon 1e-06 in videomae.layernorm, this model 1e-05: its logits differ" in found


def test_targets_normalized_per_patch_hide_how_pixels_were(tmp_path: Path) -> None:
    kind: Kind = "videomae_pretraining"
    facts = dataclasses.replace(FACTS[kind], pixel_mean=(0.5,) * 3)
    assert huggingface.write(tmp_path, kind, state(kind), facts) == []


def test_no_prefix_of_their_names_is_taken_for_a_wrapper(copy: Any) -> None:
    directory = copy("videomae_classifier")
    tensors = load_file(directory / "model.safetensors")
    save_file({f"module.{n}": v for n, v in tensors.items()}, directory / "model.safetensors")
    with pytest.raises(UserError, match="not used module.classifier.bias, module.classifier.w"):
        huggingface.read(directory)


def test_missing_left_over_and_misshapen_weights_are_all_named(tmp_path: Path, copy: Any) -> None:
    weights = state("videomae_pretraining")
    del weights["mask_token"], weights["decoder.norm.bias"]
    weights |= {"encoder.blocks.0.gamma_1": np.zeros(12), "encoder.pos_embed": np.zeros(3)}
    with pytest.raises(UserError) as refusal:
        huggingface.write(
            tmp_path / "new", "videomae_pretraining", weights, FACTS["videomae_pretraining"]
        )
    assert str(refusal.value) == (
        "VideoMAEForPreTraining: the parameters do not fit their names: missing decoder.norm.bias, "
        "mask_token; not used encoder.blocks.0.gamma_1, encoder.pos_embed"
    )
    assert not (tmp_path / "new").exists()

    directory = copy("mae_pretraining")
    tensors = load_file(directory / "model.safetensors")
    tensors["vit.layernorm.bias"] = np.zeros(5, np.float32)
    tensors["other"] = tensors.pop("decoder.mask_token")
    save_file(tensors, directory / "model.safetensors")
    expected = (
        r"missing decoder.mask_token; not used other; misshapen vit.layernorm.bias \(as norm.bias: "
        r"\(5,\), expected \(12,\)\)"
    )
    with pytest.raises(UserError, match=f"{directory}: ViTMAEForPreTraining of this.*{expected}"):
        huggingface.read(directory)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("videomae_pretraining", {"decoder": None}, "decoder is None"),
        ("videomae_pretraining", {"mean_pooling": True}, "mean_pooling is True"),
        ("videomae_pretraining", {"pixel_mean": None}, "pixel_mean and pixel_std are not known"),
        ("videomae_classifier", {"decoder": FACTS["mae_pretraining"].decoder}, "decoder is Blocks"),
        ("videomae_classifier", {"classifier_norm_epsilon": None}, "classifier_norm_epsilon"),
        ("videomae_classifier", {"label_names": ()}, "label_names is .."),
        ("videomae_classifier", {"label_names": ("a",) * 5}, "a name of its own"),
        ("videomae_classifier", {"label_names": ("a", "b")}, "head.weight .5, 12. instead of .2, "),
        ("mae_pretraining", {"num_frames": 2}, "num_frames is 2"),
        ("mae_pretraining", {"image_size": (8, 12)}, "square images only"),
        ("mae_pretraining", {"mask_ratio": None}, "mask_ratio is None"),
    ],
)
def test_facts_that_have_no_place_are_refused(
    tmp_path: Path, kind: Kind, changes: dict[str, Any], message: str
) -> None:
    facts: Facts = dataclasses.replace(FACTS[kind], **changes)
    with pytest.raises(UserError, match=message):
        huggingface.write(tmp_path / "new", kind, state(kind), facts)
    assert not (tmp_path / "new").exists()
