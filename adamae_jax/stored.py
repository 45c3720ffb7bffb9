"""Weights that lie somewhere: a run's, a model directory's, or other people's."""

import dataclasses
import os
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from adamae_jax import pretrained
from adamae_jax.classification import Classification
from adamae_jax.errors import UserError
from adamae_jax.interop import imports, sources
from adamae_jax.interop.systems import Kind
from adamae_jax.loaded import Loaded
from adamae_jax.training import files, rundir
from adamae_jax.training.files import AnyPath


@dataclasses.dataclass(frozen=True)
class Stored:
    """The weights that a source holds.

    Attributes:
      what: the source in words.
      kind: which part of a model it is.
      arrays: by path, such as ``params/masking/head/bias``.
      config: what the model is.
      license: where known.
    """

    what: str
    kind: Kind
    arrays: Mapping[str, np.ndarray]
    config: ConfigDict
    license: str


def load(source: str | os.PathLike[str], step: int | None = None) -> Loaded:
    """Loads a run or a model directory, or the weights of others.

    Args:
      source: a run's workdir (its newest checkpoint), a model directory, a file of weights (.pth,
        .safetensors) or a Hugging Face directory.
      step: of a run, the checkpoint to load.

    Returns:
      `Pretrained` for a masked autoencoder, `PretrainedEncoder` where its encoder is all there is,
      `Finetuned` for a classifier.

    Raises:
      UserError: where there is no model, or it does not fit its own description.
    """
    path = files.at(source)
    ours = _is_run(path) or (path / rundir.MODEL_JSON).is_file()
    if ours or step is not None or not path.exists():
        return pretrained.load(path, step)
    found = imports.convert(sources.read(path))
    about = (found.step, found.label_names, found.license, str(source))
    encoder_alone = found.kind == "encoder"
    return pretrained.build(found.variables, found.config, *about, encoder_alone=encoder_alone)


def _is_run(path: AnyPath) -> bool:
    return (path / rundir.CONFIG).is_file() and not sources.is_hugging_face(path)


def read_source(source: str) -> Stored:
    """Reads a run (or one of its checkpoints), a model directory, or a model of others.

    Raises:
      UserError: where there is none, or its weights are not finite.
    """
    path = files.at(source)
    if not path.exists():
        raise UserError(
            f"init_from={source} does not exist: give a run's workdir, a model directory, a file "
            "of weights or a Hugging Face directory"
        )
    step = None
    if path.parent.name == rundir.CHECKPOINTS and path.name.isdecimal():
        path, step = path.parent.parent, int(path.name)
    if not (_is_run(path) or (path / rundir.MODEL_JSON).is_file()):
        return _read_foreign(path, source)
    loaded = pretrained.load(path, step)
    arrays = {
        name: np.asarray(leaf) for name, leaf in pretrained.flatten(dict(loaded.variables)).items()
    }
    kind: Kind = "classifier" if isinstance(loaded.task, Classification) else "pretraining"
    what = f"{source}, a model of {loaded.task.name} after {loaded.step} steps"
    try:
        imports.check_finite(arrays)
    except UserError as error:
        raise UserError(f"init_from={source}: {error}") from error
    return Stored(what, kind, arrays, loaded.config, loaded.license)


def _read_foreign(path: AnyPath, source: str) -> Stored:
    try:
        imported = imports.convert(sources.read(path))
    except UserError as error:
        raise UserError(
            f"init_from={source}: {error} (options for reading it are those of `python -m "
            "adamae_jax.convert import`: give init_from the model directory that it makes)"
        ) from error
    arrays = pretrained.flatten(imported.variables)
    what = f"{source}, weights of others ({imported.kind})"
    return Stored(what, imported.kind, arrays, imported.config, imported.license)
