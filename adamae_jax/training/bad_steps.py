"""Updates that are skipped since loss or gradient is not finite, and when there are too many."""

import json
from collections.abc import Mapping

import numpy as np
from absl import logging

from adamae_jax.errors import UserError
from adamae_jax.training import files
from adamae_jax.training.files import AnyPath

SHOWN = 16  # example ids in a message


class BadSteps:
    """Follows the state's counter of skipped updates, step by step.

    Attributes:
      streak: updates skipped one after the other, up to the last step seen; 0 after a good one.
    """

    def __init__(self, most: int, skipped: int) -> None:
        """Args:
        most: skipped updates in a row that end a run.
        skipped: the counter before the first step.
        """
        self.streak = 0
        self._most, self._skipped, self._seen = most, skipped, 0
        self._examples: dict[int, list[int]] = {}

    def expect(self, step: int, batch: Mapping[str, np.ndarray]) -> None:
        """Remembers what a step that is about to be made is made of."""
        if not self._seen:
            self._seen = step - 1
        self._examples[step] = batch["example_index"].tolist()

    def see(self, step: int, skipped: int) -> None:
        """Takes the counter after a step; a step that was seen before is passed over."""
        if step <= self._seen:
            return
        self._seen = step
        self.streak = self.streak + 1 if skipped > self._skipped else 0
        self._skipped = skipped
        # What earlier steps were made of matters only while they are part of a streak.
        first = step - self.streak + 1
        self._examples = {s: e for s, e in self._examples.items() if s >= first}

    @property
    def too_many(self) -> bool:
        """Whether the run should end."""
        return self.streak >= self._most

    def write(self, path: AnyPath) -> None:
        """Writes which of this process's examples the skipped updates were made of.

        A line of JSON for each of them: ``{"step": 18, "examples": [5, 3]}``. Where the disk is
        full, the message of `error` has the last ones.
        """
        lines = (
            json.dumps({"step": step, "examples": examples}) + "\n"
            for step, examples in sorted(self._examples.items())
            if step <= self._seen
        )
        try:
            files.write(path, "".join(lines).encode())
        except OSError as error:
            logging.warning("%s cannot be written: %s", path, error)

    def error(self, saved: int, listed: AnyPath) -> UserError:
        """What is said then.

        Args:
          saved: the step before the streak, whose state is saved.
          listed: where `write` has written.
        """
        last = self._examples[self._seen]
        more = f" and {len(last) - SHOWN} more" if len(last) > SHOWN else ""
        return UserError(
            f"the last {self.streak} updates (steps {self._seen - self.streak + 1} to "
            f"{self._seen}) were not finite and were skipped (max_bad_steps is {self._most}): the "
            f"state before them is saved as step {saved}. The usual remedy is a lower "
            "optimizer.learning_rate or a longer warm-up in a new --workdir; if it is the data, "
            "the last update was made of this process's examples "
            f"{', '.join(map(str, last[:SHOWN]))}{more}; {listed} has those of all of them"
        )
