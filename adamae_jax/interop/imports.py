"""From a stored model to ours: architecture, variables, and what was assumed on the way."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from adamae_jax import experiment, pretrained
from adamae_jax.errors import UserError
from adamae_jax.interop import architecture, authors, resizing
from adamae_jax.interop.sources import Source
from adamae_jax.interop.tables import Table


@dataclasses.dataclass(frozen=True)
class Imported:
    """A model in our form.

    Attributes:
      variables: as `adamae_jax.pretrained.save` takes them.
      config: the experiment it would be.
      step: updates that it was trained for, where known.
      label_names: of a classifier's classes.
      license: where known.
      remarks: what the user should know.
    """

    variables: dict[str, Any]
    config: ConfigDict
    step: int
    label_names: tuple[str, ...]
    license: str
    remarks: tuple[str, ...]


def table_of(config: ConfigDict) -> Table:
    """The names of all of a model's variables."""
    if config.classifier.num_classes:
        return authors.classifier_table(experiment.classifier(config)).under("params")
    return authors.pretraining_table(experiment.pretraining(config))


def convert(source: Source) -> Imported:
    """The model that a source holds, every tensor accounted for.

    Raises:
      UserError: where the model is unknown, something has to be given, or tensors do not fit.
    """
    if source.description is not None:
        config = _described_config(source.description)
        step, remarks = int(source.description.get("step", 0)), tuple[str, ...]()
    else:
        inferred = architecture.infer(source.state, source.given, source.label_names)
        config, step, remarks = inferred.config, 0, inferred.remarks
    tree = table_of(config).from_authors(source.state, pretrained.expected_shapes(config))
    return Imported(tree, config, step, source.label_names, source.license, remarks)


def _described_config(description: Any) -> ConfigDict:
    try:
        return pretrained.described_config(description)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
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
    changed = sorted(name for name in flat if flat[name].shape != resized[name].shape)
    remark = f"position tables from a grid of {old} to {new}: " + (
        f"{', '.join(changed)} interpolated" if changed else "all are fixed, and computed anew"
    )
    return dataclasses.replace(
        imported,
        variables=traverse_util.unflatten_dict(resized, sep="/"),
        config=config,
        remarks=(*imported.remarks, remark),
    )


# What a classifier takes from pretraining; the encoder's last norm only under MAE-ST's names,
# whose classifier calls its own norm the same.
TAKEN = ("embedding", "class_token", "positions", "transformer")


def into_classifier(imported: Imported, num_classes: int, seed: int) -> Imported:
    """A classifier with a pretrained encoder; what has no pretrained weights starts fresh.

    Args:
      imported: a model of pretraining.
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
        fixed_2d = config.model.positions == "sincos_2d"
        if fixed_2d:
            config.model.positions = "learned"  # MAE's fine-tuning trains the table
        config.classifier.norm_epsilon = config.model.norm_epsilon
        has_class = config.model.class_token != "none"
        config.classifier.skip_first_patch = _is_mae_st(config) and not has_class
    encoder = dict(imported.variables["params"]["autoencoder"]["encoder"])
    if fixed_2d:
        encoder["positions"] = {"table": _fixed_table(imported.config)}
    classifier = experiment.classifier(config)
    clip = jnp.zeros((1, *classifier.geometry.clip_shape))
    fresh = jax.jit(classifier.init)(jax.random.key(seed), clip)["params"]
    taken = {name: encoder[name] for name in TAKEN if name in encoder}
    params = {**jax.tree.map(np.asarray, fresh), "encoder": taken}
    if _is_mae_st(config):
        params["norm"] = encoder["norm"]
    all_taken = [f"encoder/{name}" for name in taken] + ["norm"] * _is_mae_st(config)
    remarks = (
        f"taken from pretraining: {', '.join(all_taken)}",
        f"fresh: {', '.join(sorted({'norm', 'head'} - set(all_taken)))}",
    )
    return dataclasses.replace(
        imported,
        variables={"params": params},
        config=config,
        label_names=(),
        remarks=(*imported.remarks, *remarks),
    )


def _is_mae_st(config: ConfigDict) -> bool:
    return authors.dialect_of(config.model.positions, experiment.geometry(config)) == "mae_st"


def _fixed_table(config: ConfigDict) -> np.ndarray:
    """An image MAE's fixed position table, with the class token's row."""
    model = experiment.autoencoder(config)
    (row,) = authors.encoder_table(model.encoder_definition, "mae").constants
    return row.value[0]
