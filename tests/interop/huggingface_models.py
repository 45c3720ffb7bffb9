"""Tiny models in the authors' names, written down apart from the tables that are tested."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from adamae_jax.interop.huggingface import Blocks, Facts, Kind

# Hardly two sizes alike, but that MAE takes squares, and widths that 4 divides, only.
VIDEO = Facts(
    image_size=(16, 16),
    patch_size=4,
    encoder=Blocks(width=12, depth=3, num_heads=2, mlp_width=20),
    decoder=Blocks(width=8, depth=2, num_heads=4, mlp_width=14),
    num_frames=6,
    tubelet_size=2,
    pixel_mean=(0.485, 0.456, 0.406),
    pixel_std=(0.229, 0.224, 0.225),
)
FACTS: dict[Kind, Facts] = {
    "videomae_pretraining": VIDEO,
    "videomae_classifier": dataclasses.replace(
        VIDEO,
        decoder=None,
        classifier_norm_epsilon=1e-5,
        mean_pooling=True,
        label_names=("walking", "running", "jumping", "élan", "rest"),
    ),
    "mae_pretraining": dataclasses.replace(
        VIDEO, num_frames=1, tubelet_size=1, mask_ratio=0.7, norm_pix_loss=False
    ),
}

# `VideoMAEForVideoClassification` without mean pooling.
FIRST_TOKEN = dataclasses.replace(
    FACTS["videomae_classifier"], mean_pooling=False, classifier_norm_epsilon=VIDEO.norm_epsilon
)


def _block(prefix: str, blocks: Blocks, fused_bias: bool) -> dict[str, tuple[int, ...]]:
    width, inner = blocks.width, blocks.mlp_width
    shapes: dict[str, tuple[int, ...]] = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (inner, width),
        "mlp.fc1.bias": (inner,),
        "mlp.fc2.weight": (width, inner),
        "mlp.fc2.bias": (width,),
    }
    if fused_bias:
        shapes["attn.qkv.bias"] = (3 * width,)
    else:
        shapes |= {"attn.q_bias": (width,), "attn.v_bias": (width,)}
    return {
        f"{prefix}.{layer}.{name}": shape
        for layer in range(blocks.depth)
        for name, shape in shapes.items()
    }


def shapes(kind: Kind) -> dict[str, tuple[int, ...]]:
    """The authors' names and shapes of the models of `FACTS`."""
    facts = FACTS[kind]
    if kind == "videomae_classifier":
        return {
            "patch_embed.proj.weight": (12, 3, 2, 4, 4),
            "patch_embed.proj.bias": (12,),
            **_block("blocks", facts.encoder, False),
            "fc_norm.weight": (12,),
            "fc_norm.bias": (12,),
            "head.weight": (5, 12),
            "head.bias": (5,),
        }
    assert facts.decoder is not None
    if kind == "videomae_pretraining":
        return {
            "mask_token": (1, 1, 8),
            "encoder.patch_embed.proj.weight": (12, 3, 2, 4, 4),
            "encoder.patch_embed.proj.bias": (12,),
            **_block("encoder.blocks", facts.encoder, False),
            "encoder.norm.weight": (12,),
            "encoder.norm.bias": (12,),
            **_block("decoder.blocks", facts.decoder, False),
            "decoder.norm.weight": (8,),
            "decoder.norm.bias": (8,),
            "decoder.head.weight": (96, 8),
            "decoder.head.bias": (96,),
            "encoder_to_decoder.weight": (8, 12),
        }
    return {
        "cls_token": (1, 1, 12),
        "pos_embed": (1, 17, 12),
        "mask_token": (1, 1, 8),
        "decoder_pos_embed": (1, 17, 8),
        "patch_embed.proj.weight": (12, 3, 4, 4),
        "patch_embed.proj.bias": (12,),
        **_block("blocks", facts.encoder, True),
        "norm.weight": (12,),
        "norm.bias": (12,),
        "decoder_embed.weight": (8, 12),
        "decoder_embed.bias": (8,),
        **_block("decoder_blocks", facts.decoder, True),
        "decoder_norm.weight": (8,),
        "decoder_norm.bias": (8,),
        "decoder_pred.weight": (48, 8),
        "decoder_pred.bias": (48,),
    }


def state(kind: Kind, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under the authors' names."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes(kind).items()}


def first_token_state() -> dict[str, np.ndarray]:
    """Random weights of the model of `FIRST_TOKEN`: its last norm is the encoder's."""
    renamed = state("videomae_classifier")
    return {name.replace("fc_norm.", "norm."): array for name, array in renamed.items()}


def assert_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """The same names, shapes, types and bits."""
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, strict=True, err_msg=name)
