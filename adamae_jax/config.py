"""The one documented tree of config fields, the same in every experiment.

An experiment is a file in ``configs/`` whose ``get_config()`` starts from `default_config` and sets
what it needs. Fields that are 0 where that makes no sense ("derived") are filled in by `resolve`.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

import ml_collections
from ml_collections import ConfigDict

from adamae_jax import masking
from adamae_jax.errors import UserError
from adamae_jax.models.autoencoder import SIZES

# A regular expression, searched in the parameter's path, and the mesh axes of its last dimensions,
# "." for one that stays whole. The first rule that matches counts. Leading dimensions that a rule
# does not name, such as the stacked layers', are never split, and no dimension is that an axis
# does not divide.
MESH_RULES = (
    r"/qkv_kernel$ fsdp . tensor .",
    r"/qkv_bias$ . tensor .",
    r"/attention/projection/kernel$ tensor fsdp",
    r"/fc1/kernel$ fsdp tensor",
    r"/fc1/bias$ tensor",
    r"/fc2/kernel$ tensor fsdp",
    r"/(discriminator|generator)/ .",
    r"/kernel$ fsdp .",
    r"/position_table$ fsdp .",
)
SAMPLES_PER_RATE = 256  # learning rates are given for a batch of this many clips


def default_config() -> ConfigDict:
    """Every field with its default: AdaMAE ViT-B with the released code's choices."""
    config = ConfigDict()
    config.seed = 0
    # Clips in one optimiser update, over all hosts, repeats and accumulation included.
    config.batch_size = 256
    # Optimiser updates. 0: derived from epochs, data.num_examples and batch_size.
    config.steps = 0
    config.epochs = 0  # passes over the videos; used where steps is 0
    config.log_every = 50  # steps between lines of metrics.jsonl
    config.checkpoint_every = 1000
    # Steps between validations; 0: never, and no pictures of held-out clips.
    config.eval_every = 1000
    config.pictures_every = 5000  # steps between pictures in TensorBoard; 0: never
    config.keep_checkpoints = 3
    # Where compiled programs are kept from one start to the next; "": nowhere.
    config.compilation_cache_dir = "~/.cache/adamae_jax"
    config.data = _data()
    config.model = _model()
    config.masking = masking_config("adaptive", mask_ratio=0.95)
    config.objective = _objective()
    config.classifier = _classifier()
    config.optimizer = _optimizer()
    config.eval = _evaluation()
    # Devices along each mesh axis; -1: all that are left. The batch is split over data and fsdp,
    # parameters over fsdp and tensor.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.mesh_rules = MESH_RULES  # which dimensions of which parameters are split
    return config.lock()


def _data() -> ConfigDict:
    data = ConfigDict()
    # A dataset made by `python -m adamae_jax.prepare`, or several with their shares of the stream:
    # "DIR:0.7,DIR:0.3". All must have the training split; the first is what is held out.
    data.dir = ""
    # Videos in the training split, recorded so that schedules, compiling and benchmarks need no
    # dataset. A run takes the number of the dataset that it is given.
    data.num_examples = 0
    data.train_split = "train"
    data.validation_split = "validation"
    data.num_frames = 16  # frames in a clip
    data.sampling_rate = 4  # video frames from one clip frame to the next
    data.image_size = (224, 224)  # height and width in pixels
    # "dense": every sampling_rate-th frame. "time_scaled" (MAE-ST): the same span of time whatever
    # the video's own rate, sampling_rate counting frames at target_fps. "stretched": as VideoMAE is
    # fine-tuned on Kinetics. "segments": one frame in each of num_frames equal parts (SSv2).
    data.frame_sampling = "dense"
    data.target_fps = 30.0
    data.repeats = 1  # clips from each decoded video (MAE-ST's repeated sampling)
    data.crop = "multi_scale_corner"  # or "random_resized", "center", "none"
    data.crop_area = (0.5, 1.0)  # of random_resized: share of the frame
    data.crop_aspect = (3 / 4, 4 / 3)  # of random_resized: width over height
    data.interpolation = "bilinear"  # or "bicubic", "bilinear_without_antialias" (MAE-ST)
    data.horizontal_flip = False  # of every other training clip
    data.num_workers = 0  # worker processes; 0: threads of the main process
    data.num_threads = 8  # reading threads, of each worker or of the main process
    data.prefetch = 4  # batches kept ready
    data.timeout_s = 25.0  # a worker that is silent for so long is taken for hung: the run ends
    data.on_error = "replace"  # a bad record is replaced by another and counted; or "raise"
    # Share of the dataset that may be damaged; more ends the run. Above 0, one record always may.
    data.max_bad_fraction = 0.01
    return data


def _model() -> ConfigDict:
    model = ConfigDict()
    model.tubelet_size = 2
    model.patch_size = 16
    model.encoder = ConfigDict()
    model.decoder = ConfigDict()
    set_size(model, "B")
    model.mlp_ratio = 4.0
    model.norm_epsilon = 1e-6
    model.decoder_norm_epsilon = 1e-6  # of the norm in front of the decoder's head
    model.layer_scale = 0.0  # initial factor per channel on each branch; 0: none
    # Frames of a clip that are predicted, evenly spread (MAE-ST's pred_t); 0: all.
    model.predicted_frames = 0
    set_family(model, "videomae")
    model.dtype = "float32"  # of the matmuls: float32 or bfloat16
    model.remat = False  # recompute blocks in the backward pass: less memory, more time
    model.unroll = 1  # blocks per iteration of the scan over depth
    model.attention = "xla"  # or "cudnn" (NVIDIA GPUs, bfloat16)
    return model


def set_size(model: ConfigDict, size: str) -> None:
    """Sets width, depth and heads of encoder and decoder to size S, B, L or H."""
    for part, (width, depth, heads) in zip(
        (model.encoder, model.decoder), SIZES[size], strict=True
    ):
        part.update({"width": width, "depth": depth, "num_heads": heads})


# In what the families' architectures differ; AdaMAE's is VideoMAE's, AutoMAE's is MAE's.
FAMILIES = {
    "videomae": {
        "positions": "sincos_1d",  # or "sincos_2d" (images), "learned", "separable"
        "class_token": "none",  # "shared": one, kept in the decoder; "separate": one in each half
        "attention_bias": "qv",  # which of query, key and value have one
        "projection_bias": False,  # from encoder to decoder
        "initialization": "videomae",
    },
    "mae_st": {
        "positions": "separable",
        "class_token": "separate",
        "attention_bias": "qkv",
        "projection_bias": True,
        "initialization": "mae_st",
    },
    "mae": {
        "positions": "sincos_2d",
        "class_token": "shared",
        "attention_bias": "qkv",
        "projection_bias": True,
        "initialization": "mae",
    },
}


def set_family(model: ConfigDict, family: str) -> None:
    """Sets the choices of architecture of a family: videomae, mae_st or mae."""
    model.update(FAMILIES[family])


def masking_config(name: str, mask_ratio: float, **options: Any) -> ConfigDict:
    """The masking fields of a strategy: its name, its ratio and its own options."""
    defaults = masking.option_defaults(name)
    for option in options:
        if option not in defaults:
            raise UserError(f"masking {name!r} has no option {option!r}: {', '.join(defaults)}")
    return ConfigDict({"name": name, "mask_ratio": mask_ratio, "options": {**defaults, **options}})


def _objective() -> ConfigDict:
    objective = ConfigDict()
    objective.loss = "mse"  # or "l1"
    # "channel": per tubelet and colour channel; "tubelet": per tubelet (MAE, MAE-ST); "none".
    objective.normalize_targets = "channel"
    objective.target_pixels = "unit"  # targets are made from pixels in [0, 1]; or "normalized"
    objective.sampling_loss_weight = 1e-4
    objective.pixel_mean = (0.485, 0.456, 0.406)  # of the model's input: ImageNet
    objective.pixel_std = (0.229, 0.224, 0.225)
    return objective


def _classifier() -> ConfigDict:
    classifier = ConfigDict()
    classifier.num_classes = 0  # 0: the model is a masked autoencoder
    classifier.norm_epsilon = 1e-6  # of the norm in front of the head
    # "mean": the head sees the mean over all patches. "first": the first token alone, which is the
    # class token where there is one (VideoMAE with use_mean_pooling=False; MAE's class token).
    classifier.pooling = "mean"
    # Leave the first patch out of the mean, as MAE-ST's released code does without a class token.
    classifier.skip_first_patch = False
    return classifier


def _optimizer() -> ConfigDict:
    optimizer = ConfigDict()
    # Peak and final rate for 256 clips: the rate used is this times batch_size / 256. Where a
    # recipe's authors do not count repeats, rate_counts is "videos".
    optimizer.rate_counts = "clips"
    optimizer.learning_rate = 1.5e-4
    optimizer.min_learning_rate = 1e-5
    optimizer.warmup_epochs = 0.0  # used where warmup_steps is 0
    optimizer.warmup_steps = 0
    optimizer.b1 = 0.9
    optimizer.b2 = 0.95
    optimizer.eps = 1e-8
    optimizer.weight_decay = 0.05
    # Regular expressions, searched in the parameter's path; all others are not decayed.
    optimizer.decay = ("kernel$", "^masking/.*position_table$")
    optimizer.clip_grad_norm = 0.0  # 0: no clipping
    optimizer.accumulation = 1  # microbatches whose gradients make one update
    return optimizer


def _evaluation() -> ConfigDict:
    evaluation = ConfigDict()
    evaluation.batch_size = 0  # 0: the training batch size
    evaluation.num_examples = 1024  # held-out clips in a validation; 0: all
    evaluation.random_draws = 64  # random masks per clip that foreground_lift_random is taken over
    evaluation.knn = False  # k-nearest-neighbour accuracy, on labelled data
    evaluation.knn_examples = 1024  # labelled training clips that neighbours are looked up in
    evaluation.knn_neighbours = 20
    return evaluation


def resolve(config: ConfigDict, num_examples: int) -> ConfigDict:
    """Fills in the derived fields, as a new frozen-shape config.

    An epoch is a pass over the videos; steps per epoch are rounded down, as the authors do.

    Args:
      config: the experiment.
      num_examples: videos in the training split; 0 takes the config's number.

    Raises:
      UserError: where neither steps nor epochs say how long to train, or all of it is warm-up.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.num_examples = num_examples or config.data.num_examples
        videos_per_step = max(1, config.batch_size // config.data.repeats)
        per_epoch = max(1, config.data.num_examples // videos_per_step)
        if config.steps <= 0:
            if config.epochs <= 0:
                raise UserError(
                    f"steps is {config.steps} and epochs is {config.epochs}: "
                    "set one of them, such as --config.steps=1000"
                )
            config.steps = math.ceil(config.epochs * per_epoch)
        if config.optimizer.warmup_steps <= 0:
            config.optimizer.warmup_steps = int(config.optimizer.warmup_epochs * per_epoch)
        if config.optimizer.warmup_steps >= config.steps:
            raise UserError(
                f"steps {config.steps} are not more than the warm-up's "
                f"{config.optimizer.warmup_steps}: train longer, or shorten the warm-up with "
                "--config.optimizer.warmup_steps=N"
            )
        config.eval.batch_size = config.eval.batch_size or config.batch_size
    return config.lock()


def to_json(config: ConfigDict) -> str:
    """The effective config as it is kept in a workdir: indented JSON."""
    return json.dumps(json.loads(config.to_json()), indent=2) + "\n"


def from_json(text: str) -> ConfigDict:
    """The inverse of `to_json`, on today's tree of fields.

    Raises:
      UserError: where the text is no config, or has a field that is unknown, of another type or
        null.
    """
    config = default_config()
    try:
        loaded = ml_collections.ConfigDict(json.loads(text))
        with config.unlocked():
            config.masking = masking_config(loaded.masking.name, loaded.masking.mask_ratio)
            config.mesh = loaded.get("mesh", config.mesh)
        config.update(loaded)
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"a stored config does not fit this version: {reason}") from error
    for name, value in _leaves(config.to_dict()):
        if value is None:  # which a field of any type would take
            raise UserError(f"a stored config does not fit this version: {name} is null")
    return config


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a tree by their paths."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
