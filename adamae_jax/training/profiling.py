"""A trace of some steps, which xprof and TensorBoard's profile plugin open."""

from pathlib import Path
from typing import Any

import jax
from absl import logging

from adamae_jax.errors import UserError


class Trace:
    """Records the steps that a config names, in process 0; use it in a ``with`` block."""

    def __init__(self, directory: Path, first: int, last: int) -> None:
        """Args:
        directory: where ``plugins/profile/...`` is written.
        first: the first step that is recorded; 0 for none.
        last: the last one.

        Raises:
          UserError: where the last one comes before the first.
        """
        if last < first:
            raise UserError(
                f"profile.steps is ({first}, {last}): give the first step of a trace and its last "
                "one, such as (10, 13)"
            )
        self._directory, self._first, self._last = directory, first, last
        self._wanted = first > 0 and jax.process_index() == 0
        self._is_on = False

    def __enter__(self) -> "Trace":
        """Returns itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends a trace that is going on, as where the run ends in the midst of it."""
        self._stop()

    def before(self, step: int, pending: Any) -> None:
        """Begins the trace where a step is its first, once ``pending`` arrays are there."""
        if self._wanted and step == self._first:
            jax.block_until_ready(pending)
            jax.profiler.start_trace(str(self._directory))
            self._is_on = True

    def after(self, step: int, results: Any) -> None:
        """Ends it behind the last one, once its results are there."""
        if self._is_on and step >= self._last:
            jax.block_until_ready(results)
            self._stop()

    def _stop(self) -> None:
        if self._is_on:
            self._is_on = False
            jax.profiler.stop_trace()
            logging.info("the trace of the profiler is in %s", self._directory)
