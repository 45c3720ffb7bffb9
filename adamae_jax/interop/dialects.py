"""Three ways of naming weights: VideoMAE's (AdaMAE's too), MAE's (AutoMAE's too), MAE-ST's.

A `Dialect` is all that is particular about one of them: what things are called, which models its
authors' code has, and how to recognise a file in it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from adamae_jax.interop.given import Kind
from adamae_jax.models.classifier import Pooling
from adamae_jax.models.positions import PositionKind
from adamae_jax.models.tubelets import ClipGeometry

# Every code can leave the biases of query, key and value out.
_NO_BIAS: dict[str, tuple[Any, ...]] = {"attention_bias": ("",)}

# Whether any name of a state dict begins with one of these.
Has = Callable[..., bool]


@dataclasses.dataclass(frozen=True)
class AttentionNames:
    """How query, key and value are called.

    Attributes:
      kernels: the array, or arrays in the order query, key, value.
      biases: likewise, of those that have one.
    """

    kernels: str | tuple[str, ...]
    biases: str | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class DecoderNames:
    """How the parts of a decoder are called; ``blocks`` holds the ``{}`` of the layer."""

    projection: str
    class_token: str
    blocks: str
    norm: str
    head: str


@dataclasses.dataclass(frozen=True)
class Dialect:
    """One way of naming weights, and what its authors' code can do.

    Attributes:
      family: of `adamae_jax.config.FAMILIES`: what their models are.
      attention: names of the attention's arrays.
      decoder: names of the decoder's parts.
      recognise: which kind of model a state dict with such names is; None for one of others.
      positions: what ``model.positions`` may be, of a model of pretraining first.
      also: values of other fields of ``config.model`` that their code has beside the family's.
      encoder: what stands before the encoder's names in a model of pretraining.
      classifier_norms: by how a classifier pools, what its last norm is called; no others are
        there. Where the norm after the mean is "norm", as the encoder's own, a classifier takes it
        from pretraining.
      is_image: whether they have single images, cut into 2-D patches.
      has_layer_scale: whether blocks may have LayerScale.
      predicts_fewer_frames: whether the decoder may predict a part of the clip's frames.
      drops_first_token: whether a classifier leaves the first token out of the mean, class token
        or not.
      trains_positions: whether fine-tuning trains a table that is fixed in pretraining.
    """

    family: str
    attention: AttentionNames
    decoder: DecoderNames
    recognise: Callable[[Has], Kind | None]
    positions: tuple[PositionKind, ...]
    also: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=lambda: _NO_BIAS)
    encoder: str = ""
    classifier_norms: Mapping[Pooling, str] = dataclasses.field(
        default_factory=lambda: {"mean": "fc_norm", "first": "norm"}
    )
    is_image: bool = False
    has_layer_scale: bool = False
    predicts_fewer_frames: bool = False
    drops_first_token: bool = False
    trains_positions: bool = False

    def prefix(self, kind: Kind) -> str:
        """What stands before the encoder's names in a state dict of a kind."""
        return self.encoder if kind == "pretraining" else ""

    @property
    def keeps_norm(self) -> bool:
        """Whether a classifier takes the encoder's last norm."""
        return self.classifier_norms["mean"] == "norm"


def _at_the_root(has: Has) -> Kind | None:
    """What a state dict is whose encoder has no prefix; told by whole parts, some may lack one."""
    if not (has("blocks.") and has("patch_embed.")):
        return None
    if has("decoder_"):
        return "pretraining"
    return "classifier" if has("head.") else "encoder"


def _is_videomae(has: Has) -> Kind | None:
    if has("encoder.blocks.") and has("decoder."):
        return "pretraining"
    return None if has("cls_token", "decoder_", "blocks.0.attn.q.") else _at_the_root(has)


def _is_mae(has: Has) -> Kind | None:
    is_other = has("blocks.0.attn.q.") or not has("cls_token", "decoder_")
    return None if is_other else _at_the_root(has)


def _is_mae_st(has: Has) -> Kind | None:
    return _at_the_root(has) if has("blocks.0.attn.q.") else None


_PREFIXED = DecoderNames(
    "decoder_embed", "decoder_cls_token", "decoder_blocks.{}", "decoder_norm", "decoder_pred"
)

VIDEOMAE = Dialect(
    "videomae",
    AttentionNames("attn.qkv.weight", ("attn.q_bias", "attn.v_bias")),
    DecoderNames("encoder_to_decoder", "", "decoder.blocks.{}", "decoder.norm", "decoder.head"),
    _is_videomae,
    positions=("sincos_1d",),
    encoder="encoder.",
    has_layer_scale=True,
)
MAE = Dialect(
    "mae",
    AttentionNames("attn.qkv.weight", "attn.qkv.bias"),
    _PREFIXED,
    _is_mae,
    positions=("sincos_2d", "learned"),
    is_image=True,
    trains_positions=True,
)
MAE_ST = Dialect(
    "mae_st",
    AttentionNames(
        ("attn.q.weight", "attn.k.weight", "attn.v.weight"),
        ("attn.q.bias", "attn.k.bias", "attn.v.bias"),
    ),
    _PREFIXED,
    _is_mae_st,
    positions=("separable", "learned"),
    also={**_NO_BIAS, "class_token": ("none",)},
    classifier_norms={"mean": "norm"},
    predicts_fewer_frames=True,
    drops_first_token=True,
)
DIALECTS = (VIDEOMAE, MAE, MAE_ST)


def dialect_of(positions: str, geometry: ClipGeometry) -> Dialect:
    """Whose names a model has: positions tell, and where two have the same, images."""
    candidates = [dialect for dialect in DIALECTS if positions in dialect.positions]
    is_image = geometry.num_frames == geometry.tubelet_size == 1
    return min(candidates, key=lambda dialect: dialect.is_image != is_image)
