"""What is shown of a run, on a terminal and in a file."""

import io

import jax
import pytest
from absl import logging

from adamae_jax.training.progress import Progress


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        """Always."""
        return True


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        """The time in seconds."""
        return self.now


def run(
    stream: io.StringIO, steps: int, seconds: float, *, start: int = 0, **options: float
) -> None:
    """A run whose first step takes 50 s (compilation) and the others ``seconds``."""
    clock = Clock()
    with Progress(
        steps, clips_per_step=8, start_step=start, stream=stream, clock=clock, **options
    ) as progress:
        clock.now += 50
        for step in range(start + 1, steps + 1):
            progress.update(step, 1 / step if step % 2 else None)
            clock.now += seconds


class TestLines:
    """Not a terminal."""

    def test_first_last_and_one_each_interval(self) -> None:
        """Rate without compilation; the loss last known; nothing left at the end."""
        stream = io.StringIO()
        run(stream, 100, 0.5, every_seconds=20.0)
        assert stream.getvalue().splitlines() == [
            "step 1/100, loss 1.0000",
            "step 41/100, loss 0.0244, 16.0 clips/s, 0:30 left",
            "step 81/100, loss 0.0123, 16.0 clips/s, 0:10 left",
            "step 100/100, loss 0.0101, 16.0 clips/s",
        ]

    def test_rate_is_that_of_the_last_minute(self) -> None:
        """A slow start is forgotten."""
        stream, clock = io.StringIO(), Clock()
        progress = Progress(10_000, clips_per_step=1, stream=stream, clock=clock)
        for step in range(1, 2001):
            clock.now += 10.0 if step < 10 else 0.1
            progress.update(step)
        progress.close()
        assert stream.getvalue().splitlines()[-1] == "step 2000/10000, 10.0 clips/s, 13:20 left"

    def test_stopped_before_the_end(self) -> None:
        """The last update is shown when the run is closed, once."""
        stream, clock = io.StringIO(), Clock()
        progress = Progress(1_000_000, clips_per_step=1, stream=stream, clock=clock)
        for step in (11, 12, 13):
            clock.now += 1
            progress.update(step, 0.5)
        progress.close()
        progress.close()
        assert stream.getvalue().splitlines() == [
            "step 11/1000000, loss 0.5000",
            "step 13/1000000, loss 0.5000, 1.0 clips/s, 11d 13:46:27 left",
        ]

    def test_messages_are_lines_of_their_own(self) -> None:
        """As they are."""
        stream = io.StringIO()
        Progress(10, clips_per_step=1, stream=stream).message("validation: 0.5")
        assert stream.getvalue() == "validation: 0.5\n"

    def test_nothing_done_nothing_shown(self) -> None:
        """A finished run that is started again."""
        stream = io.StringIO()
        run(stream, 10, 1.0, start=10)
        assert stream.getvalue() == ""


class TestBar:
    """A terminal."""

    def test_shows_all_and_ends_complete(self) -> None:
        """One line, redrawn; it starts where the resumed run starts."""
        stream = Terminal()
        run(stream, 200, 0.5, start=100)
        frames = stream.getvalue().split("\r")
        assert " 50%|" in frames[1] and "100/200" in frames[1]
        assert "100%|" in frames[-1]
        assert frames[-1].rstrip().endswith("200/200, loss 0.0050, 16.0 clips/s")
        assert stream.getvalue().count("\n") == 1

    def test_messages_stand_above_the_bar(self) -> None:
        """On a line of their own."""
        stream = Terminal()
        with Progress(10, clips_per_step=1, stream=stream) as progress:
            progress.update(1, 0.5)
            progress.message("validation: 0.5")
        assert any(
            part.strip("\r") == "validation: 0.5" for part in stream.getvalue().split("\n")
        ) or ("\rvalidation: 0.5\n" in stream.getvalue())

    def test_what_is_logged_stands_above_the_bar(self) -> None:
        """Not behind it on its line; when the bar is gone the log is as before."""
        handler = logging.get_absl_handler().python_handler
        stream, log = Terminal(), io.StringIO()
        before = handler.setStream(log)
        try:
            with Progress(10, clips_per_step=1, stream=stream) as progress:
                progress.update(1, 0.5)
                handler.stream.write("in between\n")
            assert handler.stream is log
        finally:
            handler.setStream(before)
        (line,) = [line for line in stream.getvalue().split("\n") if "in between" in line]
        assert line.rpartition("\r")[2].endswith("in between") and "%" not in line.split("\r")[-1]
        assert not log.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_other_processes_show_nothing(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process speaks for all."""
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    run(stream, 10, 1.0)
    assert stream.getvalue() == ""
