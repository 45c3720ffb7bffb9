import csv
from pathlib import Path

from adamae_jax.prepare.flaws import write_flaws
from adamae_jax.prepare.transform import Flaw


def test_flaws_are_a_table(tmp_path: Path) -> None:
    flaws = [Flaw("ü,1", "truncated", 20, 'said "no"'), Flaw("a", "skipped", 0, "empty")]
    write_flaws(flaws, tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["id", "status", "frames", "reason"],
        ["a", "skipped", "0", "empty"],
        ["ü,1", "truncated", "20", 'said "no"'],
    ]
