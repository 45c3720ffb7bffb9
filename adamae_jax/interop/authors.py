"""The authors' weight names for AdaMAE (wgcban/adamae) and ours, both ways.

The table of a model is a list of `Entry`: one of our arrays, and one of theirs or, for the
stacked blocks, one per layer. Every array is accounted for in both directions.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from adamae_jax.errors import UserError
from adamae_jax.interop import layouts
from adamae_jax.interop.layouts import Layout
from adamae_jax.masking import adaptive
from adamae_jax.models.autoencoder import Autoencoder
from adamae_jax.models.transformer import TransformerSpec

StateDict = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
      ours: path of our parameter, joined with "/".
      theirs: name of theirs, in which ``{}`` stands for the layer where ours is stacked.
      layout: how the array lies, without the layer axis.
      depth: number of layers; 0 where ours is not stacked.
    """

    ours: str
    theirs: str
    layout: Layout = layouts.SAME
    depth: int = 0

    @property
    def names(self) -> list[str]:
        """The names of theirs, in the order of the layers."""
        return [self.theirs.format(i) for i in range(self.depth)] if self.depth else [self.theirs]


def block_entries(ours: str, theirs: str, spec: TransformerSpec) -> list[Entry]:
    """The rows of a stack of blocks; ``theirs`` holds the ``{}``."""
    rows = [
        ("norm1/scale", "norm1.weight", layouts.SAME),
        ("norm1/bias", "norm1.bias", layouts.SAME),
        ("attention/qkv_kernel", "attn.qkv.weight", layouts.qkv(spec.num_heads)),
        *(
            (f"attention/{letter}_bias", f"attn.{letter}_bias", layouts.head_bias(spec.num_heads))
            for letter in spec.attention_bias
        ),
        ("attention/projection/kernel", "attn.proj.weight", layouts.LINEAR),
        ("attention/projection/bias", "attn.proj.bias", layouts.SAME),
        ("norm2/scale", "norm2.weight", layouts.SAME),
        ("norm2/bias", "norm2.bias", layouts.SAME),
        ("mlp/fc1/kernel", "mlp.fc1.weight", layouts.LINEAR),
        ("mlp/fc1/bias", "mlp.fc1.bias", layouts.SAME),
        ("mlp/fc2/kernel", "mlp.fc2.weight", layouts.LINEAR),
        ("mlp/fc2/bias", "mlp.fc2.bias", layouts.SAME),
    ]
    return [
        Entry(f"{ours}/blocks/{mine}", f"{theirs}.{yours}", layout, spec.depth)
        for mine, yours, layout in rows
    ]


def autoencoder_entries(model: Autoencoder) -> list[Entry]:
    """The rows of the pretraining autoencoder, as in AdaMAE and VideoMAE."""
    convolution = layouts.tubelet_convolution(model.geometry)
    root = "autoencoder"
    return [
        Entry(f"{root}/mask_token", "mask_token", layouts.leading_ones(2)),
        Entry(
            f"{root}/embedding/projection/kernel", "encoder.patch_embed.proj.weight", convolution
        ),
        Entry(f"{root}/embedding/projection/bias", "encoder.patch_embed.proj.bias"),
        *block_entries(f"{root}/encoder", "encoder.blocks.{}", model.encoder),
        Entry(f"{root}/encoder_norm/scale", "encoder.norm.weight"),
        Entry(f"{root}/encoder_norm/bias", "encoder.norm.bias"),
        Entry(f"{root}/encoder_to_decoder/kernel", "encoder_to_decoder.weight", layouts.LINEAR),
        *block_entries(f"{root}/decoder", "decoder.blocks.{}", model.decoder),
        Entry(f"{root}/decoder_norm/scale", "decoder.norm.weight"),
        Entry(f"{root}/decoder_norm/bias", "decoder.norm.bias"),
        Entry(f"{root}/decoder_head/kernel", "decoder.head.weight", layouts.LINEAR),
        Entry(f"{root}/decoder_head/bias", "decoder.head.bias"),
    ]


def sampler_entries(spec: TransformerSpec) -> list[Entry]:
    """The rows of AdaMAE's sampling network."""
    root, theirs = "masking", "encoder.get_token_probs"
    return [
        Entry(f"{root}/position_table", "encoder.pos_embed_probs", layouts.leading_ones(1)),
        *block_entries(f"{root}/transformer", theirs + ".{}", spec),
        Entry(f"{root}/head/kernel", f"{theirs}.{spec.depth}.weight", layouts.LINEAR),
        Entry(f"{root}/head/bias", f"{theirs}.{spec.depth}.bias"),
    ]


def adamae_entries(model: Autoencoder, strategy: adaptive.Strategy) -> list[Entry]:
    """The rows of AdaMAE: the autoencoder and its sampling network.

    Raises:
      UserError: for a sampler that the authors' code does not have.
    """
    spec = strategy.module(model.encoder.width).spec
    if spec.width != model.encoder.width or not spec.attention:
        raise UserError(
            "the authors' AdaMAE names only have a sampler of attention blocks as wide as the "
            f"tokens ({model.encoder.width}): this one is {strategy.network!r} with width "
            f"{spec.width}"
        )
    return autoencoder_entries(model) + sampler_entries(spec)


def from_authors(state: StateDict, entries: Sequence[Entry]) -> dict[str, Any]:
    """The authors' state dict as our parameter tree.

    Raises:
      UserError: listing the names that are missing or left over.
    """
    expected = [name for entry in entries for name in entry.names]
    missing = sorted(set(expected) - set(state))
    unused = sorted(set(state) - set(expected))
    if missing or unused:
        raise UserError(
            "the weights do not fit the model: "
            f"missing {', '.join(missing) or 'none'}; not used {', '.join(unused) or 'none'}"
        )
    flat = {}
    for entry in entries:
        arrays = [
            np.ascontiguousarray(entry.layout.to_ours(np.asarray(state[name])))
            for name in entry.names
        ]
        flat[entry.ours] = np.stack(arrays) if entry.depth else arrays[0]
    return traverse_util.unflatten_dict(flat, sep="/")


def to_authors(params: Mapping[str, Any], entries: Sequence[Entry]) -> dict[str, np.ndarray]:
    """Our parameter tree (or its gradients) under the authors' names.

    Raises:
      UserError: listing the parameters that are missing or left over.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    expected = {entry.ours for entry in entries}
    if expected != set(flat):
        raise UserError(
            "the parameters do not fit the authors' names: "
            f"missing {', '.join(sorted(expected - set(flat))) or 'none'}; "
            f"not used {', '.join(sorted(set(flat) - expected)) or 'none'}"
        )
    state = {}
    for entry in entries:
        array = np.asarray(flat[entry.ours])
        arrays = array if entry.depth else [array]
        for name, layer in zip(entry.names, arrays, strict=True):
            state[name] = np.ascontiguousarray(entry.layout.to_theirs(layer))
    return state
