"""Which model a state dict belongs to: system and sizes, from names and shapes.

What shapes do not say (attention heads, the clip's size where no position table tells it) is known
for the sizes that were published; for others it has to be given.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from adamae_jax.config import default_config, masking_config, set_family
from adamae_jax.errors import UserError
from adamae_jax.interop.safetensors_files import StateDict

# Attention heads by (width, depth), in the models that the authors published.
ENCODER_HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16}
DECODER_HEADS = {
    "videomae": {(192, 4): 3, (384, 4): 6, (512, 12): 8, (640, 12): 8},
    "mae": {(512, 8): 16},
    "mae_st": {(512, 4): 16, (512, 8): 16},
}
PUBLISHED_FRAMES, PUBLISHED_SIDE = 16, 224

DISCRIMINATOR, VIT = "discriminator.", "pretrained_vit."


@dataclasses.dataclass(frozen=True)
class System:
    """What the weights of a system do not say.

    Attributes:
      family: of `adamae_jax.config.FAMILIES`.
      masking: the strategy.
      mask_ratio: of the authors' recipe.
      normalize_targets: likewise.
      target_pixels: likewise.
      pixels: mean and standard deviation of the input, likewise.
    """

    family: str
    masking: str
    mask_ratio: float
    normalize_targets: str = "channel"
    target_pixels: str = "unit"
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None


_MAE = System("mae", "random", 0.75, "tubelet", "normalized")

SYSTEMS = {
    "adamae": System("videomae", "adaptive", 0.95),
    "videomae": System("videomae", "tube", 0.9),
    "mae": _MAE,
    "automae": dataclasses.replace(_MAE, masking="adversarial"),
    "mae_st": System("mae_st", "random", 0.9, "tubelet", "normalized", ((0.45,) * 3, (0.225,) * 3)),
}


@dataclasses.dataclass(frozen=True)
class Given:
    """What a user says of a model, or a file beside its weights; None where nothing is said.

    Attributes:
      num_frames: frames of a clip.
      image_size: height and width in pixels.
      num_heads: attention heads of the encoder.
      decoder_num_heads: attention heads of the decoder.
      sampler_num_heads: attention heads of AdaMAE's sampling network.
      mask_ratio: share of tokens that is masked.
      norm_epsilon: of the layer norms.
      classifier_norm_epsilon: of a classifier's last norm.
      pixels: mean and standard deviation of the input's channels.
      normalize_targets: see `adamae_jax.objectives.Objective`.
    """

    num_frames: int | None = None
    image_size: tuple[int, int] | None = None
    num_heads: int | None = None
    decoder_num_heads: int | None = None
    sampler_num_heads: int | None = None
    mask_ratio: float | None = None
    norm_epsilon: float | None = None
    classifier_norm_epsilon: float | None = None
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    normalize_targets: str | None = None


@dataclasses.dataclass(frozen=True)
class Inferred:
    """A model's description.

    Attributes:
      system: one of `SYSTEMS`.
      config: the experiment it would be.
      is_classifier: whether it was fine-tuned.
      remarks: what was taken from the published models, for the user to know.
    """

    system: str
    config: ConfigDict
    is_classifier: bool
    remarks: tuple[str, ...]


def detect(state: StateDict) -> tuple[str, bool]:
    """The system, and whether it is a classifier.

    Raises:
      UserError: where the names are those of none.
    """
    is_classifier = "head.weight" in state
    separate = "blocks.0.attn.q.weight" in state
    if "encoder.pos_embed_probs" in state:
        return "adamae", False
    if "encoder_to_decoder.weight" in state:
        return "videomae", False
    if "scorer_pred.main.0.weight" in state:
        return "automae", False
    if separate and ("decoder_pred.weight" in state or is_classifier):
        return "mae_st", is_classifier
    if "decoder_pred.weight" in state or (is_classifier and "cls_token" in state):
        return "mae", is_classifier
    if is_classifier and "patch_embed.proj.weight" in state:
        return "videomae", True
    shown = ", ".join(sorted(state)[:5])
    raise UserError(
        f"the weights are of no system that is known here ({', '.join(SYSTEMS)}): their names "
        f"begin with {shown}"
    )


class _Sizes:
    """Reads sizes off a state dict; what is not there is a `UserError`."""

    def __init__(self, state: StateDict, given: Given):
        self.state, self.given = state, given
        self.remarks: list[str] = []

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """The shape of an array that must be there, of so many axes."""
        if name not in self.state:
            raise UserError(f"the weights lack {name}: without it the model cannot be known")
        shape = self.state[name].shape
        if len(shape) != rank:
            raise UserError(f"{name} has the shape {shape}: it should have {rank} axes")
        return shape

    def depth(self, prefix: str) -> int:
        """How many blocks there are under a prefix such as ``encoder.blocks.``."""
        pattern = re.compile(re.escape(prefix) + r"(\d+)\.norm1\.weight")
        found = (pattern.fullmatch(name) for name in self.state)
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    def blocks(
        self, prefix: str, flag: str, given: int | None, known: Mapping[tuple[int, int], int]
    ) -> dict[str, int]:
        """Width, depth and heads of a stack."""
        depth = self.depth(prefix)
        (width,) = self.shape(f"{prefix}0.norm1.weight", 1)
        heads = given or known.get((width, depth))
        if heads is None:
            raise UserError(
                f"{depth} blocks of width {width} could have any number of attention heads: give "
                f"--{flag}"
            )
        if given is None:
            self.remarks.append(f"{flag} {heads}: as in the published model of this size")
        return {"width": width, "depth": depth, "num_heads": heads}

    def image(self, places: int, patch_size: int, table: str) -> tuple[int, int]:
        """The image size of a position table over height and width."""
        if self.given.image_size is None:
            side = square_side(places, table) * patch_size
            return side, side
        height, width = self.given.image_size
        if places != (height // patch_size) * (width // patch_size):
            raise UserError(
                f"{table} has {places} places, which is not an image of {height} x {width} in "
                f"patches of {patch_size}: leave --image_size out, or correct it; "
                "--to_image_size interpolates position tables to another size"
            )
        return height, width

    def clip(self, tubelet_size: int, patch_size: int, tokens: int | None) -> tuple[int, Any]:
        """Frames and image size where no table tells them apart."""
        frames, size = self.given.num_frames, self.given.image_size
        grid = (PUBLISHED_FRAMES // tubelet_size) * (PUBLISHED_SIDE // patch_size) ** 2
        # Position tables that are no part of the state fit any clip; the published one is 16 x 224.
        is_published = (tubelet_size, patch_size) == (2, 16) and tokens in (None, grid)
        if is_published:
            if frames is None or size is None:
                self.remarks.append(
                    f"num_frames {frames or PUBLISHED_FRAMES}, image_size "
                    f"{size or (PUBLISHED_SIDE,) * 2}: as published"
                )
            return frames or PUBLISHED_FRAMES, size or (PUBLISHED_SIDE, PUBLISHED_SIDE)
        if frames is None:
            raise UserError("the weights do not say how many frames a clip has: give --num_frames")
        if size is None:
            if tokens is None:
                raise UserError("the weights do not say how large frames are: give --image_size")
            steps = max(1, frames // tubelet_size)
            side = square_side(tokens // steps, "the position table") * patch_size
            size = (side, side)
        return frames, size


def square_side(count: int, what: str) -> int:
    """The side of a square grid of so many patches."""
    side = math.isqrt(count)
    if side * side != count:
        raise UserError(f"{what} has {count} places, which are no square: give --image_size")
    return side


def infer(state: StateDict, given: Given, label_names: Sequence[str] = ()) -> Inferred:
    """The model that a state dict belongs to.

    Args:
      state: the weights under the authors' names.
      given: what is known beside them; it goes before what would be inferred.
      label_names: of a classifier's classes.

    Raises:
      UserError: where it is none that is known here, or something has to be given.
    """
    system, is_classifier = detect(state)
    facts, sizes = SYSTEMS[system], _Sizes(state, given)
    config = default_config()
    with config.unlocked():
        set_family(config.model, facts.family)
        _set_model(config, sizes, facts.family, is_classifier, system)
        config.objective.normalize_targets = given.normalize_targets or facts.normalize_targets
        config.objective.target_pixels = facts.target_pixels
        pixels = given.pixels or facts.pixels
        if pixels is not None:
            config.objective.pixel_mean, config.objective.pixel_std = pixels
        if is_classifier:
            _set_classifier(config, sizes, label_names)
        ratio = given.mask_ratio or facts.mask_ratio
        if given.mask_ratio is None and not is_classifier:
            sizes.remarks.append(f"mask_ratio {ratio}: as published")
        config.masking = masking_config(facts.masking, ratio, **_options(system, sizes, config))
    return Inferred(system, config, is_classifier, tuple(sizes.remarks))


def _set_model(
    config: ConfigDict, sizes: _Sizes, family: str, is_classifier: bool, system: str
) -> None:
    given, model, state = sizes.given, config.model, sizes.state
    prefix = "encoder." if family == "videomae" and not is_classifier else ""
    is_image = family == "mae"
    kernel = sizes.shape(f"{prefix}patch_embed.proj.weight", 4 if is_image else 5)
    model.tubelet_size, model.patch_size = (1 if is_image else kernel[2]), kernel[-1]
    heads = given.num_heads
    if heads is None and system == "automae":
        heads = sizes.shape("scorer_pred.main.0.weight", 4)[1]
        sizes.remarks.append(f"num_heads {heads}: as many as attention maps are read")
    model.encoder.update(sizes.blocks(f"{prefix}blocks.", "num_heads", heads, ENCODER_HEADS))
    hidden, _ = sizes.shape(f"{prefix}blocks.0.mlp.fc1.weight", 2)
    model.mlp_ratio = hidden / model.encoder.width
    model.norm_epsilon = given.norm_epsilon or 1e-6
    if f"{prefix}blocks.0.gamma_1" in state:
        model.layer_scale = 1.0  # where it starts no longer matters
    has_bias = any(name.endswith(("q_bias", "attn.qkv.bias", "attn.q.bias")) for name in state)
    if not has_bias:
        model.attention_bias = ""
    if not is_classifier:
        decoder = "decoder.blocks." if family == "videomae" else "decoder_blocks."
        model.decoder.update(
            sizes.blocks(
                decoder, "decoder_num_heads", given.decoder_num_heads, DECODER_HEADS[family]
            )
        )
    _set_clip(config, sizes, family, is_classifier)


def _set_clip(config: ConfigDict, sizes: _Sizes, family: str, is_classifier: bool) -> None:
    """Frames and image size, and what position tables tell of them."""
    state, model, data = sizes.state, config.model, config.data
    t, p = model.tubelet_size, model.patch_size
    if family == "videomae":
        tokens = None
        if "encoder.pos_embed_probs" in state:
            tokens = sizes.shape("encoder.pos_embed_probs", 3)[1]
        data.num_frames, data.image_size = sizes.clip(t, p, tokens)
        return
    has_class = "cls_token" in state
    if family == "mae":
        places = sizes.shape("pos_embed", 3)[1] - has_class
        data.num_frames, data.image_size = 1, sizes.image(places, p, "pos_embed")
        if is_classifier:
            model.positions = "learned"  # fine-tuning trains the table
        return
    if not has_class:
        model.class_token = "none"
    if "pos_embed_spatial" in state:
        places = sizes.shape("pos_embed_spatial", 3)[1]
        steps = sizes.shape("pos_embed_temporal", 3)[1]
        data.image_size = sizes.image(places, p, "pos_embed_spatial")
        data.num_frames = steps * t
    else:
        model.positions = "learned"
        places = sizes.shape("pos_embed", 3)[1] - has_class
        data.num_frames, data.image_size = sizes.clip(t, p, places)
        steps = data.num_frames // t
    if not is_classifier:
        values, _ = sizes.shape("decoder_pred.weight", 2)
        channels = sizes.shape("patch_embed.proj.weight", 5)[1]
        predicted = values // (p * p * channels) * steps
        model.predicted_frames = 0 if predicted == steps * t else predicted


def _set_classifier(config: ConfigDict, sizes: _Sizes, label_names: Sequence[str]) -> None:
    classes, _ = sizes.shape("head.weight", 2)
    if label_names and len(label_names) != classes:
        raise UserError(f"{len(label_names)} label names are given for {classes} classes")
    config.classifier.num_classes = classes
    epsilon = sizes.given.classifier_norm_epsilon
    config.classifier.norm_epsilon = config.model.norm_epsilon if epsilon is None else epsilon
    is_mae_st = "norm.weight" in sizes.state
    config.classifier.skip_first_patch = is_mae_st and config.model.class_token == "none"


def _options(system: str, sizes: _Sizes, config: ConfigDict) -> dict[str, Any]:
    """The options of the system's masking."""
    if system == "adamae":
        heads = sizes.given.sampler_num_heads
        if heads is None:
            heads = 8
            sizes.remarks.append("sampler_num_heads 8: as in the released code")
        return {"depth": sizes.depth("encoder.get_token_probs."), "num_heads": heads}
    if system == "automae":
        if not sizes.depth(f"{VIT}blocks."):
            raise UserError(
                "the weights lack AutoMAE's frozen ViT, which the authors keep in a file of its "
                "own: give --pretrained_vit, the checkpoint of an image MAE"
            )
        return {
            "vit_width": sizes.shape(f"{VIT}cls_token", 3)[-1],
            "vit_depth": sizes.depth(f"{VIT}blocks."),
            "vit_num_heads": sizes.shape("scorer_pred.main.0.weight", 4)[1],
            "vit_norm_epsilon": config.model.norm_epsilon,
        }
    return {}
