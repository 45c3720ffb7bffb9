"""Pretrains a masked autoencoder: python -m adamae_jax.pretrain --config=FILE.py --workdir=DIR.

Started again with the same arguments, a run goes on from its newest checkpoint, or ends at once
where it is complete.
"""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags, logging
from ml_collections import ConfigDict

from adamae_jax import cli, experiment, frozen, initial, licenses, peers, pictures, pretrained
from adamae_jax import config as configs
from adamae_jax.data.batches import Batch, first_clips
from adamae_jax.errors import UserError
from adamae_jax.frozen import Frozen
from adamae_jax.initial import Initial
from adamae_jax.objectives import Pretraining
from adamae_jax.run_data import RunData, open_training, open_validation
from adamae_jax.task import Variables, example_keys
from adamae_jax.training import rundir, trainer
from adamae_jax.training.checkpoints import checkpoint_steps
from adamae_jax.training.metrics import RunMetrics
from adamae_jax.training.partitioning import check_batch, create_mesh

PICTURE_CLIPS = 4


def define_flags() -> None:
    """Defines this job's options; importing the module does not."""
    cli.define_config()
    flags.DEFINE_string(
        "workdir", None, "Where checkpoints, metrics and pictures go.", required=True
    )


def main(argv: Sequence[str]) -> None:
    """Trains as the flags say, and prints the summary."""
    del argv
    if not flags.FLAGS.workdir:
        raise UserError("--workdir is empty: give a directory, such as --workdir=runs/mine")
    workdir = Path(flags.FLAGS.workdir)
    with peers.ending_together(workdir):
        summary = pretrain(flags.FLAGS.config, workdir)
    if jax.process_index() == 0:
        print(json.dumps(summary, indent=2))


def pretrain(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Pretrains to the end.

    Args:
      config: the experiment.
      workdir: the run's directory; where it holds this run, training goes on from there.

    Returns:
      What ``summary.json`` holds (in the first process; nothing in the others).

    Raises:
      UserError: for whatever is wrong with config, data, workdir or devices, before anything is
        compiled or written in the workdir; later for damaged data or a disk that is full.
    """
    # Model and devices
    task = experiment.pretraining(config)
    experiment.check_device(config)
    mesh = create_mesh(dict(config.mesh))
    check_batch("batch_size", config.batch_size, mesh, config.optimizer.accumulation)
    # Data
    train = open_training(config)
    config = configs.resolve(config, len(train))
    check_batch("eval.batch_size", config.eval.batch_size, mesh)
    data = RunData(config, mesh, workdir, train, open_validation(config))
    # Workdir: a new run, one to go on with, or one that is complete
    rundir.check(workdir, config)
    steps = checkpoint_steps(workdir / rundir.CHECKPOINTS)
    if steps:
        data.check_trained_on(workdir / rundir.CHECKPOINTS, steps[-1])
    complete = trainer.finished(config, workdir, steps)
    if complete is not None:
        return complete
    # A run that goes on has all in its checkpoint: the sources may be others by now, or gone.
    held, begun = (
        (Frozen(), Initial()) if steps else (frozen.read(task), initial.read(task, config))
    )
    license = licenses.of(workdir) if steps else licenses.of_parts(held, begun)
    described = (config, config.steps, train.label_names, license)
    if begun.report and jax.process_index() == 0:
        logging.info("%s", begun.report)
    # Training
    return trainer.train(
        trainer.Run(
            config,
            workdir,
            task,
            experiment.optimizers(config, task),
            mesh,
            data,
            metadata={
                "data_fingerprint": data.fingerprint,
                "label_names": list(train.label_names),
                licenses.RECORD: license,
            },
            frozen=held.variables,
            initial=begun.variables,
            draw=drawing(config, workdir, task, data),
            export=lambda variables: pretrained.save(workdir / rundir.MODEL, variables, *described),
            summary=lambda evaluated: {
                "foreground_lift": evaluated.get("eval_foreground_lift"),
                "foreground_lift_random": evaluated.get("eval_foreground_lift_random"),
                "foreground_source": data.foreground_source,
            },
        )
    )


def drawing(
    config: ConfigDict, workdir: Path, task: Pretraining, data: RunData
) -> Callable[[RunMetrics, int, Variables, str | None], None]:
    """Returns what draws a few held-out clips: to TensorBoard and, with a prefix, as files."""

    @functools.cache
    def clips() -> Batch | None:
        if data.validation is None:
            return None
        try:
            spec = experiment.clip_spec(config)
            return first_clips(data.validation, spec, PICTURE_CLIPS)
        except UserError as error:  # no reason to end a run
            logging.warning("no pictures: %s", error)
            return None

    def draw(metrics: RunMetrics, step: int, variables: Variables, prefix: str | None) -> None:
        batch = clips()
        if batch is None:
            return
        keys = example_keys(config.seed, 0, jnp.asarray(batch["example_index"]))
        panels = pictures.compute(task, variables, batch["video"], keys)
        metrics.write_images(step, {"clips": pictures.sheet(panels)})
        if prefix is not None:
            pictures.save(panels, workdir / rundir.PICTURES, prefix)

    return draw


if __name__ == "__main__":
    define_flags()
    cli.run(main)
