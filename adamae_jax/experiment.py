"""From a config to the objects it describes; everything a config can get wrong is met here."""

import functools
import math
import numbers
import re
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from adamae_jax import masking
from adamae_jax.classification import Classification
from adamae_jax.config import SAMPLES_PER_RATE
from adamae_jax.errors import UserError
from adamae_jax.models.autoencoder import Autoencoder
from adamae_jax.models.classifier import POOLINGS, Classifier
from adamae_jax.models.decoder import CLASS_TOKENS
from adamae_jax.models.initializers import INITIALIZATIONS
from adamae_jax.models.positions import POSITION_KINDS, check_positions
from adamae_jax.models.transformer import TransformerSpec
from adamae_jax.models.tubelets import ClipGeometry
from adamae_jax.objectives import ADVERSARY, Objective, Pretraining
from adamae_jax.task import MODEL, Task
from adamae_jax.training.optimizers import Optimizer, adamw, warmup_cosine

if TYPE_CHECKING:
    from adamae_jax.data.clips import ClipSpec

COMPUTE_TYPES = ("float32", "bfloat16")
CHANNELS = 3  # videos are stored as RGB

# What a field may be.
CHOICES: dict[str, tuple[Any, ...]] = {
    "data.frame_sampling": ("dense", "time_scaled", "stretched", "segments"),
    "data.crop": ("multi_scale_corner", "random_resized", "center", "none"),
    "data.interpolation": ("bilinear", "bicubic", "bilinear_without_antialias"),
    "data.on_error": ("replace", "raise"),
    "model.positions": POSITION_KINDS,
    "model.class_token": CLASS_TOKENS,
    "model.attention_bias": ("", "qv", "qkv"),
    "model.initialization": tuple(INITIALIZATIONS),
    "model.dtype": COMPUTE_TYPES,
    "model.attention": ("xla", "cudnn"),
    "classifier.pooling": POOLINGS,
    "objective.loss": ("mse", "l1"),
    "objective.normalize_targets": ("none", "channel", "tubelet"),
    "objective.target_pixels": ("unit", "normalized"),
    "optimizer.rate_counts": ("clips", "videos"),
}

# The least that a field may be.
LOWEST = {
    "seed": 0,
    "batch_size": 1,
    "log_every": 1,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
    "eval_every": 0,
    "pictures_every": 0,
    "data.sampling_rate": 1,
    "data.num_workers": 0,
    "data.num_threads": 0,
    "data.prefetch": 1,
    "data.num_examples": 0,
    "data.repeats": 1,
    "data.timeout_s": 1,
    "data.max_bad_fraction": 0,
    "model.unroll": 1,
    "model.encoder.width": 1,
    "model.encoder.depth": 1,
    "model.decoder.width": 1,
    "model.decoder.depth": 1,
    "model.norm_epsilon": 0,
    "model.decoder_norm_epsilon": 0,
    "model.layer_scale": 0,
    "model.predicted_frames": 0,
    "classifier.norm_epsilon": 0,
    "objective.sampling_loss_weight": 0,
    "optimizer.learning_rate": 0,
    "optimizer.min_learning_rate": 0,
    "optimizer.weight_decay": 0,
    "optimizer.b1": 0,
    "optimizer.b2": 0,
    "optimizer.eps": 0,
    "optimizer.accumulation": 1,
    "optimizer.clip_grad_norm": 0,
    "eval.batch_size": 0,
    "eval.num_examples": 0,
    "eval.random_draws": 1,
    "eval.knn_examples": 0,
    "eval.knn_neighbours": 1,
}

# The most that a field may be.
HIGHEST = {"data.max_bad_fraction": 1}

# Fields of several numbers.
NUMBERS = (
    "data.image_size",
    "data.crop_area",
    "data.crop_aspect",
    "objective.pixel_mean",
    "objective.pixel_std",
)


def image_size(config: ConfigDict) -> tuple[int, int]:
    """Height and width; one number stands for a square."""
    size = config.data.image_size
    if isinstance(size, int):
        return (size, size)
    if len(size) == 1:
        return (size[0], size[0])
    if len(size) != 2:
        raise UserError(f"data.image_size {tuple(size)} should be (height, width) in pixels")
    return (int(size[0]), int(size[1]))


def geometry(config: ConfigDict) -> ClipGeometry:
    """The size of clips and tubelets."""
    return ClipGeometry(
        num_frames=config.data.num_frames,
        image_size=image_size(config),
        tubelet_size=config.model.tubelet_size,
        patch_size=config.model.patch_size,
        channels=len(config.objective.pixel_mean),
    )


def transformer_spec(config: ConfigDict, name: str) -> TransformerSpec:
    """The blocks of the encoder or the decoder."""
    model = config.model
    part = model[name]
    try:
        return TransformerSpec(
            width=part.width,
            depth=part.depth,
            num_heads=part.num_heads,
            mlp_ratio=model.mlp_ratio,
            attention_bias=model.attention_bias,
            norm_epsilon=model.norm_epsilon,
            layer_scale=model.layer_scale,
            initialization=model.initialization,
            dtype=jnp.dtype(model.dtype),
            remat=model.remat,
            unroll=model.unroll,
            attention_implementation=model.attention,
        )
    except UserError as error:
        raise UserError(f"model.{name}: {error}") from error


def autoencoder(config: ConfigDict) -> Autoencoder:
    """The model of an experiment."""
    model, clip = config.model, geometry(config)
    encoder, decoder = (transformer_spec(config, name) for name in ("encoder", "decoder"))
    for spec in (encoder, decoder):
        check_positions(model.positions, clip.grid, spec.width)
    if model.predicted_frames:
        clip.predicting(model.predicted_frames)
    return Autoencoder(
        clip,
        encoder,
        decoder,
        positions=model.positions,
        class_token=model.class_token,
        projection_bias=model.projection_bias,
        decoder_norm_epsilon=model.decoder_norm_epsilon,
        predicted_frames=model.predicted_frames,
    )


def classifier(config: ConfigDict) -> Classifier:
    """The fine-tuning classifier of an experiment.

    Raises:
      UserError: for whatever does not fit together.
    """
    check(config)
    model, options, clip = config.model, config.classifier, geometry(config)
    at_least("classifier.num_classes", options.num_classes, 1)
    if options.pooling == "first" and options.skip_first_patch:
        raise UserError(
            "classifier.skip_first_patch leaves a patch out of the mean, and with "
            "classifier.pooling 'first' there is none: set one of them otherwise"
        )
    spec = transformer_spec(config, "encoder")
    check_positions(model.positions, clip.grid, spec.width)
    return Classifier(
        clip,
        spec,
        options.num_classes,
        positions=model.positions,
        class_token=model.class_token != "none",
        norm_epsilon=options.norm_epsilon,
        pooling=options.pooling,
        skip_first_patch=options.skip_first_patch,
    )


def pretraining(config: ConfigDict) -> Pretraining:
    """The model, the strategy and the objective of an experiment.

    Raises:
      UserError: for whatever does not fit together.
    """
    check(config)
    model = autoencoder(config)
    strategy = masking.create(
        config.masking.name, config.masking.mask_ratio, dict(config.masking.options)
    )
    strategy.check(model.geometry.grid, model.encoder_spec.width)
    return Pretraining(model, strategy, objective(config), config.eval.random_draws)


def classification(config: ConfigDict) -> Classification:
    """The classifier of an experiment and its objective.

    Raises:
      UserError: for whatever does not fit together.
    """
    return Classification(classifier(config), objective(config))


def objective(config: ConfigDict) -> Objective:
    """How predictions are judged, and how pixels are normalised."""
    fields = config.objective
    return Objective(
        loss=fields.loss,
        normalize_targets=fields.normalize_targets,
        target_pixels=fields.target_pixels,
        sampling_loss_weight=fields.sampling_loss_weight,
        pixel_mean=tuple(fields.pixel_mean),
        pixel_std=tuple(fields.pixel_std),
    )


def field(config: ConfigDict, name: str) -> Any:
    """A field by its path, such as ``data.crop``."""
    return functools.reduce(getattr, name.split("."), config)


def one_of(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raises a `UserError` where a field's value is not one of its choices."""
    if value not in choices:
        raise UserError(f"{name} is {value!r}: use one of {', '.join(map(repr, choices))}")


def at_least(name: str, value: float, lowest: float) -> None:
    """Raises a `UserError` where a field's value is too small, or no number at all."""
    if not lowest <= value < math.inf:
        raise UserError(f"{name} is {value}: it must be at least {lowest}, and finite")


def check_numbers(name: str, values: Any) -> None:
    """Raises a `UserError` where a field of several numbers has one that is none."""
    for value in values if isinstance(values, tuple | list) else (values,):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise UserError(f"{name} is {values}: {value!r} is no number; give numbers only")


def check(config: ConfigDict) -> None:
    """Meets wrong values before anything is compiled.

    Raises:
      UserError: naming the field, its value and what was expected.
    """
    for name, choices in CHOICES.items():
        one_of(name, field(config, name), choices)
    for name, lowest in LOWEST.items():
        at_least(name, field(config, name), lowest)
    for name, highest in HIGHEST.items():
        if (value := field(config, name)) > highest:
            raise UserError(f"{name} is {value}: it must be at most {highest}")
    for name in NUMBERS:
        check_numbers(name, field(config, name))
    for name in ("b1", "b2"):
        if config.optimizer[name] >= 1:
            raise UserError(f"optimizer.{name} is {config.optimizer[name]}: it must be below 1")
    if config.seed >= 2**32:
        raise UserError(f"seed is {config.seed}: it must be below 2**32")
    accumulation = config.optimizer.accumulation
    if config.batch_size % accumulation:
        raise UserError(
            f"batch_size {config.batch_size} is not a multiple of optimizer.accumulation "
            f"{accumulation}: choose numbers that divide"
        )
    if config.batch_size % config.data.repeats:
        raise UserError(
            f"batch_size {config.batch_size} counts clips, and is not a multiple of data.repeats "
            f"{config.data.repeats}: choose numbers that divide"
        )
    check_pixels(config)
    for name in ("encoder", "decoder"):
        width = config.model[name].width
        if not 1 <= width * config.model.mlp_ratio < 2**31:
            raise UserError(
                f"model.mlp_ratio {config.model.mlp_ratio} is impossible at the {name}'s width "
                f"{width}: the usual ratio is 4"
            )
    for pattern in config.optimizer.decay:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise UserError(
                f"optimizer.decay has {pattern!r}, which is no regular expression ({error})"
            ) from error


def check_pixels(config: ConfigDict) -> None:
    """Raises a `UserError` where the pixel statistics are not those of three channels."""
    mean, std = config.objective.pixel_mean, config.objective.pixel_std
    finite = all(math.isfinite(value) for value in (*mean, *std))
    if len(mean) != CHANNELS or len(std) != CHANNELS or not finite or min(std) <= 0:
        raise UserError(
            f"objective.pixel_mean {tuple(mean)} and objective.pixel_std {tuple(std)} should have "
            f"{CHANNELS} values each, one per colour channel: finite, and the latter positive"
        )


def check_device(config: ConfigDict) -> None:
    """Raises a `UserError` where cuDNN's attention is asked for and cannot be had."""
    if config.model.attention != "cudnn":
        return
    platform = jax.default_backend()
    if platform != "gpu" or config.model.dtype != "bfloat16":
        raise UserError(
            f"model.attention 'cudnn' needs an NVIDIA GPU and model.dtype 'bfloat16', but this is "
            f"{platform!r} with {config.model.dtype!r}: use 'xla'"
        )


def optimizers(config: ConfigDict, task: Task) -> dict[str, Optimizer]:
    """The optimiser of each of a task's groups, for a resolved config; an adversary's has no decay.

    The learning rates of the config are for `SAMPLES_PER_RATE` clips and grow with the batch.
    """
    options = config.optimizer
    counted = config.batch_size
    if options.rate_counts == "videos":
        counted //= config.data.repeats
    scale = counted / SAMPLES_PER_RATE
    schedule = warmup_cosine(
        options.learning_rate * scale,
        options.min_learning_rate * scale,
        options.warmup_steps,
        config.steps,
    )
    shared = {"b1": options.b1, "b2": options.b2, "eps": options.eps}
    of_group = {
        MODEL: adamw(
            schedule,
            **shared,
            weight_decay=options.weight_decay,
            decay=tuple(options.decay),
            clip_grad_norm=options.clip_grad_norm,
        ),
        ADVERSARY: adamw(schedule, **shared, weight_decay=0.0, decay=()),
    }
    return {group: of_group[group] for group in task.groups}


def clip_spec(config: ConfigDict) -> "ClipSpec":
    """What the pipeline cuts out of a video."""
    from adamae_jax.data.clips import ClipSpec  # a benchmark runs without the data libraries

    return ClipSpec(
        num_frames=config.data.num_frames,
        sampling_rate=config.data.sampling_rate,
        image_size=image_size(config),
        crop=config.data.crop,
        crop_area=tuple(config.data.crop_area),
        crop_aspect=tuple(config.data.crop_aspect),
        interpolation=config.data.interpolation,
        frame_sampling=config.data.frame_sampling,
        target_fps=config.data.target_fps,
        horizontal_flip=config.data.horizontal_flip,
    )
