"""The six systems as their authors published them: names of weights, models, recipes.

Weights are named in one of three ways, each a `Dialect`: VideoMAE's (AdaMAE's and VideoMAE
V2's too), MAE's (AutoMAE's too) and MAE-ST's. A new system is a new entry in `SYSTEMS`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from adamae_jax.models.classifier import Pooling
from adamae_jax.models.positions import PositionKind
from adamae_jax.models.tubelets import ClipGeometry

# What a state dict holds: a model of pretraining, a classifier, or the encoder of the former alone
# (as MAE's authors publish theirs).
Kind = Literal["pretraining", "classifier", "encoder"]

# What the names of AutoMAE's networks begin with; the first two have files of their own.
DISCRIMINATOR, VIT, GENERATOR = "discriminator.", "pretrained_vit.", "scorer_pred."
# Likewise AdaMAE's sampling network, and the name of its position table.
SAMPLER, SAMPLER_TABLE = "encoder.get_token_probs.", "encoder.pos_embed_probs"

# Published sizes, which no array tells: attention heads by (width, depth), and the clip.
ENCODER_HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16, (1408, 40): 16}
NUM_FRAMES, IMAGE_SIZE = 16, (224, 224)
TUBELET_SIZE, PATCH_SIZE = 2, 16
LARGE_PATCH_SIZE = 14  # of VideoMAE V2's g
SAMPLER_HEADS = 8

# Tells whether any name of a state dict begins with one of the given prefixes.
HasPrefix = Callable[..., bool]


@dataclasses.dataclass(frozen=True)
class DecoderNames:
    """Names of the decoder's parts; ``{}`` in ``blocks`` stands for the layer."""

    projection: str
    class_token: str
    blocks: str
    norm: str
    head: str


@dataclasses.dataclass(frozen=True)
class Dialect:
    """One way of naming weights, and which models the authors' code has.

    Attributes:
      family: one of `adamae_jax.config.FAMILIES`.
      kernels: name of the attention's kernel, or names of query's, key's and value's.
      biases: names of the attention's biases, of those of query, key and value that have one.
      decoder: names of the decoder's parts.
      decoder_heads: attention heads of the published decoders by (width, depth).
      recognise: returns the kind of a state dict with such names, or None for other names.
      positions: the values of ``model.positions`` that the code has; the first in pretraining.
      encoder_prefix: prefix of the encoder's names in a model of pretraining.
      classifier_norms: name of a classifier's last norm, by ``classifier.pooling``. Where that of
        "mean" is "norm", like the encoder's own, a classifier takes it over from pretraining.
      class_tokens: further values of ``model.class_token`` beside the family's.
      is_image: whether the models are of single images, cut into 2-D patches.
      has_layer_scale: whether blocks may have LayerScale.
      predicts_fewer_frames: whether the decoder may predict a part of the clip's frames.
      skips_first_patch: whether a classifier leaves the first token out of the mean even if it is
        no class token.
      trains_positions: whether fine-tuning trains a table that is fixed in pretraining.
    """

    family: str
    kernels: str | tuple[str, ...]
    biases: str | tuple[str, ...]
    decoder: DecoderNames
    decoder_heads: Mapping[tuple[int, int], int]
    recognise: Callable[[HasPrefix], Kind | None]
    positions: tuple[PositionKind, ...]
    encoder_prefix: str = ""
    classifier_norms: Mapping[Pooling, str] = dataclasses.field(
        default_factory=lambda: {"mean": "fc_norm", "first": "norm"}
    )
    class_tokens: tuple[str, ...] = ()
    is_image: bool = False
    has_layer_scale: bool = False
    predicts_fewer_frames: bool = False
    skips_first_patch: bool = False
    trains_positions: bool = False

    def prefix(self, kind: Kind) -> str:
        """Returns the prefix of the encoder's names in a state dict of a kind."""
        return self.encoder_prefix if kind == "pretraining" else ""


def _kind_without_prefix(has: HasPrefix) -> Kind | None:
    """Returns the kind of a state dict whose encoder has no prefix."""
    if not (has("blocks.") and has("patch_embed.")):
        return None
    if has("decoder_"):
        return "pretraining"
    return "classifier" if has("head.") else "encoder"


def _recognise_videomae(has: HasPrefix) -> Kind | None:
    if has("encoder.blocks.") and has("decoder."):
        return "pretraining"
    is_other = has("cls_token", "decoder_", "blocks.0.attn.q.")
    return None if is_other else _kind_without_prefix(has)


def _recognise_mae(has: HasPrefix) -> Kind | None:
    is_other = has("blocks.0.attn.q.") or not has("cls_token", "decoder_")
    return None if is_other else _kind_without_prefix(has)


def _recognise_mae_st(has: HasPrefix) -> Kind | None:
    return _kind_without_prefix(has) if has("blocks.0.attn.q.") else None


_MAE_DECODER = DecoderNames(
    "decoder_embed", "decoder_cls_token", "decoder_blocks.{}", "decoder_norm", "decoder_pred"
)
VIDEOMAE = Dialect(
    family="videomae",
    kernels="attn.qkv.weight",
    biases=("attn.q_bias", "attn.v_bias"),
    decoder=DecoderNames(
        "encoder_to_decoder", "", "decoder.blocks.{}", "decoder.norm", "decoder.head"
    ),
    decoder_heads={(192, 4): 3, (384, 4): 6, (512, 4): 8, (512, 12): 8, (640, 12): 8},
    recognise=_recognise_videomae,
    positions=("sincos_1d",),
    encoder_prefix="encoder.",
    has_layer_scale=True,
)
MAE = Dialect(
    family="mae",
    kernels="attn.qkv.weight",
    biases="attn.qkv.bias",
    decoder=_MAE_DECODER,
    decoder_heads={(512, 8): 16},
    recognise=_recognise_mae,
    positions=("sincos_2d", "learned"),
    is_image=True,
    trains_positions=True,
)
MAE_ST = Dialect(
    family="mae_st",
    kernels=("attn.q.weight", "attn.k.weight", "attn.v.weight"),
    biases=("attn.q.bias", "attn.k.bias", "attn.v.bias"),
    decoder=_MAE_DECODER,
    decoder_heads={(512, 4): 16, (512, 8): 16},
    recognise=_recognise_mae_st,
    positions=("separable", "learned"),
    classifier_norms={"mean": "norm"},
    class_tokens=("none",),
    predicts_fewer_frames=True,
    skips_first_patch=True,
)


def dialect_of(positions: str, geometry: ClipGeometry) -> Dialect:
    """Returns the dialect of a model: positions tell, and where two have the same, images."""
    candidates = [each for each in (VIDEOMAE, MAE, MAE_ST) if positions in each.positions]
    is_image = geometry.num_frames == geometry.tubelet_size == 1
    return min(candidates, key=lambda dialect: dialect.is_image != is_image)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the authors cut clips out of one dataset, which no weights tell.

    Pretraining's are those of the recipes in ``configs/``, fine-tuning's those of the authors'
    scripts: github.com/MCG-NJU/VideoMAE (datasets.py, kinetics.py, ssv2.py), facebookresearch/mae
    (util/datasets.py) and facebookresearch/mae_st (main_finetune.py).

    Attributes:
      dataset: its name.
      fields: of ``config.data``.
      hint: says which ``sampling_rate`` the authors use elsewhere.
    """

    dataset: str
    fields: Mapping[str, Any]
    hint: str = ""


# Cut and resized in PyTorch, unlike MAE's images: `random_resized_crop` of VideoMAE's
# video_transforms.py, as MAE-ST's, is given tensors and calls `interpolate`, which does not filter.
# Validation and test do not either: their `Resize` is given arrays, for which functional.py's
# `resize_clip` takes OpenCV's INTER_LINEAR. Only pretraining resizes with Pillow, which does.
_RANDOM_CROPS = {
    "crop": "random_resized",
    "crop_area": (0.08, 1.0),
    "crop_aspect": (3 / 4, 4 / 3),
    "interpolation": "bilinear_without_antialias",
    "horizontal_flip": True,
}
_VIDEOMAE_CLIPS = {
    "sampling_rate": 4,
    "frame_sampling": "dense",
    "crop": "multi_scale_corner",
    "interpolation": "bilinear",
    "horizontal_flip": False,
}
_MAE_ST_CLIPS = {
    "sampling_rate": 4,
    "frame_sampling": "time_scaled",
    "target_fps": 30.0,
    **_RANDOM_CROPS,
}
_MAE_IMAGES = {"sampling_rate": 1, **_RANDOM_CROPS, "interpolation": "bicubic"}
_STRETCHED = {"sampling_rate": 4, "frame_sampling": "stretched", **_RANDOM_CROPS}
_SEGMENTS = {"frame_sampling": "segments", **_RANDOM_CROPS, "horizontal_flip": False}
_OTHER_RATE = "; 2 for Something-Something V2: give --sampling_rate"


@dataclasses.dataclass(frozen=True)
class System:
    """What the weights of a system do not say.

    Attributes:
      dialect: its names.
      masking: the strategy.
      mask_ratio: of the authors' recipe.
      recipe: how the authors cut clips in pretraining.
      fine_tuning: likewise in fine-tuning, by the number of classes; 0 for all other numbers.
      normalize_targets: of the authors' recipe.
      target_pixels: of the authors' recipe.
      pixels: mean and standard deviation of the input; None for ImageNet's.
      marks: prefixes of names that this system has, and no other of its dialect.
      sizes: (width, depth) of encoder and decoder that this system's pretraining has, and no other
        of its dialect, where names do not tell.
    """

    dialect: Dialect
    masking: str
    mask_ratio: float
    recipe: Recipe
    fine_tuning: Mapping[int, Recipe]
    normalize_targets: str = "channel"
    target_pixels: str = "unit"
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    marks: tuple[str, ...] = ()
    sizes: tuple[tuple[tuple[int, int], tuple[int, int]], ...] = ()

    def recipe_of(self, num_classes: int) -> Recipe:
        """Returns how clips are cut for a classifier of so many classes; 0: for pretraining."""
        if not num_classes:
            return self.recipe
        return self.fine_tuning.get(num_classes, self.fine_tuning[0])


_VIDEOMAE = System(
    dialect=VIDEOMAE,
    masking="tube",
    mask_ratio=0.9,
    recipe=Recipe("Kinetics", _VIDEOMAE_CLIPS, _OTHER_RATE),
    fine_tuning={
        0: Recipe("Kinetics", _STRETCHED),
        174: Recipe("Something-Something V2", _SEGMENTS),
    },
)
_MAE = System(
    dialect=MAE,
    masking="random",
    mask_ratio=0.75,
    recipe=Recipe("ImageNet", {**_MAE_IMAGES, "crop_area": (0.2, 1.0)}),
    fine_tuning={0: Recipe("ImageNet", _MAE_IMAGES)},
    normalize_targets="tubelet",
    target_pixels="normalized",
)
SYSTEMS = {
    "adamae": dataclasses.replace(
        _VIDEOMAE, masking="adaptive", mask_ratio=0.95, marks=(SAMPLER, SAMPLER_TABLE)
    ),
    "videomae": _VIDEOMAE,
    "videomae_v2": dataclasses.replace(  # its B is VideoMAE's, in names and sizes
        _VIDEOMAE,
        masking="dual",
        recipe=Recipe("UnlabeledHybrid", _VIDEOMAE_CLIPS, _OTHER_RATE),
        sizes=tuple((encoder, (512, 4)) for encoder in ((1024, 24), (1280, 32), (1408, 40))),
    ),
    "mae": _MAE,
    "automae": dataclasses.replace(_MAE, masking="adversarial", marks=(GENERATOR,)),
    "mae_st": System(
        dialect=MAE_ST,
        masking="random",
        mask_ratio=0.9,
        recipe=Recipe("Kinetics", {**_MAE_ST_CLIPS, "crop_area": (0.5, 1.0)}),
        fine_tuning={0: Recipe("Kinetics", _MAE_ST_CLIPS)},
        normalize_targets="tubelet",
        target_pixels="normalized",
        pixels=((0.45,) * 3, (0.225,) * 3),
    ),
}


def classifier_system(dialect: Dialect) -> System:
    """Returns the system of a dialect's classifiers, whatever they were pretrained as."""
    plain = (each for each in SYSTEMS.values() if not (each.marks or each.sizes))
    return next(each for each in plain if each.dialect == dialect)
