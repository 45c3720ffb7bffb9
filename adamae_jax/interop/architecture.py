"""Which model a state dict belongs to: system and sizes, from names and shapes.

What shapes do not say (attention heads, the clip's size where no position table tells it) is known
for the sizes that were published (`published`); for others it has to be given.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

from adamae_jax.config import default_config, masking_config, set_family
from adamae_jax.errors import UserError
from adamae_jax.interop.published import (
    DECODER_HEADS,
    ENCODER_HEADS,
    PUBLISHED_FRAMES,
    PUBLISHED_SIDE,
    SYSTEMS,
)
from adamae_jax.interop.safetensors_files import StateDict

# What the names of AutoMAE's networks begin with; the first two have files of their own.
DISCRIMINATOR, VIT, GENERATOR = "discriminator.", "pretrained_vit.", "scorer_pred."
SAMPLER_TABLE = "encoder.pos_embed_probs"


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
      decoder_norm_epsilon: of the decoder's last norm.
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
    decoder_norm_epsilon: float | None = None
    classifier_norm_epsilon: float | None = None
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    normalize_targets: str | None = None


# What a state dict holds: a model of pretraining, a classifier, or the encoder of the former alone
# (as MAE's authors publish theirs).
Kind = Literal["pretraining", "classifier", "encoder"]


@dataclasses.dataclass(frozen=True)
class Inferred:
    """A model's description.

    Attributes:
      system: one of `SYSTEMS`.
      kind: which part of it there is.
      config: the experiment it would be.
      remarks: what was taken from the published models, for the user to know.
    """

    system: str
    kind: Kind
    config: ConfigDict
    remarks: tuple[str, ...]


def detect(state: StateDict) -> tuple[str, Kind]:
    """The system, and what of it there is; told by whole parts, so that one array may be missing.

    Raises:
      UserError: where the names are those of none.
    """

    def has(*beginnings: str) -> bool:
        return any(name.startswith(beginnings) for name in state)

    if has("encoder.pos_embed_probs", "encoder.get_token_probs."):
        return "adamae", "pretraining"
    if has(GENERATOR):
        return "automae", "pretraining"
    if has("encoder.blocks.") and has("decoder."):
        return "videomae", "pretraining"
    if has("blocks.") and has("patch_embed."):
        kind: Kind = "classifier" if has("head.") else "encoder"
        if has("decoder_"):
            kind = "pretraining"
        if has("blocks.0.attn.q."):
            return "mae_st", kind
        return ("mae" if has("cls_token", "decoder_") else "videomae"), kind
    shown = ", ".join(sorted(state)[:5])
    raise UserError(
        f"the weights are of no system that is known here ({', '.join(SYSTEMS)}): their names "
        f"begin with {shown}"
    )


def _check_given(system: str, kind: Kind, given: Given) -> None:
    """Raises a `UserError` where a size is given that the model does not have."""
    foreign = {
        "decoder_num_heads": kind != "pretraining",
        "mask_ratio": kind != "pretraining",
        "sampler_num_heads": system != "adamae",
        "num_frames": SYSTEMS[system].family == "mae" and given.num_frames != 1,
    }
    for name, is_foreign in foreign.items():
        if is_foreign and getattr(given, name) is not None:
            what = {"encoder": "encoder alone", "classifier": "classifier"}.get(kind, "model")
            raise UserError(
                f"--{name}={getattr(given, name)} says nothing of this {what} ({system}): leave it "
                "out"
            )


class _Sizes:
    """Reads sizes off a state dict; what is not there is a `UserError`."""

    def __init__(self, state: StateDict, given: Given):
        self.state, self.given = state, given
        self.remarks: list[str] = []

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """The shape of an array that must be there, of so many axes, none of them empty."""
        if name not in self.state:
            raise UserError(f"the weights lack {name}: without it the model cannot be known")
        shape = self.state[name].shape
        if len(shape) != rank or 0 in shape:
            raise UserError(f"{name} has the shape {shape}: it should have {rank} axes")
        return shape

    def depth(self, prefix: str) -> int:
        """How many blocks there are under a prefix such as ``encoder.blocks.``."""
        pattern = re.compile(re.escape(prefix) + r"(\d{1,6})\.(?:norm|attn|mlp|gamma)")
        matches = (pattern.match(name) for name in self.state)
        found = {int(match[1]) for match in matches if match}
        for layer in range(len(found)):
            if layer not in found:
                raise UserError(f"the weights lack {prefix}{layer}, and have blocks after it")
        return len(found)

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
        check_heads(flag, heads, width)
        return {"width": width, "depth": depth, "num_heads": heads}

    def image(self, places: int, patch_size: int, table: str) -> tuple[int, int]:
        """The image size of a position table over height and width."""
        if self.given.image_size is None:
            side = square_side(places, table) * patch_size
            return side, side
        height, width = self.given.image_size
        if places != (height // patch_size) * (width // patch_size):
            raise contradiction(f"--image_size={height},{width}", table, places)
        return height, width

    def clip(self, tubelet_size: int, patch_size: int) -> tuple[int, tuple[int, int]]:
        """Frames and image size where no table tells them: the published ones, if those fit."""
        frames, size = self.given.num_frames, self.given.image_size
        if (tubelet_size, patch_size) != (2, 16):
            if frames is None:
                raise UserError(
                    "the weights do not say how many frames a clip has: give --num_frames"
                )
            if size is None:
                raise UserError("the weights do not say how large frames are: give --image_size")
            return frames, size
        return self._published(frames, size)

    def clip_of(self, table: str, tokens: int, t: int, p: int) -> tuple[int, tuple[int, int]]:
        """Frames and image size of tubelets of ``t x p x p``, where one table has all tokens."""
        frames, size = self.given.num_frames, self.given.image_size
        if size is not None:
            patches = (size[0] // p) * (size[1] // p)
            found = frames or tokens // max(1, patches) * t
            if found // t * patches != tokens:
                said = f"--num_frames={frames} " if frames else ""
                raise contradiction(f"{said}--image_size={size[0]},{size[1]}", table, tokens)
            return found, size
        if frames is not None:
            places, rest = divmod(tokens, max(1, frames // t))
            if rest:
                raise contradiction(f"--num_frames={frames}", table, tokens)
            side = square_side(places, table) * p
            return frames, (side, side)
        published = (PUBLISHED_FRAMES // 2) * (PUBLISHED_SIDE // 16) ** 2
        if (t, p, tokens) != (2, 16, published):
            raise UserError(
                f"{table} has {tokens} places, for many frames of few patches or few of many: give "
                "--num_frames or --image_size"
            )
        return self._published(None, None)

    def _published(
        self, frames: int | None, size: tuple[int, int] | None
    ) -> tuple[int, tuple[int, int]]:
        if frames is None:
            self.remarks.append(f"num_frames {PUBLISHED_FRAMES}: as published")
        if size is None:
            self.remarks.append(f"image_size {PUBLISHED_SIDE},{PUBLISHED_SIDE}: as published")
        return frames or PUBLISHED_FRAMES, size or (PUBLISHED_SIDE, PUBLISHED_SIDE)


def check_heads(flag: str, heads: int, width: int) -> None:
    """Raises a `UserError` where attention heads do not divide the width that they share."""
    if width % heads:
        raise UserError(f"{heads} attention heads do not divide the width {width}: give --{flag}")


def contradiction(said: str, table: str, places: int) -> UserError:
    """What is given and what a position table says do not go together."""
    return UserError(
        f"{said} does not fit {table}, which has {places} places: leave it out, or correct it "
        "(--to_num_frames and --to_image_size interpolate tables to another size)"
    )


def square_side(count: int, what: str) -> int:
    """The side of a square grid of so many patches."""
    side = math.isqrt(count)
    if side * side != count:
        raise UserError(f"{what} has {count} places, which are no square: give --image_size")
    return side


def infer(state: StateDict, given: Given) -> Inferred:
    """The model that a state dict belongs to.

    Args:
      state: the weights under the authors' names.
      given: what is known beside them; it goes before what would be inferred.

    Raises:
      UserError: where it is none that is known here, or something has to be given, or is given and
        contradicts the weights.
    """
    system, kind = detect(state)
    _check_given(system, kind, given)
    facts, sizes = SYSTEMS[system], _Sizes(state, given)
    config = default_config()
    with config.unlocked():
        set_family(config.model, facts.family)
        _set_model(config, sizes, system, kind)
        config.objective.normalize_targets = given.normalize_targets or facts.normalize_targets
        config.objective.target_pixels = facts.target_pixels
        pixels = given.pixels or facts.pixels
        if pixels is not None:
            config.objective.pixel_mean, config.objective.pixel_std = pixels
        if kind == "classifier":
            _set_classifier(config, sizes, system)
        ratio = facts.mask_ratio if given.mask_ratio is None else given.mask_ratio
        if given.mask_ratio is None and kind == "pretraining":
            sizes.remarks.append(f"mask_ratio {ratio}: as published")
        config.masking = masking_config(facts.masking, ratio, **_options(system, sizes, config))
    return Inferred(system, kind, config, tuple(sizes.remarks))


def _set_model(config: ConfigDict, sizes: _Sizes, system: str, kind: Kind) -> None:
    given, model, state = sizes.given, config.model, sizes.state
    family = SYSTEMS[system].family
    prefix = "encoder." if family == "videomae" and kind == "pretraining" else ""
    is_image = family == "mae"
    kernel = sizes.shape(f"{prefix}patch_embed.proj.weight", 4 if is_image else 5)
    model.tubelet_size, model.patch_size = (1 if is_image else kernel[2]), kernel[-1]
    heads = given.num_heads
    if heads is None and system == "automae":
        heads = sizes.shape(f"{GENERATOR}main.0.weight", 4)[1]
        sizes.remarks.append(f"num_heads {heads}: as many as attention maps are read")
    model.encoder.update(sizes.blocks(f"{prefix}blocks.", "num_heads", heads, ENCODER_HEADS))
    hidden, _ = sizes.shape(f"{prefix}blocks.0.mlp.fc1.weight", 2)
    model.mlp_ratio = hidden / model.encoder.width
    if given.norm_epsilon is not None:
        model.norm_epsilon = given.norm_epsilon
    decoder_epsilon = given.decoder_norm_epsilon
    model.decoder_norm_epsilon = model.norm_epsilon if decoder_epsilon is None else decoder_epsilon
    if any(name.startswith(f"{prefix}blocks.") and "gamma_" in name for name in state):
        model.layer_scale = 1.0  # where it starts no longer matters
    has_bias = any(name.endswith(("q_bias", "attn.qkv.bias", "attn.q.bias")) for name in state)
    if not has_bias:
        model.attention_bias = ""
    if kind == "pretraining":
        decoder = "decoder.blocks." if family == "videomae" else "decoder_blocks."
        heads, known = given.decoder_num_heads, DECODER_HEADS[family]
        model.decoder.update(sizes.blocks(decoder, "decoder_num_heads", heads, known))
    _set_clip(config, sizes, family)
    if family == "mae" and kind == "classifier":
        model.positions = "learned"  # fine-tuning trains the table
    if family == "mae_st" and kind == "pretraining":
        _set_predicted_frames(config, sizes)


def _set_clip(config: ConfigDict, sizes: _Sizes, family: str) -> None:
    """Frames and image size, and what position tables tell of them."""
    state, model, data = sizes.state, config.model, config.data
    t, p = model.tubelet_size, model.patch_size
    if family == "videomae":
        if SAMPLER_TABLE in state:
            tokens = sizes.shape(SAMPLER_TABLE, 3)[1]
            data.num_frames, data.image_size = sizes.clip_of(SAMPLER_TABLE, tokens, t, p)
        else:
            data.num_frames, data.image_size = sizes.clip(t, p)
        return
    if family == "mae":
        places = sizes.shape("pos_embed", 3)[1] - 1  # the first row is the class token's
        data.num_frames, data.image_size = 1, sizes.image(places, p, "pos_embed")
        return
    has_class = "cls_token" in state
    if not has_class:
        model.class_token = "none"
    if "pos_embed_spatial" in state:
        places = sizes.shape("pos_embed_spatial", 3)[1]
        steps = sizes.shape("pos_embed_temporal", 3)[1]
        data.image_size = sizes.image(places, p, "pos_embed_spatial")
        if sizes.given.num_frames not in (None, steps * t):
            said = f"--num_frames={sizes.given.num_frames}"
            raise contradiction(said, "pos_embed_temporal", steps)
        data.num_frames = steps * t
        return
    model.positions = "learned"
    places = sizes.shape("pos_embed", 3)[1] - has_class
    data.num_frames, data.image_size = sizes.clip_of("pos_embed", places, t, p)


def _set_predicted_frames(config: ConfigDict, sizes: _Sizes) -> None:
    """MAE-ST's, from the values that its decoder predicts for each token."""
    t, p = config.model.tubelet_size, config.model.patch_size
    values, _ = sizes.shape("decoder_pred.weight", 2)
    channels = sizes.shape("patch_embed.proj.weight", 5)[1]
    depth = values // (p * p * channels)
    if depth != t:
        config.model.predicted_frames = depth * (config.data.num_frames // t)


def _set_classifier(config: ConfigDict, sizes: _Sizes, system: str) -> None:
    classes, _ = sizes.shape("head.weight", 2)
    config.classifier.num_classes = classes
    epsilon = sizes.given.classifier_norm_epsilon
    config.classifier.norm_epsilon = config.model.norm_epsilon if epsilon is None else epsilon
    has_class = config.model.class_token != "none"
    config.classifier.skip_first_patch = system == "mae_st" and not has_class


def _options(system: str, sizes: _Sizes, config: ConfigDict) -> dict[str, Any]:
    """The options of the system's masking."""
    if system == "adamae":
        heads = sizes.given.sampler_num_heads
        if heads is None:
            heads = 8
            sizes.remarks.append("sampler_num_heads 8: as in the released code")
        check_heads("sampler_num_heads", heads, config.model.encoder.width)
        return {"depth": sizes.depth("encoder.get_token_probs."), "num_heads": heads}
    if system == "automae":
        if not sizes.depth(f"{VIT}blocks."):
            raise UserError(
                "the weights lack AutoMAE's frozen ViT, which the authors keep in a file of its "
                "own: give --pretrained_vit, the checkpoint of an image MAE"
            )
        heads = sizes.shape(f"{GENERATOR}main.0.weight", 4)[1]
        width = sizes.shape(f"{VIT}cls_token", 3)[-1]
        check_heads("pretrained_vit=FILE, one of another width", heads, width)
        return {
            "vit_width": width,
            "vit_depth": sizes.depth(f"{VIT}blocks."),
            "vit_num_heads": heads,
            "vit_norm_epsilon": config.model.norm_epsilon,
        }
    return {}
