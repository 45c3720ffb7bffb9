"""Tables of the authors' weight names and ours, for every system."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from adamae_jax.errors import UserError
from adamae_jax.interop import systems, tables
from adamae_jax.interop.systems import (
    DISCRIMINATOR,
    GENERATOR,
    SAMPLER,
    SAMPLER_TABLE,
    VIT,
    Dialect,
    dialect_of,
)
from adamae_jax.interop.tables import Constant, Entry, Table
from adamae_jax.masking import MaskingStrategy, adaptive, adversarial
from adamae_jax.models.autoencoder import Autoencoder
from adamae_jax.models.classifier import Classifier
from adamae_jax.models.encoder import Encoder
from adamae_jax.models.positions import sincos_2d
from adamae_jax.models.transformer import TransformerSpec
from adamae_jax.models.tubelets import ClipGeometry
from adamae_jax.pretraining import Pretraining


def norm_entries(ours: str, theirs: str) -> list[Entry]:
    """Returns the rows of a layer norm."""
    return [Entry(f"{ours}/scale", f"{theirs}.weight"), Entry(f"{ours}/bias", f"{theirs}.bias")]


def dense_entries(ours: str, theirs: str, bias: bool = True) -> list[Entry]:
    """Returns the rows of a linear layer."""
    kernel = Entry(f"{ours}/kernel", f"{theirs}.weight", tables.LINEAR)
    return [kernel, Entry(f"{ours}/bias", f"{theirs}.bias")] if bias else [kernel]


def block_entries(ours: str, theirs: str, spec: TransformerSpec, dialect: Dialect) -> list[Entry]:
    """Returns the rows of a stack of blocks; ``{}`` in ``theirs`` stands for the layer."""
    heads = spec.num_heads
    rows = [
        *norm_entries("norm1", "norm1"),
        Entry("attention/qkv_kernel", dialect.kernels, tables.qkv(heads)),
        *dense_entries("attention/projection", "attn.proj"),
        *norm_entries("norm2", "norm2"),
        *dense_entries("mlp/fc1", "mlp.fc1"),
        *dense_entries("mlp/fc2", "mlp.fc2"),
    ]
    if spec.attention_bias:
        layout = tables.head_bias(len(spec.attention_bias), heads)
        rows.append(Entry("attention/qkv_bias", dialect.biases, layout))
    if spec.layer_scale:
        rows += [Entry(f"layer_scale{i}/scale", f"gamma_{i}") for i in (1, 2)]
    stacked = [dataclasses.replace(row, depth=spec.depth) for row in rows]
    return list(Table(stacked).under(f"{ours}/blocks", f"{theirs}.").entries)


def position_table(
    ours: str, theirs: str, kind: str, class_token: bool, geometry: ClipGeometry, width: int
) -> Table:
    """Returns the rows of a position table; ``theirs`` stands before ``pos_embed``."""
    if kind == "sincos_1d":
        return Table([])  # it is in no state dict
    name = f"{theirs}pos_embed"
    if kind == "sincos_2d":
        fixed = sincos_2d(*geometry.grid[1:], width)
        rows = np.concatenate([np.zeros((int(class_token), width), np.float32), fixed])
        return Table([], [Constant(name, rows[None])])
    one = tables.leading_ones(1)
    if kind == "learned":
        return Table([Entry(f"{ours}/table", name, one)])
    entries = [Entry(f"{ours}/{axis}", f"{name}_{axis}", one) for axis in ("spatial", "temporal")]
    if class_token:
        entries.append(Entry(f"{ours}/class_token", f"{name}_class", tables.leading_ones(2)))
    return Table(entries)


def encoder_table(encoder: Encoder, dialect: Dialect) -> Table:
    """Returns the table of an encoder, without the prefix that VideoMAE's has."""
    spec = encoder.spec
    convolution = tables.tubelet_convolution(encoder.geometry, flat=dialect.is_image)
    entries = [
        Entry("embedding/projection/kernel", "patch_embed.proj.weight", convolution),
        Entry("embedding/projection/bias", "patch_embed.proj.bias"),
        *block_entries("transformer", "blocks.{}", spec, dialect),
    ]
    if encoder.class_token:
        entries.append(Entry("class_token", "cls_token", tables.leading_ones(2)))
    if encoder.final_norm:
        entries += norm_entries("norm", "norm")
    return Table(entries) + position_table(
        "positions", "", encoder.positions, encoder.class_token, encoder.geometry, spec.width
    )


def decoder_table(model: Autoencoder, dialect: Dialect) -> Table:
    """Returns the table of a decoder."""
    spec, names = model.decoder_spec, dialect.decoder
    entries = [
        *dense_entries("projection", names.projection, bias=model.projection_bias),
        Entry("mask_token", "mask_token", tables.leading_ones(2)),
        *block_entries("transformer", names.blocks, spec, dialect),
        *norm_entries("norm", names.norm),
        *dense_entries("head", names.head),
    ]
    if model.class_token == "separate":
        entries.append(Entry("class_token", names.class_token, tables.leading_ones(2)))
    has_class = model.class_token != "none"
    return Table(entries) + position_table(
        "positions", "decoder_", model.positions, has_class, model.geometry, spec.width
    )


def autoencoder_table(model: Autoencoder) -> Table:
    """Returns the table of the pretraining autoencoder."""
    dialect = dialect_of(model.positions, model.geometry)
    encoder = encoder_table(model.encoder_definition, dialect).under(
        "encoder", dialect.encoder_prefix
    )
    return encoder + decoder_table(model, dialect).under("decoder")


def classifier_table(model: Classifier) -> Table:
    """Returns the table of a classifier that its dialect's authors have (`exports.check`)."""
    dialect = dialect_of(model.positions, model.geometry)
    encoder = Encoder(
        model.geometry, model.spec, model.positions, model.class_token, final_norm=False
    )
    norm = dialect.classifier_norms[model.pooling]
    rest = [*norm_entries("norm", norm), *dense_entries("head", "head")]
    return encoder_table(encoder, dialect).under("encoder") + Table(rest)


def sampler_table(strategy: adaptive.Strategy, token_width: int) -> Table:
    """Returns the table of AdaMAE's sampling network.

    Raises:
      UserError: for a sampler that the authors' code does not have.
    """
    spec = strategy.module(token_width).spec
    if spec.width != token_width or not spec.attention:
        raise UserError(
            "the authors' AdaMAE names only have a sampler of attention blocks as wide as the "
            f"tokens ({token_width}): this one is {strategy.network!r} with width {spec.width}"
        )
    return Table(
        [
            Entry("position_table", SAMPLER_TABLE, tables.leading_ones(1)),
            *block_entries("transformer", SAMPLER + "{}", spec, systems.VIDEOMAE),
            *dense_entries("head", f"{SAMPLER}{spec.depth}"),
        ]
    )


def generator_table() -> Table:
    """Returns the table of AutoMAE's mask generator."""
    return Table(
        [
            row
            for ours, theirs in (("conv1", f"{GENERATOR}main.0"), ("conv2", f"{GENERATOR}main.2"))
            for row in (
                Entry(f"{ours}/kernel", f"{theirs}.weight", tables.CONVOLUTION),
                Entry(f"{ours}/bias", f"{theirs}.bias"),
            )
        ]
    )


def discriminator_tables() -> tuple[Table, Table]:
    """Returns the tables of AutoMAE's discriminator: weights, and vectors of the spectral norm."""
    weights, vectors = [], []
    for name, size in (("conv1", 4), ("conv2", 4), ("conv3", 3)):
        weights.append(Entry(f"{name}/kernel", f"{name}.0.weight_orig", tables.CONVOLUTION))
        ours = f"{name}/singular_vectors"
        vectors.append(Entry(f"{ours}/u", f"{name}.0.weight_u"))
        layout = tables.flat_convolution_input(size)
        vectors.append(Entry(f"{ours}/v", f"{name}.0.weight_v", layout))
    return Table(weights), Table(vectors)


def _adaptive_table(strategy: adaptive.Strategy, model: Autoencoder) -> Table:
    return sampler_table(strategy, model.encoder_spec.width).under("params/masking")


def _adversarial_table(strategy: adversarial.Strategy, model: Autoencoder) -> Table:
    weights, vectors = discriminator_tables()
    vit = encoder_table(strategy.vit(model.geometry), systems.MAE)
    return (
        generator_table().under("params/masking/generator")
        + weights.under("params/masking/discriminator", DISCRIMINATOR)
        + vectors.under("state", DISCRIMINATOR)
        + vit.under("frozen/vit", VIT)
    )


# The strategies with weights.
MASKING_TABLES: dict[type[MaskingStrategy], Callable[[Any, Autoencoder], Table]] = {
    adaptive.Strategy: _adaptive_table,
    adversarial.Strategy: _adversarial_table,
}


def masking_table(pretraining: Pretraining) -> Table:
    """Returns the table of what a masking strategy adds to ``params``, ``state`` and ``frozen``."""
    build = MASKING_TABLES.get(type(pretraining.strategy))
    return Table([]) if build is None else build(pretraining.strategy, pretraining.model)


def pretraining_table(pretraining: Pretraining) -> Table:
    """Returns the table of all that pretraining holds in ``params``, ``state`` and ``frozen``.

    The discriminator of AutoMAE and its frozen ViT, which the authors keep in files of their own,
    have the prefixes ``discriminator.`` and ``pretrained_vit.``.
    """
    model = autoencoder_table(pretraining.model).under("params/autoencoder")
    return model + masking_table(pretraining)
