"""The table of config fields: each is written once, with all that is known of it.

The tree of defaults, the checks, what a resumed run may change, what ``model.json`` keeps and the
page docs/config.md are all made from it (`adamae_jax.config`).
"""

import functools

from adamae_jax.field import Field
from adamae_jax.models.classifier import POOLINGS
from adamae_jax.models.decoder import CLASS_TOKENS
from adamae_jax.models.initializers import INITIALIZATIONS
from adamae_jax.models.positions import POSITION_KINDS
from adamae_jax.models.probes import PROBE_KINDS

MOST_STEPS = 2**31 - 1  # the step is counted in 32 bits

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

ModelField = functools.partial(Field, model=True)
ExecutionField = functools.partial(Field, mutable=True)
ClassifierField = functools.partial(Field, classifier=True)
ProbeField = functools.partial(ClassifierField, probe=True)

FIELDS: dict[str, Field] = {
    "seed": Field(0, "Seed of everything random.", lowest=0, highest=2**32 - 1),
    "batch_size": Field(
        256,
        "Clips in one optimiser update, over all hosts, repeats and accumulation included.",
        lowest=1,
    ),
    "steps": Field(
        0,
        "Optimiser updates. 0: as many as `epochs` takes. A number here goes before `epochs`, so "
        "that `--config.steps=N` shortens any recipe.",
        lowest=0,
        highest=MOST_STEPS,
    ),
    "epochs": Field(
        0,
        "Passes over the videos of the training split, used where `steps` is 0.",
        lowest=0,
        highest=MOST_STEPS,
    ),
    "init_from": Field(
        "",
        "Weights to begin with: a run's workdir (or one of its checkpoints, "
        "`WORKDIR/checkpoints/STEP`), a model directory, a `.pth` or `.safetensors` file with the "
        "authors' names, or a Hugging Face directory. Read when a run begins, and never again. "
        "Empty: random numbers.",
    ),
    "log_every": ExecutionField(50, "Steps from one line of metrics.jsonl to the next.", lowest=1),
    "checkpoint_every": ExecutionField(1000, "Steps from one checkpoint to the next.", lowest=1),
    "eval_every": ExecutionField(
        1000,
        "Steps from one validation to the next. 0: never, and no pictures of held-out clips.",
        lowest=0,
    ),
    "pictures_every": ExecutionField(
        5000, "Steps from one picture in TensorBoard to the next. 0: never.", lowest=0
    ),
    "max_bad_steps": ExecutionField(
        10,
        "How many updates in a row may be skipped because loss or gradient was not finite; then "
        "the run ends with the state before them saved.",
        lowest=1,
    ),
    "keep_checkpoints": ExecutionField(3, "How many of the newest checkpoints are kept.", lowest=1),
    "compilation_cache_dir": ExecutionField(
        "~/.cache/adamae_jax",
        "Where compiled programs are kept from one start to the next. Empty: nowhere.",
    ),
    "mesh_rules": ExecutionField(
        MESH_RULES,
        "Which dimensions of which parameters are split: a regular expression, searched in the "
        "parameter's path, and the mesh axes of its last dimensions, `.` for one that stays whole. "
        "The first rule that matches counts. Leading dimensions that a rule does not name, such as "
        "the stacked layers', are never split, and no dimension is that an axis does not divide.",
    ),
    # The data.
    "data.dir": Field(
        "",
        "A dataset made by `python -m adamae_jax.prepare`, or several with their shares of the "
        "stream: `DIR:0.7,DIR:0.3`. All must have the training split; the first one's validation "
        "split is held out. The same data may be moved: its fingerprint is compared.",
        mutable=True,
        model=True,
    ),
    "data.num_examples": Field(
        0,
        "Videos in the training split, recorded so that schedules, compiling and benchmarks need "
        "no dataset. A run takes the number of the dataset that it is given.",
        lowest=0,
    ),
    "data.train_split": ModelField("train", "The split to train on."),
    "data.validation_split": ModelField("validation", "The split that is held out."),
    "data.num_frames": ModelField(16, "Frames in a clip.", lowest=1),
    "data.sampling_rate": ModelField(
        4, "Video frames from one frame of the clip to the next.", lowest=1
    ),
    "data.image_size": ModelField(
        (224, 224),
        "Height and width of a clip in pixels. One number stands for both.",
        lowest=1,
        single=True,
    ),
    "data.frame_sampling": ModelField(
        "dense",
        "How a clip's frames are chosen. dense: every `sampling_rate`-th frame. time_scaled "
        "(MAE-ST): the same span of time whatever the video's own rate, `sampling_rate` counting "
        "frames at `target_fps`. stretched: as VideoMAE is fine-tuned on Kinetics. segments: one "
        "frame in each of `num_frames` equal parts (Something-Something V2).",
        choices=("dense", "time_scaled", "stretched", "segments"),
    ),
    "data.target_fps": ModelField(30.0, "Frames per second that time_scaled counts in.", above=0),
    "data.repeats": Field(
        1, "Clips from each decoded video (MAE-ST's repeated sampling).", lowest=1
    ),
    "data.crop": ModelField(
        "multi_scale_corner",
        "Which part of the frame a training clip shows.",
        choices=("multi_scale_corner", "random_resized", "center", "none"),
    ),
    "data.crop_area": ModelField(
        (0.5, 1.0), "Of random_resized: the share of the frame, from and to.", above=0, highest=1
    ),
    "data.crop_aspect": ModelField(
        (3 / 4, 4 / 3), "Of random_resized: width over height, from and to.", above=0
    ),
    "data.interpolation": ModelField(
        "bilinear",
        "How frames are resized. bilinear_without_antialias is MAE-ST's.",
        choices=("bilinear", "bicubic", "bilinear_without_antialias"),
    ),
    "data.horizontal_flip": ModelField(
        False, "Mirror a training clip left to right with probability 1/2."
    ),
    "data.num_workers": ExecutionField(
        0, "Worker processes on each host. 0: threads of the main process.", lowest=0
    ),
    "data.num_threads": ExecutionField(
        8, "Reading threads of each worker, or of the main process.", lowest=0
    ),
    "data.prefetch": ExecutionField(4, "Batches kept ready.", lowest=1),
    "data.timeout_s": ExecutionField(
        300.0,
        "Seconds to wait for a batch before reading is taken to hang, and the run ends.",
        lowest=1,
    ),
    "data.on_error": ExecutionField(
        "replace",
        "What becomes of a record that cannot be read. replace: another takes its place, and it is "
        "counted. raise: the run ends.",
        choices=("replace", "raise"),
    ),
    "data.max_bad_fraction": ExecutionField(
        0.01,
        "Share of the dataset that may be damaged; more ends the run. Above 0, one record always "
        "may.",
        lowest=0,
        highest=1,
    ),
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
    "model.remat": ModelField(
        False, "Recompute blocks in the backward pass: less memory, more time.", mutable=True
    ),
    "model.unroll": ModelField(
        1, "Blocks in one iteration of the scan over depth.", lowest=1, mutable=True
    ),
    "model.attention": ModelField(
        "xla",
        "Who computes attention. cudnn needs an NVIDIA GPU and bfloat16.",
        choices=("xla", "cudnn"),
        mutable=True,
    ),
    # The masking. Its options are the strategy's own, and are not listed here.
    "masking.name": ModelField(
        "adaptive",
        "The masking strategy: a module of `adamae_jax/masking`, or `package.module` of your own "
        "([masking.md](masking.md)). Set it in a config file with `masking_config`, which brings "
        "the strategy's own fields, `masking.options`.",
    ),
    "masking.mask_ratio": ModelField(0.95, "Share of tokens that is masked.", above=0, below=1),
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
        1e-4, "Weight of the loss that trains AdaMAE's sampling network.", lowest=0
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
    "classifier.fresh_head": Field(
        False,
        "Start the head afresh where `init_from` is a classifier, as for other classes.",
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
        PROBE_KINDS,
        "Which probes are trained. linear: a linear layer on normalised features, pooled as "
        "`classifier.pooling` says. attentive: a query that attends to all tokens.",
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
        1, "Microbatches whose gradients make one update; they divide `batch_size`.", lowest=1
    ),
    # Validation.
    "eval.batch_size": ExecutionField(
        0, "Clips in a batch of validation. 0: as in training.", lowest=0
    ),
    "eval.num_examples": ExecutionField(1024, "Held-out clips in a validation. 0: all.", lowest=0),
    "eval.random_draws": ExecutionField(
        64, "Random masks of each clip that `foreground_lift_random` is the mean over.", lowest=1
    ),
    "eval.knn": ExecutionField(
        False, "Measure the accuracy of k nearest neighbours; the data must have labels."
    ),
    "eval.knn_examples": ExecutionField(
        1024, "Training clips among which neighbours are looked for. 0: all.", lowest=0
    ),
    "eval.knn_neighbours": ExecutionField(20, "Neighbours that vote.", lowest=1),
    # The device mesh.
    "mesh.data": ExecutionField(
        -1, "Devices along the axis that batches are split over. -1: all that are left.", lowest=-1
    ),
    "mesh.fsdp": ExecutionField(
        1, "Devices along the axis that parameters and batches are split over.", lowest=-1
    ),
    "mesh.tensor": ExecutionField(
        1, "Devices along the axis that heads and hidden layers are split over.", lowest=-1
    ),
}
