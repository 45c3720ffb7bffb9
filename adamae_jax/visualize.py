"""Draws what a run sees, guesses and samples: python -m adamae_jax.visualize --workdir=DIR.

For a few held-out clips a PNG strip and an animated GIF each, under DIR/pictures or --output. DIR
is the workdir of a run, finished or not, or a model directory.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from absl import flags, logging

from adamae_jax import cli, experiment, pictures, pretrained
from adamae_jax.data.batches import first_clips
from adamae_jax.data.mixture import open_first
from adamae_jax.errors import UserError
from adamae_jax.run_data import make_embedded
from adamae_jax.task import example_keys
from adamae_jax.training import files


def define_flags() -> None:
    """Defines this job's options; importing the module does not."""
    text = flags.DEFINE_string
    text("workdir", None, "Workdir of a run, or a model directory.", required=True)
    text("output", None, "Where pictures go; WORKDIR/pictures, if not given.")
    text("data_dir", None, "The dataset; the run's own, if not given.")
    text("split", None, "Its split; the run's validation split, if not given.")
    flags.DEFINE_integer("num_clips", 4, "Clips to draw.", lower_bound=1)
    flags.DEFINE_integer("step", None, "Checkpoint of the run; the newest, if not given.")
    flags.DEFINE_integer("seed", 0, "Of the masks that are drawn.")


def main(argv: Sequence[str]) -> None:
    """Loads, draws and says where the pictures are."""
    del argv
    logging.set_verbosity(logging.WARNING)  # the libraries' reports of every file they open
    values = flags.FLAGS
    loaded = pretrained.load_pretrained(values.workdir, step=values.step)
    data_dir = values.data_dir or loaded.config.data.dir
    if not data_dir:
        raise UserError("the model does not say which data it was trained on: give --data_dir=DIR")
    make_embedded(data_dir)
    split = values.split or loaded.config.data.validation_split
    spec = experiment.clip_spec(loaded.config)
    batch = first_clips(open_first(data_dir, split), spec, values.num_clips)
    # The keys of no step: pictures of several checkpoints differ by the model alone.
    slot = jnp.asarray(batch["example_index"])
    keys = example_keys(values.seed, 0, slot)
    known = loaded.task.known(batch)
    panels = pictures.compute(loaded.task, loaded.variables, batch["video"], keys, **known)
    output = values.output or files.at(values.workdir) / "pictures"
    try:
        written = pictures.save(panels, output, f"step_{loaded.step:07d}")
    except OSError as error:
        raise UserError(f"--output={output} cannot be written: {files.reason(error)}") from error
    for path in written:
        print(path)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
