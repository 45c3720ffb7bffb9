"""Whether other people's names can say what a model of ours computes.

Weights say nothing of some choices; files of ours have a description beside them, which says all.
Still, under the names of a system's authors there must be one of their models: what their code
does not have is refused, and what only the description says is told to the user.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from flax import traverse_util
from ml_collections import ConfigDict

from adamae_jax import experiment
from adamae_jax.config import FAMILIES
from adamae_jax.errors import UserError
from adamae_jax.interop import architecture
from adamae_jax.interop.dialects import Dialect, dialect_of
from adamae_jax.interop.given import Given
from adamae_jax.interop.safetensors_files import StateDict
from adamae_jax.interop.systems import SYSTEMS
from adamae_jax.pretrained import Finetuned, Loaded

# Fields that change no number, or by rounding only: how a model starts and is executed, and where
# what it holds frozen came from.
NOT_COMPUTED = (
    *(f"model.{name}" for name in ("initialization", "dtype", "remat", "unroll", "attention")),
    "masking.options.pretrained",
)
# What of a config a classifier has no use for.
_NOT_CLASSIFYING = (
    *("model.decoder", "model.projection_bias", "model.predicted_frames", "masking"),
    *("objective.loss", "objective.normalize_targets", "objective.target_pixels"),
    "objective.sampling_loss_weight",
)
_EPSILON = "model.decoder_norm_epsilon"
# What is no part of the network that weights make up: the authors' code takes it as options. A
# strategy's name is one where it has no weights; where it has, `check` has seen to it.
_TOLD = (
    *("objective", "model.norm_epsilon", _EPSILON, "classifier.norm_epsilon"),
    *("masking.name", "masking.mask_ratio"),
    *(
        f"masking.options.{name}"
        for name in (
            *("dropout", "norm_epsilon", "vit_norm_epsilon"),
            *("mask_factor", "adversarial_weight", "gumbel_tau"),
        )
    ),
)


def check(loaded: Loaded) -> None:
    """Raises a `UserError` for a model that no author has: nobody has names for it."""
    config, model = loaded.config, loaded.config.model
    dialect = dialect_of(model.positions, experiment.geometry(config))
    own = _classifier_fields if isinstance(loaded, Finetuned) else _pretraining_fields
    foreign = [
        f"{name}={experiment.field(config, name)!r}"
        for name, has in {**_shared_fields(config, dialect), **own(loaded, dialect)}.items()
        if not has
    ]
    if foreign:
        raise UserError(
            f"the code of {dialect.family}'s authors, whose names go with model.positions="
            f"{model.positions!r}, has no model with {', '.join(foreign)}: there are no names to "
            "export it under; `adamae_jax.load` reads it as it is"
        )


def _shared_fields(config: ConfigDict, dialect: Dialect) -> dict[str, bool]:
    """Fields of every model, and whether a dialect's authors have their values."""
    model, clip = config.model, experiment.geometry(config)
    fields = {
        f"model.{name}": _family_has(dialect, name, model[name])
        for name in ("class_token", "attention_bias")
    }
    return fields | {
        "model.layer_scale": dialect.has_layer_scale or not model.layer_scale,
        "model.tubelet_size": not dialect.is_image or clip.tubelet_size == 1,
        "data.num_frames": not dialect.is_image or clip.num_frames == 1,
    }


def _family_has(dialect: Dialect, name: str, value: Any) -> bool:
    return value in (FAMILIES[dialect.family][name], *dialect.also.get(name, ()))


def _pretraining_fields(loaded: Loaded, dialect: Dialect) -> dict[str, bool]:
    model, masking = loaded.config.model, loaded.config.masking
    has_weights = bool(jax.tree.leaves(loaded.variables["params"].get("masking", {})))
    is_system = any(
        (system.dialect, system.masking) == (dialect, masking.name) for system in SYSTEMS.values()
    )
    is_fixed = not dialect.trains_positions or model.positions == dialect.positions[0]
    return {
        "model.projection_bias": _family_has(dialect, "projection_bias", model.projection_bias),
        "model.predicted_frames": dialect.predicts_fewer_frames or not model.predicted_frames,
        "model.positions": is_fixed,
        "masking.name": is_system or not has_weights,
    }


def _classifier_fields(loaded: Loaded, dialect: Dialect) -> dict[str, bool]:
    has_class = loaded.config.model.class_token != "none"
    skips = loaded.config.classifier.skip_first_patch
    return {
        "classifier.pooling": loaded.config.classifier.pooling in dialect.classifier_norms,
        "classifier.skip_first_patch": has_class or skips == dialect.drops_first_token,
    }


def given_of(loaded: Loaded, state: StateDict) -> Given:
    """What an import's flags can say of the weights, all of it."""
    config, name = loaded.config, architecture.detect(state)[0]
    fields = {
        "num_heads": "model.encoder.num_heads",
        "num_frames": "data.num_frames",
        "norm_epsilon": "model.norm_epsilon",
    }
    if not isinstance(loaded, Finetuned):
        fields["decoder_num_heads"] = "model.decoder.num_heads"
        fields["mask_ratio"] = "masking.mask_ratio"
        fields |= SYSTEMS[name].own_given
    values = {given: experiment.field(config, field) for given, field in fields.items()}
    return Given(image_size=experiment.image_size(config), **values)


def remarks(
    loaded: Loaded, state: StateDict, beside: Given | None = None, said: Sequence[str] = ()
) -> list[str]:
    """What an import of the weights has to be told, and what it would take for something else.

    Args:
      loaded: the model.
      state: its weights under the authors' names.
      beside: what stands beside them, whatever becomes of our description.
      said: fields of the config of which the user is told otherwise.

    Raises:
      UserError: where they would be taken for another network.
    """
    beside = beside or Given()
    found = _imported(loaded, state, _filled(beside, given_of(loaded, state)))
    own = _computed(loaded.config, loaded)
    # Options of another strategy than the one that would be assumed are not compared one by one.
    compared = own.keys() & found.keys() - set(said)
    names = sorted(name for name in compared if own[name] != found[name])
    network = [name for name in names if not _is_among(name, _TOLD)]
    if network:
        listed = ", ".join(f"{name} {found[name]!r} for {own[name]!r}" for name in network)
        raise UserError(f"under the authors' names these weights are another model, of {listed}")
    flags = _flags(loaded, state, beside)
    told = [f"without the description beside the weights, give {' '.join(flags)}"] * bool(flags)
    if not names:
        return told
    listed = ", ".join(f"{name} {own[name]!r} (otherwise {found[name]!r})" for name in names)
    only = f"{'even with these flags, ' * bool(flags)}only the description beside the weights"
    return [*told, f"{only} says: {listed}"]


def _filled(beside: Given, known: Given) -> Given:
    """What stands beside weights, and from ``known`` what does not."""
    held = {name: value for name, value in vars(beside).items() if value is not None}
    return dataclasses.replace(known, **held)


def _flags(loaded: Loaded, state: StateDict, beside: Given) -> list[str]:
    """The flags without which an import would not find what it finds with all that there are."""
    known = given_of(loaded, state)
    wanted = _imported(loaded, state, _filled(beside, known))
    needed = []
    for name, value in vars(known).items():
        if value is None or getattr(beside, name) is not None:
            continue
        without = dataclasses.replace(known, **{name: None})
        try:
            is_needed = _imported(loaded, state, _filled(beside, without)) != wanted
        except UserError:  # which asks for it
            is_needed = True
        if is_needed:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            needed.append(f"--{name}={text}")
        else:
            known = without  # of two that tell each other one is enough
    return needed


def _imported(loaded: Loaded, state: StateDict, given: Given) -> dict[str, Any]:
    """What an import of the weights would compute, and of what clips."""
    config = architecture.infer(state, given).config
    return {**_computed(config, loaded), "data": experiment.geometry(config)}


def _computed(config: ConfigDict, loaded: Loaded) -> dict[str, Any]:
    """The fields that say what a model computes, by path, alike where that is the same."""
    left_out = (*NOT_COMPUTED, *_NOT_CLASSIFYING * isinstance(loaded, Finetuned))
    parts = {name: config[name].to_dict() for name in ("model", "objective", "masking")}
    if isinstance(loaded, Finetuned):
        parts["classifier"] = config.classifier.to_dict()
    fields = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in traverse_util.flatten_dict(parts, sep=".").items()
        if not _is_among(name, left_out)
    }
    model, frames = config.model, config.data.num_frames
    fields["model.layer_scale"] = bool(model.layer_scale)  # where it starts no longer matters
    fields["model.mlp_ratio"] = _hidden(config, "encoder")
    if "masking.options.width" in fields:  # of a sampler; 0 is the tokens'
        fields["masking.options.width"] = config.masking.options.width or model.encoder.width
    if isinstance(loaded, Finetuned):
        fields["model.class_token"] = has_class = model.class_token != "none"
        fields["classifier.skip_first_patch"] = has_class or config.classifier.skip_first_patch
        del fields[_EPSILON]
        return fields
    fields["model.mlp_ratio"] = (_hidden(config, "encoder"), _hidden(config, "decoder"))
    fields["model.predicted_frames"] = model.predicted_frames or frames
    return fields


def _is_among(name: str, fields: Iterable[str]) -> bool:
    """Whether a field is one of these, or a part of one."""
    return any(name == field or name.startswith(f"{field}.") for field in fields)


def _hidden(config: ConfigDict, part: str) -> int:
    return int(config.model[part].width * config.model.mlp_ratio)
