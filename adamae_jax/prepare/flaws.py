"""What becomes of an item: a record, a flaw, or both; and the table of flaws, ``skipped.csv``."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SKIPPED, TRUNCATED = "skipped", "truncated"
SKIPPED_NAME = "skipped.csv"


@dataclasses.dataclass(frozen=True)
class Flaw:
    """An item that is not, or not wholly, in the dataset: one line of ``skipped.csv``.

    Attributes:
        id: of the item.
        status: "skipped" (left out) or "truncated" (kept up to its damage).
        frames: how many could be read.
        reason: what is wrong.
    """

    id: str
    status: str
    frames: int
    reason: str


class Result(NamedTuple):
    """A serialised ``tf.train.Example``, or none, and what was wrong."""

    payload: bytes | None
    flaw: Flaw | None


def write_flaws(flaws: Sequence[Flaw], path: Path) -> None:
    """Writes a CSV table of flaws, sorted by id, with a line of column names."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([field.name for field in dataclasses.fields(Flaw)])
        table.writerows(dataclasses.astuple(flaw) for flaw in sorted(flaws, key=lambda f: f.id))
