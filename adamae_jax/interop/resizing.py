"""Imported models for clips of another size."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from adamae_jax import experiment, pretrained
from adamae_jax.errors import UserError
from adamae_jax.interop.imports import Imported
from adamae_jax.models.tubelets import Grid


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
