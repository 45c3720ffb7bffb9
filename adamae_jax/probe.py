"""Probes a trained encoder: python -m adamae_jax.probe --config=FILE.py --workdir=DIR.

``--config.init_from=PATH`` says which: a run or a model of pretraining, a classifier, an authors'
checkpoint, or a Hugging Face directory. The encoder stays as it is; linear and attentive probes on
its features are trained at several learning rates in one pass. Started again with the same
arguments, a run goes on from its newest checkpoint, which holds the encoder too.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging
from ml_collections import ConfigDict

from adamae_jax import cli, experiment, initial, licenses, peers
from adamae_jax import config as configs
from adamae_jax.errors import UserError
from adamae_jax.finetune import for_classes
from adamae_jax.initial import Initial
from adamae_jax.pretrain import define_flags
from adamae_jax.run_data import RunData, open_training, open_validation
from adamae_jax.training import rundir, trainer
from adamae_jax.training.checkpoints import checkpoint_steps
from adamae_jax.training.partitioning import check_batch, create_mesh


def main(argv: Sequence[str]) -> None:
    """Trains as the flags say, and prints the summary."""
    del argv
    if not flags.FLAGS.workdir:
        raise UserError("--workdir is empty: give a directory, such as --workdir=runs/mine")
    workdir = Path(flags.FLAGS.workdir)
    with peers.ending_together(workdir):
        summary = probe(flags.FLAGS.config, workdir)
    if jax.process_index() == 0:
        print(json.dumps(summary, indent=2))


def probe(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains probes to the end.

    Args:
      config: the experiment.
      workdir: the run's directory; where it holds this run, training goes on from there.

    Returns:
      What ``summary.json`` holds (in the first process; nothing in the others).

    Raises:
      UserError: for whatever is wrong with config, encoder, data, workdir or devices, before
        anything is compiled or written in the workdir; later for damaged data or a full disk.
    """
    check_has_purpose(config)
    # Data
    train = open_training(config)
    config = configs.resolve(for_classes(config, train), len(train))
    # Model and devices
    task = experiment.probing(config)
    experiment.check_device(config)
    mesh = create_mesh(dict(config.mesh))
    check_batch("batch_size", config.batch_size, mesh, config.optimizer.accumulation)
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
    # A run that goes on has the encoder in its checkpoint: the source may be another by now.
    begun = Initial() if steps else initial.read(task, config)
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
                licenses.RECORD: licenses.of(workdir) if steps else begun.license,
            },
            frozen=begun.variables.get("frozen"),
            summary=task.best_rates,
        )
    )


def check_has_purpose(config: ConfigDict) -> None:
    """Raises a `UserError` where there is nothing to probe, or nothing to measure it on."""
    if not config.init_from:
        raise UserError(
            "init_from is empty, and probes measure a trained encoder: give --config.init_from="
            "PATH, the workdir of a run, a model directory, or weights of others"
        )
    if not config.eval_every:
        raise UserError(
            "eval_every is 0, and probes are measured on held-out clips: give --config.eval_every=N"
        )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
