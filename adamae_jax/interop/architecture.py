"""Which model a state dict belongs to: system and sizes, from names and shapes.

What shapes do not say (attention heads, the clip's size where no position table tells it) is known
for the sizes that were published (`adamae_jax.interop.systems`); for others it has to be given.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from adamae_jax.config import default_config, masking_config, set_family
from adamae_jax.errors import UserError
from adamae_jax.interop import systems
from adamae_jax.interop.files import StateDict
from adamae_jax.interop.systems import (
    GENERATOR,
    SAMPLER,
    SAMPLER_TABLE,
    SYSTEMS,
    VIT,
    Dialect,
    Kind,
    Recipe,
    System,
)
from adamae_jax.interop.weight_reader import (
    ImportOptions,
    WeightReader,
    check_heads,
    contradiction,
)


@dataclasses.dataclass(frozen=True)
class Inferred:
    """The model that a state dict belongs to.

    Attributes:
      system: one of `SYSTEMS`.
      kind: which part of it there is.
      config: the experiment it would be.
      remarks: what was taken from the published models, for the user to know.
      clip_remarks: likewise, how clips are cut.
    """

    system: str
    kind: Kind
    config: ConfigDict
    remarks: tuple[str, ...]
    clip_remarks: tuple[str, ...]


def detect(state: StateDict) -> tuple[str, Kind]:
    """Returns the system of a state dict, and what of it there is.

    Raises:
      UserError: where the names are those of none.
    """
    reader = WeightReader(state, ImportOptions())
    has = reader.has
    for name, system in SYSTEMS.items():
        if has(*system.marks):
            return name, "pretraining"
    for name, system in SYSTEMS.items():
        if system.sizes and system.dialect.recognise(has) == "pretraining":
            prefixes = f"{system.dialect.encoder_prefix}blocks.", system.dialect.decoder.blocks
            if tuple(reader.size(prefix.removesuffix("{}")) for prefix in prefixes) in system.sizes:
                return name, "pretraining"
    for name, system in SYSTEMS.items():
        kind = None if system.marks or system.sizes else system.dialect.recognise(has)
        if kind is not None:
            return name, kind
    shown = ", ".join(sorted(state)[:5])
    raise UserError(
        f"the weights are of no system that is known here ({', '.join(SYSTEMS)}): their names "
        f"begin with {shown}"
    )


def infer(state: StateDict, options: ImportOptions) -> Inferred:
    """Returns the model that a state dict belongs to.

    Args:
      state: the weights under the authors' names.
      options: what is known beside them; it goes before what would be inferred.

    Raises:
      UserError: where it is none that is known here, or something has to be given, or is given and
        contradicts the weights or what else is given.
    """
    name, kind = detect(state)
    system, reader = SYSTEMS[name], WeightReader(state, options)
    _check_options(name, system, kind, options)
    config = default_config()
    with config.unlocked():
        set_family(config.model, system.dialect.family)
        _set_model(config.model, reader, system.dialect, kind)
        _set_clip(config, reader, name, system.dialect)
        _set_objective(config.objective, options, system)
        if kind == "classifier":
            _set_classifier(config, reader, system.dialect)
        recipe = system.recipe_of(config.classifier.num_classes)
        clip_remarks = apply_recipe(recipe, config.data, options)
        ratio = system.mask_ratio
        if kind == "pretraining":
            ratio = reader.take("mask_ratio", ratio)
        read_options = _MASKING_OPTIONS.get(system.masking)
        fields = read_options(reader, config) if read_options else {}
        config.masking = masking_config(system.masking, ratio, **fields)
    return Inferred(name, kind, config, tuple(reader.remarks), tuple(clip_remarks))


def _check_options(name: str, system: System, kind: Kind, options: ImportOptions) -> None:
    """Raises a `UserError` where an option is given that the model does not have."""
    is_image = system.dialect.is_image
    foreign = {
        "decoder_num_heads": kind != "pretraining",
        "mask_ratio": kind != "pretraining",
        "sampler_num_heads": system.masking != "adaptive",
        "num_frames": is_image and options.num_frames != 1,
        "sampling_rate": is_image,
        "frame_sampling": is_image,
    }
    for option, is_foreign in foreign.items():
        if is_foreign and getattr(options, option) is not None:
            what = {"encoder": "encoder alone", "classifier": "classifier"}.get(kind, "model")
            raise UserError(
                f"--{option}={getattr(options, option)} says nothing of this {what} ({name}): "
                "leave it out"
            )


def _set_model(model: ConfigDict, reader: WeightReader, dialect: Dialect, kind: Kind) -> None:
    """Sets what encoder and decoder are."""
    prefix, decoder = dialect.prefix(kind), dialect.decoder.blocks.format("")
    kernel = reader.shape(f"{prefix}patch_embed.proj.weight", 4 if dialect.is_image else 5)
    model.tubelet_size, model.patch_size = (1 if dialect.is_image else kernel[2]), kernel[-1]
    encoder = f"{prefix}blocks."
    if reader.has(GENERATOR):  # AutoMAE's encoder has as many heads as its frozen ViT
        heads = {reader.size(encoder): _num_maps(reader)}
        source = "as many as attention maps are read"
        model.encoder.update(reader.blocks(encoder, "num_heads", heads, source))
    else:
        model.encoder.update(reader.blocks(encoder, "num_heads", systems.ENCODER_HEADS))
    stacks = [encoder]
    if kind == "pretraining":
        stacks.append(decoder)
        model.decoder.update(reader.blocks(decoder, "decoder_num_heads", dialect.decoder_heads))
    model.mlp_ratio = reader.mlp_ratio(*stacks)
    names = [name for name in reader.state if name.startswith(encoder)]
    if any("gamma_" in name for name in names):
        model.layer_scale = 1.0  # where it starts no longer matters
    if not any(name.endswith(dialect.biases) for name in names):
        model.attention_bias = ""
    model.norm_epsilon = reader.take("norm_epsilon", model.norm_epsilon, "")
    epsilon = reader.options.decoder_norm_epsilon
    model.decoder_norm_epsilon = model.norm_epsilon if epsilon is None else epsilon


def _set_objective(objective: ConfigDict, options: ImportOptions, system: System) -> None:
    objective.normalize_targets = options.normalize_targets or system.normalize_targets
    objective.target_pixels = system.target_pixels
    pixels = options.pixels or system.pixels
    if pixels is not None:
        objective.pixel_mean, objective.pixel_std = pixels


def _set_classifier(config: ConfigDict, reader: WeightReader, dialect: Dialect) -> None:
    classifier, model = config.classifier, config.model
    classifier.num_classes, _ = reader.shape("head.weight", 2)
    epsilon = reader.options.classifier_norm_epsilon
    classifier.norm_epsilon = model.norm_epsilon if epsilon is None else epsilon
    # The last norm's name tells how it pools: in no dialect do two ways of pooling share a name.
    for pooling, norm in dialect.classifier_norms.items():
        if reader.has(f"{norm}."):
            classifier.pooling = pooling
            break
    classifier.skip_first_patch = dialect.skips_first_patch and model.class_token == "none"
    if dialect.trains_positions:
        model.positions = "learned"


# Clips.


def _set_clip(config: ConfigDict, reader: WeightReader, system: str, dialect: Dialect) -> None:
    """Sets frames and image size, and which position tables there are."""
    model, data = config.model, config.data
    tubelet = (model.tubelet_size, model.patch_size)
    if dialect.is_image:  # a row for each patch, after the class token's
        places = reader.shape("pos_embed", 3)[1] - 1
        data.num_frames = 1
        data.image_size = reader.image_size("pos_embed", places, model.patch_size)
    elif dialect.family == "mae_st":
        _set_mae_st_clip(config, reader)
    elif reader.has(SAMPLER_TABLE):  # AdaMAE's sampler has a table over all tokens
        places = reader.shape(SAMPLER_TABLE, 3)[1]
        data.num_frames, data.image_size = reader.clip(SAMPLER_TABLE, places, *tubelet)
    else:  # VideoMAE's tables are fixed, and not in the file
        is_published = tubelet in (
            (systems.TUBELET_SIZE, systems.PATCH_SIZE),
            (systems.TUBELET_SIZE, systems.LARGE_PATCH_SIZE),
        )
        data.num_frames = reader.take("num_frames", systems.NUM_FRAMES if is_published else None)
        data.image_size = reader.take("image_size", systems.IMAGE_SIZE if is_published else None)


def _set_mae_st_clip(config: ConfigDict, reader: WeightReader) -> None:
    """Reads MAE-ST's tables, class token and, in pretraining, how many frames are predicted."""
    model, data = config.model, config.data
    t, p = model.tubelet_size, model.patch_size
    if not reader.has("cls_token"):
        model.class_token = "none"
    if reader.has("pos_embed_spatial"):
        steps = reader.shape("pos_embed_temporal", 3)[1]
        data.image_size = reader.image_size(
            "pos_embed_spatial", reader.shape("pos_embed_spatial", 3)[1], p
        )
        if reader.options.num_frames not in (None, steps * t):
            flag = f"--num_frames={reader.options.num_frames}"
            raise contradiction(flag, "pos_embed_temporal", steps)
        data.num_frames = steps * t
    else:
        model.positions = "learned"
        if reader.has("decoder_") and not reader.has("decoder_cls_token", "decoder_pos_embed_"):
            # Of a class token without a decoder's: published checkpoints share it.
            model.class_token = "shared" if reader.has("cls_token") else "none"
        places = reader.shape("pos_embed", 3)[1] - (model.class_token != "none")
        data.num_frames, data.image_size = reader.clip("pos_embed", places, t, p)
    if reader.has("decoder_"):
        values, _ = reader.shape("decoder_pred.weight", 2)
        channels = reader.shape("patch_embed.proj.weight", 5)[1]
        depth = values // (p * p * channels)
        model.predicted_frames = 0 if depth == t else depth * (data.num_frames // t)


def apply_recipe(recipe: Recipe, data: ConfigDict, options: ImportOptions) -> list[str]:
    """Sets how clips are cut, but for what the options say; returns remarks for the user.

    Raises:
      UserError: where a sampling rate is given for sampling that has none.
    """
    named = {name: getattr(options, name) for name in ("sampling_rate", "frame_sampling")}
    given = {name: value for name, value in named.items() if value is not None}
    data.update({**recipe.fields, **given})
    if data.frame_sampling == "segments" and options.sampling_rate is not None:
        raise UserError(
            f"--sampling_rate={options.sampling_rate} says nothing of the frame_sampling "
            "'segments', which takes one frame from each of num_frames equal parts of a "
            "video: leave it out, or give --frame_sampling=dense"
        )
    assumed = {name: value for name, value in recipe.fields.items() if name not in given}
    rate, remarks = assumed.pop("sampling_rate", None), []
    if rate is not None and data.num_frames > 1:
        remarks.append(f"sampling_rate {rate}: as published for {recipe.dataset}{recipe.hint}")
    listed = ", ".join(f"{name} {_range_text(value)}" for name, value in assumed.items())
    return [*remarks, f"{listed}: as published for {recipe.dataset}"]


def _range_text(value: Any) -> str:
    return "-".join(f"{part:.3g}" for part in value) if isinstance(value, tuple) else str(value)


# Masking.


def _sampler_options(reader: WeightReader, config: ConfigDict) -> dict[str, Any]:
    """Returns the options of AdaMAE's sampling network."""
    heads = reader.take("sampler_num_heads", systems.SAMPLER_HEADS, "as in the released code")
    check_heads("sampler_num_heads", heads, config.model.encoder.width)
    return {"depth": reader.depth(SAMPLER), "num_heads": heads}


def _num_maps(reader: WeightReader) -> int:
    """Returns how many attention maps AutoMAE's generator reads: one for each head of the ViT."""
    return reader.shape(f"{GENERATOR}main.0.weight", 4)[1]


def _frozen_vit_options(reader: WeightReader, config: ConfigDict) -> dict[str, Any]:
    """Returns the options of AutoMAE's frozen ViT."""
    depth = reader.depth(f"{VIT}blocks.")
    if not depth:
        raise UserError(
            "the weights lack AutoMAE's frozen ViT, which the authors keep in a file of its "
            "own: give --pretrained_vit, the checkpoint of an image MAE"
        )
    heads, width = _num_maps(reader), reader.shape(f"{VIT}cls_token", 3)[-1]
    check_heads("pretrained_vit=FILE, one of another width", heads, width)
    vit = reader.options.vit or ImportOptions()
    if vit.num_heads not in (None, heads):
        raise UserError(
            f"the file of --pretrained_vit says that num_heads is {vit.num_heads}, and AutoMAE's "
            f"generator reads {heads} attention maps: give an image MAE of as many heads"
        )
    own = (tuple(config.objective.pixel_mean), tuple(config.objective.pixel_std))
    if vit.pixels not in (None, own):
        raise UserError(
            f"the ViT of --pretrained_vit was trained on pixels with mean {vit.pixels[0]} and std "
            f"{vit.pixels[1]}, AutoMAE on those with {own[0]} and {own[1]}: it sees the same "
            "pixels; give an image MAE of these"
        )
    epsilon = config.model.norm_epsilon if vit.norm_epsilon is None else vit.norm_epsilon
    return {
        "vit_width": width,
        "vit_depth": depth,
        "vit_num_heads": heads,
        "vit_norm_epsilon": epsilon,
    }


# Readers of the options of masking strategies that have weights.
_MASKING_OPTIONS: dict[str, Callable[[WeightReader, ConfigDict], dict[str, Any]]] = {
    "adaptive": _sampler_options,
    "adversarial": _frozen_vit_options,
}
