"""The table of config fields: each is written once, with all that is known of it.

The tree of defaults, the checks, what a resumed run may change, what ``model.json`` keeps and the
page docs/config.md are all made from it (`adamae_jax.config`).
"""

import functools

from adamae_jax.field import Field
from adamae_jax.model_fields import MODEL_FIELDS

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

FIELDS: dict[str, Field] = {
    "seed": Field(0, "Seed of everything random.", lowest=0, highest=2**32 - 1),
    "deterministic": ExecutionField(
        False,
        "On GPUs, make all sums in a fixed order, so that the same run comes to the same bits; it "
        "takes longer. On CPUs and TPUs it does anyway.",
    ),
    "batch_size": Field(
        256,
        "Clips in one optimiser update, over all hosts, repeats and accumulation included.",
        lowest=1,
    ),
    "steps": ExecutionField(
        0,
        "Optimiser updates. 0: as many as `epochs` takes. A number here goes before `epochs`, so "
        "that `--config.steps=N` shortens any recipe; its warm-up becomes shorter in proportion, "
        "unless it is given too.",
        lowest=0,
        highest=MOST_STEPS,
    ),
    "epochs": ExecutionField(
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
    "keep_every": ExecutionField(
        0,
        "Steps from one permanent checkpoint to the next: they are made whatever "
        "`checkpoint_every` is, and stay beside the newest ones for as long as this field says so. "
        "0: there are none.",
        lowest=0,
    ),
    "profile.steps": ExecutionField(
        (0, 0),
        "The first and the last step of a trace by JAX's profiler, written to `profile` in the "
        "workdir. Begin some steps behind the start, which compiles. 0, 0: none.",
        lowest=0,
    ),
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
    "data.shared_frames": Field(
        False,
        "Whether the clips of a video (`data.repeats`) show the same frames, each with a crop, "
        "flip and RandAugment of its own (VideoMAE's fine-tuning, VideoMAE V2). False: each has a "
        "start of its own, too (MAE-ST).",
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
        "How frames are resized. bilinear_without_antialias is that of MAE-ST and of VideoMAE's "
        "fine-tuning.",
        choices=("bilinear", "bicubic", "bilinear_without_antialias"),
    ),
    "data.horizontal_flip": ModelField(
        False, "Mirror a training clip left to right with probability 1/2."
    ),
    "data.rand_augment": Field(
        "",
        "RandAugment of the whole frames of training clips, in timm's notation: "
        "`rand-m7-n4-mstd0.5-inc1` (VideoMAE's fine-tuning). Empty: none. Training clips then come "
        "without the dataset's masks.",
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
    **MODEL_FIELDS,
    # Validation.
    "eval.batch_size": ExecutionField(
        0, "Clips in a batch of validation. 0: as in training.", lowest=0
    ),
    "eval.num_examples": ExecutionField(1024, "Held-out clips in a validation. 0: all.", lowest=0),
    "eval.test_views": ExecutionField(
        "1x1",
        "Clips of each held-out video, times x crops, in the test at the end of fine-tuning, where "
        "all videos are scored. Empty: no test.",
        classifier=True,
    ),
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
