"""A model that was trained or imported, ready to be used."""

import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from adamae_jax import experiment
from adamae_jax.classification import Classification
from adamae_jax.data.temporal import Views
from adamae_jax.errors import UserError
from adamae_jax.models.autoencoder import Autoencoder
from adamae_jax.models.classifier import Classifier
from adamae_jax.pretraining import Pretraining
from adamae_jax.targets import normalize_pixels
from adamae_jax.training.scores import merge_views

# Clips, or the path of a video file.
Video = UInt8[Array | np.ndarray, "b T H W C"] | str | os.PathLike[str]


class Prediction(NamedTuple):
    """A class that a video may show.

    Attributes:
      label: its number.
      name: where known; "" otherwise.
      score: its share of all classes.
    """

    label: int
    name: str
    score: float


def parse_views(text: str) -> Views:
    """Returns the views in a text such as ``5x3``.

    Raises:
      UserError: where it is another text.
    """
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise UserError(f"views are {text!r}: they should be times x crops, such as 5x3 or 1x1")
    return Views(int(found[1]), int(found[2]))


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What was trained or imported; unpacks as ``model, params = load(path)``.

    Attributes:
      variables: ``params``, ``state`` and ``frozen``.
      config: the effective config of the run; of a model directory, the model's part of it.
      task: what was trained: the model, and how it is judged.
      step: updates that it was trained for.
      label_names: of the classes, by label: a classifier's, or those of the data it was trained on.
      license: of weights that were imported or are held frozen, where known; "" otherwise.
    """

    variables: Mapping[str, Any] = dataclasses.field(repr=False)
    config: ConfigDict = dataclasses.field(repr=False)
    task: Pretraining | Classification = dataclasses.field(repr=False)
    step: int
    label_names: tuple[str, ...] = ()
    license: str = ""

    @property
    def model(self) -> Autoencoder | Classifier:
        """The model's definition."""
        return self.task.model

    @property
    def params(self) -> Mapping[str, Any]:
        """The model's parameters."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.params))

    def clip(self, path: str | os.PathLike[str], views: str = "1x1") -> UInt8[np.ndarray, "..."]:
        """Reads clips of a video file as the model wants them: [views, T, H, W, C].

        Args:
          path: of any video that FFmpeg reads.
          views: times x crops: "1x1" is the clip in the middle, cut from the centre.

        Raises:
          UserError: where the file gives no such clip.
        """
        from adamae_jax.video_files import open_video, view_clips  # needs PyAV

        spec = experiment.clip_spec(self.config)
        return view_clips(open_video(path), spec, parse_views(views))

    def features(
        self, video: Video, pool: Literal["mean"] | None = None
    ) -> Float[Array, "b n d"] | Float[Array, "b d"]:
        """The encoder's latents of all tokens, row-major over (time, height, width).

        Args:
          video: clips of uint8 pixels, of the size that the model was trained on; or the path of a
            video file, for the clip in its middle.
          pool: "mean" for the mean over all tokens.

        Raises:
          UserError: where the clips are of another type or size, or the file gives none.
        """
        if pool not in (None, "mean"):
            raise UserError(f"features() was given pool={pool!r}: it should be 'mean' or None")
        latents = self._features(self.params, self._checked("features", video))
        return latents if pool is None else latents.mean(axis=1)

    def __getattr__(self, name: str) -> Any:
        if name in ("logits", "predict"):
            raise UserError(
                f"{name}() needs a classifier, and this is none: make one of it with python -m "
                "adamae_jax.finetune --config.init_from=PATH"
            )
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def _checked(self, method: str, video: Video) -> Array:
        if isinstance(video, str | os.PathLike):
            video = self.clip(video)
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
        def apply(params: Any, video: Array) -> Array:
            pixels = normalize_pixels(video, self.task.objective)
            return self.model.apply({"params": params}, pixels, method=method)

        return jax.jit(apply)


@dataclasses.dataclass(frozen=True)
class PretrainedEncoder(Loaded):
    """A masked autoencoder, of which nothing but the encoder need be there."""

    task: Pretraining

    @property
    def model(self) -> Autoencoder:
        """The autoencoder's definition."""
        return self.task.model

    @property
    def params(self) -> Mapping[str, Any]:
        """The autoencoder's parameters."""
        return self.variables["params"]["autoencoder"]


@dataclasses.dataclass(frozen=True)
class Pretrained(PretrainedEncoder):
    """A masked autoencoder, whole."""


@dataclasses.dataclass(frozen=True)
class Finetuned(Loaded):
    """A classifier."""

    task: Classification

    @property
    def model(self) -> Classifier:
        """The classifier's definition."""
        return self.task.model

    @property
    def params(self) -> Mapping[str, Any]:
        """The classifier's parameters."""
        return self.variables["params"]

    def logits(self, video: Video) -> Float[Array, "b k"]:
        """The classes' logits of single views.

        Args:
          video: clips of uint8 pixels, of the size that the model was trained on; or the path of a
            video file, for the clip in its middle.

        Raises:
          UserError: where the clips are of another type or size, or the file gives none.
        """
        return self._logits(self.params, self._checked("logits", video))

    def predict(self, video: Video, views: str = "5x3", top: int = 5) -> list[Prediction]:
        """The likeliest classes of one video, the best first.

        Args:
          video: the path of a video file, or clips of one video.
          views: times x crops of a file, whose softmax is averaged.
          top: how many classes.

        Raises:
          UserError: where the clips are of another type or size, or the file gives none.
        """
        if isinstance(video, str | os.PathLike):
            video = self.clip(video, views)
        # One by one: several views of a large model may not fit, and one size is compiled.
        logits = np.concatenate([np.asarray(self.logits(clip[None])) for clip in video])
        scores = merge_views(logits, np.ones(len(logits), bool))
        names = self.label_names or ("",) * len(scores)
        best = np.argsort(-scores, kind="stable")[:top].tolist()
        return [Prediction(label, names[label], float(scores[label])) for label in best]

    @functools.cached_property
    def _logits(self) -> Any:
        return self._compile("__call__")
