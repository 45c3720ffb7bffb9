"""Draws what a run sees, guesses and samples: python -m adamae_jax.visualize --workdir=DIR.

For a few held-out clips a PNG strip and an animated GIF each, under DIR/pictures or --output. DIR
is the workdir of a run, finished or not, or a model directory.
"""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
from absl import flags, logging

from adamae_jax import cli, experiment, pictures, pretrained
from adamae_jax.data import pipeline
from adamae_jax.errors import UserError
from adamae_jax.pretrained import Pretrained
from adamae_jax.training.step import example_keys

WORKDIR = flags.DEFINE_string(
    "workdir", None, "Workdir of a run, or a model directory.", required=True
)
NUM_CLIPS = flags.DEFINE_integer("num_clips", 4, "Clips to draw.", lower_bound=1)
STEP = flags.DEFINE_integer("step", None, "Checkpoint of the run; the newest, if not given.")
OUTPUT = flags.DEFINE_string("output", None, "Where pictures go; WORKDIR/pictures, if not given.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "The dataset; the run's own, if not given.")
SPLIT = flags.DEFINE_string("split", None, "Its split; the run's validation split, if not given.")
SEED = flags.DEFINE_integer("seed", 0, "Of the masks that are drawn.")


def main(argv: Sequence[str]) -> None:
    """Loads, draws and says where the pictures are."""
    del argv
    logging.set_verbosity(logging.WARNING)  # the libraries' reports of every file they open
    loaded = pretrained.load(WORKDIR.value, step=STEP.value)
    data_dir = DATA_DIR.value or loaded.config.data.dir
    split = SPLIT.value or loaded.config.data.validation_split
    batch = first_clips(loaded, data_dir, split, NUM_CLIPS.value)
    # The keys of no step: pictures of several checkpoints differ by the model alone.
    slot = jnp.asarray(batch["example_index"])
    keys = example_keys(SEED.value, jnp.zeros((), jnp.int32), slot)
    panels = pictures.compute(loaded.pretraining, loaded.variables, batch["video"], keys)
    output = OUTPUT.value or Path(WORKDIR.value) / "pictures"
    for path in pictures.save(panels, output, f"step_{loaded.step:07d}"):
        print(path)


def first_clips(loaded: Pretrained, data_dir: str, split: str, count: int) -> pipeline.Batch:
    """The first clips of a split, as a batch of those that can be read.

    Raises:
      UserError: where there is no dataset or none of its first clips can be read.
    """
    if not data_dir:
        raise UserError("the model does not say which data it was trained on: give --data_dir=DIR")
    spec = experiment.clip_spec(loaded.config)
    with pipeline.eval_batches(
        data_dir, split, spec, batch_size=count, num_examples=count
    ) as batches:
        batch = next(batches)
    if not batch["valid"].any():
        raise UserError(f"none of the first {count} clips of {data_dir}, {split!r}, can be read")
    return {name: values[batch["valid"]] for name, values in batch.items()}


if __name__ == "__main__":
    cli.run(main)
