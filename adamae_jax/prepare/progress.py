"""What a job says while it works and when it is done."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import tqdm

Thing = TypeVar("Thing")
_LINE_EVERY_S = 60.0
_MOST_NAMED = 30  # things that a message names


def progress(
    things: Iterable[Thing],
    done: int,
    total: int,
    unit: str = "clips",
    doing: str = "reading",
    did: str = "read",
) -> Iterator[Thing]:
    """Hands things on and tells how many, how fast and how long it will take.

    A bar on a terminal; a line a minute in a log.

    Args:
        things: that remain.
        done: before the first of them.
        total: with those done before.
        unit: what they are called.
        doing: what is done with them.
        did: what has been done with them.
    """
    if sys.stderr.isatty():
        yield from tqdm.tqdm(things, doing, total, initial=done, unit=f" {unit}", smoothing=0.02)
        return
    start = last = time.monotonic()
    for number, thing in enumerate(things, 1):
        yield thing
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S:
            last, rate = now, number / (now - start)
            left = tqdm.tqdm.format_interval((total - done - number) / rate)
            print(
                f"{done + number} of {total} {unit} {did}, {rate:.1f}/s, {left} left",
                file=sys.stderr, flush=True,
            )  # fmt: skip


def count(number: int, thing: str) -> str:
    """``1 video``, ``2 videos``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def some(things: Sequence[str], most: int = _MOST_NAMED) -> str:
    """``a; b; c``, and of more than `most` only how many more there are."""
    more = [f"and {len(things) - most} more"] if len(things) > most else []
    return "; ".join([*things[:most], *more])


def describe(counts: Mapping[str, int], thing: str) -> str:
    """``20 clips for train, 2 clips for validation``."""
    return ", ".join(f"{count(number, thing)} for {name}" for name, number in counts.items())
