"""The weights in Hugging Face's directories: their files, and their names for VideoMAE and MAE.

The names are those of the published checkpoints (MCG-NJU/videomae-base, facebook/vit-mae-base),
which transformers 4 writes and 4 and 5 both read. Version 5 has other names inside, writes the
published ones unless told otherwise, but misspells those of MAE's decoder; `_VERSION_5` brings all
of them back.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from adamae_jax.errors import UserError
from adamae_jax.interop.files import StateDict, read_json, read_safetensors, read_torch

WEIGHTS, TORCH_WEIGHTS, INDEX = "model.safetensors", "pytorch_model.bin", ".index.json"

ClassKind = Literal["videomae_pretraining", "videomae_classifier", "mae_pretraining"]

CLASSES: dict[ClassKind, str] = {
    "videomae_pretraining": "VideoMAEForPreTraining",
    "videomae_classifier": "VideoMAEForVideoClassification",
    "mae_pretraining": "ViTMAEForPreTraining",
}

# As tried with our exports: what these releases of transformers read of a VideoMAE has zeros for
# query and value biases, and only a warning says so.
LOSING_BIASES, KEEPING_BIASES = "5.5 to 5.17", "4.50 to 5.4 and from 5.18 on"

# Beginnings of names, theirs and the authors'; what is not here has the same name in both.
_VIDEOMAE_ENCODER = {
    "videomae.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "videomae.encoder.layer": "blocks",
    "videomae.layernorm": "norm",
}
_BEGINNINGS: dict[ClassKind, dict[str, str]] = {
    "videomae_pretraining": {
        **{theirs: f"encoder.{ours}" for theirs, ours in _VIDEOMAE_ENCODER.items()},
        "decoder.decoder_layers": "decoder.blocks",
    },
    "videomae_classifier": {**_VIDEOMAE_ENCODER, "classifier": "head"},
    "mae_pretraining": {
        "vit.embeddings.cls_token": "cls_token",
        "vit.embeddings.position_embeddings": "pos_embed",
        "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
        "vit.encoder.layer": "blocks",
        "vit.layernorm": "norm",
        "decoder.decoder_embed": "decoder_embed",
        "decoder.mask_token": "mask_token",
        "decoder.decoder_pos_embed": "decoder_pos_embed",
        "decoder.decoder_layers": "decoder_blocks",
        "decoder.decoder_norm": "decoder_norm",
        "decoder.decoder_pred": "decoder_pred",
    },
}
# Likewise inside a block.
_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "attention.attention": "attn",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
# Three arrays of theirs, concatenated, are one of the authors'.
_PARTS = ("query", "key", "value")

_VIDEOMAE_VERSION_5 = (
    (r"\.attention\.attention\.query\.bias$", ".attention.attention.q_bias"),
    (r"\.attention\.attention\.value\.bias$", ".attention.attention.v_bias"),
)
_VERSION_5: dict[ClassKind, tuple[tuple[str, str], ...]] = {
    "videomae_pretraining": _VIDEOMAE_VERSION_5,
    "videomae_classifier": _VIDEOMAE_VERSION_5,
    "mae_pretraining": (
        (r"^vit\.layers\.", "vit.encoder.layer."),
        (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
        (r"\.attention\.q_proj\.", ".attention.attention.query."),
        (r"\.attention\.k_proj\.", ".attention.attention.key."),
        (r"\.attention\.v_proj\.", ".attention.attention.value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    ),
}


def from_hugging_face(tensors: Mapping[str, np.ndarray], kind: ClassKind) -> StateDict:
    """Returns the authors' state dict, made of Hugging Face's tensors of whichever version.

    Names that are unknown stay as they are; they are listed when the arrays are accounted for.

    Raises:
      UserError: where one array is there under the names of two versions.
    """
    state: StateDict = {}
    for name, array in tensors.items():
        new = name
        for pattern, replacement in _VERSION_5[kind]:
            new = re.sub(pattern, replacement, new)
        new = _renamed(new, _BEGINNINGS[kind], _BLOCK)
        if new in state:
            raise UserError(
                f"the weights hold {new} twice, once under a name of transformers 5 ({name} is one "
                "of the two): save the model again"
            )
        state[new] = array
    for query in [name for name in state if ".attn.query." in name]:
        names = [query.replace("query", part) for part in _PARTS]
        if all(name in state and state[name].shape == state[query].shape for name in names):
            fused = np.concatenate([state.pop(name) for name in names])
            state[query.replace("query", "qkv")] = fused
    return state


def to_hugging_face(state: Mapping[str, np.ndarray], kind: ClassKind) -> StateDict:
    """Returns Hugging Face's tensors, made of the authors' state dict."""
    beginnings, block = (
        {ours: theirs for theirs, ours in pairs.items()} for pairs in (_BEGINNINGS[kind], _BLOCK)
    )
    tensors: StateDict = {}
    for name, array in state.items():
        if ".attn.qkv." in name:
            for part, piece in zip(_PARTS, np.split(array, 3), strict=True):
                tensors[_renamed(name.replace("qkv", part), beginnings, block)] = piece
        else:
            tensors[_renamed(name, beginnings, block)] = array
    return tensors


def _renamed(name: str, beginnings: Mapping[str, str], block: Mapping[str, str]) -> str:
    """Returns a name with its beginning replaced and, inside a block, what follows the layer."""
    for old, new in beginnings.items():
        if name == old or name.startswith(f"{old}."):
            name, rest = new, name[len(old) :]
            if layer := re.match(r"\.\d+\.", rest):
                inside = rest[layer.end() :]
                part = next((p for p in block if inside.startswith(f"{p}.")), "")
                rest = layer[0] + block.get(part, "") + inside[len(part) :]
            return name + rest
    return name


def read_weights(directory: Path) -> StateDict:
    """Reads all tensors of a directory, from the first form that is there, as transformers does.

    The forms: ``model.safetensors``, its shards, ``pytorch_model.bin`` (which needs PyTorch), its
    shards.
    """
    for name in (WEIGHTS, TORCH_WEIGHTS):
        if (directory / name).is_file():
            return _read_weight_file(directory / name)
        if (directory / (name + INDEX)).is_file():
            return _read_shards(directory, name)
    raise UserError(
        f"{directory} holds no weights: expected {WEIGHTS} or {TORCH_WEIGHTS}, or their shards "
        f"with an index ({WEIGHTS}{INDEX})"
    )


def _read_weight_file(path: Path) -> StateDict:
    return read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path).state


def _read_shards(directory: Path, weights: str) -> StateDict:
    """Reads the tensors of all shards, each where the index says."""
    index = directory / (weights + INDEX)
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise UserError(f"{index} has no weight_map that says where the tensors lie")
    shards, suffix = sorted(set(map(str, shard_of.values()))), Path(weights).suffix
    for shard in shards:
        # A file beside the index, never a path: an index may come from anywhere.
        if Path(shard).name != shard or Path(shard).suffix != suffix:
            raise UserError(f"{index}: {shard!r} should be a {suffix} file beside it")
    state: StateDict = {}
    for shard in shards:
        tensors = _read_weight_file(directory / shard)
        wrong = sorted({name for name in shard_of if shard_of[name] == shard} ^ set(tensors))
        if wrong:
            raise UserError(
                f"{directory / shard} and {index.name} do not agree on {', '.join(wrong)}: copy or "
                "download the directory again"
            )
        state |= tensors
    return state
