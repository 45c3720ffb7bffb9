"""Compiles the shipped recipes for the chips they are meant for: python -m launch.pods

Each row of `ROWS` is compiled by `python -m adamae_jax.compile`, in a process of its own, and what
it needs is kept in docs/pods.json, of which docs/pods.md is made. Rows that are kept already are
not compiled again, unless --again says so. It needs libtpu, but no TPU.
"""

import argparse
import datetime
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from launch import comparison, provenance

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "docs/pods.json", ROOT / "docs/pods.md"
BEGIN = "<!-- made by python -m launch.pods from pods.json -->"
END = "<!-- end of what launch.pods has made -->"
DOES_NOT_FIT_STATUS = 3
# How much more than was kept a recipe may need before the check says so: compilers differ.
ROOM = 1.05
# Of a plan, as `adamae_jax.compile` prints it.
KEPT = (
    *("chips", "batch_size", "clips_at_once", "parameters", "memory", "memory_total"),
    *("memory_limit", "fits", "traffic", "model_flops", "program_flops", "kernels"),
    *("seconds", "step_seconds", "clips_per_second", "utilization", "verdict", "versions"),
)
REMAT = "--config.model.remat=elementwise"


class Row(NamedTuple):
    """A recipe as it would be run on a slice."""

    config: str
    topology: str
    options: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """The arguments of the command."""
        return [f"--config=configs/{self.config}", f"--topology={self.topology}", *self.options]


def accumulated(count: int) -> str:
    """The option that has a batch computed in parts."""
    return f"--config.optimizer.accumulation={count}"


# Accumulation and remat are what the recipe's own batch needs there.
ROWS = (
    Row("adamae_k400.py:B", "v5e:4x4", (accumulated(4), REMAT)),
    Row("videomae_k400.py:B", "v5e:4x4", (accumulated(4), REMAT)),
)


class PodError(Exception):
    """Something that the user has to know of, in one line."""


def compiled(row: Row) -> dict[str, Any]:
    """Compiles a recipe, and returns what is kept of it.

    Raises:
        PodError: where it does not compile; that it does not fit is no such case.
    """
    command = [sys.executable, "-m", "adamae_jax.compile", *row.words, "--json"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode not in (0, DOES_NOT_FIT_STATUS):
        said = [line for line in found.stderr.splitlines() if line.strip()] or ["nothing"]
        raise PodError(f"{shlex.join(row.words)}: status {found.returncode}: {said[-1]}")
    return {**kept(row, json.loads(found.stdout.splitlines()[-1])), **origin()}


def kept(row: Row, plan: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a plan."""
    sent: dict[str, int] = {}
    for one in plan["collectives"]:
        sent[one["kind"]] = sent.get(one["kind"], 0) + round(one["sent"])
    return {**row._asdict(), **{name: plan[name] for name in KEPT}, "sent": sent}


def origin() -> dict[str, Any]:
    """What a row was compiled with."""
    return {
        "commit": provenance.commit(ROOT),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def read(path: Path = RESULTS) -> list[dict[str, Any]]:
    """Returns the rows that are kept."""
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return rows


def same(row: Row, known: Mapping[str, Any]) -> bool:
    """Whether what is kept is of this row."""
    return row == Row(known["config"], known["topology"], tuple(known["options"]))


def exceeded(row: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Says what a recipe needs more of than was kept, beyond `ROOM`."""
    found = []
    if row["fits"] and not now["fits"]:
        return [f"{row['config']} on {row['topology']} does not fit any more"]
    pairs = {"memory_total": (row["memory_total"], now["memory_total"])}
    kinds = {*row["sent"], *now["sent"]}
    pairs |= {kind: (row["sent"].get(kind, 0), now["sent"].get(kind, 0)) for kind in sorted(kinds)}
    for name, (before, after) in pairs.items():
        if before is not None and after is not None and after > ROOM * before:
            what = f"{row['config']} on {row['topology']}: {name}"
            found.append(f"{what} {before:,} -> {after:,} bytes")
    return found


# --- the page ---


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What stands between the markers."""
    lines = [
        "| recipe | on | clips: batch, at once | bytes a chip, of | sent a step | a step, at least "
        "| clips a second, at most | MFU, at most |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        options = " ".join(f"`{word.removeprefix('--config.')}`" for word in row["options"])
        recipe = f"`{row['config']}`" + (f", {options}" if options else "")
        place = f"{row['topology']}, {row['chips']} chips"
        clips = f"{row['batch_size']:,}, {row['clips_at_once']}"
        limit = f"{row['memory_limit'] / 1e9:.1f} GB"
        if not row["fits"]:
            lines.append(f"| {recipe} | {place} | {clips} | does not fit {limit} | | | | |")
            continue
        sent = f"{sum(row['sent'].values()) / 1e9:.2f} GB"
        memory = f"{row['memory_total'] / 1e9:.1f} GB, {limit}"
        lines.append(
            f"| {recipe} | {place} | {clips} | {memory} | {sent} "
            f"| {1000 * row['step_seconds']:,.0f} ms | {row['clips_per_second']:,.0f} "
            f"| {100 * row['utilization']:.0f}% |"
        )
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in row["versions"].items()) for row in rows
    )
    dates, commits = (dict.fromkeys(row[name] for row in rows) for name in ("date", "commit"))
    lines += ["", f"{'; '.join(versions)}; commit {', '.join(commits)}; {', '.join(dates)}."]
    return "\n".join(lines)


def write(rows: Sequence[Mapping[str, Any]], results: Path = RESULTS, page: Path = PAGE) -> None:
    """Writes the file and the page's table."""
    comparison.write_whole(results, "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    comparison.write_whole(page, written(page.read_text(), rows))


def written(text: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the page's text with the rows' table."""
    return comparison.between_markers(text, table(rows), BEGIN, PAGE, END)


def main(arguments: Sequence[str]) -> None:
    """Compiles what is not kept yet."""
    parser = argparse.ArgumentParser(prog="python -m launch.pods", description=__doc__)
    parser.add_argument("--again", action="store_true", help="compile all rows again")
    parser.add_argument("--page_only", action="store_true", help="compile nothing")
    options = parser.parse_args(arguments)
    rows = [one for one in read() if any(same(row, one) for row in ROWS)]
    for row in () if options.page_only else ROWS:
        known = next((one for one in rows if same(row, one)), None)
        if known and not options.again:
            continue
        found = compiled(row)
        print(f"{shlex.join(row.words)}: {found['verdict']}", flush=True)
        rows = [one for one in rows if not same(row, one)] + [found]
        rows.sort(key=lambda one: next(place for place, row in enumerate(ROWS) if same(row, one)))
        write(rows)
    write(rows)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (PodError, comparison.PageError) as error:
        sys.exit(f"error: {error}")
