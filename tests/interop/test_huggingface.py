"""Hugging Face's directories without PyTorch and transformers: there and back, and refusals."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adamae_jax import pretrained
from adamae_jax.errors import UserError
from adamae_jax.interop import exports, huggingface, sources
from tests.interop.convert_cases import (
    LABELS,
    assert_same_arrays,
    assert_same_config,
    bring,
    loaded,
)

MODELS = {
    "videomae": ("videomae", False),
    "mae": ("mae", False),
    "classifier": ("videomae", True),
    "first": ("videomae_first", True),
}
ALL = pytest.mark.parametrize("name", MODELS)
Copy = Callable[[str], Path]


@pytest.fixture(autouse=True)
def nothing_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports of PyTorch and transformers fail, whether they are installed or not."""
    for name in ("torch", "transformers", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of each class, as transformers writes it: without our description."""
    root = tmp_path_factory.mktemp("originals")
    for name, model in MODELS.items():
        exports.write_hugging_face(loaded(*model), root / name)
        (root / name / sources.DESCRIPTION_FILE).unlink()
    return root


@pytest.fixture
def copy(originals: Path, tmp_path: Path) -> Copy:
    """A directory that may be changed."""
    return lambda name: Path(shutil.copytree(originals / name, tmp_path / name))


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


def assert_is(directory: Path, name: str) -> None:
    """A directory holds the weights of one of `MODELS`."""
    assert_same_arrays(huggingface.read(directory).state, exports.to_authors(loaded(*MODELS[name])))


@ALL
def test_there_and_back_is_exact(tmp_path: Path, originals: Path, name: str) -> None:
    assert_is(originals / name, name)
    # Of a small frame tubes cannot hide the published share.
    ratio = ["--mask_ratio=0.75"] * (name == "videomae")
    found = pretrained.load(bring(originals / name, tmp_path / "ours", *ratio))
    expected = loaded(*MODELS[name])
    # Two norms of theirs have PyTorch's epsilon.
    last = 1e-5 if name in ("videomae", "classifier") else 1e-6
    if name in ("classifier", "first"):
        assert found.label_names == LABELS
        assert found.config.classifier.norm_epsilon == last
        found.config.classifier.norm_epsilon = 1e-6
    else:
        assert found.config.model.decoder_norm_epsilon == last
        found.config.model.decoder_norm_epsilon = 1e-6
    assert_same_config(found.config, expected.config)
    remarks = exports.write_hugging_face(found, tmp_path / "again")
    lost = [remark for remark in remarks if "without its query and value biases" in remark]
    assert len(lost) == (name != "mae") and all("from 5.18 on are right" in each for each in lost)
    for path in (originals / name).iterdir():
        if path.name != "README.md":
            assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_arrays_have_the_published_names(originals: Path) -> None:
    video, image = (exports.to_authors(loaded(*MODELS[name])) for name in ("videomae", "mae"))
    tensors = load_file(originals / "videomae" / "model.safetensors")
    plain = {
        "videomae.embeddings.patch_embeddings.projection.weight": "encoder.patch_embed.proj.weight",
        "videomae.encoder.layer.1.layernorm_before.bias": "encoder.blocks.1.norm1.bias",
        "videomae.encoder.layer.1.layernorm_after.bias": "encoder.blocks.1.norm2.bias",
        "videomae.encoder.layer.1.attention.output.dense.bias": "encoder.blocks.1.attn.proj.bias",
        "videomae.encoder.layer.1.intermediate.dense.bias": "encoder.blocks.1.mlp.fc1.bias",
        "videomae.encoder.layer.1.output.dense.bias": "encoder.blocks.1.mlp.fc2.bias",
        "videomae.layernorm.bias": "encoder.norm.bias",
        "decoder.decoder_layers.0.attention.attention.v_bias": "decoder.blocks.0.attn.v_bias",
        **{n: n for n in ("encoder_to_decoder.weight", "mask_token", "decoder.head.weight")},
    }
    for theirs, ours in plain.items():
        np.testing.assert_array_equal(tensors[theirs], video[ours], err_msg=theirs)
    attention = "decoder.decoder_layers.0.attention.attention"
    for i, part in enumerate(("query", "key", "value")):
        weight = video["decoder.blocks.0.attn.qkv.weight"][12 * i : 12 * (i + 1)]
        np.testing.assert_array_equal(tensors[f"{attention}.{part}.weight"], weight)
    tensors = load_file(originals / "mae" / "model.safetensors")
    attention = "vit.encoder.layer.1.attention.attention"
    for i, part in enumerate(("query", "key", "value")):
        bias = image["blocks.1.attn.qkv.bias"][16 * i : 16 * (i + 1)]
        np.testing.assert_array_equal(tensors[f"{attention}.{part}.bias"], bias)
    for theirs, name in {
        "vit.embeddings.position_embeddings": "pos_embed",
        "decoder.decoder_pos_embed": "decoder_pos_embed",
        "decoder.decoder_layers.0.output.dense.bias": "decoder_blocks.0.mlp.fc2.bias",
    }.items():
        np.testing.assert_array_equal(tensors[theirs], image[name], err_msg=theirs)


def test_the_names_inside_transformers_5_are_read(copy: Copy) -> None:
    directory = copy("classifier")
    rename(directory, (".q_bias", ".query.bias"), (".v_bias", ".value.bias"))
    assert_is(directory, "classifier")
    directory = copy("mae")
    rename(
        directory,
        ("vit.encoder.layer.", "vit.layers."),
        ("decoder.decoder_layers.", "decoder.decoder_encoder.layer."),
        (".attention.attention.query.", ".attention.q_proj."),
        (".attention.attention.key.", ".attention.k_proj."),
        (".attention.attention.value.", ".attention.v_proj."),
        (".attention.output.dense.", ".attention.o_proj."),
        (".intermediate.dense.", ".mlp.fc1."),
        (".output.dense.", ".mlp.fc2."),
    )
    assert_is(directory, "mae")
    tensors = load_file(directory / "model.safetensors")
    tensors["vit.encoder.layer.0.intermediate.dense.bias"] = tensors["vit.layers.0.mlp.fc1.bias"]
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(UserError, match=r"hold blocks.0.mlp.fc1.bias twice"):
        huggingface.read(directory)


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("mae", "hidden_size", 20, "hidden_size is 20, and the weights have 16"),
        ("classifier", "use_mean_pooling", False, "use_mean_pooling is False.*have True"),
    ],
)
def test_a_config_of_another_model_is_refused(
    copy: Copy, tmp_path: Path, name: str, field: str, value: Any, message: str
) -> None:
    directory = copy(name)
    change(directory / "config.json", **{field: value})
    with pytest.raises(UserError, match=message):
        bring(directory, tmp_path / "ours")


def test_fields_left_out_have_the_defaults_of_their_classes(copy: Copy) -> None:
    directory = copy("mae")
    (directory / "config.json").write_text('{"architectures": ["ViTMAEForPreTraining"]}')
    options = huggingface.read(directory).options
    assert options.image_size == (224, 224)
    assert (options.num_heads, options.decoder_num_heads) == (12, 16)
    assert (options.norm_epsilon, options.mask_ratio) == (1e-12, 0.75)
    assert options.normalize_targets == "none"
    video = {"architectures": ["VideoMAEForPreTraining"], "use_mean_pooling": False}
    directory = copy("videomae")
    (directory / "config.json").write_text(json.dumps(video))
    options = huggingface.read(directory).options
    assert (options.num_frames, options.decoder_num_heads) == (16, 6)
    assert options.normalize_targets == "channel"


def test_labels(copy: Copy) -> None:
    def names(**fields: Any) -> tuple[str, ...]:
        change(config, **fields)
        return huggingface.read(config.parent).label_names

    config = copy("classifier") / "config.json"
    assert names(id2label={"1": "b", "0": "a"}) == ("a", "b")
    assert names(id2label={"0": "LABEL_0", "1": "LABEL_1"}) == ()
    assert names(id2label=None) == ()


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("architectures", ["VideoMAEModel"], "one of VideoMAEForPreTraining, .*save it again"),
        ("hidden_act", "relu", "'gelu'"),
        ("num_frames", True, "a positive integer"),
        ("image_size", [224], "a positive integer or two"),
        ("use_mean_pooling", 1, "true or false"),
        ("layer_norm_eps", math.nan, "a number"),
        ("id2label", {"0": "a", "2": "b"}, "without gaps"),
    ],
)
def test_other_values_are_refused_by_name(
    copy: Copy, field: str, value: Any, expected: str
) -> None:
    directory = copy("classifier")
    change(directory / "config.json", **{field: value})
    with pytest.raises(UserError, match=f"config.json: {field} is .*, expected .*{expected}"):
        huggingface.read(directory)


def test_pretraining_with_pooling_is_refused(copy: Copy) -> None:
    directory = copy("videomae")
    change(directory / "config.json", use_mean_pooling=True)
    with pytest.raises(UserError, match="use_mean_pooling is True, expected false: .*last norm"):
        huggingface.read(directory)


PIXELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("fields", "pixels"),
    [
        ({}, PIXELS),
        ({"do_rescale": None, "rescale_factor": None, "do_normalize": None}, PIXELS),
        ({"do_normalize": False}, ((0.0,) * 3, (1.0,) * 3)),
        ({"do_rescale": False}, "do_rescale is False, expected true"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std is .*, expected positive numbers"),
    ],
)
def test_pixels(copy: Copy, fields: dict[str, Any], pixels: Any) -> None:
    directory = copy("classifier")
    change(directory / "preprocessor_config.json", **fields)
    # As transformers 5 calls it.
    (directory / "preprocessor_config.json").rename(directory / "video_preprocessor_config.json")
    if isinstance(pixels, str):
        with pytest.raises(UserError, match=f"video_preprocessor_config.json: {pixels}"):
            huggingface.read(directory)
    else:
        assert huggingface.read(directory).options.pixels == pixels


# Files.


@pytest.fixture
def sharded(copy: Copy) -> Path:
    """A directory in three shards."""
    directory = copy("classifier")
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    shard_of: dict[str, str] = {}
    for shard in range(3):
        name = f"model-{shard + 1:05d}-of-00003.safetensors"
        part = dict(sorted(tensors.items())[shard::3])
        save_file(part, directory / name)
        shard_of |= dict.fromkeys(part, name)
    set_index(directory, shard_of)
    return directory


def set_index(directory: Path, shard_of: Any) -> None:
    text = json.dumps({"metadata": {}, "weight_map": shard_of})
    (directory / "model.safetensors.index.json").write_text(text)


def test_shards_are_put_together(sharded: Path, tmp_path: Path) -> None:
    assert_is(sharded, "classifier")
    # In the cache of their hub files are links to elsewhere.
    shard = sharded / "model-00002-of-00003.safetensors"
    shard.rename(tmp_path / "blob")
    shard.symlink_to(tmp_path / "blob")
    assert_is(sharded, "classifier")
    shard.unlink()
    with pytest.raises(UserError, match="model-00002-of-00003.safetensors does not exist"):
        huggingface.read(sharded)


@pytest.mark.parametrize("shard", ["../other.safetensors", None])
def test_an_index_reaches_no_file_but_those_beside_it(sharded: Path, shard: Any) -> None:
    path = sharded / "model.safetensors.index.json"
    shard_of = json.loads(path.read_text())["weight_map"]
    set_index(sharded, shard_of | {"classifier.bias": shard})
    with pytest.raises(UserError, match="should be a .safetensors file beside it"):
        huggingface.read(sharded)


def test_an_index_that_does_not_fit_is_refused(sharded: Path) -> None:
    path = sharded / "model.safetensors.index.json"
    shard_of = json.loads(path.read_text())["weight_map"]
    set_index(sharded, {name: shard for name, shard in shard_of.items() if name != "fc_norm.bias"})
    with pytest.raises(UserError, match="do not agree on fc_norm.bias"):
        huggingface.read(sharded)
    set_index(sharded, {})
    with pytest.raises(UserError, match="has no weight_map"):
        huggingface.read(sharded)


def test_missing_and_damaged_files_are_refused(copy: Copy, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no config.json"):
        huggingface.read(tmp_path)
    directory = copy("classifier")
    (directory / "preprocessor_config.json").unlink()
    assert huggingface.read(directory).options.pixels is None
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin: .*needs PyTorch.*\[interop\]"):
        huggingface.read(directory)
    (directory / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="classifier holds no weights"):
        huggingface.read(directory)
    for data in (b"{", b"[]"):
        (directory / "config.json").write_bytes(data)
        with pytest.raises(UserError, match="config.json (is not JSON|holds a .*expected a JSON)"):
            huggingface.read(directory)


def test_what_their_classes_have_no_place_for_is_refused(tmp_path: Path) -> None:
    model = loaded("videomae", True)
    twins = pretrained.build(model.variables, model.config, 0, ("a", "a", "b"), "", "x")
    with pytest.raises(UserError, match="finds labels by name: give each class one of its own"):
        exports.write_hugging_face(twins, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "field", "value", "remark"),
    [
        ("videomae", "model.decoder_norm_epsilon", 1e-6, "epsilon 1e-05 in the decoder's norm"),
        ("classifier", "classifier.norm_epsilon", 1e-6, "epsilon 1e-05 in fc_norm, this model 1e-"),
        ("first", "classifier.norm_epsilon", 1e-5, "epsilon 1e-06 in videomae.layernorm"),
        ("videomae", "objective.loss", "l1", "has no loss 'l1': its loss differs"),
        ("videomae", "objective.pixel_mean", (0.5,) * 3, "targets as if pixels were normalized"),
        ("videomae", "data.image_size", (8, 12), "resizes frames to 8 x 12"),
    ],
)
def test_what_their_classes_compute_otherwise_is_remarked(
    name: str, field: str, value: Any, remark: str
) -> None:
    model = loaded(*MODELS[name])
    config = model.config.copy_and_resolve_references()
    with config.unlocked():
        config.model.decoder_norm_epsilon = 1e-5
        config.data.image_size = (8, 8)
        if field == "objective.pixel_mean":
            config.objective.normalize_targets = "none"
        config.update_from_flattened_dict({field: value})
    changed = pretrained.build(model.variables, config, 0, model.label_names, "", "x")
    remarks = exports._class_remarks(exports.class_of(changed), changed)
    assert ("epsilon" in " ".join(remarks)) == ("epsilon" in field), remarks
    assert any(remark in each for each in remarks), remarks
