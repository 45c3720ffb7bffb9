"""The config fields of model, masking, objective, classifier and optimiser; see `fields`."""

import functools
from typing import get_args

from adamae_jax.field import Field
from adamae_jax.masking.decoding import DECODE_ORDERS
from adamae_jax.models.attention import AttentionImplementation
from adamae_jax.models.classifier import POOLINGS
from adamae_jax.models.decoder import CLASS_TOKENS
from adamae_jax.models.initializers import INITIALIZATIONS
from adamae_jax.models.positions import POSITION_KINDS
from adamae_jax.models.probes import PROBE_KINDS
from adamae_jax.models.transformer import Remat

ModelField = functools.partial(Field, model=True)
ClassifierField = functools.partial(Field, classifier=True)
ProbeField = functools.partial(ClassifierField, probe=True)

MODEL_FIELDS: dict[str, Field] = {
    # The model.
    "model.tubelet_size": ModelField(2, "Frames in a token.", lowest=1),
    "model.patch_size": ModelField(16, "Height and width of a token in pixels.", lowest=1),
    "model.encoder.width": ModelField(768, "Values in a token of the encoder.", lowest=1),
    "model.encoder.depth": ModelField(12, "Blocks of the encoder.", lowest=1),
    "model.encoder.num_heads": ModelField(12, "Attention heads of the encoder.", lowest=1),
    "model.decoder.width": ModelField(384, "Values in a token of the decoder.", lowest=1),
    "model.decoder.depth": ModelField(4, "Blocks of the decoder.", lowest=1),
    "model.decoder.num_heads": ModelField(6, "Attention heads of the decoder.", lowest=1),
    "model.mlp_ratio": ModelField(
        4.0, "Width of the blocks' hidden layer over their width.", above=0, highest=1024
    ),
    "model.norm_epsilon": ModelField(1e-6, "Epsilon of the blocks' layer norms.", lowest=0),
    "model.decoder_norm_epsilon": ModelField(
        1e-6, "Epsilon of the layer norm in front of the decoder's head.", lowest=0
    ),
    "model.layer_scale": ModelField(
        0.0, "Initial factor of each channel on each branch of a block. 0: no factors.", lowest=0
    ),
    "model.drop_path": ClassifierField(
        0.0,
        "Rate at which an example skips a branch of the encoder's last block in training; it grows "
        "from 0 in the first block.",
        lowest=0,
        below=1,
    ),
    "model.predicted_frames": ModelField(
        0,
        "Frames of a clip that are predicted, evenly spread (MAE-ST's `pred_t`). 0: all.",
        lowest=0,
    ),
    "model.positions": ModelField(
        "sincos_1d",
        "Position tables. sincos_1d is VideoMAE's, sincos_2d MAE's for images, separable MAE-ST's.",
        choices=POSITION_KINDS,
    ),
    "model.class_token": ModelField(
        "none",
        "Whether there is a class token. shared: one, kept in the decoder. separate: encoder and "
        "decoder have one each.",
        choices=CLASS_TOKENS,
    ),
    "model.attention_bias": ModelField(
        "qv", "Which of query, key and value have a bias.", choices=("", "qv", "qkv")
    ),
    "model.projection_bias": ModelField(
        False, "Whether the projection from encoder to decoder has a bias."
    ),
    "model.initialization": ModelField(
        "videomae",
        "Whose initial weights: each family has its own.",
        choices=tuple(INITIALIZATIONS),
    ),
    "model.dtype": ModelField(
        "float32", "The type that matmuls are computed in.", choices=("float32", "bfloat16")
    ),
    "model.gradient_dtype": ModelField(
        "float32",
        "The type that the gradients of the blocks' kernels and biases are summed in, over tokens "
        "and over devices. compute: `model.dtype`, so that devices send each other half as much in "
        "bfloat16.",
        choices=("float32", "compute"),
    ),
    "model.remat": ModelField(
        "none",
        "What the backward pass computes again instead of keeping it. elementwise: norms, "
        "activations and the like, but no product of matrices. full: whole blocks, a third more "
        "work.",
        choices=get_args(Remat),
        mutable=True,
    ),
    "model.unroll": ModelField(
        1, "Blocks in one iteration of the scan over depth.", lowest=1, mutable=True
    ),
    "model.attention": ModelField(
        "auto",
        "Who computes attention. blockwise keeps no scores: memory grows with the number of "
        "tokens, not with its square. cudnn needs an NVIDIA GPU and bfloat16. pallas needs a TPU: "
        "scores of rows of more than 512 tokens stay on the chip, shorter rows are xla's. auto: "
        "blockwise on CPU; elsewhere xla for rows of up to 512 tokens, and for longer ones pallas "
        "on TPUs, blockwise on GPUs.",
        choices=get_args(AttentionImplementation),
        mutable=True,
    ),
    # The masking. Its options are the strategy's own, and are not listed here.
    "masking.name": ModelField(
        "adaptive",
        "The masking strategy: a module of `adamae_jax/masking`, or `package.module` of your own "
        "([masking.md](masking.md)). Set it in a config file with `masking_config`, which brings "
        "the strategy's own fields, `masking.options`.",
    ),
    "masking.mask_ratio": ModelField(
        0.95,
        "Share of tokens that is masked; where it changes in training, its last value, which "
        "evaluation and the finished model have.",
        above=0,
        below=1,
    ),
    "masking.mask_ratio_start": Field(
        0.0,
        "The mask ratio at the start of training, from which it goes to `mask_ratio` "
        "([masking.md](masking.md)). 0: it does not change.",
        lowest=0,
        below=1,
    ),
    "masking.mask_ratio_stages": Field(
        3,
        "How many mask ratios there are where they change, the first and the last included. Each "
        "has an equal part of the training, and a program that is compiled.",
        lowest=2,
    ),
    "masking.decode_ratio": ModelField(
        1.0,
        "Share of the masked tokens that is decoded, rounded down; the losses are means over these "
        "([masking.md](masking.md)).",
        above=0,
        highest=1,
    ),
    "masking.decode_order": ModelField(
        "random",
        "Which masked tokens are decoded where not all are. random: any. cells: running cells "
        "(VideoMAE V2's). sampler: drawn from the strategy's distribution.",
        choices=DECODE_ORDERS,
    ),
    # The objective.
    "objective.loss": ModelField(
        "mse", "The error of each predicted value.", choices=("mse", "l1")
    ),
    "objective.normalize_targets": ModelField(
        "channel",
        "Over which values targets are normalised. channel: those of one tubelet and colour "
        "channel. tubelet: those of one tubelet (MAE, MAE-ST).",
        choices=("none", "channel", "tubelet"),
    ),
    "objective.target_pixels": ModelField(
        "unit",
        "The pixels that targets are made from. unit: those in [0, 1]. normalized: the model's "
        "input.",
        choices=("unit", "normalized"),
    ),
    "objective.sampling_loss_weight": ModelField(
        1e-4,
        "Weight of the loss that trains AdaMAE's sampling network. Below 0 the rewarded tokens are "
        "made less likely instead of more.",
    ),
    "objective.pixel_mean": ModelField(
        (0.485, 0.456, 0.406),
        "Mean of each colour channel in [0, 1], subtracted from the model's input (ImageNet's).",
    ),
    "objective.pixel_std": ModelField(
        (0.229, 0.224, 0.225),
        "Standard deviation of each colour channel, which the model's input is divided by.",
        above=0,
    ),
    # A classifier.
    "classifier.num_classes": ModelField(
        0,
        "Classes. 0: the model is a masked autoencoder; where one is fine-tuned, as many as the "
        "dataset has.",
        lowest=0,
        classifier=True,
    ),
    "classifier.norm_epsilon": ModelField(
        1e-6, "Epsilon of the layer norm in front of the head.", lowest=0
    ),
    "classifier.pooling": ModelField(
        "mean",
        "What the head sees. mean: the mean over all patches. first: the first token alone, which "
        "is the class token where there is one.",
        choices=POOLINGS,
    ),
    "classifier.skip_first_patch": ModelField(
        False,
        "Leave the first patch out of the mean, as MAE-ST's released code does without a class "
        "token.",
    ),
    "classifier.head_dropout": ClassifierField(
        0.0, "Dropout in front of the head.", lowest=0, below=1
    ),
    "classifier.label_smoothing": ClassifierField(
        0.0, "Share of a training target that is spread over all classes.", lowest=0, below=1
    ),
    "classifier.class_weights": ClassifierField(
        "",
        "Factors on the loss of the classes, in the order of their labels: numbers parted by "
        "commas, or the path of a text file with one number in a line. Empty: all alike.",
    ),
    # Probes of a frozen encoder.
    "probe.kinds": ProbeField(
        ("linear", "attentive"),
        "Which probes are trained. linear: a linear layer on normalised features, pooled as "
        "`classifier.pooling` says. attentive: a query that attends to all tokens. change: a "
        "linear layer on how much latents change from one time step to the next.",
        choices=PROBE_KINDS,
        open=True,
    ),
    "probe.rates": ProbeField(
        (0.1, 0.3, 1.0, 3.0),
        "Factors on `optimizer.learning_rate`: there is a probe of each kind for each of them.",
        above=0,
        open=True,
    ),
    "probe.optimizer": ProbeField(
        "adamw",
        "lars is MAE's for linear probes, with `optimizer.b1` as its momentum.",
        choices=("adamw", "lars"),
    ),
    # What happens to training clips on the device, in fine-tuning.
    "augment.erasing": ClassifierField(
        0.0,
        "Probability of filling one box of a clip with noise (random erasing).",
        lowest=0,
        highest=1,
    ),
    "augment.mixup": ClassifierField(
        0.0, "Parameter of mixup's Beta distribution. 0: no mixup.", lowest=0
    ),
    "augment.cutmix": ClassifierField(
        0.0, "Parameter of cutmix's Beta distribution. 0: no cutmix.", lowest=0
    ),
    "augment.mix_probability": ClassifierField(
        1.0, "Probability of mixing at all, where mixup or cutmix is on.", lowest=0, highest=1
    ),
    "augment.switch_probability": ClassifierField(
        0.5, "Probability of cutmix instead of mixup, where both are on.", lowest=0, highest=1
    ),
    "augment.mix_group": ClassifierField(
        0,
        "Clips that share one draw of mixup or cutmix and mix among themselves: in the authors' "
        "code, those on one GPU. Divides `batch_size`. 0: the whole batch.",
        lowest=0,
    ),
    "classifier.fresh_head": ClassifierField(
        False,
        "Start the head afresh where `init_from` is a classifier, as for other classes.",
    ),
    # The optimiser: AdamW with a warm-up and a cosine.
    "optimizer.rate_counts": Field(
        "clips",
        "What `batch_size` counts where learning rates grow with it. videos: without the repeats, "
        "as MAE-ST's authors count.",
        choices=("clips", "videos"),
    ),
    "optimizer.learning_rate": Field(
        1.5e-4,
        "Learning rate at its peak for 256 clips: the rate used is this times `batch_size` / 256.",
        lowest=0,
    ),
    "optimizer.min_learning_rate": Field(
        1e-5, "Learning rate at the last step, likewise; at most `learning_rate`.", lowest=0
    ),
    "optimizer.warmup_epochs": Field(
        0.0,
        "Passes over the videos in which the rate rises, used where `warmup_steps` is 0.",
        lowest=0,
    ),
    "optimizer.warmup_steps": Field(
        0, "Steps in which the rate rises from 0 to its peak.", lowest=0
    ),
    "optimizer.b1": Field(0.9, "Decay of the mean of gradients.", lowest=0, below=1),
    "optimizer.b2": Field(0.95, "Decay of the mean of squared gradients.", lowest=0, below=1),
    "optimizer.eps": Field(1e-8, "Epsilon of Adam's denominator.", lowest=0),
    "optimizer.weight_decay": Field(0.05, "Weight decay, times the learning rate.", lowest=0),
    "optimizer.decay": Field(
        ("kernel$", "^masking/.*position_table$"),
        "Regular expressions, searched in a parameter's path; what they find is decayed.",
    ),
    "optimizer.clip_grad_norm": Field(
        0.0, "The gradient is scaled down to this norm. 0: it is left as it is.", lowest=0
    ),
    "optimizer.layer_decay": ClassifierField(
        1.0,
        "Factor on the learning rate from each layer to the one below it. 1: one rate everywhere.",
        above=0,
        highest=1,
    ),
    "optimizer.average_decay": Field(
        0.0,
        "Decay of a moving average of the parameters, which is then what is evaluated and handed "
        "on. 0: none is kept.",
        lowest=0,
        below=1,
    ),
    "optimizer.accumulation": Field(
        1,
        "Microbatches whose gradients make one update; they divide `batch_size`.",
        lowest=1,
        mutable=True,
    ),
}
