"""What a person sees of a run: a progress bar on a terminal, plain lines in a file.

The bar is tqdm's; clips per second and time left are measured here, over the last minute and
without the first step, in which everything is compiled. (clu's ``ReportProgress`` knows neither
loss nor clips, prints nothing itself, and imports TensorFlow.)
"""

import io
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
from absl import logging
from tqdm import tqdm

_WINDOW_SECONDS = 60.0
_BAR_FORMAT = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"


class Progress:
    """Shows how far a run is; process 0 only, the others show nothing.

    On a terminal, one line that changes: ``42%|####   | 420/1000, loss 0.6931, 98.3 clips/s,
    1:23 left``. Otherwise a line ``step 420/1000, loss 0.6931, 98.3 clips/s, 1:23 left`` for the
    first and the last update and for one of the others each ``every_seconds``.
    """

    def __init__(
        self,
        steps: int,
        *,
        clips_per_step: int,
        start_step: int = 0,
        every_seconds: float = 30.0,
        stream: io.TextIOBase | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        steps: Where the run ends.
        clips_per_step: Clips in one step, over all processes.
        start_step: Steps done before, by the run that is resumed.
        every_seconds: The least time between two plain lines.
        stream: Where to show it; standard error by default.
        clock: Gives the time in seconds; for tests.
        """
        self._stream: Any = sys.stderr if stream is None else stream
        self._shown = jax.process_index() == 0
        self._steps = steps
        self._clips_per_step = clips_per_step
        self._every_seconds = every_seconds
        self._clock = clock
        self._loss: float | None = None
        self._history: deque[tuple[float, int]] = deque()
        self._last_line: float | None = None
        self._unshown_step: int | None = None
        self._bar: tqdm | None = None
        self._log_stream: Any = None
        if self._shown and self._stream.isatty():
            self._bar = tqdm(
                total=steps,
                initial=start_step,
                file=self._stream,
                bar_format=_BAR_FORMAT,
                dynamic_ncols=True,
            )
            # What is logged meanwhile stands above the bar, not behind it on the same line.
            handler = logging.get_absl_handler().python_handler
            self._log_stream = handler.setStream(_AboveBar(self._bar, self._stream))

    def __enter__(self) -> "Progress":
        """Returns itself; leaving the ``with`` block closes it."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes; see `close`."""
        self.close()

    def update(self, step: int, loss: float | None = None) -> None:
        """Says that ``step`` is done.

        Args:
          step: Steps done since the beginning of the run; may skip some.
          loss: Of this step, where it is known; until the next one it stays on display.
        """
        now = self._clock()
        self._history.append((now, step))
        while now - self._history[0][0] > _WINDOW_SECONDS and len(self._history) > 2:
            self._history.popleft()
        self._loss = self._loss if loss is None else loss
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(self._figures(step)), refresh=False)
            self._bar.update(step - self._bar.n)
            return
        due = self._last_line is None or now - self._last_line >= self._every_seconds
        self._unshown_step = step
        if due or step >= self._steps:
            self._print_line(now)

    def message(self, text: str) -> None:
        """Prints a line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif self._shown:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Shows the last update, if it has not been shown. May be called twice."""
        if self._bar is not None:
            self._bar.close()
            if self._log_stream is not None:
                logging.get_absl_handler().python_handler.setStream(self._log_stream)
                self._log_stream = None
        elif self._unshown_step is not None:
            self._print_line(self._clock())

    def _print_line(self, now: float) -> None:
        step, self._unshown_step, self._last_line = self._unshown_step, None, now
        if step is not None:
            self.message(", ".join([f"step {step}/{self._steps}", *self._figures(step)]))

    def _figures(self, step: int) -> list[str]:
        figures = [] if self._loss is None else [f"loss {self._loss:.4f}"]
        (first_time, first_step), (last_time, last_step) = self._history[0], self._history[-1]
        if last_step > first_step and last_time > first_time:
            steps_per_second = (last_step - first_step) / (last_time - first_time)
            figures.append(f"{steps_per_second * self._clips_per_step:.1f} clips/s")
            if step < self._steps:
                figures.append(f"{_readable((self._steps - step) / steps_per_second)} left")
        return figures


class _AboveBar(io.TextIOBase):
    """A stream for lines that stand above a bar."""

    def __init__(self, bar: tqdm, stream: Any) -> None:
        self._bar, self._stream = bar, stream

    def write(self, text: str) -> int:
        self._bar.write(text, file=self._stream, end="")
        return len(text)


def _readable(seconds: float) -> str:
    """``1:23`` (minutes and seconds), ``1:02:03`` or ``2d 01:02:03``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02}:{minutes:02}:{seconds:02}"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
