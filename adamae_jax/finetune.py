"""Fine-tunes a classifier: python -m adamae_jax.finetune --config=FILE.py --workdir=DIR.

``--config.init_from=PATH`` says what it starts from: a run or a model of pretraining, an authors'
checkpoint, or a Hugging Face directory; without it, training starts from scratch. Started again
with the same arguments, a run goes on from its newest checkpoint.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from adamae_jax import agreement, cli, evaluate, experiment, initial, job, licenses, pretrained
from adamae_jax.classification import class_weights
from adamae_jax.data.damage import BadRecordError
from adamae_jax.data.mixture import MixedDataset
from adamae_jax.data.records import Dataset
from adamae_jax.data.temporal import Views
from adamae_jax.errors import UserError
from adamae_jax.initial import Initial
from adamae_jax.loaded import parse_views
from adamae_jax.run_data import open_training
from adamae_jax.task import Variables
from adamae_jax.training import files, partitioning, rundir, trainer
from adamae_jax.training.files import AnyPath

BEST_JSON, TEST = "best.json", "test"
LOOKED_AT = 64  # videos, for their labels


def main(argv: Sequence[str]) -> None:
    """Trains as the flags say, and prints the summary."""
    del argv
    job.run(finetune)


def finetune(
    config: ConfigDict, workdir: AnyPath, recipe: Mapping[str, Any] | None = None
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
    test_views = parse_views(config.eval.test_views) if config.eval.test_views else None
    begun = job.begin(config, workdir, train, recipe, Views())
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
    if test_views is None or begun.data.validation is None:
        return summary
    return {**summary, "test": test(begun, test_views)}


def test(begun: job.Begun, views: Views) -> dict[str, Any]:
    """Scores all held-out videos with the model that a complete run has left.

    What was found is kept in the workdir; a test of the same step that is there is not made again.
    """
    output = begun.workdir / TEST
    stored: list[Any] = agreement.gathered(stored_figures(output / evaluate.METRICS))
    asked = {"views": "x".join(map(str, views)), "step": begun.config.steps}
    if stored[0] is not None and asked.items() <= stored[0].items():
        return dict(stored[0])
    loaded = evaluate.load_classifier(str(begun.workdir / rundir.MODEL))
    config = begun.config.copy_and_resolve_references()
    config.eval.num_examples = 0
    loaded = dataclasses.replace(loaded, config=config)
    assert begun.data.validation is not None  # the caller has seen to it
    return evaluate.evaluate(loaded, begun.data.validation, begun.mesh, views, output)


def stored_figures(path: AnyPath) -> dict[str, Any] | None:
    """Returns what a test has found before; None where there is no such thing."""
    try:
        found = json.loads(files.read(path))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "views" in found else None


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
    check_labels(dataset, options.num_classes)
    weights = class_weights(options.class_weights, options.num_classes)
    options.class_weights = ",".join(map(repr, weights))  # the file may change, or go
    return config


def check_labels(dataset: Dataset | MixedDataset, num_classes: int) -> None:
    """Looks at the labels of some videos, from the first to the last.

    Raises:
      UserError: where none has one, or one is of no class.
    """
    looked_at = np.unique(np.linspace(0, len(dataset) - 1, LOOKED_AT).astype(int)).tolist()
    labels = {}
    for index in looked_at:
        try:
            labels[index] = dataset[index].label
        except (BadRecordError, OSError):  # those who read it for a batch tell of it
            continue
    for index, label in labels.items():
        if label >= num_classes:
            raise UserError(
                f"{dataset.where(index)} has label {label}, but there are {num_classes} classes, "
                "from 0 on: give classifier.num_classes as many as there are, or prepare the "
                "dataset anew"
            )
    if labels and max(labels.values()) < 0:
        raise UserError(
            f"none of {len(labels)} videos, from the first to the last, has a label: prepare the "
            "dataset from a list with labels, or with --class_folders"
        )


@dataclasses.dataclass
class Best:
    """Keeps the model that has done best in a validation, as a model directory.

    Attributes:
      directory: where.
      config: of the run.
      label_names: of the classes.
      license: of weights that it began with.
    """

    directory: AnyPath
    config: ConfigDict
    label_names: tuple[str, ...]
    license: str

    def __post_init__(self) -> None:
        try:
            found = json.loads(files.read(self.directory / BEST_JSON))
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
            files.write(self.directory / BEST_JSON, (json.dumps(said) + "\n").encode())
        except OSError as error:  # a full disk, say: no reason to end a run
            logging.warning("step %d: the best model cannot be written: %s", step, error)


if __name__ == "__main__":
    job.define_flags()
    cli.run(main)
