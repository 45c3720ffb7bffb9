"""SIGTERM: a scheduler takes the machine away, and gives some seconds before it does."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from absl import logging


class Notice:
    """Listens for SIGTERM while a ``with`` block runs; the block looks, and ends when it suits.

    Only in a job of one process, and in its main thread: several would have to agree on a step.

    Attributes:
      given: whether the signal has come.
    """

    def __init__(self) -> None:
        self.given = False
        self._before: Any = None

    def __enter__(self) -> "Notice":
        """Begins to listen."""
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
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

    def _notice(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.given = True
        logging.warning("SIGTERM: the run ends after this step, with its state saved")
