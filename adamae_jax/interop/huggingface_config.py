"""Hugging Face's ``config.json`` and ``preprocessor_config.json``, to `Facts` and back.

The names and defaults of the fields are those of `VideoMAEConfig`, `ViTMAEConfig` and their image
processors (transformers 4 and 5).
"""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from adamae_jax.errors import UserError
from adamae_jax.interop.huggingface_facts import CLASSES, Blocks, Facts, Kind, last_norm

# What a field means where config.json leaves it out: configs of before a field was introduced do.
_SHARED_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}
_VIDEOMAE_DEFAULTS = {
    **_SHARED_DEFAULTS,
    "num_frames": 16,
    "tubelet_size": 2,
    "qv_bias": True,
    "use_mean_pooling": True,
    "decoder_hidden_size": 384,
    "decoder_num_hidden_layers": 4,
    "decoder_num_attention_heads": 6,
    "decoder_intermediate_size": 1536,
    "norm_pix_loss": True,
}
_MAE_DEFAULTS = {
    **_SHARED_DEFAULTS,
    "qkv_bias": True,
    "decoder_hidden_size": 512,
    "decoder_num_hidden_layers": 8,
    "decoder_num_attention_heads": 16,
    "decoder_intermediate_size": 2048,
    "mask_ratio": 0.75,
    "norm_pix_loss": False,
}
_DEFAULT_NUM_LABELS = 2

_MOST = 2**16  # beyond any size of a model, so that a wrong file cannot fill the memory
_BILINEAR = 2  # as Pillow numbers its filters


class _Fields:
    """The fields of one JSON file, each checked as it is asked for."""

    def __init__(
        self, values: Mapping[str, Any], place: str, defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.values = {**(defaults or {}), **values}
        self.place = place

    def wrong(self, name: str, expected: str) -> UserError:
        return UserError(f"{self.place}: {name} is {self.values.get(name)!r}, expected {expected}")

    def integer(self, name: str) -> int:
        value = self.values.get(name)
        if type(value) is not int or not 1 <= value < _MOST:
            raise self.wrong(name, f"a positive integer below {_MOST}")
        return value

    def flag(self, name: str) -> bool:
        value = self.values.get(name)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def number(self, name: str) -> float:
        value = self.values.get(name)
        number = float(value) if _is_number(value) else -1.0
        if number < 0:
            raise self.wrong(name, "a number that is not negative")
        return number

    def sides(self, name: str) -> tuple[int, int]:
        """One side of a square, or height and width."""
        value = self.values.get(name)
        if not isinstance(value, list):
            side = self.integer(name)
            return side, side
        if len(value) != 2 or not all(type(side) is int and 1 <= side < _MOST for side in value):
            raise self.wrong(name, "a positive integer or two")
        return value[0], value[1]

    def colours(self, name: str, count: int) -> tuple[float, ...]:
        """One number for each channel."""
        value = self.values.get(name)
        if not isinstance(value, list) or len(value) != count or not all(map(_is_number, value)):
            raise self.wrong(name, f"{count} numbers, one for each channel")
        return tuple(map(float, value))

    def blocks(self, prefix: str = "") -> Blocks:
        blocks = Blocks(
            width=self.integer(f"{prefix}hidden_size"),
            depth=self.integer(f"{prefix}num_hidden_layers"),
            num_heads=self.integer(f"{prefix}num_attention_heads"),
            mlp_width=self.integer(f"{prefix}intermediate_size"),
        )
        if blocks.width % blocks.num_heads:
            raise self.wrong(f"{prefix}num_attention_heads", f"a divisor of {blocks.width}")
        return blocks


def read_kind(config: Mapping[str, Any], place: str) -> Kind:
    """Which of the three classes a ``config.json`` is of.

    Raises:
      UserError: for another class, or none.
    """
    architectures = config.get("architectures")
    for kind, name in CLASSES.items():
        if architectures == [name]:
            return kind
    raise UserError(
        f"{place}: architectures is {architectures!r}, expected one of "
        f"{', '.join(CLASSES.values())}: load the model with one of these classes and save it again"
    )


def read_facts(config: Mapping[str, Any], kind: Kind, place: str) -> Facts:
    """What ``config.json`` says. Dropout, which is for their trainer to choose, is not read.

    Args:
      config: the file's content.
      kind: the model's class.
      place: the file, for messages.

    Returns:
      The facts but for the pixels' mean and standard deviation, of which the config knows nothing.

    Raises:
      UserError: naming a field whose value is none, or one that this package has no model for.
    """
    image = kind == "mae_pretraining"
    fields = _Fields(config, place, _MAE_DEFAULTS if image else _VIDEOMAE_DEFAULTS)
    classifier = kind == "videomae_classifier"
    mean_pooling = not image and fields.flag("use_mean_pooling")
    if mean_pooling and not classifier:
        raise fields.wrong(
            "use_mean_pooling",
            "false: with true the encoder of a pre-training model has no last norm, which the "
            "authors' model always has",
        )
    if fields.values["hidden_act"] != "gelu":
        raise fields.wrong("hidden_act", "'gelu'")
    patch_size = fields.sides("patch_size")
    if patch_size[0] != patch_size[1]:
        raise fields.wrong("patch_size", "square patches")
    bias = "qkv_bias" if image or "qkv_bias" in config else "qv_bias"  # transformers reads either
    norm_epsilon = fields.number("layer_norm_eps")
    return Facts(
        image_size=fields.sides("image_size"),
        patch_size=patch_size[0],
        encoder=fields.blocks(),
        decoder=None if classifier else fields.blocks("decoder_"),
        num_channels=fields.integer("num_channels"),
        num_frames=1 if image else fields.integer("num_frames"),
        tubelet_size=1 if image else fields.integer("tubelet_size"),
        qkv_bias=fields.flag(bias),
        norm_epsilon=norm_epsilon,
        classifier_norm_epsilon=last_norm(mean_pooling, norm_epsilon)[1] if classifier else None,
        mean_pooling=mean_pooling,
        norm_pix_loss=fields.flag("norm_pix_loss"),
        mask_ratio=fields.number("mask_ratio") if image else None,
        label_names=_read_labels(fields) if classifier else (),
    )


def _read_labels(fields: _Fields) -> tuple[str, ...]:
    """The names by label; config.json holds none where there are as many as by default."""
    names = fields.values.get("id2label")
    if names is None:
        given = "num_labels" in fields.values
        count = fields.integer("num_labels") if given else _DEFAULT_NUM_LABELS
        return tuple(f"LABEL_{label}" for label in range(count))
    labels = [str(label) for label in range(len(names))] if isinstance(names, dict) else []
    if not labels or set(names) != set(labels):
        raise fields.wrong("id2label", "the class names by label, 0 and up without gaps")
    return tuple(str(names[label]) for label in labels)


def read_pixels(
    processor: Mapping[str, Any], num_channels: int, place: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, per channel, of pixels in [0, 1].

    Args:
      processor: the content of ``preprocessor_config.json``.
      num_channels: as the model's config has it.
      place: the file, for messages.

    Raises:
      UserError: for a processor that scales pixels in another way.
    """
    # The older feature extractors divide by 255 without a word.
    scaling = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    fields = _Fields(processor, place, scaling)
    if not fields.flag("do_rescale"):
        raise fields.wrong("do_rescale", "true")
    if not math.isclose(fields.number("rescale_factor"), 1 / 255, rel_tol=1e-6):
        raise fields.wrong("rescale_factor", "1/255")
    if not fields.flag("do_normalize"):
        return (0.0,) * num_channels, (1.0,) * num_channels
    std = fields.colours("image_std", num_channels)
    if min(std) <= 0:
        raise fields.wrong("image_std", "positive numbers")
    return fields.colours("image_mean", num_channels), std


def config_fields(facts: Facts, kind: Kind) -> dict[str, Any]:
    """The content of ``config.json``.

    Raises:
      UserError: for facts that the class has no place for.
    """
    image = kind == "mae_pretraining"
    _check_writable(facts, kind)
    fields: dict[str, Any] = {
        "architectures": [CLASSES[kind]],
        "model_type": "vit_mae" if image else "videomae",
        "image_size": _side_or_sides(facts.image_size),
        "patch_size": facts.patch_size,
        "num_channels": facts.num_channels,
        **_block_fields(facts.encoder),
        "hidden_act": "gelu",
        "layer_norm_eps": facts.norm_epsilon,
        "qkv_bias" if image else "qv_bias": facts.qkv_bias,
        "norm_pix_loss": facts.norm_pix_loss,
    }
    if facts.decoder is not None:
        fields |= _block_fields(facts.decoder, "decoder_")
    if image:
        return {**fields, "mask_ratio": facts.mask_ratio}
    fields |= {
        "num_frames": facts.num_frames,
        "tubelet_size": facts.tubelet_size,
        "use_mean_pooling": facts.mean_pooling,
    }
    if kind == "videomae_classifier":
        names = facts.label_names
        fields["id2label"] = {str(label): name for label, name in enumerate(names)}
        fields["label2id"] = {name: label for label, name in enumerate(names)}
    return fields


def processor_fields(facts: Facts, kind: Kind) -> dict[str, Any]:
    """The content of ``preprocessor_config.json``: pixels of the model's size, normalized.

    Raises:
      UserError: where mean or standard deviation are missing.
    """
    if facts.pixel_mean is None or facts.pixel_std is None:
        raise UserError(
            "pixel_mean and pixel_std are not known, and Hugging Face's image processor needs "
            "them: give the values that the model was trained with"
        )
    height, width = facts.image_size
    exact = {"height": height, "width": width}
    image = kind == "mae_pretraining"
    cropping = {} if image else {"do_center_crop": True, "crop_size": exact}
    # Only a square can be cut from whatever has its side as the shorter one.
    size = exact if image or height != width else {"shortest_edge": height}
    return {
        "image_processor_type": "ViTImageProcessor" if image else "VideoMAEImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": _BILINEAR,
        **cropping,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(facts.pixel_mean),
        "image_std": list(facts.pixel_std),
    }


def _check_writable(facts: Facts, kind: Kind) -> None:
    name = CLASSES[kind]
    classifier, image = kind == "videomae_classifier", kind == "mae_pretraining"

    def check(ok: bool, field: str, expected: str) -> None:
        if not ok:
            raise UserError(f"{field} is {getattr(facts, field)!r}: {name} {expected}")

    if classifier:
        check(facts.decoder is None, "decoder", "has none: leave it out")
        check(facts.classifier_norm_epsilon is not None, "classifier_norm_epsilon", "has a norm")
        check(bool(facts.label_names), "label_names", "needs one name for each class")
        check(
            len(set(facts.label_names)) == len(facts.label_names),
            "label_names",
            "finds labels by name: give each class a name of its own",
        )
    else:
        check(not facts.mean_pooling, "mean_pooling", "has no classifier")
    if image:
        check(facts.num_frames == 1, "num_frames", "is for images: it must be 1")
        check(facts.tubelet_size == 1, "tubelet_size", "is for images: it must be 1")
        check(facts.image_size[0] == facts.image_size[1], "image_size", "takes square images only")
        check(facts.mask_ratio is not None, "mask_ratio", "needs one in its config")


def _block_fields(blocks: Blocks, prefix: str = "") -> dict[str, int]:
    return {
        f"{prefix}hidden_size": blocks.width,
        f"{prefix}num_hidden_layers": blocks.depth,
        f"{prefix}num_attention_heads": blocks.num_heads,
        f"{prefix}intermediate_size": blocks.mlp_width,
    }


def _side_or_sides(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
