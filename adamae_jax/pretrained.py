"""Model directories, and `load`: the one Python entry to what was trained.

A model directory holds ``model.json`` (what the model is) and ``model.safetensors`` (its arrays).
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load as deserialize
from safetensors.numpy import save as serialize

from adamae_jax import config as configs
from adamae_jax import experiment
from adamae_jax.errors import UserError
from adamae_jax.models.autoencoder import Autoencoder
from adamae_jax.objectives import Pretraining, normalize_pixels
from adamae_jax.training.digests import write_atomically

MODEL_JSON, MODEL_ARRAYS, CONFIG_JSON = "model.json", "model.safetensors", "config.json"
FORMAT = "adamae-jax model 1"
# What of the config says what the model is.
CLIP_FIELDS = ("num_frames", "sampling_rate", "image_size", "crop")
MODEL_FIELDS = ("model", "masking", "objective")
PLACE_FIELDS = ("dir", "train_split", "validation_split")  # where the clips were: for pictures


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A trained model; unpacks as ``model, params = load(path)``.

    Attributes:
      pretraining: the autoencoder with its masking and objective.
      variables: ``params`` (``autoencoder``, ``masking``), ``state``, ``frozen``.
      config: the effective config of the run; of a model directory, the model's part of it.
      step: updates that it was trained for.
      label_names: of the classes in the data it was trained on, by label, where known.
    """

    pretraining: Pretraining
    variables: Mapping[str, Any]
    config: ConfigDict
    step: int
    label_names: tuple[str, ...] = ()

    @property
    def model(self) -> Autoencoder:
        """The autoencoder's definition."""
        return self.pretraining.model

    @property
    def params(self) -> Mapping[str, Any]:
        """The autoencoder's parameters."""
        return self.variables["params"]["autoencoder"]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.params))

    def features(self, video: UInt8[Array | np.ndarray, "b T H W C"]) -> Float[Array, "b n d"]:
        """The encoder's latents of all tokens, row-major over (time, height, width).

        Args:
          video: clips of uint8 pixels, of the size that the model was trained on.

        Raises:
          UserError: where the clips are of another type or size.
        """
        expected = self.model.geometry.clip_shape
        if video.ndim != 5 or video.shape[1:] != expected or video.dtype != jnp.uint8:
            raise UserError(
                f"features() was given {video.dtype} {tuple(video.shape)}: it takes uint8 clips "
                f"[batch, {', '.join(map(str, expected))}] (frames, height, width, channels)"
            )
        return self._features(self.params, jnp.asarray(video))

    @functools.cached_property
    def _features(self) -> Any:
        def features(params: Any, video: Array) -> Array:
            pixels = normalize_pixels(video, self.pretraining.objective)
            return self.model.apply({"params": params}, pixels, method="features")

        return jax.jit(features)


def save(
    directory: str | os.PathLike[str],
    variables: Any,
    config: ConfigDict,
    step: int,
    label_names: Sequence[str] = (),
) -> None:
    """Writes a model directory; an existing one is replaced file by file, each at once.

    Args:
      directory: made where it is missing.
      variables: ``params``, ``state``, ``frozen``, on the host or on devices.
      config: the effective config.
      step: updates made.
      label_names: of the classes in the data, by label.
    """
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    arrays = serialize(
        {name: np.asarray(jax.device_get(value), order="C") for name, value in flat.items()},
        metadata={"format": FORMAT},
    )
    tree = json.loads(configs.to_json(config))
    description = {
        "format": FORMAT,
        "step": step,
        "sha256": hashlib.sha256(arrays).hexdigest(),
        "clip": {name: tree["data"][name] for name in CLIP_FIELDS},
        **{name: tree[name] for name in MODEL_FIELDS},
        "label_names": list(label_names),
        "trained_with": tree,  # for the record; not needed to load
    }
    write_atomically(path / MODEL_ARRAYS, arrays)
    write_atomically(path / MODEL_JSON, (json.dumps(description, indent=2) + "\n").encode())


def frozen_variables(pretraining: Pretraining) -> Any:
    """What a strategy holds frozen, from the directory that it names; None where it has none.

    Raises:
      UserError: where the directory cannot be loaded, or what it holds does not fit.
    """
    strategy = pretraining.strategy
    wanted = jax.eval_shape(pretraining.init, jax.random.key(0))["frozen"]
    if not jax.tree.leaves(wanted):
        return None
    source = load(strategy.frozen_source())
    found, own = source.pretraining.objective, pretraining.objective
    if (found.pixel_mean, found.pixel_std) != (own.pixel_mean, own.pixel_std):
        raise UserError(
            f"{strategy.frozen_source()} was trained on pixels with mean {found.pixel_mean} and "
            f"std {found.pixel_std}, this model has {own.pixel_mean} and {own.pixel_std}: set "
            "objective.pixel_mean and objective.pixel_std to the former"
        )
    encoder, grid = source.model.encoder_definition, pretraining.model.geometry.grid
    return strategy.adopt(encoder, source.params["encoder"], grid)


def load(path: str | os.PathLike[str], step: int | None = None) -> Pretrained:
    """Loads a run's workdir (its newest checkpoint) or a model directory.

    Args:
      path: the directory.
      step: of a run, the checkpoint to load.

    Raises:
      UserError: where the directory is neither, or does not fit its own description.
    """
    directory = Path(path)
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


def _load_model(directory: Path) -> Pretrained:
    try:
        description = json.loads((directory / MODEL_JSON).read_text())
        if description["format"] != FORMAT:
            raise UserError(
                f"{directory} is of format {description['format']!r}: this reads {FORMAT!r}"
            )
        stored = (directory / MODEL_ARRAYS).read_bytes()
        if hashlib.sha256(stored).hexdigest() != description["sha256"]:
            raise UserError(f"{directory / MODEL_ARRAYS} is damaged: its SHA-256 is another")
        trained_on = description.get("trained_with", {}).get("data", {})
        places = {name: trained_on[name] for name in PLACE_FIELDS if name in trained_on}
        fields = {name: description[name] for name in MODEL_FIELDS}
        fields["data"] = {**description["clip"], **places}
        config = configs.from_json(json.dumps(fields))
        arrays = deserialize(stored)
        step, label_names = int(description["step"]), tuple(description["label_names"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"{directory} is not a readable model directory ({type(error).__name__}: {error})"
        ) from error
    tree = traverse_util.unflatten_dict(arrays, sep="/")
    variables = {"state": {}, "frozen": {}, **tree}
    variables["params"] = {"masking": {}, **tree.get("params", {})}
    return _checked(variables, config, step, label_names, directory)


def _load_run(directory: Path, step: int | None) -> Pretrained:
    from adamae_jax.training import checkpoints  # orbax is slow to import

    try:
        config = configs.from_json((directory / CONFIG_JSON).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{directory / CONFIG_JSON} cannot be read: {error}") from error
    expected = jax.eval_shape(experiment.pretraining(config).init, jax.random.key(0))
    place = directory / "checkpoints"
    step, params = checkpoints.read_subtree(place, "params", step=step)
    # A strategy without parameters leaves no trace in the checkpoint.
    variables: dict[str, Any] = {"params": {"masking": {}, **params}, "state": {}, "frozen": {}}
    for name, part in (("state", "model_state"), ("frozen", "frozen")):
        if jax.tree.leaves(expected[name]):
            variables[name] = checkpoints.read_subtree(place, part, step=step)[1]
    return _checked(variables, config, step, (), directory)


def _checked(
    variables: Any,
    config: ConfigDict,
    step: int,
    label_names: tuple[str, ...],
    directory: Path,
) -> Pretrained:
    """Compares names and shapes with what the config describes."""
    config.model.attention = "xla"  # how it was trained, perhaps elsewhere, does not bind its use
    pretraining = experiment.pretraining(config)
    expected = jax.eval_shape(pretraining.init, jax.random.key(0))
    shapes = {
        name: tuple(leaf.shape)
        for name, leaf in traverse_util.flatten_dict(expected, sep="/").items()
    }
    found = {
        name: tuple(np.shape(leaf))
        for name, leaf in traverse_util.flatten_dict(variables, sep="/").items()
    }
    wrong = sorted(
        name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name)
    )
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{directory} does not fit its own config: {len(wrong)} array(s) differ, first {name} "
            f"(expected {shapes.get(name)}, found {found.get(name)})"
        )
    variables = jax.tree.map(jnp.asarray, variables)
    return Pretrained(pretraining, variables, config, step, label_names)
