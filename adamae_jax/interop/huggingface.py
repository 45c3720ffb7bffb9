"""VideoMAE and MAE in the directories that Hugging Face's transformers reads and writes.

Neither PyTorch nor transformers is needed, except to read weights in ``pytorch_model.bin``. The
fields of ``config.json`` and ``preprocessor_config.json`` are those of `VideoMAEConfig`,
`ViTMAEConfig` and their image processors (transformers 4 and 5).
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from adamae_jax import experiment
from adamae_jax.errors import UserError
from adamae_jax.interop.files import StateDict, read_json, write_file, write_safetensors
from adamae_jax.interop.huggingface_weights import (
    CLASSES,
    WEIGHTS,
    ClassKind,
    from_hugging_face,
    read_weights,
    to_hugging_face,
)
from adamae_jax.interop.weight_reader import ImportOptions

CONFIG = "config.json"
PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")  # the latter: version 5

# `VideoMAEForVideoClassification` makes its ``fc_norm`` with PyTorch's default, whatever the config
# says, and `VideoMAEForPreTraining` its decoder's last norm.
DEFAULT_EPSILON = 1e-5

# What a field means where ``config.json`` leaves it out.
_DEFAULTS: dict[str, Any] = {
    "image_size": 224,
    "num_frames": 16,
    "num_attention_heads": 12,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "use_mean_pooling": True,
    "decoder_num_attention_heads": 6,
    "norm_pix_loss": True,
}
_MAE_DEFAULTS: dict[str, Any] = {
    **_DEFAULTS,
    "decoder_num_attention_heads": 16,
    "norm_pix_loss": False,
    "mask_ratio": 0.75,
}
# Fields that the weights say too: they are compared once the model is known.
_BLOCK_SIZES = ("hidden_size", "num_hidden_layers", "intermediate_size")
_COMPARED = (
    *_BLOCK_SIZES,
    *(f"decoder_{name}" for name in _BLOCK_SIZES),
    *("patch_size", "tubelet_size", "qv_bias", "qkv_bias", "use_mean_pooling"),
)
_BILINEAR = 2  # as Pillow numbers its filters


@dataclasses.dataclass(frozen=True)
class HuggingFaceModel:
    """What a directory holds.

    Attributes:
      kind: which of `CLASSES`.
      state: the weights under the authors' names, in float32.
      options: what the weights do not say.
      label_names: of a classifier's classes; () where they have placeholders only.
      config: the content of ``config.json``, with defaults for what it leaves out.
    """

    kind: ClassKind
    state: StateDict
    options: ImportOptions
    label_names: tuple[str, ...]
    config: Mapping[str, Any]


def read(directory: Path) -> HuggingFaceModel:
    """Reads a directory that `save_pretrained` of transformers 4 or 5 wrote.

    Raises:
      UserError: where files are missing or damaged, the class is none of `CLASSES`, or the config
        has what this package has no model for.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise UserError(
            f"{directory} holds no {CONFIG}: give the directory of a Hugging Face model, or a .pth "
            "or .safetensors file"
        )
    config = read_json(path)
    try:
        kind = _read_kind(config)
        config = {**(_MAE_DEFAULTS if kind == "mae_pretraining" else _DEFAULTS), **config}
        options = _read_config(config, kind)
        labels = _read_labels(config) if kind == "videomae_classifier" else ()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for name in PROCESSORS:
        processor = directory / name
        if processor.is_file():
            try:
                options = dataclasses.replace(options, pixels=_read_pixels(read_json(processor)))
            except UserError as error:
                raise UserError(f"{processor}: {error}") from error
            break
    state = from_hugging_face(read_weights(directory), kind)
    return HuggingFaceModel(kind, state, options, labels, config)


def write(
    directory: Path, kind: ClassKind, state: StateDict, config: ConfigDict, labels: tuple[str, ...]
) -> None:
    """Writes a directory that `from_pretrained` of transformers 4 and 5 reads.

    Args:
      directory: made where it is missing.
      kind: the class to write for.
      state: the weights under the authors' names.
      config: the model's.
      labels: names of a classifier's classes; () for placeholders.

    Raises:
      UserError: where the class has no place for something, or a file cannot be written.
    """
    fields, processor = config_fields(config, kind, labels), processor_fields(config, kind)
    write_safetensors(directory / WEIGHTS, to_hugging_face(state, kind))
    for name, values in ((CONFIG, fields), (PROCESSORS[0], processor)):
        text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        write_file(directory / name, text.encode())


def placeholders(num_classes: int) -> tuple[str, ...]:
    """Returns the names that Hugging Face gives to classes without names."""
    return tuple(f"LABEL_{label}" for label in range(num_classes))


def check_config(found: Mapping[str, Any], kind: ClassKind, config: ConfigDict) -> None:
    """Raises a `UserError` where sizes in ``config.json`` are not those of the weights."""
    expected = config_fields(config, kind, ())
    for name in _COMPARED:
        if name in expected and found.get(name, expected[name]) not in (
            expected[name],
            [expected[name]] * 2,  # a square
        ):
            raise UserError(
                f"{CONFIG}: {name} is {found[name]!r}, and the weights have {expected[name]!r}: "
                "they are not of one model"
            )


def last_norm_epsilon(kind: ClassKind, norm_epsilon: float, pooling: str) -> float:
    """Returns the epsilon of their last norm: the decoder's, or a classifier's before its head."""
    is_default = kind == "videomae_pretraining" or (
        kind == "videomae_classifier" and pooling == "mean"
    )
    return DEFAULT_EPSILON if is_default else norm_epsilon


# Reading.


def _wrong(fields: Mapping[str, Any], name: str, expected: str) -> UserError:
    return UserError(f"{name} is {fields.get(name)!r}, expected {expected}")


def _integer(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if type(value) is not int or value < 1:
        raise _wrong(fields, name, "a positive integer")
    return value


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if not isinstance(value, bool):
        raise _wrong(fields, name, "true or false")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(fields: Mapping[str, Any], name: str) -> float:
    value = fields.get(name)
    if not _is_number(value) or value < 0:  # type: ignore[operator]
        raise _wrong(fields, name, "a number that is not negative")
    return float(value)  # type: ignore[arg-type]


def _read_kind(config: Mapping[str, Any]) -> ClassKind:
    for kind, name in CLASSES.items():
        if config.get("architectures") == [name]:
            return kind
    raise _wrong(
        config,
        "architectures",
        f"one of {', '.join(CLASSES.values())}: load the model with one of these classes and save "
        "it again",
    )


def _read_config(fields: Mapping[str, Any], kind: ClassKind) -> ImportOptions:
    """Returns what ``config.json`` says beside the weights.

    Dropout, which is for their trainer to choose, is not read.
    """
    is_image, is_classifier = kind == "mae_pretraining", kind == "videomae_classifier"
    if fields["hidden_act"] != "gelu":
        raise _wrong(fields, "hidden_act", "'gelu'")
    mean_pooling = not is_image and _flag(fields, "use_mean_pooling")
    if mean_pooling and not is_classifier:
        raise _wrong(
            fields,
            "use_mean_pooling",
            "false: with true the encoder of a pre-training model has no last norm, which the "
            "authors' model always has",
        )
    size = fields["image_size"]
    if isinstance(size, int):
        size = [_integer(fields, "image_size")] * 2
    if not (
        isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
    ):
        raise _wrong(fields, "image_size", "a positive integer or two")
    epsilon = _number(fields, "layer_norm_eps")
    last = last_norm_epsilon(kind, epsilon, "mean" if mean_pooling else "first")
    normalized = "tubelet" if is_image else "channel"
    decoder_heads = None if is_classifier else _integer(fields, "decoder_num_attention_heads")
    return ImportOptions(
        num_frames=1 if is_image else _integer(fields, "num_frames"),
        image_size=(size[0], size[1]),
        num_heads=_integer(fields, "num_attention_heads"),
        decoder_num_heads=decoder_heads,
        mask_ratio=_number(fields, "mask_ratio") if is_image else None,
        norm_epsilon=epsilon,
        decoder_norm_epsilon=None if is_classifier else last,
        classifier_norm_epsilon=last if is_classifier else None,
        normalize_targets=normalized if _flag(fields, "norm_pix_loss") else "none",
    )


def _read_labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names by label; () where there are placeholders only."""
    names = config.get("id2label")
    if names is None:
        return ()
    labels = [str(label) for label in range(len(names))] if isinstance(names, dict) else []
    if not labels or set(names) != set(labels):
        raise _wrong(config, "id2label", "the class names by label, 0 and up without gaps")
    found = tuple(str(names[label]) for label in labels)
    return () if found == placeholders(len(found)) else found


def _read_pixels(processor: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation, per channel, of pixels in [0, 1]."""
    # The older feature extractors divide by 255 without saying so.
    fields = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, **processor}
    if not _flag(fields, "do_rescale"):
        raise _wrong(fields, "do_rescale", "true")
    if not math.isclose(_number(fields, "rescale_factor"), 1 / 255, rel_tol=1e-6):
        raise _wrong(fields, "rescale_factor", "1/255")
    channels = 3  # RGB
    if not _flag(fields, "do_normalize"):
        return (0.0,) * channels, (1.0,) * channels
    for name in ("image_mean", "image_std"):
        value = fields.get(name)
        if not (isinstance(value, list) and len(value) == channels and all(map(_is_number, value))):
            raise _wrong(fields, name, f"{channels} numbers, one for each channel")
    if min(fields["image_std"]) <= 0:
        raise _wrong(fields, "image_std", "positive numbers")
    mean, std = (tuple(map(float, fields[name])) for name in ("image_mean", "image_std"))
    return mean, std


# Writing.


def config_fields(config: ConfigDict, kind: ClassKind, labels: tuple[str, ...]) -> dict[str, Any]:
    """Returns the content of ``config.json``.

    Raises:
      UserError: where the class has no place for something.
    """
    clip, model = experiment.geometry(config), config.model
    is_image, is_classifier = kind == "mae_pretraining", kind == "videomae_classifier"
    height, width = clip.image_size
    if is_image and height != width:
        raise UserError(f"{CLASSES[kind]} takes square images only, not {height} x {width}")
    fields: dict[str, Any] = {
        "architectures": [CLASSES[kind]],
        "model_type": "vit_mae" if is_image else "videomae",
        "image_size": height if height == width else [height, width],
        "patch_size": clip.patch_size,
        "num_channels": clip.channels,
        "hidden_act": "gelu",
        "layer_norm_eps": model.norm_epsilon,
        "qkv_bias" if is_image else "qv_bias": bool(model.attention_bias),
        "norm_pix_loss": config.objective.normalize_targets != "none",
        **_block_fields(config, "encoder", ""),
    }
    if not is_classifier:
        fields |= _block_fields(config, "decoder", "decoder_")
    if is_image:
        return {**fields, "mask_ratio": config.masking.mask_ratio}
    fields |= {
        "num_frames": clip.num_frames,
        "tubelet_size": clip.tubelet_size,
        "use_mean_pooling": is_classifier and config.classifier.pooling == "mean",
    }
    if is_classifier:
        names = labels or placeholders(config.classifier.num_classes)
        if len(set(names)) < len(names):
            raise UserError(f"{CLASSES[kind]} finds labels by name: give each class one of its own")
        fields["id2label"] = {str(label): name for label, name in enumerate(names)}
        fields["label2id"] = {name: label for label, name in enumerate(names)}
    return fields


def _block_fields(config: ConfigDict, part: str, prefix: str) -> dict[str, int]:
    blocks = experiment.transformer_spec(config, part)
    return {
        f"{prefix}hidden_size": blocks.width,
        f"{prefix}num_hidden_layers": blocks.depth,
        f"{prefix}num_attention_heads": blocks.num_heads,
        f"{prefix}intermediate_size": int(blocks.width * blocks.mlp_ratio),
    }


def processor_fields(config: ConfigDict, kind: ClassKind) -> dict[str, Any]:
    """Returns the content of ``preprocessor_config.json``."""
    height, width = experiment.image_size(config)
    exact = {"height": height, "width": width}
    is_image = kind == "mae_pretraining"
    cropping = {} if is_image else {"do_center_crop": True, "crop_size": exact}
    # Only a square can be cut from whatever has its side as the shorter one.
    size = exact if is_image or height != width else {"shortest_edge": height}
    return {
        "image_processor_type": "ViTImageProcessor" if is_image else "VideoMAEImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": _BILINEAR,
        **cropping,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.objective.pixel_mean),
        "image_std": list(config.objective.pixel_std),
    }
