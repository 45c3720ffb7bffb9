"""Probes a trained encoder: python -m adamae_jax.probe --config=FILE.py --workdir=DIR.

``--config.init_from=PATH`` says which: a run or a model of pretraining, a classifier, an authors'
checkpoint, or a Hugging Face directory. The encoder stays as it is; linear and attentive probes on
its features are trained at several learning rates in one pass. Started again with the same
arguments, a run goes on from its newest checkpoint, which holds the encoder too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from adamae_jax import cli, experiment, job
from adamae_jax.classes import for_classes
from adamae_jax.data.temporal import Views
from adamae_jax.errors import UserError
from adamae_jax.run_data import open_training
from adamae_jax.training.files import AnyPath


def main(argv: Sequence[str]) -> None:
    """Trains as the flags say, and prints the summary."""
    del argv
    job.main(probe)


def probe(
    config: ConfigDict, workdir: AnyPath, recipe: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Trains probes to the end.

    Args:
      config: the experiment.
      workdir: the run's directory; where it holds this run, training goes on from there.
      recipe: see `adamae_jax.config.resolve`.

    Returns:
      What ``summary.json`` holds (in the first process; nothing in the others).

    Raises:
      UserError: for whatever is wrong with config, encoder, data, workdir or devices, before
        anything is compiled or written in the workdir; later for damaged data or a full disk.
    """
    check_has_purpose(config)
    train = open_training(config)
    config = for_classes(config, train)
    task = experiment.probing(config)
    begun = job.begin(config, workdir, task, train, recipe, Views())
    return begun.train(summary=task.best_rates)


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
    job.define_flags()
    cli.run(main)
