"""SIGTERM: a scheduler takes the machine away, and gives some seconds before it does.

The signal comes to one process of a job, or to all at different steps, and all have to save the
same one. So each tells with every batch whether it has been told to end, and the step gives back
whether any has: it is in the step's metrics, which are the same in all processes and are read
anyway.
"""

import signal
import threading
from collections.abc import Mapping
from types import FrameType, TracebackType
from typing import Any

import jax
import numpy as np
from absl import logging

MUST_END = "must_end"  # in a batch and in a step's metrics, where there are several processes


class Notice:
    """Listens for SIGTERM while a ``with`` block runs; the block looks, and ends when it suits.

    Only in the main thread of a process.

    Attributes:
      given: whether the signal has come to this process.
    """

    def __init__(self) -> None:
        self.given = False
        self._before: Any = None

    def __enter__(self) -> "Notice":
        """Begins to listen."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Listens no more."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def added_to(self, batch: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Returns a batch that tells the other processes, where there are any."""
        if jax.process_count() == 1:
            return batch
        return {**batch, MUST_END: np.full(len(batch["slot"]), self.given)}

    def agreed(self, metrics: Mapping[str, Any] | None) -> bool:
        """Whether the run ends after the step at hand; all processes get the same answer.

        Args:
          metrics: of the step before it; None where there is none.
        """
        if jax.process_count() == 1:
            return self.given
        return metrics is not None and bool(metrics[MUST_END])

    def _notice(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.given = True
        logging.warning("SIGTERM: the run ends after this step or the next, with its state saved")
