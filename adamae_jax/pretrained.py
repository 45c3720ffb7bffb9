"""Model directories, and `load`: the one Python entry to what was trained.

A model directory holds ``model.json`` (what the model is) and ``model.safetensors`` (its arrays).
It is a masked autoencoder or, where its config has classes, a classifier.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load as deserialize
from safetensors.numpy import save as serialize

from adamae_jax import config as configs
from adamae_jax import experiment, licenses
from adamae_jax.classification import Classification
from adamae_jax.errors import UserError
from adamae_jax.loaded import Finetuned, Loaded, Pretrained, PretrainedEncoder
from adamae_jax.pretraining import Pretraining
from adamae_jax.probing import Probing
from adamae_jax.training import files, rundir
from adamae_jax.training.files import AnyPath

MODEL_JSON, MODEL_ARRAYS = rundir.MODEL_JSON, "model.safetensors"
CONFIG_JSON = rundir.CONFIG
FORMAT = "adamae-jax model 4"
# What a damaged description can raise where it is read, and where a model is made of it.
DAMAGE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def save(
    directory: str | os.PathLike[str],
    variables: Any,
    config: ConfigDict,
    step: int,
    label_names: Sequence[str] = (),
    license: str = "",
) -> None:
    """Writes a model directory; an existing one is replaced file by file, each at once.

    Args:
      directory: made where it is missing.
      variables: ``params``, ``state``, ``frozen``, on the host or on devices.
      config: the effective config.
      step: updates made.
      label_names: of the classes in the data, by label.
      license: of imported weights, where known.
    """
    path = files.at(directory)
    files.make_directory(path)
    arrays = serialize(
        {
            name: np.asarray(jax.device_get(value), order="C")
            for name, value in flatten(dict(variables)).items()
        },
        metadata={"format": FORMAT},
    )
    description = {
        **describe(config, step, label_names, license),
        "sha256": hashlib.sha256(arrays).hexdigest(),
    }
    files.write(path / MODEL_ARRAYS, arrays)
    files.write(path / MODEL_JSON, (json.dumps(description, indent=2) + "\n").encode())


def describe(
    config: ConfigDict, step: int, label_names: Sequence[str], license: str
) -> dict[str, Any]:
    """What ``model.json`` says of a model, as plain JSON values."""
    return {
        "format": FORMAT,
        "task": experiment.task_name(config),
        "step": step,
        "license": license,
        "config": configs.model_part(config),
        "label_names": list(label_names),
        "trained_with": json.loads(configs.to_json(config)),  # for the record, not needed to load
    }


def described_config(description: Mapping[str, Any]) -> ConfigDict:
    """The model's part of a config, from what `describe` says of it."""
    return configs.from_json(json.dumps(description["config"]))


def load(path: str | os.PathLike[str], step: int | None = None) -> Loaded:
    """Loads a run's workdir (its newest checkpoint) or a model directory.

    Args:
      path: the directory.
      step: of a run, the checkpoint to load.

    Returns:
      `Pretrained` for a masked autoencoder, `Finetuned` for a classifier.

    Raises:
      UserError: where the directory is neither, or does not fit its own description.
    """
    directory = files.at(path)
    if (directory / MODEL_JSON).is_file():
        if step is not None:
            raise UserError(f"{directory} is a model directory, without steps: leave --step out")
        return _load_model(directory)
    if (directory / CONFIG_JSON).is_file():
        return _load_run(directory, step)
    raise UserError(
        f"{directory} holds neither {CONFIG_JSON} (a run) nor {MODEL_JSON} (a model directory): "
        "give the --workdir of a run"
    )


def load_pretrained(path: str | os.PathLike[str], step: int | None = None) -> Pretrained:
    """Like `load`, for what only a masked autoencoder can do.

    Raises:
      UserError: also where the directory holds a classifier.
    """
    loaded = load(path, step)
    if not isinstance(loaded, Pretrained):
        raise UserError(f"{path} holds a classifier: give a run or model of pretraining")
    return loaded


def _load_model(directory: AnyPath) -> Loaded:
    with _described_by(directory):
        description = json.loads(files.read(directory / MODEL_JSON))
        if description["format"] != FORMAT:
            raise UserError(f"the format is {description['format']!r}: this reads {FORMAT!r}")
        stored = files.read(directory / MODEL_ARRAYS)
        if hashlib.sha256(stored).hexdigest() != description["sha256"]:
            raise UserError(f"{MODEL_ARRAYS} is damaged: its SHA-256 is another")
        config, about = described_config(description), _about(description)
        variables = traverse_util.unflatten_dict(deserialize(stored), sep="/")
    return build(variables, config, *about, str(directory), task=description["task"])


def _about(description: Mapping[str, Any]) -> tuple[int, tuple[str, ...], str]:
    """Step, label names and licence."""
    step, names, license = (description[name] for name in ("step", "label_names", "license"))
    if type(step) is not int or step < 0:
        raise UserError(f"step is {step!r}: it should be a whole number")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"label_names is {names!r}: it should be a list of texts")
    if not isinstance(license, str):
        raise UserError(f"license is {license!r}: it should be text")
    return step, tuple(names), license


@contextlib.contextmanager
def _described_by(source: str | AnyPath) -> Iterator[None]:
    """Names the model in what is raised inside; a damaged description may raise almost anything."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    except (*DAMAGE, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{source} is not a readable model ({type(error).__name__}: {reason}): put back a copy"
        ) from error


def _load_run(directory: AnyPath, step: int | None) -> Loaded:
    from adamae_jax.training import checkpoints  # orbax is slow to import

    place = directory / rundir.CHECKPOINTS
    step, variables = checkpoints.read_variables(place, step)
    metadata = checkpoints.read_metadata(place, step)
    with _described_by(directory / CONFIG_JSON):
        config = configs.from_json(files.read(directory / CONFIG_JSON).decode())
    about = (step, tuple(metadata.get("label_names", ())), licenses.of(directory))
    return build(variables, config, *about, str(directory), task=metadata["task"])


def build(
    variables: Mapping[str, Any],
    config: ConfigDict,
    step: int,
    label_names: tuple[str, ...],
    license: str,
    source: str,
    *,
    task: str | None = None,
    encoder_alone: bool = False,
) -> Loaded:
    """A model from its arrays and its config.

    Args:
      variables: ``params`` and, where there are such, ``state`` and ``frozen``.
      config: what the model is.
      step: updates that it was trained for.
      label_names: see `Loaded`.
      license: see `Loaded`.
      source: where the arrays come from, for messages.
      task: the name of what was trained, where it was recorded; else what the config describes.
      encoder_alone: that of a masked autoencoder is all there is.

    Raises:
      UserError: where the config is wrong, or names or shapes are not what it describes;
        ``source`` is named.
    """
    # How it was trained, perhaps elsewhere, does not bind its use.
    config = config.copy_and_resolve_references()
    config.model.attention = "auto"
    if task == Probing.name:
        raise UserError(
            f"{source} holds probes, which are measured and not kept as a model: give what they "
            f"are probes of, {config.init_from}"
        )
    with _described_by(source):
        made = experiment.task(task or experiment.task_name(config), config)
        expected = jax.eval_shape(made.init, jax.random.key(0))
    if encoder_alone:
        encoder = expected["params"]["autoencoder"]["encoder"]
        expected = {"params": {"autoencoder": {"encoder": encoder}}}
    found = {name: tuple(np.shape(leaf)) for name, leaf in flatten(variables).items()}
    shapes = {name: tuple(leaf.shape) for name, leaf in flatten(expected).items()}
    wrong = sorted(
        name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name)
    )
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{source} does not fit its own config: {len(wrong)} array(s) differ, first {name} "
            f"(expected {shapes.get(name)}, found {found.get(name)})"
        )
    # In the shape of what is expected: what holds no arrays leaves no trace in a file.
    arrays = flatten(variables)
    whole = jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(arrays[jax.tree_util.keystr(path, simple=True, separator="/")]),
        expected,
    )
    shared = (step, label_names, license)
    if isinstance(made, Classification):
        classes = made.model.num_classes
        if len(label_names) not in (0, classes):
            raise UserError(
                f"{source}: there are {len(label_names)} label names for {classes} classes: give "
                "as many"
            )
        return Finetuned(whole, config, made, *shared)
    assert isinstance(made, Pretraining)
    kind = PretrainedEncoder if encoder_alone else Pretrained
    return kind(whole, config, made, *shared)


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a tree of dicts by path."""
    return traverse_util.flatten_dict(tree, sep="/")


def expected_shapes(config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """The shapes of all variables that a config describes, by path."""
    task = experiment.task(experiment.task_name(config), config)
    tree = jax.eval_shape(task.init, jax.random.key(0))
    return {name: tuple(leaf.shape) for name, leaf in flatten(tree).items()}
