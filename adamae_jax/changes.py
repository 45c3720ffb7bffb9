"""A run that goes on with another config: what may change, what is refused, and what is said."""

import dataclasses
import shlex
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from adamae_jax.config import flatten
from adamae_jax.errors import UserError
from adamae_jax.fields import FIELDS

MOST_NAMED = 10
Schedule = Callable[[Any], Any]  # from a step to a learning rate


@dataclasses.dataclass(frozen=True)
class Change:
    """A field whose value is not that of the run.

    Attributes:
      name: path of the field.
      before: the run's value; None where the run has no such field.
      now: what is asked for, likewise.
    """

    name: str
    before: Any
    now: Any

    @property
    def allowed(self) -> bool:
        """Whether a run that goes on may change it, as the table of fields says."""
        return self.name in FIELDS and FIELDS[self.name].mutable

    def __str__(self) -> str:
        return f"{self.name} (the run: {self.before!r}, asked for: {self.now!r})"


def between(run: ConfigDict, wanted: ConfigDict) -> list[Change]:
    """Returns the fields in which two effective configs differ, by name."""
    first, second = flatten(run), flatten(wanted)
    return [
        Change(name, first.get(name), second.get(name))
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]


def check_allowed(where: str, run: ConfigDict, wanted: ConfigDict) -> None:
    """Raises a `UserError` for fields that a run may not change, with what would go on with it.

    Args:
      where: the workdir.
      run: the config of the run there.
      wanted: what is asked for.
    """
    refused = [change for change in between(run, wanted) if not change.allowed]
    if not refused:
        return
    more = len(refused) - MOST_NAMED
    listed = "; ".join(map(str, refused[:MOST_NAMED])) + f"; and {more} more" * (more > 0)
    same = "the config with which it was started"
    if more <= 0 and not any(change.name.startswith("masking.") for change in refused):
        options = (
            f"--config.{change.name}={_on_command_line(change.before)}" for change in refused
        )
        same = f"the run's own: {' '.join(options)}"
    raise UserError(
        f"{where} holds another run; it differs in {listed}. Give another --workdir, or go on with "
        f"{same}"
    )


def check_length(where: str, step: int, wanted: ConfigDict) -> None:
    """Raises a `UserError` where a run is asked to end before the step that it is at."""
    if wanted.steps < step:
        raise UserError(
            f"steps is {wanted.steps}, but the run in {where} is at step {step} already: give "
            f"--config.steps={step} to end it there, or more; to go back to an earlier checkpoint, "
            "copy the run and remove the later ones from its checkpoints/"
        )


def describe(
    run: ConfigDict, wanted: ConfigDict, step: int, rates: tuple[Schedule, Schedule]
) -> str:
    """Returns what is said of the fields that a run changes; "" where it changes none.

    Args:
      run: its config so far.
      wanted: what it goes on with.
      step: at which it goes on.
      rates: the learning rate by step, so far and from now on.
    """
    changed = [
        f"{change.name} {change.before!r} -> {change.now!r}" for change in between(run, wanted)
    ]
    if not changed:
        return ""
    said = f"the run goes on with other values: {', '.join(changed)}"
    if run.steps != wanted.steps and step < wanted.steps:
        before, now = (float(rate(jnp.asarray(step))) for rate in rates)
        last = float(rates[1](jnp.asarray(wanted.steps - 1)))
        said += (
            f"; from step {step} on, the learning rate follows the schedule of {wanted.steps} "
            f"steps, not of {run.steps}: it is {now:.4g} there instead of {before:.4g}, and comes "
            f"down to {last:.4g} at step {wanted.steps}"
        )
    return said


def _on_command_line(value: Any) -> str:
    return shlex.quote(value if isinstance(value, str) else repr(value))
