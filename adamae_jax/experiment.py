"""From a config to the objects it describes; most of what a config can get wrong is met here."""

import functools
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from adamae_jax import masking
from adamae_jax.classification import Classification, class_weights
from adamae_jax.config import SAMPLES_PER_RATE, check_fields
from adamae_jax.errors import UserError
from adamae_jax.fields import FIELDS
from adamae_jax.masking.decoding import Decoding
from adamae_jax.mixing import Mixing
from adamae_jax.models.autoencoder import Autoencoder
from adamae_jax.models.classifier import Classifier
from adamae_jax.models.encoder import Encoder
from adamae_jax.models.positions import check_positions
from adamae_jax.models.transformer import TransformerSpec
from adamae_jax.models.tubelets import ClipGeometry
from adamae_jax.pretraining import ADVERSARY, Pretraining
from adamae_jax.probing import Probing
from adamae_jax.targets import Objective
from adamae_jax.task import MODEL, Task
from adamae_jax.training.optimizers import Optimizer, Schedule, adamw, lars, stacked, warmup_cosine

if TYPE_CHECKING:
    from adamae_jax.data.clips import ClipSpec

# Fields that are for what happens to an encoder or its head in fine-tuning.
OF_FINE_TUNING = (
    *("model.drop_path", "optimizer.layer_decay", "classifier.head_dropout"),
    *("classifier.label_smoothing", "classifier.class_weights"),
    *("augment.erasing", "augment.mixup", "augment.cutmix", "eval.test_views"),
)


def image_size(config: ConfigDict) -> tuple[int, int]:
    """Height and width of clips in pixels; one number stands for both."""
    size = config.data.image_size
    return (size[0], size[-1])


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
    summed = model.dtype if model.gradient_dtype == "compute" else "float32"
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
            gradient_dtype=jnp.dtype(summed),
            remat=model.remat,
            unroll=model.unroll,
            attention_implementation=model.attention,
            drop_path=model.drop_path if name == "encoder" else 0.0,
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
    if not options.num_classes:
        raise UserError("classifier.num_classes is 0: a classifier needs the number of classes")
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
        head_dropout=options.head_dropout,
    )


def pretraining(config: ConfigDict) -> Pretraining:
    """The model, the strategy and the objective of an experiment.

    Raises:
      UserError: for whatever does not fit together.
    """
    check(config)
    of_others = [name for name, known in FIELDS.items() if known.classifier]
    refuse(config, of_others, "trains no classifier")
    model = autoencoder(config)
    decoding = Decoding(config.masking.decode_ratio, config.masking.decode_order)
    name, options = config.masking.name, dict(config.masking.options)
    strategies = [masking.create(name, ratio, options) for ratio in mask_ratios(config)]
    for strategy in strategies:
        strategy.check(model.geometry.grid, model.encoder_spec.width)
        decoding.check(strategy, model.geometry.grid)
    return Pretraining(
        model,
        strategies[-1],
        objective(config),
        config.eval.random_draws,
        decoding,
        tuple(strategies[:-1]),
    )


def mask_ratios(config: ConfigDict) -> list[float]:
    """The mask ratio of each stage of pretraining, evenly spaced to 4 decimals."""
    options = config.masking
    first, last, count = options.mask_ratio_start, options.mask_ratio, options.mask_ratio_stages
    if first in (0.0, last):
        return [last]
    between = [first + (last - first) * stage / (count - 1) for stage in range(count - 1)]
    return [*(round(ratio, 4) for ratio in between), last]


def classification(config: ConfigDict) -> Classification:
    """The classifier of an experiment and its objective.

    Raises:
      UserError: for whatever does not fit together.
    """
    of_others = [name for name, known in FIELDS.items() if known.probe]
    refuse(config, of_others, "trains no probes")
    options, augment = config.classifier, config.augment
    mixing = Mixing(
        augment.mixup,
        augment.cutmix,
        augment.mix_probability,
        augment.switch_probability,
        augment.mix_group,
    )
    if augment.mix_group and config.batch_size % augment.mix_group:
        raise UserError(
            f"augment.mix_group {augment.mix_group} does not divide batch_size "
            f"{config.batch_size}: choose numbers that do"
        )
    return Classification(
        classifier(config),
        objective(config),
        mixing,
        augment.erasing,
        options.label_smoothing,
        class_weights(options.class_weights, options.num_classes),
    )


def probing(config: ConfigDict) -> Probing:
    """The probes of an experiment, and the encoder that they are to look at.

    Raises:
      UserError: for whatever does not fit together.
    """
    refuse(config, OF_FINE_TUNING, "trains probes of a frozen encoder")
    model, options = classifier(config), config.classifier
    if "change" in config.probe.kinds and model.geometry.grid[0] < 2:
        raise UserError(
            f"probe.kinds has change, but clips have 1 time step, of {config.data.num_frames} "
            f"frames in tubelets of {config.model.tubelet_size}: give data.num_frames twice as "
            "many or more, or leave change out"
        )
    return Probing(
        Encoder(model.geometry, model.spec, model.positions, model.class_token),
        options.num_classes,
        objective(config),
        kinds=tuple(config.probe.kinds),
        rates=tuple(config.probe.rates),
        pooling=options.pooling,
        skip_first_patch=options.skip_first_patch,
    )


def refuse(config: ConfigDict, names: Iterable[str], job: str) -> None:
    """Raises a `UserError` where one of the fields, which a job has no use for, is set.

    Args:
      config: the experiment.
      names: of the fields.
      job: what it does, for the message.
    """
    for name in names:
        value, default = field(config, name), FIELDS[name].default
        if value != default:
            raise UserError(
                f"{name} is {value!r}: it does not belong to this job, which {job}; leave it "
                f"{default!r}"
            )


TASKS: dict[str, Callable[[ConfigDict], Task]] = {
    Pretraining.name: pretraining,
    Classification.name: classification,
    Probing.name: probing,
}


def task_name(config: ConfigDict) -> str:
    """The name of the task that a config describes."""
    return Classification.name if config.classifier.num_classes else Pretraining.name


def task(name: str, config: ConfigDict) -> Task:
    """The task of an experiment, by its name.

    Raises:
      UserError: where there is none of that name, or something does not fit together.
    """
    if name not in TASKS:
        raise UserError(f"the task {name!r} is unknown: it should be one of {', '.join(TASKS)}")
    return TASKS[name](config)


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


def check(config: ConfigDict) -> None:
    """Raises a `UserError` for wrong values and for values that do not go together."""
    check_fields(config)
    accumulation, repeats = config.optimizer.accumulation, config.data.repeats
    if config.batch_size % accumulation:
        raise UserError(
            f"batch_size {config.batch_size} is not a multiple of optimizer.accumulation "
            f"{accumulation}: choose numbers that divide"
        )
    if config.batch_size % repeats:
        raise UserError(
            f"batch_size {config.batch_size} counts clips, and is not a multiple of data.repeats "
            f"{repeats}: choose numbers that divide"
        )
    peak, last = config.optimizer.learning_rate, config.optimizer.min_learning_rate
    if peak < last:
        raise UserError(
            f"optimizer.learning_rate {peak} is below optimizer.min_learning_rate {last}, so that "
            "the rate would rise to the end: lower the latter too"
        )
    for pattern in config.optimizer.decay:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"optimizer.decay has {pattern!r}, which is no regular expression ({error})"
            ) from error


def check_device(config: ConfigDict, platform: str | None = None) -> None:
    """Raises a `UserError` where an attention is asked for that cannot be had.

    Args:
      config: the experiment.
      platform: what it is for, if not for the devices that are attached.
    """
    attention, platform = config.model.attention, platform or jax.default_backend()
    if attention == "pallas" and platform != "tpu":
        raise UserError(
            f"model.attention 'pallas' is a kernel for TPUs, but this is {platform!r}: use 'auto'"
        )
    if attention == "cudnn" and (platform != "gpu" or config.model.dtype != "bfloat16"):
        raise UserError(
            f"model.attention 'cudnn' needs an NVIDIA GPU and model.dtype 'bfloat16', but this is "
            f"{platform!r} with {config.model.dtype!r}: use 'xla'"
        )


def learning_rate(config: ConfigDict) -> Schedule:
    """The learning rate by step, for a resolved config.

    Those of the config are for `SAMPLES_PER_RATE` clips and grow with the batch.
    """
    options, counted = config.optimizer, config.batch_size
    if options.rate_counts == "videos":
        counted //= config.data.repeats
    scale = counted / SAMPLES_PER_RATE
    return warmup_cosine(
        options.learning_rate * scale,
        options.min_learning_rate * scale,
        options.warmup_steps,
        config.steps,
    )


def optimizers(config: ConfigDict, task: Task) -> dict[str, Optimizer]:
    """The optimiser of each of a task's groups, for a resolved config.

    An adversary's has no decay.
    """
    options, schedule = config.optimizer, learning_rate(config)
    shared = {"b1": options.b1, "b2": options.b2, "eps": options.eps}
    decayed = {
        "weight_decay": options.weight_decay,
        "decay": tuple(options.decay),
        "clip_grad_norm": options.clip_grad_norm,
    }
    if isinstance(task, Probing) and config.probe.optimizer == "lars":
        of_model = lars(schedule, momentum=options.b1, **decayed)
    else:
        of_model = adamw(schedule, **shared, **decayed, layer_decay=options.layer_decay)
    if isinstance(task, Probing):
        of_model = stacked(of_model, task.rates)
    of_group = {
        MODEL: of_model,
        ADVERSARY: adamw(schedule, **shared, weight_decay=0.0, decay=()),
    }
    unknown = [group for group in task.groups if group not in of_group]
    if unknown:
        raise UserError(
            f"there is no optimiser for {unknown}: a task's groups are {list(of_group)}"
        )
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
        rand_augment=config.data.rand_augment,
        shared_frames=config.data.shared_frames,
    )
