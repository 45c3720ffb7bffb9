"""From a stored model to ours: architecture, variables, and what was assumed on the way."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array
from ml_collections import ConfigDict

from adamae_jax import experiment, pretrained
from adamae_jax.errors import UserError
from adamae_jax.interop import architecture, authors, resizing
from adamae_jax.interop.architecture import Kind
from adamae_jax.interop.sources import Source
from adamae_jax.interop.tables import Table

ENCODER = "params/autoencoder/encoder"


@dataclasses.dataclass(frozen=True)
class Imported:
    """A model in our form.

    Attributes:
      kind: which part of a system it is; an encoder alone is no model yet (`into_classifier`).
      variables: as `adamae_jax.pretrained.save` takes them.
      config: the experiment it would be.
      step: updates that it was trained for, where known.
      label_names: of the classes, where known.
      license: where known.
      remarks: what the user should know.
    """

    kind: Kind
    variables: dict[str, Any]
    config: ConfigDict
    step: int
    label_names: tuple[str, ...]
    license: str
    remarks: tuple[str, ...]


def table_of(config: ConfigDict, kind: Kind | None = None) -> Table:
    """The names of all of a model's variables, or of its encoder alone."""
    if kind == "encoder":
        model = experiment.autoencoder(config)
        dialect = authors.dialect_of(model.positions, model.geometry)
        return authors.encoder_table(model.encoder_definition, dialect).under(ENCODER)
    if config.classifier.num_classes:
        return authors.classifier_table(experiment.classifier(config)).under("params")
    return authors.pretraining_table(experiment.pretraining(config))


def convert(source: Source) -> Imported:
    """The model that a source holds, every tensor accounted for.

    Raises:
      UserError: where the model is unknown, something has to be given, or tensors do not fit.
    """
    if source.description is not None:
        config, step, table, shapes = _described(source.description)
        kind: Kind = "classifier" if config.classifier.num_classes else "pretraining"
        remarks: tuple[str, ...] = ()
    else:
        inferred = architecture.infer(source.state, source.given)
        kind, config, step = inferred.kind, inferred.config, 0
        remarks = inferred.remarks
        table, shapes = table_of(config, kind), pretrained.expected_shapes(config)
    variables = table.from_authors(source.state, shapes)
    imported = Imported(kind, variables, config, step, (), source.license, remarks)
    return with_label_names(imported, source.label_names)


def with_label_names(imported: Imported, names: tuple[str, ...]) -> Imported:
    """The same model with names of its classes; () where they are not known.

    Raises:
      UserError: where a classifier has another number of classes.
    """
    classes = imported.config.classifier.num_classes
    if names and classes and len(names) != classes:
        raise UserError(f"there are {len(names)} label names for {classes} classes: give as many")
    return dataclasses.replace(imported, label_names=names)


def _described(description: Any) -> tuple[ConfigDict, int, Table, dict[str, tuple[int, ...]]]:
    """Config, step, names and shapes of a file that this package wrote, and others may damage."""
    try:
        config, step = pretrained.described_config(description), description.get("step", 0)
        if not isinstance(step, int):
            raise TypeError(f"step is {step!r}")
        return config, step, table_of(config), pretrained.expected_shapes(config)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"the file's description of the model is damaged ({type(error).__name__}: {error})"
        ) from error


def resize(
    imported: Imported, num_frames: int | None, image_size: tuple[int, int] | None
) -> Imported:
    """The same model for clips of another size: its learned position tables are interpolated.

    Raises:
      UserError: where the size does not fit the tubelets.
    """
    config = resizing.resized_config(imported.config, num_frames, image_size)
    old, new = (experiment.geometry(each).grid for each in (imported.config, config))
    flat = pretrained.flatten(imported.variables)
    resized = resizing.resize_tables(flat, old, new)
    changed = sorted(name for name in flat if resized[name] is not flat[name])
    said = [f"{', '.join(changed)} interpolated"] if changed else []
    if config.model.positions.startswith("sincos"):
        said.append("fixed ones computed anew")
    remark = f"position tables from a grid of {old} to {new}: {', '.join(said)}"
    return dataclasses.replace(
        imported,
        variables=traverse_util.unflatten_dict(resized, sep="/"),
        config=config,
        remarks=(*imported.remarks, remark) if old != new else imported.remarks,
    )


# What a classifier takes from pretraining; the encoder's last norm only under MAE-ST's names,
# whose classifier calls its own norm the same.
TAKEN = ("embedding", "class_token", "positions", "transformer")


def into_classifier(imported: Imported, num_classes: int, seed: int) -> Imported:
    """A classifier with a pretrained encoder; what has no pretrained weights starts fresh.

    Args:
      imported: a model of pretraining, or its encoder alone.
      num_classes: outputs of the head.
      seed: of what starts fresh.

    Raises:
      UserError: where the model already is a classifier.
    """
    if imported.config.classifier.num_classes:
        raise UserError("the model is a classifier already: leave --num_classes out")
    config = imported.config.copy_and_resolve_references()
    with config.unlocked():
        config.classifier.num_classes = num_classes
        config.model.initialization = "classifier"  # what starts fresh, starts as in fine-tuning
        fixed_2d = config.model.positions == "sincos_2d"
        if fixed_2d:
            config.model.positions = "learned"  # MAE's fine-tuning trains the table
        config.classifier.norm_epsilon = config.model.norm_epsilon
        has_class = config.model.class_token != "none"
        config.classifier.skip_first_patch = _is_mae_st(config) and not has_class
    encoder = dict(imported.variables["params"]["autoencoder"]["encoder"])
    if fixed_2d:
        encoder["positions"] = {"table": _fixed_table(imported.config)}
    taken = {name: encoder[name] for name in TAKEN if name in encoder}
    params = {**_fresh(config, seed), "encoder": taken}
    if _is_mae_st(config):
        params["norm"] = encoder["norm"]
    return dataclasses.replace(
        imported,
        kind="classifier",
        variables={"params": params},
        config=config,
        label_names=(),
        remarks=(*imported.remarks, *_transfer(imported.variables, params, fixed_2d)),
    )


def _fresh(config: ConfigDict, seed: int) -> dict[str, Any]:
    """Initial norm and head of a classifier; its encoder, asked for by no one, is not computed."""
    classifier = experiment.classifier(config)
    clip = jnp.zeros((1, *classifier.geometry.clip_shape))

    @jax.jit
    def start(key: Array) -> dict[str, Any]:
        params = classifier.init(key, clip)["params"]
        return {name: params[name] for name in ("norm", "head")}

    return jax.tree.map(np.asarray, start(jax.random.key(seed)))


def _transfer(variables: Any, params: Any, fixed_positions: bool) -> list[str]:
    """What became of the parts of a pretrained model, in the words of its parameters."""
    encoder = variables["params"]["autoencoder"]["encoder"]
    norm_taken = params["norm"] is encoder["norm"]
    taken = [f"encoder/{name}" for name in params["encoder"] if name in encoder]
    parts = [name for name in variables["params"]["autoencoder"] if name != "encoder"]
    left = ["encoder/norm"] * (not norm_taken) + parts
    left += ["masking"] * bool(jax.tree.leaves(variables["params"].get("masking", {})))
    remarks = [
        f"taken from pretraining: {', '.join(taken + ['encoder/norm'] * norm_taken)}",
        f"fresh: {'head' if norm_taken else 'head, norm'}",
    ]
    if fixed_positions:
        remarks.append("encoder/positions: trained from now on, from the fixed table")
    return remarks + [f"left out: {', '.join(left)}"] * bool(left)


def _is_mae_st(config: ConfigDict) -> bool:
    return authors.dialect_of(config.model.positions, experiment.geometry(config)) == "mae_st"


def _fixed_table(config: ConfigDict) -> np.ndarray:
    """An image MAE's fixed position table, with the class token's row."""
    model = experiment.autoencoder(config)
    (row,) = authors.encoder_table(model.encoder_definition, "mae").constants
    return row.value[0]
