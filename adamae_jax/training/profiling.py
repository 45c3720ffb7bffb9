"""A trace of some steps, which xprof and TensorBoard's profile plugin open."""

from typing import Any

import jax
from absl import logging

from adamae_jax.errors import UserError
from adamae_jax.training import files
from adamae_jax.training.files import AnyPath


class Trace:
    """Records the steps that a config names, in process 0; use it in a ``with`` block."""

    def __init__(self, directory: AnyPath, first: int, last: int) -> None:
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
        self._written: files.GrowingDirectory | None = None
        self._wanted = first > 0 and jax.process_index() == 0

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
            self._written = files.GrowingDirectory(self._directory)
            jax.profiler.start_trace(str(self._written.local))

    def after(self, step: int, results: Any) -> None:
        """Ends it behind the last one, once its results are there."""
        if self._written is not None and step >= self._last:
            jax.block_until_ready(results)
            self._stop()

    def _stop(self) -> None:
        if self._written is None:
            return
        written, self._written = self._written, None
        jax.profiler.stop_trace()
        try:
            written.flush()
            logging.info("the trace of the profiler is in %s", self._directory)
        except OSError as error:  # no reason to end a run
            logging.warning("the trace cannot be written to %s: %s", self._directory, error)
        written.close()
