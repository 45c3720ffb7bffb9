"""Imported models made into others: for clips of another size, or into a classifier."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array
from ml_collections import ConfigDict

from adamae_jax import experiment, pretrained
from adamae_jax.config import FAMILIES
from adamae_jax.errors import UserError
from adamae_jax.interop import authors
from adamae_jax.interop.architecture import apply_recipe
from adamae_jax.interop.imports import Imported
from adamae_jax.interop.systems import classifier_system
from adamae_jax.models.tubelets import Grid

# What a classifier takes from pretraining; the encoder's last norm only under MAE-ST's names,
# whose classifier calls its own norm the same.
TAKEN = ("embedding", "class_token", "positions", "transformer")


def resize(
    imported: Imported, num_frames: int | None, image_size: tuple[int, int] | None
) -> Imported:
    """Returns the model for clips of another size, with its position tables interpolated.

    Raises:
      UserError: where the size does not fit the tubelets, or an image should have several frames.
    """
    if num_frames not in (None, 1) and imported.dialect.is_image:
        raise UserError(f"--to_num_frames={num_frames}: the model is one of images; leave it out")
    config = _resized_config(imported.config, num_frames, image_size)
    old, new = (experiment.geometry(each).grid for each in (imported.config, config))
    flat = pretrained.flatten(imported.variables)
    resized = resize_tables(flat, old, new)
    changed = sorted(name for name in flat if resized[name] is not flat[name])
    changes = [f"{', '.join(changed)} interpolated"] if changed else []
    if config.model.positions.startswith("sincos"):
        changes.append("fixed ones computed anew")
    remark = f"position tables from a grid of {old} to {new}: {', '.join(changes)}"
    return dataclasses.replace(
        imported,
        variables=traverse_util.unflatten_dict(resized, sep="/"),
        config=config,
        remarks=(*imported.remarks, remark) if old != new else imported.remarks,
    )


def _resized_config(
    config: ConfigDict, num_frames: int | None, image_size: tuple[int, int] | None
) -> ConfigDict:
    """Returns the config with another clip size; predicted frames keep their share.

    Raises:
      UserError: where the tubelets do not divide it, predicted frames could not keep their share,
        or the masking cannot take its grid.
    """
    new = config.copy_and_resolve_references()
    frames = config.data.num_frames
    with new.unlocked():
        new.data.num_frames = num_frames or frames
        new.data.image_size = image_size or config.data.image_size
        predicted, rest = divmod(config.model.predicted_frames * new.data.num_frames, frames)
        if rest:
            raise UserError(
                f"{config.model.predicted_frames} of {frames} frames are predicted, a share that "
                f"{new.data.num_frames} frames cannot keep: choose another number of frames"
            )
        new.model.predicted_frames = predicted
    # Masking may ask for more than a grid that tubelets divide.
    if new.classifier.num_classes:
        experiment.classifier(new)
    else:
        experiment.pretraining(new)
    return new


def resize_tables(flat: Mapping[str, Any], old: Grid, new: Grid) -> dict[str, Any]:
    """Returns all variables by path, with position tables interpolated to another grid.

    Cubic over height and width, linear over time; the class token's row stays as it is.
    """
    resized = dict(flat)
    for name, table in flat.items():
        if name.endswith(("/position_table", "/positions/table")):
            resized[name] = _interpolate(np.asarray(table), old, new)
        elif name.endswith("/positions/spatial"):
            resized[name] = _interpolate(np.asarray(table), (1, *old[1:]), (1, *new[1:]))
        elif name.endswith("/positions/temporal"):
            resized[name] = _interpolate(np.asarray(table), (old[0], 1, 1), (new[0], 1, 1))
    return resized


def _interpolate(table: np.ndarray, old: Grid, new: Grid) -> np.ndarray:
    if old == new:
        return table
    extra = len(table) - old[0] * old[1] * old[2]  # a class token's row, in front
    rows, width = jnp.asarray(table[extra:]).reshape(*old, -1), table.shape[-1]
    plane = (old[0], *new[1:], width)
    rows = jax.image.resize(rows, plane, method="cubic", antialias=False)
    rows = jax.image.resize(rows, (*new, width), method="linear", antialias=False)
    return np.concatenate([table[:extra], np.asarray(rows).reshape(-1, width)])


def into_classifier(imported: Imported, num_classes: int, seed: int) -> Imported:
    """Returns a classifier with a pretrained encoder; its head, and mostly its norm, start fresh.

    Args:
      imported: a model of pretraining, or its encoder alone.
      num_classes: outputs of the head.
      seed: of what starts fresh.

    Raises:
      UserError: where the model already is a classifier, or the options for how clips are cut do
        not fit the recipe for so many classes.
    """
    if imported.config.classifier.num_classes:
        raise UserError("the model is a classifier already: leave --num_classes out")
    dialect = imported.dialect
    config, clip_remarks = _classifier_config(imported, num_classes)
    encoder = dict(imported.variables["params"]["autoencoder"]["encoder"])
    was_fixed = dialect.trains_positions and "positions" not in encoder
    if was_fixed:
        encoder["positions"] = {"table": _fixed_table(imported)}
    taken = {name: encoder[name] for name in TAKEN if name in encoder}
    params = {**_fresh(config, seed), "encoder": taken}
    if dialect.keeps_norm:
        params["norm"] = encoder["norm"]
    remarks = _transfer_remarks(imported, params)
    if was_fixed:
        remarks.append("encoder/positions: trained from now on, from the fixed table")
    return dataclasses.replace(
        imported,
        kind="classifier",
        variables={"params": params},
        config=config,
        label_names=(),
        remarks=(*imported.remarks, *remarks),
        clip_remarks=tuple(clip_remarks),
    )


def _classifier_config(imported: Imported, num_classes: int) -> tuple[ConfigDict, list[str]]:
    """Returns the config with which the authors fine-tune, and remarks on how clips are cut."""
    new, dialect = imported.config.copy_and_resolve_references(), imported.dialect
    with new.unlocked():
        new.classifier.num_classes = num_classes
        new.model.initialization = "classifier"  # what starts fresh, starts as in fine-tuning
        if dialect.trains_positions:
            new.model.positions = "learned"
        new.classifier.norm_epsilon = new.model.norm_epsilon
        new.classifier.pooling = "mean"
        has_class = new.model.class_token != "none"
        if has_class:  # of a classifier, all kinds are the same
            new.model.class_token = FAMILIES[dialect.family]["class_token"]
        new.classifier.skip_first_patch = dialect.skips_first_patch and not has_class
        recipe = classifier_system(dialect).recipe_of(num_classes)
        clip_remarks = apply_recipe(recipe, new.data, imported.options)
    return new, clip_remarks


def _fresh(config: ConfigDict, seed: int) -> dict[str, Any]:
    """Returns initial norm and head of a classifier; its encoder is not computed."""
    classifier = experiment.classifier(config)
    clip = jnp.zeros((1, *classifier.geometry.clip_shape))

    @jax.jit
    def start(key: Array) -> dict[str, Any]:
        params = classifier.init(key, clip)["params"]
        return {name: params[name] for name in ("norm", "head")}

    return jax.tree.map(np.asarray, start(jax.random.key(seed)))


def _transfer_remarks(imported: Imported, params: Mapping[str, Any]) -> list[str]:
    """Returns what became of the parts of a pretrained model, in the words of its parameters."""
    keeps_norm, before = imported.dialect.keeps_norm, imported.variables["params"]
    encoder = before["autoencoder"]["encoder"]
    norm = ["encoder/norm"]
    taken = [f"encoder/{name}" for name in params["encoder"] if name in encoder]
    left = [] if keeps_norm else norm
    left = left + [name for name in before["autoencoder"] if name != "encoder"]
    left += ["masking"] * bool(jax.tree.leaves(before.get("masking", {})))
    remarks = [
        f"taken from pretraining: {', '.join(taken + norm * keeps_norm)}",
        f"fresh: {'head' if keeps_norm else 'head, norm'}",
    ]
    return remarks + [f"left out: {', '.join(left)}"] * bool(left)


def _fixed_table(imported: Imported) -> np.ndarray:
    """Returns an image MAE's fixed position table, with the class token's row."""
    model = experiment.autoencoder(imported.config)
    (row,) = authors.encoder_table(model.encoder_definition, imported.dialect).constants
    return row.value[0]
