"""Model directories, and `load`: the one Python entry to what was trained.

A model directory holds ``model.json`` (what the model is) and ``model.safetensors`` (its arrays).
It is a masked autoencoder or, where its config has classes, a classifier.
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
from adamae_jax import experiment, licenses
from adamae_jax.errors import UserError
from adamae_jax.models.autoencoder import Autoencoder
from adamae_jax.models.classifier import Classifier
from adamae_jax.objectives import Pretraining, normalize_pixels
from adamae_jax.training import rundir
from adamae_jax.training.digests import write_atomically

MODEL_JSON, MODEL_ARRAYS = rundir.MODEL_JSON, "model.safetensors"
CONFIG_JSON = rundir.CONFIG
FORMAT = "adamae-jax model 2"
# What of the config says what the model is.
CLIP_FIELDS = (
    *("num_frames", "sampling_rate", "frame_sampling", "target_fps"),
    *("image_size", "crop", "crop_area", "crop_aspect", "interpolation", "horizontal_flip"),
)
MODEL_FIELDS = ("model", "masking", "objective", "classifier")
PLACE_FIELDS = ("dir", "train_split", "validation_split")  # where the clips were: for pictures


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What was trained or imported; unpacks as ``model, params = load(path)``.

    Attributes:
      variables: ``params`` and, where there are such, ``state`` and ``frozen``.
      config: the effective config of the run; of a model directory, the model's part of it.
      step: updates that it was trained for.
      label_names: of the classes, by label: a classifier's, or those of the data it was trained on.
      license: of weights that were imported or are held frozen, where known; "" otherwise.
    """

    variables: Mapping[str, Any]
    config: ConfigDict
    step: int
    label_names: tuple[str, ...] = ()
    license: str = ""

    @property
    def model(self) -> Autoencoder | Classifier:
        """The model's definition."""
        raise NotImplementedError

    @property
    def params(self) -> Mapping[str, Any]:
        """The model's parameters."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.params))

    def features(self, video: UInt8[Array | np.ndarray, "b T H W C"]) -> Float[Array, "b n d"]:
        """The encoder's latents of all tokens, row-major over (time, height, width).

        Args:
          video: clips of uint8 pixels, of the size that the model was trained on.

        Raises:
          UserError: where the clips are of another type or size.
        """
        return self._features(self.params, self._checked("features", video))

    def _checked(self, method: str, video: UInt8[Array | np.ndarray, "..."]) -> Array:
        expected = self.model.geometry.clip_shape
        if video.ndim != 5 or video.shape[1:] != expected or video.dtype != jnp.uint8:
            raise UserError(
                f"{method}() was given {video.dtype} {tuple(video.shape)}: it takes uint8 clips "
                f"[batch, {', '.join(map(str, expected))}] (frames, height, width, channels)"
            )
        return jnp.asarray(video)

    @functools.cached_property
    def _features(self) -> Any:
        return self._compile("features")

    def _compile(self, method: str) -> Any:
        objective = experiment.objective(self.config)

        def apply(params: Any, video: Array) -> Array:
            pixels = normalize_pixels(video, objective)
            return self.model.apply({"params": params}, pixels, method=method)

        return jax.jit(apply)


@dataclasses.dataclass(frozen=True)
class Pretrained(Loaded):
    """A masked autoencoder.

    Attributes:
      pretraining: the autoencoder with its masking and objective.
    """

    pretraining: Pretraining = dataclasses.field(kw_only=True)

    @property
    def model(self) -> Autoencoder:
        """The autoencoder's definition."""
        return self.pretraining.model

    @property
    def params(self) -> Mapping[str, Any]:
        """The autoencoder's parameters."""
        return self.variables["params"]["autoencoder"]


@dataclasses.dataclass(frozen=True)
class Finetuned(Loaded):
    """A classifier.

    Attributes:
      classifier: its definition.
    """

    classifier: Classifier = dataclasses.field(kw_only=True)

    @property
    def model(self) -> Classifier:
        """The classifier's definition."""
        return self.classifier

    @property
    def params(self) -> Mapping[str, Any]:
        """The classifier's parameters."""
        return self.variables["params"]

    def logits(self, video: UInt8[Array | np.ndarray, "b T H W C"]) -> Float[Array, "b k"]:
        """The classes' logits of single views.

        Args:
          video: clips of uint8 pixels, of the size that the model was trained on.

        Raises:
          UserError: where the clips are of another type or size.
        """
        return self._logits(self.params, self._checked("logits", video))

    @functools.cached_property
    def _logits(self) -> Any:
        return self._compile("__call__")


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
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    arrays = serialize(
        {name: np.asarray(jax.device_get(value), order="C") for name, value in flat.items()},
        metadata={"format": FORMAT},
    )
    description = {
        **describe(config, step, label_names, license),
        "sha256": hashlib.sha256(arrays).hexdigest(),
    }
    write_atomically(path / MODEL_ARRAYS, arrays)
    write_atomically(path / MODEL_JSON, (json.dumps(description, indent=2) + "\n").encode())


def describe(
    config: ConfigDict, step: int, label_names: Sequence[str], license: str
) -> dict[str, Any]:
    """What ``model.json`` says of a model, as plain JSON values."""
    tree = json.loads(configs.to_json(config))
    return {
        "format": FORMAT,
        "step": step,
        "license": license,
        "clip": {name: tree["data"][name] for name in CLIP_FIELDS},
        **{name: tree[name] for name in MODEL_FIELDS},
        "label_names": list(label_names),
        "trained_with": tree,  # for the record; not needed to load
    }


def described_config(description: Mapping[str, Any]) -> ConfigDict:
    """The model's part of a config, from what `describe` says of it."""
    trained_on = description.get("trained_with", {}).get("data", {})
    places = {name: trained_on[name] for name in PLACE_FIELDS if name in trained_on}
    fields = {name: description[name] for name in MODEL_FIELDS}
    fields["data"] = {**description["clip"], **places}
    return configs.from_json(json.dumps(fields))


def frozen_variables(pretraining: Pretraining) -> Any:
    """What a strategy holds frozen, from the directory that it names; None where it has none.

    Raises:
      UserError: where the directory cannot be loaded, or what it holds does not fit.
    """
    strategy = pretraining.strategy
    wanted = jax.eval_shape(pretraining.init, jax.random.key(0))["frozen"]
    if not jax.tree.leaves(wanted):
        return None
    source = load_pretrained(strategy.frozen_source())
    found, own = source.pretraining.objective, pretraining.objective
    if (found.pixel_mean, found.pixel_std) != (own.pixel_mean, own.pixel_std):
        raise UserError(
            f"{strategy.frozen_source()} was trained on pixels with mean {found.pixel_mean} and "
            f"std {found.pixel_std}, this model has {own.pixel_mean} and {own.pixel_std}: set "
            "objective.pixel_mean and objective.pixel_std to the former"
        )
    encoder, grid = source.model.encoder_definition, pretraining.model.geometry.grid
    frozen = strategy.adopt(encoder, source.params["encoder"], grid)
    shapes = [
        {name: tuple(leaf.shape) for name, leaf in flatten(tree).items()}
        for tree in (wanted, frozen)
    ]
    wrong = sorted(
        name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name)
    )
    if wrong:
        raise UserError(
            f"{strategy.frozen_source()} has other arrays than the network that is held frozen: "
            f"{len(wrong)} differ, first {wrong[0]} (expected {shapes[0].get(wrong[0])}, found "
            f"{shapes[1].get(wrong[0])}): its patch_size, mlp_ratio and layer_scale must be those "
            "of the published image MAE and of this model's grid"
        )
    return frozen


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


def load_pretrained(path: str | os.PathLike[str], step: int | None = None) -> Pretrained:
    """Like `load`, for what only a masked autoencoder can do.

    Raises:
      UserError: also where the directory holds a classifier.
    """
    loaded = load(path, step)
    if not isinstance(loaded, Pretrained):
        raise UserError(f"{path} holds a classifier: give a run or model of pretraining")
    return loaded


def _load_model(directory: Path) -> Loaded:
    try:
        description = json.loads((directory / MODEL_JSON).read_text())
        if description["format"] != FORMAT:
            raise UserError(
                f"{directory} is of format {description['format']!r}: this reads {FORMAT!r}"
            )
        stored = (directory / MODEL_ARRAYS).read_bytes()
        if hashlib.sha256(stored).hexdigest() != description["sha256"]:
            raise UserError(f"{directory / MODEL_ARRAYS} is damaged: its SHA-256 is another")
        config = described_config(description)
        arrays = deserialize(stored)
        step, label_names = int(description["step"]), tuple(description["label_names"])
        license = str(description["license"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"{directory} is not a readable model directory ({type(error).__name__}: {error})"
        ) from error
    tree = traverse_util.unflatten_dict(arrays, sep="/")
    if config.classifier.num_classes:
        return build(tree, config, step, label_names, license, str(directory))
    variables = {"state": {}, "frozen": {}, **tree}
    variables["params"] = {"masking": {}, **tree.get("params", {})}
    return build(variables, config, step, label_names, license, str(directory))


def _load_run(directory: Path, step: int | None) -> Loaded:
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
    return build(variables, config, step, (), licenses.of(directory), str(directory))


def build(
    variables: Any,
    config: ConfigDict,
    step: int,
    label_names: tuple[str, ...],
    license: str,
    source: str,
) -> Loaded:
    """A model from its arrays and its config.

    Raises:
      UserError: where names or shapes are not what the config describes; ``source`` is named.
    """
    config.model.attention = "xla"  # how it was trained, perhaps elsewhere, does not bind its use
    expected = expected_shapes(config)
    found = {name: tuple(np.shape(leaf)) for name, leaf in flatten(variables).items()}
    wrong = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{source} does not fit its own config: {len(wrong)} array(s) differ, first {name} "
            f"(expected {expected.get(name)}, found {found.get(name)})"
        )
    shared = (jax.tree.map(jnp.asarray, variables), config, step, label_names, license)
    if config.classifier.num_classes:
        return Finetuned(*shared, classifier=experiment.classifier(config))
    return Pretrained(*shared, pretraining=experiment.pretraining(config))


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a tree of dicts by path."""
    return traverse_util.flatten_dict(tree, sep="/")


def expected_shapes(config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """The shapes of all variables that a config describes, by path."""
    key = jax.random.key(0)
    if config.classifier.num_classes:
        classifier = experiment.classifier(config)
        clip = jnp.zeros((1, *classifier.geometry.clip_shape))
        tree = jax.eval_shape(classifier.init, key, clip)
    else:
        tree = jax.eval_shape(experiment.pretraining(config).init, key)
    return {name: tuple(leaf.shape) for name, leaf in flatten(tree).items()}
