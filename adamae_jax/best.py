"""The model that did best in a validation, kept beside the one at the end of a run."""

import dataclasses
import json
from collections.abc import Mapping

import jax
from absl import logging
from ml_collections import ConfigDict

from adamae_jax import pretrained
from adamae_jax.task import Variables
from adamae_jax.training import files, partitioning
from adamae_jax.training.files import AnyPath

BEST_JSON = "best.json"


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
