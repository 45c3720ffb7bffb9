"""The config of an experiment: a tree of the fields in `adamae_jax.fields`.

An experiment is a file in ``configs/`` whose ``get_config()`` starts from `default_config` and sets
what it needs. `resolve` fills in the fields that are 0 for "derived". Run as a program, this module
prints docs/config.md.
"""

import difflib
import json
import math
from collections.abc import Mapping
from typing import Any

from absl import logging
from flax import traverse_util
from ml_collections import ConfigDict

from adamae_jax import masking, plain_json
from adamae_jax.errors import UserError
from adamae_jax.fields import FIELDS
from adamae_jax.models.autoencoder import MLP_RATIOS, SIZES

SAMPLES_PER_RATE = 256  # learning rates are given for a batch of this many clips

# In what the families' architectures differ; AdaMAE's is VideoMAE's, AutoMAE's is MAE's.
FAMILIES = {
    "videomae": {
        "positions": "sincos_1d",
        "class_token": "none",
        "attention_bias": "qv",
        "projection_bias": False,
        "initialization": "videomae",
    },
    "mae_st": {
        "positions": "separable",
        "class_token": "separate",
        "attention_bias": "qkv",
        "projection_bias": True,
        "initialization": "mae_st",
    },
    "mae": {
        "positions": "sincos_2d",
        "class_token": "shared",
        "attention_bias": "qkv",
        "projection_bias": True,
        "initialization": "mae",
    },
}


def default_config() -> ConfigDict:
    """Returns every field with its default: AdaMAE ViT-B with the released code's choices."""
    defaults = {name: field.default for name, field in FIELDS.items()}
    config = ConfigDict(traverse_util.unflatten_dict(defaults, sep="."))
    config.masking = masking_config(config.masking.name, config.masking.mask_ratio)
    return config.lock()


def set_size(model: ConfigDict, size: str) -> None:
    """Sets width, depth, heads and MLPs of encoder and decoder to size S, B, L, H or g."""
    for part, (width, depth, heads) in zip(
        (model.encoder, model.decoder), SIZES[size], strict=True
    ):
        part.update({"width": width, "depth": depth, "num_heads": heads})
    model.mlp_ratio = MLP_RATIOS.get(size, 4.0)


def set_family(model: ConfigDict, family: str) -> None:
    """Sets the choices of architecture of a family: videomae, mae_st or mae."""
    model.update(FAMILIES[family])


def masking_config(name: str, mask_ratio: float, **options: Any) -> ConfigDict:
    """Returns the masking fields of a strategy: its name, its ratio and its own options.

    The fields that all strategies share have their defaults.

    Raises:
      UserError: for an unknown strategy or option.
    """
    defaults = masking.option_defaults(name)
    for option in options:
        if option not in defaults:
            known = ", ".join(defaults) or "none at all"
            raise UserError(f"masking {name!r} has no option {option!r}: it has {known}")
    shared = {path: field.default for path, field in FIELDS.items() if path.startswith("masking.")}
    fields = {path.removeprefix("masking."): default for path, default in shared.items()}
    own = {"name": name, "mask_ratio": mask_ratio, "options": {**defaults, **options}}
    return ConfigDict({**fields, **own})


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Returns the values of a config by path, such as ``data.crop``.

    What is not in `FIELDS` is an option of the masking strategy, ``masking.options.*``.
    """
    return traverse_util.flatten_dict(config.to_dict(), sep=".")


def check_fields(config: ConfigDict) -> None:
    """Raises a `UserError` for the first value that is none of those its field may have."""
    for name, value in flatten(config).items():
        if name in FIELDS:
            FIELDS[name].check(name, value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} is {value}: it must be a finite number")


def resolve(
    config: ConfigDict,
    num_examples: int,
    recipe: Mapping[str, Any] | None = None,
    run: ConfigDict | None = None,
) -> ConfigDict:
    """Returns a new config with the derived fields filled in.

    An epoch is a pass over the videos; steps per epoch are rounded down, as the authors do. Where
    the command line makes a recipe shorter, its warm-up becomes shorter in proportion. A run that
    goes on keeps its warm-up, unless the command line sets it.

    Args:
      config: the experiment.
      num_examples: videos in the training split; 0 takes the config's number.
      recipe: the config file's own values of the fields that the command line has set, by path.
      run: the config of the run that goes on; None for a new one.

    Raises:
      UserError: where steps and epochs do not say how long to train, or all of it is warm-up.
    """
    config = config.copy_and_resolve_references()
    data, optimizer = config.data, config.optimizer
    data.num_examples = num_examples or data.num_examples
    data.image_size = (data.image_size[0], data.image_size[-1])
    per_epoch = max(1, data.num_examples // max(1, config.batch_size // data.repeats))
    if not config.steps and not config.epochs:
        raise UserError("steps is 0 and epochs is 0: set one of them, such as --config.steps=1000")
    if config.steps and config.epochs:
        if "epochs" in (recipe or {}):
            raise UserError(
                f"epochs is {config.epochs}, which does not count where steps is {config.steps}: "
                "give --config.steps=0 with it, or steps instead"
            )
        logging.info("steps %d is set, so epochs %d does not count", config.steps, config.epochs)
    own = {"steps": config.steps, "epochs": config.epochs, **(recipe or {})}
    config.steps = config.steps or config.epochs * per_epoch
    optimizer.warmup_steps = optimizer.warmup_steps or int(optimizer.warmup_epochs * per_epoch)
    own_steps = own["steps"] or own["epochs"] * per_epoch
    if not any(name.startswith("optimizer.warmup_") for name in own):
        kept, reason = optimizer.warmup_steps, ""
        if run is not None:
            kept, reason = run.optimizer.warmup_steps, "as the run has begun with"
        elif config.steps < own_steps:
            kept = optimizer.warmup_steps * config.steps // own_steps
            reason = f"since there are {config.steps} in all, not {own_steps}"
        if kept != optimizer.warmup_steps:
            logging.info(
                "warm-up: %d steps, not %d, %s; to set it, give --config.optimizer.warmup_steps=N",
                *(kept, optimizer.warmup_steps, reason),
            )
        optimizer.warmup_steps = kept
    if optimizer.warmup_steps >= config.steps:
        raise UserError(
            f"steps {config.steps} are not more than the warm-up's {optimizer.warmup_steps}: train "
            "longer, or shorten the warm-up with --config.optimizer.warmup_steps=N"
        )
    config.eval.batch_size = config.eval.batch_size or config.batch_size
    check_fields(config)
    return config


def model_part(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields that belong to the model, as a tree of plain JSON values."""
    values = traverse_util.flatten_dict(json.loads(config.to_json()), sep=".")
    kept = [name for name in values if name not in FIELDS or FIELDS[name].model]
    return traverse_util.unflatten_dict({name: values[name] for name in kept}, sep=".")


def to_json(config: ConfigDict) -> str:
    """Returns the config as it is kept in a workdir: indented JSON."""
    return json.dumps(json.loads(config.to_json()), indent=2) + "\n"


def from_json(text: str) -> ConfigDict:
    """The inverse of `to_json`; fields that are missing have their defaults.

    Raises:
      UserError: where the text is no config, or has a field that is unknown, of another type or
        null.
    """
    config = default_config()
    try:
        loaded = ConfigDict(plain_json.parse(text))
        with config.unlocked():
            config.masking = masking_config(loaded.masking.name, loaded.masking.mask_ratio)
        config.update(loaded)
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"a stored config does not fit this version: {reason}") from error
    for name, value in flatten(config).items():
        if value is None:  # which a field of any type would take
            raise UserError(f"a stored config does not fit this version: {name} is null")
    return config


def unknown_field(path: str) -> str:
    """Returns what is wrong with the path of a field, and a hint; "" where nothing is."""
    if path in FIELDS or path.startswith("masking.options."):
        return ""
    if path in ("masking", "masking.options"):
        return (
            f"config.{path} is a group of fields, and each strategy has options of its own: choose "
            "one in the config file, config.masking = masking_config('tube', mask_ratio=0.9), or "
            "set a field of the one that is there, such as config.masking.mask_ratio"
        )
    inside = [name for name in FIELDS if name.startswith(f"{path}.")]
    if inside:
        return f"config.{path} is a group of fields: set one of them, such as config.{inside[0]}"
    group, _, last = path.rpartition(".")
    siblings = [name.rpartition(".")[2] for name in FIELDS if name.rpartition(".")[0] == group]
    # A field may be called by the first letters of its words, such as lr, or looked for elsewhere.
    close = [name for name in siblings if last == _initials(name)]
    close = close or [
        f"config.{name}"
        for name in FIELDS
        if last in (own := name.rpartition(".")[2], _initials(own))
    ]
    close = close or difflib.get_close_matches(last, siblings, 1)
    if close:
        hint = f"did you mean {close[0]!r}?"
    elif siblings:
        hint = f"it has {', '.join(siblings)}"
    else:
        hint = "docs/config.md lists all fields"
    return f"{'.'.join(['config', *[group] * bool(group)])} has no field {last!r}: {hint}"


def _initials(name: str) -> str:
    return "".join(word[0] for word in name.split("_"))


PAGE = """\
# The fields of a config

This page is made from [adamae_jax/fields.py](../adamae_jax/fields.py) by
`python -m adamae_jax.config > docs/config.md`.

An experiment is a Python file in [configs/](../configs) whose `get_config()` starts from
`adamae_jax.config.default_config()` and sets what it needs. On the command line any field is set by
its path, as in `--config.data.num_frames=8`. All numbers are finite. In the column "kept":

- **R**: a resumed run may change the field; it says how a run is carried out, not what it computes.
  Of these, `steps` and `epochs` say how long it goes on: from there on the learning rate follows
  the schedule of the new length, and the warm-up stays the run's.
- **M**: the field belongs to the model and is kept in its `model.json`.
"""


def page() -> str:
    """Returns docs/config.md."""
    lines, group = [PAGE], None
    for path, field in FIELDS.items():
        parent, _, name = path.partition(".")
        if (section := parent if name else "run") != group:
            group = section
            lines.append(
                f"\n## {group}\n\n| field | default | values | kept | meaning |\n{'| --- ' * 5}|\n"
            )
        kept = " ".join("R" * field.mutable + "M" * field.model)
        expected = field.expected.removeprefix("a ")
        lines.append(
            f"| `{name or path}` | `{field.default!r}` | {expected} | {kept} | {field.meaning} |\n"
        )
    return "".join(lines)


if __name__ == "__main__":
    print(page(), end="")
