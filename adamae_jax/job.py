"""How every training job begins: its options, its data and devices, and its workdir."""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import flags, logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

import adamae_jax
from adamae_jax import (
    agreement,
    changes,
    cli,
    distributed,
    experiment,
    initial,
    licenses,
    peers,
    pretrained,
)
from adamae_jax import config as configs
from adamae_jax.data.mixture import MixedDataset
from adamae_jax.data.records import Dataset
from adamae_jax.data.temporal import Views
from adamae_jax.errors import UserError
from adamae_jax.initial import Initial
from adamae_jax.run_data import RunData, open_validation
from adamae_jax.task import Task, Variables
from adamae_jax.training import files, rundir, trainer
from adamae_jax.training.checkpoints import checkpoint_steps
from adamae_jax.training.files import AnyPath
from adamae_jax.training.partitioning import check_batch, create_mesh

# Places may have other names on another host.
LOCAL = {"data.dir", "compilation_cache_dir"}
LEFT = (rundir.MODEL, rundir.BEST, rundir.PICTURES, rundir.METRICS)


def define_flags() -> None:
    """Defines the options of a training job; importing the module does not."""
    cli.define_config()
    distributed.define_flags()
    flags.DEFINE_string(
        "workdir",
        None,
        "Where checkpoints, metrics and pictures go: a directory, or gs://BUCKET/DIRECTORY.",
        required=True,
    )


def main(train: Callable[[ConfigDict, AnyPath, Mapping[str, Any] | None], dict[str, Any]]) -> None:
    """Trains as the flags say, and prints the summary and where everything is.

    Args:
      train: ``(config, workdir, what the recipe says of the run's length) -> summary``.
    """
    if not flags.FLAGS.workdir:
        raise UserError("--workdir is empty: give a directory, such as --workdir=runs/mine")
    workdir = files.open_workdir(flags.FLAGS.workdir)
    with peers.ending_together(workdir):
        summary = train(flags.FLAGS.config, workdir, cli.recipe_values())
    if jax.process_index() == 0:
        print(json.dumps(summary, indent=2), flush=True)
        for name in LEFT:
            if (workdir / name).exists():
                print(f"{name}: {workdir / name}", file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class Begun:
    """A job whose config, data, devices and workdir have been found to fit together.

    Attributes:
      config: the effective config.
      workdir: of the run.
      task: what is trained.
      mesh: the devices.
      data: what is trained and evaluated on.
      steps: of the checkpoints that are there.
      complete: the summary of a run that needs no more training; None for all others.
    """

    config: ConfigDict
    workdir: AnyPath
    task: Task
    mesh: Mesh
    data: RunData
    steps: list[int]
    complete: dict[str, Any] | None

    @functools.cached_property
    def initial(self) -> Initial:
        """What the run begins with, and the licence of the weights in it.

        A run that goes on has all in its checkpoint: the sources may be others by now, or gone.
        """
        if self.steps:
            return Initial(license=licenses.of(self.workdir))
        return initial.read(self.task, self.config)

    def train(self, **hooks: Any) -> dict[str, Any]:
        """Trains to the end, unless that is done; returns what ``summary.json`` holds.

        Args:
          **hooks: what this job adds to its `trainer.Run`.
        """
        if self.complete is not None:
            return self.complete
        begun = self.initial
        if begun.report and jax.process_index() == 0:
            logging.info("%s", begun.report)
        metadata = {
            "data_fingerprint": self.data.fingerprint,
            "label_names": list(self.data.train.label_names),
            licenses.RECORD: begun.license,
        }
        optimizers = experiment.optimizers(self.config, self.task)
        run = trainer.Run(
            self.config, self.workdir, self.task, optimizers, self.mesh, self.data, metadata,
            initial=begun.variables, **hooks,
        )  # fmt: skip
        return trainer.train(run)

    def export(self, variables: Variables) -> None:
        """Writes the model directory of the run, which is complete."""
        names = self.data.train.label_names
        model, steps = self.workdir / rundir.MODEL, self.config.steps
        pretrained.save(model, variables, self.config, steps, names, self.initial.license)


def begin(
    config: ConfigDict,
    workdir: AnyPath,
    task: Task,
    train: Dataset | MixedDataset,
    recipe: Mapping[str, Any] | None = None,
    views: Views | None = None,
) -> Begun:
    """Checks all that a job needs before it compiles or writes anything.

    Args:
      config: the experiment.
      workdir: the run's directory.
      task: what is trained, made of the config.
      train: what is trained on.
      recipe: see `configs.resolve`.
      views: of each held-out video; see `RunData`.

    Raises:
      UserError: for whatever is wrong.
    """
    # Devices
    experiment.check_device(config)
    mesh = create_mesh(dict(config.mesh))
    check_batch("batch_size", config.batch_size, mesh, config.optimizer.accumulation)
    # Data
    run = rundir.config_of(workdir)
    config = configs.resolve(config, len(train), recipe, run)
    check_batch("eval.batch_size", config.eval.batch_size, mesh)
    data = RunData(config, mesh, workdir, train, open_validation(config), views)
    # Processes: all have the same before them
    agreement.check_shared(workdir)
    steps = checkpoint_steps(workdir / rundir.CHECKPOINTS)
    agreement.check(in_common(config, data, steps))
    # Workdir: a new run, one to go on with, or one that is complete
    rundir.check(workdir, config)
    if steps:
        data.check_trained_on(workdir / rundir.CHECKPOINTS, steps[-1])
        changes.check_length(str(workdir), steps[-1], config)
    complete = trainer.finished(config, workdir, steps)
    if steps and run is not None and complete is None:
        rates = (experiment.learning_rate(run), experiment.learning_rate(config))
        if said := changes.describe(run, config, steps[-1], rates):
            logging.info("%s", said)
    return Begun(config, workdir, task, mesh, data, steps, complete)


def in_common(config: ConfigDict, data: RunData, steps: Sequence[int]) -> dict[str, Any]:
    """Returns what the processes of a job must have in common, as JSON can hold it."""
    fields = configs.flatten(config)
    return {
        "the version of adamae_jax": adamae_jax.__version__,
        "the version of jax": jax.__version__,
        "the data's fingerprint": data.fingerprint,
        "the number of held-out videos": len(data.validation or ()),
        "the newest checkpoint": list(steps[-1:]),
        **{f"config.{name}": fields[name] for name in sorted(fields.keys() - LOCAL)},
    }
