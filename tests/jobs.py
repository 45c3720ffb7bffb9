"""Jobs as ``python -m`` starts them, but in this process, which has imported and compiled already.

What only a process of its own shows (signals, several processes, what Python does at its end) is
tested with `tests.runs` and `tests.processes`.
"""

import contextlib
import io
import logging
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import mock

import grain  # noqa: F401  # it defines flags when it is imported, which would go with a job's
import jax
from absl import app
from absl.testing import flagsaver

from adamae_jax.cli import USER_ERROR_STATUS

app.define_help_flags()  # absl does so once, and what a job defines goes with it
OPTIONS = (
    *("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"),
    *("jax_enable_compilation_cache", "jax_cpu_collectives_implementation"),
)


@dataclass(frozen=True)
class Ended:
    """What a job has left: its exit status, and what it has printed."""

    status: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """The one line of a user's mistake."""
        assert self.status == USER_ERROR_STATUS, self
        (line,) = self.err.splitlines()
        assert line.startswith("error: ") and not self.out, self
        return line.removeprefix("error: ")


def run(name: str, *arguments: str) -> Ended:
    """Runs ``python -m NAME ARGUMENTS``."""

    def start() -> None:
        with warnings.catch_warnings():
            # A test has imported it.
            warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
            runpy.run_module(name, run_name="__main__", alter_sys=True)

    return ended(start, *arguments)


def ended(start: Callable[[], None], *arguments: str) -> Ended:
    """Calls what defines a job's flags and runs it, with these words on the command line."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        _as_it_was(),
        mock.patch.object(sys, "argv", ["job", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            start()
        except SystemExit as end:
            status = int(end.code or 0)
    return Ended(status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _as_it_was() -> Iterator[None]:
    """Puts back what a job changes in its whole process."""
    options = {name: getattr(jax.config, name) for name in OPTIONS}
    handlers, level = logging.root.handlers[:], logging.root.level
    with flagsaver.flagsaver(), mock.patch.object(sys, "path", sys.path[:]):
        try:
            yield
        finally:
            for name, value in options.items():
                jax.config.update(name, value)
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
