"""What several recipes share, each thing in one place: datasets, sizes, the families' training.

A recipe calls these functions with the values in which it differs from its relatives and sets the
rest itself, so that its file still says all that is particular about it.
"""

from collections.abc import Sequence

from absl import logging
from ml_collections import ConfigDict

from adamae_jax.config import default_config, masking_config, set_family, set_size
from adamae_jax.errors import UserError
from adamae_jax.models.autoencoder import SIZES

# Training examples. Kinetics-400: no author publishes a list of their copy; this is the length of
# MMAction2's (tools/data/kinetics), and others differ by some thousands, since videos leave the
# web. Something-Something V2: its training split. UCF101 and HMDB51: their first training splits.
# ImageNet-1k: its training split. UnlabeledHybrid: as VideoMAE V2's paper rounds it.
KINETICS_400 = 240_436
SOMETHING_V2 = 168_913
UCF101 = 9_537
HMDB51 = 3_570
IMAGENET = 1_281_167
UNLABELED_HYBRID = 1_350_000

# What weight decay is for, by parameter path. VideoMAE decays no 1-D parameter and not the mask
# token. MAE's code spares what is 1-D, biases and norms, but not the tokens, which are
# [1, 1, width] there; its tables are fixed. MAE-ST's does the same and has tables that it learns.
VIDEOMAE_DECAY = ("kernel$",)
MAE_DECAY = (*VIDEOMAE_DECAY, "(class|mask)_token$")
MAE_ST_DECAY = (*MAE_DECAY, "/positions/")
SAMPLER_DECAY = "^masking/.*position_table$"  # AdaMAE's


TINY = "tiny"  # the demos' own size
DEMO_SIZES = (TINY, *SIZES)


def check_size(
    recipe: str, size: str, published: Sequence[str], extrapolated: Sequence[str] = ()
) -> None:
    """Meets a size that a recipe does not have, and warns of one that its authors do not have.

    Args:
      recipe: the config's name, for messages.
      size: what was asked for.
      published: sizes whose values are the authors'.
      extrapolated: sizes whose values are ours, carried over from the others.

    Raises:
      UserError: where the recipe has no such size.
    """
    sizes = (*published, *extrapolated)
    if size not in sizes:
        raise UserError(
            f"configs/{recipe}.py has no size {size!r}: use one of {', '.join(sizes)}, such as "
            f"--config=configs/{recipe}.py:{sizes[0]}"
        )
    if size in extrapolated:
        logging.warning(
            "configs/%s.py:%s is extrapolated: its authors published %s",
            recipe,
            size,
            f"{' and '.join(published)} only" if published else "no script for it",
        )


def demo_size(recipe: str, config: ConfigDict, size: str) -> ConfigDict:
    """Returns a demo's config with encoder and decoder of a size: its own, or a published one.

    Raises:
      UserError: where there is no such size.
    """
    check_size(recipe, size, DEMO_SIZES)
    if size != TINY:
        set_size(config.model, size)
    return config


def keep_every(config: ConfigDict, epochs: int) -> None:
    """Checkpoints and validates after so many passes over the data; pictures at every fifth."""
    videos_per_step = config.batch_size // config.data.repeats
    steps = epochs * (config.data.num_examples // videos_per_step)
    config.checkpoint_every = steps
    config.eval_every = steps
    config.pictures_every = 5 * steps


def videomae(
    size: str, *, num_examples: int, sampling_rate: int, batch_size: int, epochs: int
) -> ConfigDict:
    """VideoMAE's pretraining without its masks, which AdaMAE took over as it was.

    Source: the defaults of run_mae_pretraining.py in github.com/MCG-NJU/VideoMAE, of which
    pretrain_mae_vit.py in github.com/wgcban/adamae is a copy in these respects. Two things differ:
    theirs computes in float16 with loss scaling, which bfloat16 does not need; and their scripts
    ask for one epoch more, which works around a crash in the last one.

    Args:
      size: of the model.
      num_examples: videos in the training split.
      sampling_rate: video frames from one clip frame to the next.
      batch_size: clips in an update.
      epochs: passes over the videos.
    """
    config = default_config()
    config.batch_size = batch_size
    config.epochs = epochs

    config.data.num_examples = num_examples
    config.data.num_frames = 16
    config.data.sampling_rate = sampling_rate
    config.data.frame_sampling = "dense"
    config.data.image_size = (224, 224)
    config.data.crop = "multi_scale_corner"  # no flip, no colour jitter
    config.data.num_workers = 8  # processes on each host

    set_family(config.model, "videomae")
    set_size(config.model, size)
    config.model.tubelet_size = 2
    config.model.patch_size = 16
    config.model.dtype = "bfloat16"
    # As the authors do, with --use_checkpoint.
    config.model.remat = "full" if size in ("H", "g") else "none"

    config.objective.loss = "mse"
    config.objective.normalize_targets = "channel"
    config.objective.target_pixels = "unit"

    # Rates for 256 clips, from 0 to the peak and by a cosine to the last.
    config.optimizer.learning_rate = 1.5e-4
    config.optimizer.min_learning_rate = 1e-5
    config.optimizer.warmup_epochs = 40.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.05
    config.optimizer.decay = VIDEOMAE_DECAY
    config.optimizer.clip_grad_norm = 0.0

    config.log_every = 20
    return config


def adaptive_masking(config: ConfigDict) -> None:
    """AdaMAE's sampler and its training, on top of `videomae`.

    One block of the tokens' width with 8 heads. Its position table is decayed, which in the
    released code is the only learned table. Four decoder blocks at every size: the paper finds
    nothing gained by eight (ViT-B: 70.04 and 69.97% top-1 on SSv2).
    """
    config.masking = masking_config(
        "adaptive", mask_ratio=0.95, network="attention", depth=1, num_heads=8, dropout=0.1
    )
    config.model.decoder.depth = 4
    config.objective.sampling_loss_weight = 1e-4
    config.optimizer.decay = (*VIDEOMAE_DECAY, SAMPLER_DECAY)


def mae_decoder(config: ConfigDict, depth: int) -> None:
    """The decoder of MAE and MAE-ST: 512 wide with 16 heads, whatever the encoder's size."""
    config.model.decoder.update({"width": 512, "depth": depth, "num_heads": 16})


def mae_objective(config: ConfigDict) -> None:
    """The loss of MAE and MAE-ST: all values of a patch together, of normalised pixels."""
    config.objective.loss = "mse"
    config.objective.normalize_targets = "tubelet"
    config.objective.target_pixels = "normalized"  # with ImageNet's mean and deviation, unless set


def mae_st_objective(config: ConfigDict) -> None:
    """MAE's loss with MAE-ST's own mean and deviation of pixels."""
    mae_objective(config)
    config.objective.pixel_mean = (0.45, 0.45, 0.45)
    config.objective.pixel_std = (0.225, 0.225, 0.225)


def mae_imagenet() -> ConfigDict:
    """MAE's pretraining on ImageNet-1k without its masks, which AutoMAE took over as it was.

    ViT-B, 800 epochs. Source: main_pretrain.py and PRETRAIN.md in github.com/facebookresearch/mae;
    main_pretrain.py and run_pretrain.sh in github.com/hyperea/automae have the same values. Two
    things differ: theirs computes in float16 with loss scaling, which bfloat16 does not need; and
    its warm-up comes to the peak one step later.
    """
    config = default_config()
    config.batch_size = 4096
    config.epochs = 800

    config.data.num_examples = IMAGENET
    config.data.num_frames = 1  # an image is a video of one frame
    config.data.sampling_rate = 1
    config.data.image_size = (224, 224)
    config.data.crop = "random_resized"
    config.data.crop_area = (0.2, 1.0)
    config.data.crop_aspect = (3 / 4, 4 / 3)
    config.data.interpolation = "bicubic"
    config.data.horizontal_flip = True
    config.data.num_workers = 8  # processes on each host

    set_family(config.model, "mae")
    set_size(config.model, "B")
    mae_decoder(config, depth=8)
    config.model.tubelet_size = 1
    config.model.patch_size = 16
    config.model.dtype = "bfloat16"

    mae_objective(config)

    # Rates for 256 images: with 4,096 the peak is 2.4e-3; by a cosine to 0.
    config.optimizer.learning_rate = 1.5e-4
    config.optimizer.min_learning_rate = 0.0
    config.optimizer.warmup_epochs = 40.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.05
    config.optimizer.decay = MAE_DECAY  # timm's add_weight_decay
    config.optimizer.clip_grad_norm = 0.0

    config.log_every = 20
    keep_every(config, epochs=20)
    return config


def demo_video(num_frames: int = 8, patch_size: int = 8) -> ConfigDict:
    """VideoMAE's model and training, small enough for two CPU cores and a few minutes.

    Clips of 48 x 48 pixels of the embedded moving objects. The sizes are ours, and so is the
    larger learning rate.
    """
    config = default_config()
    config.batch_size = 32
    config.steps = 500
    config.log_every = 1
    config.checkpoint_every = 100
    config.eval_every = 200
    config.pictures_every = 200

    config.data.dir = "runs/data/moving_objects_demo"
    config.data.num_frames = num_frames
    config.data.sampling_rate = 2
    config.data.image_size = (48, 48)
    config.data.num_threads = 2

    set_family(config.model, "videomae")
    config.model.tubelet_size = 2
    config.model.patch_size = patch_size
    config.model.encoder.update({"width": 128, "depth": 3, "num_heads": 4})
    config.model.decoder.update({"width": 96, "depth": 2, "num_heads": 2})
    config.model.unroll = 3  # worth it on a CPU, with so few blocks

    # 2e-3 at the peak, for a batch of 32.
    config.optimizer.learning_rate = 1.6e-2
    config.optimizer.min_learning_rate = 8e-4
    config.optimizer.warmup_steps = 40

    config.eval.num_examples = 256
    return config


def comparison_video() -> ConfigDict:
    """What all stages of launch/compare.sh share: a model that takes minutes where `demo_video`'s
    takes an hour, and more clips, so that no stage sees one often.

    Clips are whole frames of 64 x 64 pixels, made half as large.
    """
    config = demo_video()
    config.log_every = 10
    config.pictures_every = 0
    config.data.dir = "runs/data/moving_objects_medium"
    config.data.image_size = (32, 32)
    config.data.crop = "center"
    config.model.encoder.update({"width": 64, "depth": 3, "num_heads": 4})
    config.model.decoder.update({"width": 64, "depth": 1, "num_heads": 2})
    config.optimizer.warmup_steps = 100
    config.eval.num_examples = 0  # all
    return config


def demo_probes(config: ConfigDict) -> None:
    """Sets how the embedded moving objects are probed."""
    config.batch_size = 64
    # At the factor 1, 1e-3 at the peak.
    config.optimizer.learning_rate = 4e-3
    config.optimizer.min_learning_rate = 0.0
    config.optimizer.warmup_steps = 20
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.probe.kinds = ("linear", "attentive", "change")
    config.probe.rates = (0.1, 0.3, 1.0, 3.0)

    config.eval.knn = True


def demo_images() -> ConfigDict:
    """MAE's model and training on single frames of the embedded moving objects.

    12 x 12 patches of 4 x 4 pixels: the smallest grid that AutoMAE's discriminator takes.
    """
    config = demo_video(num_frames=1, patch_size=4)
    config.data.sampling_rate = 1
    config.data.crop = "random_resized"
    config.data.crop_area = (0.2, 1.0)
    config.data.interpolation = "bicubic"
    config.data.horizontal_flip = True

    set_family(config.model, "mae")
    config.model.tubelet_size = 1

    mae_objective(config)

    config.optimizer.min_learning_rate = 0.0
    config.optimizer.decay = MAE_DECAY
    return config


def demo_frozen_masking(name: str) -> ConfigDict:
    """Masks of a strategy that holds the encoder of mae_demo frozen, whose run has to be given."""
    return masking_config(
        name, mask_ratio=0.75, pretrained="", vit_width=128, vit_depth=3, vit_num_heads=4
    )
