"""Fine-tunes a classifier: python -m adamae_jax.finetune --config=FILE.py --workdir=DIR.

``--config.init_from=PATH`` says what it starts from: a run or a model of pretraining, an authors'
checkpoint, or a Hugging Face directory; without it, training starts from scratch. Started again
with the same arguments, a run goes on from its newest checkpoint.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from adamae_jax import cli, experiment, initial, job, licenses, pretrained
from adamae_jax.data.mixture import MixedDataset
from adamae_jax.data.records import Dataset
from adamae_jax.errors import UserError
from adamae_jax.initial import Initial
from adamae_jax.run_data import open_training
from adamae_jax.task import Variables
from adamae_jax.training import partitioning, rundir, trainer
from adamae_jax.training.digests import write_atomically

BEST_JSON = "best.json"


def main(argv: Sequence[str]) -> None:
    """Trains as the flags say, and prints the summary."""
    del argv
    job.run(finetune)


def finetune(
    config: ConfigDict, workdir: Path, recipe: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Fine-tunes to the end, and tests what came of it in ``config.eval.views``.

    Args:
      config: the experiment.
      workdir: the run's directory; where it holds this run, training goes on from there.
      recipe: see `configs.resolve`.

    Returns:
      What ``summary.json`` holds (in the first process; nothing in the others).

    Raises:
      UserError: for whatever is wrong with config, data, workdir or devices, before anything is
        compiled or written in the workdir; later for damaged data or a disk that is full.
    """
    train = open_training(config)
    config = for_classes(config, train)
    task = experiment.classification(config)
    begun = job.begin(config, workdir, train, recipe)
    config = begun.config
    summary = begun.complete
    if summary is None:
        # A run that goes on has all in its checkpoint: the source may be another by now, or gone.
        start = Initial() if begun.steps else initial.read(task, config)
        license = licenses.of(workdir) if begun.steps else start.license
        summary = trainer.train(
            trainer.Run(
                config,
                workdir,
                task,
                experiment.optimizers(config, task),
                begun.mesh,
                begun.data,
                metadata=begun.metadata(license),
                initial=start.told(),
                evaluated=Best(workdir / rundir.BEST, config, train.label_names, license),
                export=job.exporting(begun, license),
            )
        )
    return summary


def for_classes(config: ConfigDict, dataset: Dataset | MixedDataset) -> ConfigDict:
    """Returns the config with the number of classes, and their weights as numbers.

    Raises:
      UserError: where the dataset has no labels, or labels of another number of classes.
    """
    config = config.copy_and_resolve_references()
    names, options = dataset.label_names, config.classifier
    if not options.num_classes and not names:
        raise UserError(
            f"the dataset at {config.data.dir} does not say which classes it has: give "
            "--config.classifier.num_classes=N, or prepare it from a list with labels"
        )
    options.num_classes = options.num_classes or len(names)
    if names and len(names) != options.num_classes:
        raise UserError(
            f"classifier.num_classes is {options.num_classes}, but the dataset at "
            f"{config.data.dir} has {len(names)} classes: leave it 0"
        )
    weights = experiment.class_weights(options.class_weights, options.num_classes)
    options.class_weights = ",".join(map(repr, weights))  # the file may change, or go
    return config


@dataclasses.dataclass
class Best:
    """Keeps the model that has done best in a validation, as a model directory.

    Attributes:
      directory: where.
      config: of the run.
      label_names: of the classes.
      license: of weights that it began with.
    """

    directory: Path
    config: ConfigDict
    label_names: tuple[str, ...]
    license: str

    def __post_init__(self) -> None:
        try:
            found = json.loads((self.directory / BEST_JSON).read_text())
            self._accuracy = float(found["eval_accuracy"])
        except (OSError, ValueError, KeyError, TypeError):
            self._accuracy = -1.0

    def __call__(self, step: int, figures: Mapping[str, float], variables: Variables) -> None:
        """Saves the variables where their figures are better than all before; all processes call.

        Args:
          step: updates made.
          figures: of the validation.
          variables: that were validated.
        """
        if figures["eval_accuracy"] <= self._accuracy:
            return
        self._accuracy = figures["eval_accuracy"]
        on_host = partitioning.to_host(variables)
        if jax.process_index():
            return
        try:
            about = (self.config, step, self.label_names, self.license)
            pretrained.save(self.directory, on_host, *about)
            said = {"step": step, **{name: figures[name] for name in sorted(figures)}}
            write_atomically(self.directory / BEST_JSON, (json.dumps(said) + "\n").encode())
        except OSError as error:  # a full disk, say: no reason to end a run
            logging.warning("step %d: the best model cannot be written: %s", step, error)


if __name__ == "__main__":
    job.define_flags()
    cli.run(main)
