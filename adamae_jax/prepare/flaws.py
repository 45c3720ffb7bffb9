"""The table of what is not, or not wholly, in a dataset: ``skipped.csv``."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from adamae_jax.prepare.transform import Flaw


def write_flaws(flaws: Sequence[Flaw], path: Path) -> None:
    """Writes a CSV table of flaws, sorted by id, with a line of column names."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([field.name for field in dataclasses.fields(Flaw)])
        table.writerows(dataclasses.astuple(flaw) for flaw in sorted(flaws, key=lambda f: f.id))
