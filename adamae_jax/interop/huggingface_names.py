"""Hugging Face's weight names for VideoMAE and MAE and the authors', both ways.

In the `Table` of a model the authors' arrays stand where ours stand elsewhere.

The names are those of the published checkpoints (MCG-NJU/videomae-base, facebook/vit-mae-base),
which transformers 4 writes and 4 and 5 both read. Version 5 has other names inside, writes the
published ones unless told otherwise, but misspells those of MAE's decoder; `RENAMINGS` brings all
of them back.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from adamae_jax.errors import UserError
from adamae_jax.interop.huggingface_facts import CLASSES, Blocks, Facts, Kind, last_norm
from adamae_jax.interop.safetensors_files import StateDict
from adamae_jax.interop.tables import Entry, Table

# One array of the authors', where it lies in Hugging Face's model, and its shape. Where Hugging
# Face has several, these one after the other, along the first axis, are the authors'.
Row = tuple[Entry, tuple[int, ...]]

_VIDEOMAE_RENAMINGS = (
    (r"\.attention\.attention\.query\.bias$", ".attention.attention.q_bias"),
    (r"\.attention\.attention\.value\.bias$", ".attention.attention.v_bias"),
)
_MAE_RENAMINGS = (
    (r"^vit\.layers\.", "vit.encoder.layer."),
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
RENAMINGS: dict[Kind, tuple[tuple[str, str], ...]] = {
    "videomae_pretraining": _VIDEOMAE_RENAMINGS,
    "videomae_classifier": _VIDEOMAE_RENAMINGS,
    "mae_pretraining": _MAE_RENAMINGS,
}


def rows(kind: Kind, facts: Facts) -> list[Row]:
    """All arrays of a model.

    Raises:
      UserError: for a pre-training model without a decoder.
    """
    if kind == "videomae_classifier":
        return [*_videomae_encoder_rows("", facts), *_classifier_rows(facts)]
    if facts.decoder is None:
        raise UserError(f"decoder is None: {CLASSES[kind]} needs one")
    if kind == "mae_pretraining":
        return _mae_rows(facts, facts.decoder)
    return [*_videomae_encoder_rows("encoder.", facts), *_decoder_rows(facts, facts.decoder)]


def from_hugging_face(tensors: Mapping[str, np.ndarray], kind: Kind, facts: Facts) -> StateDict:
    """The authors' state dict from Hugging Face's tensors, of whichever version's names.

    Raises:
      UserError: listing all names that are missing, left over, or of another shape.
    """
    table, shapes = _table(rows(kind, facts))
    try:
        return table.from_authors(_published_names(tensors, kind), shapes)
    except UserError as error:
        raise UserError(f"{CLASSES[kind]} of this config: {error}") from error


def to_hugging_face(state: Mapping[str, np.ndarray], kind: Kind, facts: Facts) -> StateDict:
    """Hugging Face's tensors from the authors' state dict.

    Raises:
      UserError: listing all names that are missing or left over, or that have another shape.
    """
    table, shapes = _table(rows(kind, facts))
    wrong = [
        f"{name} {np.shape(state[name])} instead of {shape}"
        for name, shape in shapes.items()
        if name in state and np.shape(state[name]) != shape
    ]
    if wrong:
        raise UserError(f"the weights do not fit {CLASSES[kind]}: misshapen {', '.join(wrong)}")
    try:
        return table.to_authors(state)
    except UserError as error:
        raise UserError(f"{CLASSES[kind]}: {error}") from error


def _table(found: Iterable[Row]) -> tuple[Table, dict[str, tuple[int, ...]]]:
    """The table, and the shapes of the authors' arrays."""
    entries = list(found)
    return Table([entry for entry, _ in entries]), {entry.ours: shape for entry, shape in entries}


def _published_names(tensors: Mapping[str, np.ndarray], kind: Kind) -> StateDict:
    renamed: StateDict = {}
    for name, value in tensors.items():
        new = name
        for pattern, replacement in RENAMINGS[kind]:
            new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise UserError(
                f"the weights hold {new} twice, once under a name of transformers 5 ({name} is one "
                "of the two): save the model again"
            )
        renamed[new] = value
    return renamed


def _videomae_encoder_rows(root: str, facts: Facts) -> list[Row]:
    """Embedding and blocks; ``root`` stands before the authors' names."""
    width, patch = facts.encoder.width, facts.patch_size
    return [
        *_layer(
            f"{root}patch_embed.proj",
            "videomae.embeddings.patch_embeddings.projection",
            (width, facts.num_channels, facts.tubelet_size, patch, patch),
        ),
        *_videomae_block_rows(
            f"{root}blocks", "videomae.encoder.layer", facts.encoder, facts.qkv_bias
        ),
    ]


def _decoder_rows(facts: Facts, decoder: Blocks) -> list[Row]:
    """What `VideoMAEForPreTraining` has after its encoder's blocks."""
    width, inner = facts.encoder.width, decoder.width
    pixels = facts.num_channels * facts.tubelet_size * facts.patch_size**2
    return [
        *_norm("encoder.norm", "videomae.layernorm", width),
        (Entry("encoder_to_decoder.weight", "encoder_to_decoder.weight"), (inner, width)),
        (Entry("mask_token", "mask_token"), (1, 1, inner)),
        *_videomae_block_rows("decoder.blocks", "decoder.decoder_layers", decoder, facts.qkv_bias),
        *_norm("decoder.norm", "decoder.norm", inner),
        *_layer("decoder.head", "decoder.head", (pixels, inner)),
    ]


def _classifier_rows(facts: Facts) -> list[Row]:
    """What `VideoMAEForVideoClassification` has after its blocks."""
    width = facts.encoder.width
    norm, _ = last_norm(facts.mean_pooling, facts.norm_epsilon)
    return [
        *_norm("fc_norm" if facts.mean_pooling else "norm", norm, width),
        *_layer("head", "classifier", (len(facts.label_names), width)),
    ]


def _mae_rows(facts: Facts, decoder: Blocks) -> list[Row]:
    """`ViTMAEForPreTraining`; its position tables are fixed but stored."""
    width, inner, patch = facts.encoder.width, decoder.width, facts.patch_size
    tokens = facts.num_tokens + 1
    embeddings = "vit.embeddings"
    return [
        (Entry("cls_token", f"{embeddings}.cls_token"), (1, 1, width)),
        (Entry("pos_embed", f"{embeddings}.position_embeddings"), (1, tokens, width)),
        *_layer(
            "patch_embed.proj",
            f"{embeddings}.patch_embeddings.projection",
            (width, facts.num_channels, patch, patch),
        ),
        *_mae_block_rows("blocks", "vit.encoder.layer", facts.encoder, facts.qkv_bias),
        *_norm("norm", "vit.layernorm", width),
        *_layer("decoder_embed", "decoder.decoder_embed", (inner, width)),
        (Entry("mask_token", "decoder.mask_token"), (1, 1, inner)),
        (Entry("decoder_pos_embed", "decoder.decoder_pos_embed"), (1, tokens, inner)),
        *_mae_block_rows("decoder_blocks", "decoder.decoder_layers", decoder, facts.qkv_bias),
        *_norm("decoder_norm", "decoder.decoder_norm", inner),
        *_layer("decoder_pred", "decoder.decoder_pred", (patch**2 * facts.num_channels, inner)),
    ]


def _videomae_block_rows(authors: str, names: str, blocks: Blocks, bias: bool) -> list[Row]:
    """Blocks in which the queries and the values may have a bias, each its own array."""
    biases = [
        (
            Entry(
                f"{authors}.{layer}.attn.{letter}_bias",
                f"{names}.{layer}.attention.attention.{letter}_bias",
            ),
            (blocks.width,),
        )
        for layer in range(blocks.depth if bias else 0)
        for letter in "qv"
    ]
    return _block_rows(authors, names, blocks) + biases


def _mae_block_rows(authors: str, names: str, blocks: Blocks, bias: bool) -> list[Row]:
    """Blocks in which queries, keys and values may have a bias, fused as their weights are."""
    biases = [
        (
            Entry(
                f"{authors}.{layer}.attn.qkv.bias",
                _parts(f"{names}.{layer}.attention.attention", "bias"),
            ),
            (3 * blocks.width,),
        )
        for layer in range(blocks.depth if bias else 0)
    ]
    return _block_rows(authors, names, blocks) + biases


def _block_rows(authors: str, names: str, blocks: Blocks) -> list[Row]:
    """All of the blocks but the biases of their queries, keys and values."""
    width, inner = blocks.width, blocks.mlp_width
    table = []
    for layer in range(blocks.depth):
        ours, theirs = f"{authors}.{layer}", f"{names}.{layer}"
        parts = _parts(f"{theirs}.attention.attention", "weight")
        table += [
            *_norm(f"{ours}.norm1", f"{theirs}.layernorm_before", width),
            (Entry(f"{ours}.attn.qkv.weight", parts), (3 * width, width)),
            *_layer(f"{ours}.attn.proj", f"{theirs}.attention.output.dense", (width, width)),
            *_norm(f"{ours}.norm2", f"{theirs}.layernorm_after", width),
            *_layer(f"{ours}.mlp.fc1", f"{theirs}.intermediate.dense", (inner, width)),
            *_layer(f"{ours}.mlp.fc2", f"{theirs}.output.dense", (width, inner)),
        ]
    return table


def _parts(attention: str, what: str) -> tuple[str, ...]:
    return tuple(f"{attention}.{part}.{what}" for part in ("query", "key", "value"))


def _layer(authors: str, name: str, shape: tuple[int, ...]) -> list[Row]:
    """A linear layer or a convolution, with its bias."""
    return [
        (Entry(f"{authors}.weight", f"{name}.weight"), shape),
        (Entry(f"{authors}.bias", f"{name}.bias"), shape[:1]),
    ]


def _norm(authors: str, name: str, width: int) -> list[Row]:
    return _layer(authors, name, (width,))
