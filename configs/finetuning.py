"""What the fine-tuning recipes share: datasets, how a run is said, and the families' training.

A recipe is a table of `Run` by size and one call of these functions. All of them begin from a
pretrained model, ``--config.init_from=PATH``; the encoder's fields are those of its recipe.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from adamae_jax.config import default_config, set_family, set_size
from configs import common


class Dataset(NamedTuple):
    """A labelled dataset, and how the authors cut clips out of it.

    Attributes:
      num_examples: videos or images in the training split.
      num_classes: its classes.
      frame_sampling: how the frames of a clip are chosen.
      sampling_rate: video frames from one clip frame to the next, where that is how.
      horizontal_flip: whether clips are mirrored: not where left and right are in the labels.
      test_views: clips of each video in the final test, times x crops.
    """

    num_examples: int
    num_classes: int
    frame_sampling: str = "stretched"
    sampling_rate: int = 4
    horizontal_flip: bool = True
    test_views: str = "5x3"


KINETICS_400 = Dataset(common.KINETICS_400, 400)
SOMETHING_V2 = Dataset(
    common.SOMETHING_V2, 174, frame_sampling="segments", horizontal_flip=False, test_views="2x3"
)
UCF101 = Dataset(common.UCF101, 101)
HMDB51 = Dataset(common.HMDB51, 51, sampling_rate=2)


class Run(NamedTuple):
    """One fine-tuning, in the authors' way of counting.

    Attributes:
      videos: in an update; of images, images.
      per_gpu: videos on each of the authors' GPUs, which mix among themselves.
      rate: learning rate of the top layer at its peak, for 256 of what the authors count.
      epochs: passes over the videos.
      samples: clips of each video.
      layer_decay: factor on the rate from each layer to the one below it.
      drop_path: of the last block.
      head_dropout: in front of the head.
      last_rate: learning rate at the end, for 256 likewise.
    """

    videos: int
    per_gpu: int
    rate: float
    epochs: int
    samples: int = 2
    layer_decay: float = 0.75
    drop_path: float = 0.1
    head_dropout: float = 0.0
    last_rate: float = 1e-6


def videomae(size: str, dataset: Dataset, run: Run) -> ConfigDict:
    """VideoMAE's fine-tuning, which AdaMAE took over as it was.

    Source: the defaults of run_class_finetuning.py in github.com/MCG-NJU/VideoMAE, of which
    finetune_class.py in github.com/wgcban/adamae is a copy in these respects. Two things differ:
    theirs computes in float16 with loss scaling, which bfloat16 does not need; and their frames
    stay in floating point from RandAugment to the model, where ours are 8 bits in between.

    Args:
      size: of the model.
      dataset: what it is fine-tuned on.
      run: with how many videos, how fast and for how long. Rates are for 256 videos, however many
        clips of each there are; all clips of a video show the same frames.
    """
    config = _finetuning("videomae", size, run, dataset.num_classes)
    config.optimizer.rate_counts = "videos"

    config.data.num_examples = dataset.num_examples
    config.data.num_frames = 16
    config.data.frame_sampling = dataset.frame_sampling
    config.data.sampling_rate = dataset.sampling_rate
    config.data.shared_frames = run.samples > 1
    config.data.interpolation = "bilinear_without_antialias"  # as PyTorch does by default
    config.data.horizontal_flip = dataset.horizontal_flip
    config.data.rand_augment = "rand-m7-n4-mstd0.5-inc1"
    config.eval.test_views = dataset.test_views

    config.model.tubelet_size = 2
    config.model.dtype = "bfloat16"
    # As the authors do, with --use_checkpoint.
    config.model.remat = "full" if size == "H" else "none"
    _validate_each_epoch(config)
    return config


def mae_st_k400(size: str, run: Run) -> ConfigDict:
    """MAE-ST's fine-tuning on Kinetics-400; see configs/mae_st_k400_finetune.py.

    Args:
      size: of the model.
      run: rates are for 256 clips; each clip of a video has frames of its own.
    """
    config = _finetuning("mae_st", size, run, KINETICS_400.num_classes)
    config.optimizer.clip_grad_norm = 5.0

    config.data.num_examples = common.KINETICS_400
    config.data.num_frames = 16
    config.data.frame_sampling = "time_scaled"
    config.data.target_fps = 30.0
    config.data.sampling_rate = 4
    config.data.interpolation = "bilinear_without_antialias"  # as PyTorch does by default
    config.data.horizontal_flip = True
    config.data.rand_augment = "rand-m7-mstd0.5-inc1"
    config.eval.test_views = "10x3"

    config.model.tubelet_size = 2
    config.model.dtype = "float32"  # the authors switch mixed precision off (--fp32)
    common.mae_st_objective(config)  # the mean and deviation of pixels
    _validate_each_epoch(config)
    return config


def mae_imagenet(size: str, run: Run) -> ConfigDict:
    """MAE's fine-tuning on ImageNet-1k, which AutoMAE took over as it was.

    Source: main_finetune.py and FINETUNE.md in github.com/facebookresearch/mae. Four things
    differ: theirs computes in float16 with loss scaling, which bfloat16 does not need; its warm-up
    comes to the peak one step later; it crops first, and fills with ImageNet's mean colour in
    RandAugment, where ours augments the whole image, and fills with grey; and its held-out images
    are the middle 224 of 256 pixels, ours the middle square of the whole image.

    Args:
      size: of the model; H has patches of 14 pixels.
      run: rates are for 256 images.
    """
    config = _finetuning("mae", size, run, num_classes=1000)
    config.data.num_examples = common.IMAGENET
    config.data.num_frames = 1  # an image is a video of one frame
    config.data.sampling_rate = 1
    config.data.interpolation = "bicubic"
    config.data.horizontal_flip = True
    config.data.rand_augment = "rand-m9-mstd0.5-inc1"

    config.model.tubelet_size = 1
    config.model.patch_size = 14 if size == "H" else 16
    config.model.positions = "learned"  # the table that was fixed in pretraining is trained
    config.model.dtype = "bfloat16"
    _validate_each_epoch(config)
    return config


def _finetuning(family: str, size: str, run: Run, num_classes: int) -> ConfigDict:
    """What all of them have in common, which is BEiT's and DeiT's."""
    config = default_config()
    config.batch_size = run.videos * run.samples
    config.epochs = run.epochs

    config.data.repeats = run.samples
    config.data.image_size = (224, 224)
    config.data.crop = "random_resized"
    config.data.crop_area = (0.08, 1.0)
    config.data.crop_aspect = (3 / 4, 4 / 3)
    config.data.num_workers = 8  # processes on each host

    set_family(config.model, family)
    set_size(config.model, size)
    config.model.patch_size = 16
    config.model.initialization = "classifier"  # of norm and head, which start fresh
    config.model.drop_path = run.drop_path
    config.classifier.num_classes = num_classes
    config.classifier.head_dropout = run.head_dropout
    config.classifier.label_smoothing = 0.1

    config.augment.erasing = 0.25
    config.augment.mixup = 0.8
    config.augment.cutmix = 1.0
    config.augment.mix_probability = 1.0
    config.augment.switch_probability = 0.5
    config.augment.mix_group = run.per_gpu * run.samples

    config.optimizer.learning_rate = run.rate
    config.optimizer.min_learning_rate = run.last_rate
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.05
    # All of them spare what is 1-D, and MAE's and MAE-ST's, unlike in pretraining, class token and
    # position tables (no_weight_decay of their models).
    config.optimizer.decay = common.VIDEOMAE_DECAY
    config.optimizer.layer_decay = run.layer_decay
    config.optimizer.clip_grad_norm = 0.0

    config.log_every = 20
    return config


def _validate_each_epoch(config: ConfigDict) -> None:
    """Checkpoints and validates after each pass, on all that is held out, as the authors do."""
    common.keep_every(config, epochs=1)
    config.pictures_every = 0  # there are no masks to be seen
    config.eval.num_examples = 0
