"""The figures of a comparison: the file that keeps them, and the tables and plot made from it.

The file is a JSON list with one record a line: which cell it is (method, seed, stage), what all
cells of its table have in common (data, steps of each stage), figures, and what they were found
with. Tables stand in a page between two markers, and nobody writes there by hand.
"""

import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

BEGIN = "<!-- made by launch/compare.sh from {} -->"
END = "<!-- end of what launch/compare.sh has made -->"

Record = Mapping[str, Any]
Values = list[float]


class PageError(Exception):
    """A page that cannot be written, in one line."""


class Column(NamedTuple):
    """One column of a table.

    Attributes:
        title: above it.
        stage: whose figure it is.
        name: of the figure.
        form: of a number, such as ".1f".
        scale: that a figure is multiplied with.
    """

    title: str
    stage: str
    name: str
    form: str = ".1f"
    scale: float = 1.0


ACCURACIES = (
    Column("fine-tuning, top-1 %", "finetune", "top1", scale=100),
    Column("attentive probe, %", "probe", "attentive", scale=100),
    Column("linear probe, %", "probe", "linear", scale=100),
    Column("probe of changes, %", "probe", "change", scale=100),
    Column("kNN, %", "probe", "knn", scale=100),
)
AFTER = (*ACCURACIES, Column("steps to 50%", "finetune", "half", ".0f"))
BEFORE = (
    Column("loss", "pretrain", "loss", ".3f"),
    Column("held-out loss", "pretrain", "held_out_loss", ".3f"),
    Column("foreground lift", "pretrain", "lift", ".2f"),
    Column("steps", "pretrain", "steps", ".0f"),
    Column("GFLOP a step", "pretrain", "gflop", ".2f"),
    Column("ms a step", "pretrain", "step_ms", ".0f"),
    Column("memory, MiB", "pretrain", "memory_mib", ".0f"),
)


# --- the file ---


def key(record: Record) -> tuple[str, ...]:
    """What only one record of a file has: the cell, the data and the steps."""
    names = ("method", "seed", "stage", "data", "steps", "budget")
    return tuple(json.dumps(record[name], sort_keys=True) for name in names)


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the records; none where there is no file.

    Raises:
        PageError: where it holds something else.
    """
    if not path.exists():
        return []
    try:
        records = json.loads(path.read_text())
        for record in records:
            key(record)
    except (ValueError, KeyError, TypeError) as error:
        raise PageError(f"{path} is no file of records ({error}): put it right, or away") from error
    return list(records)


def add(path: Path, record: Record) -> None:
    """Keeps a record, in the place of one of the same key."""
    records = [*(known for known in read(path) if key(known) != key(record)), record]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that a kill leaves either the old or the new one."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    os.replace(beside, path)


# --- tables ---


def settings(records: Sequence[Record]) -> list[list[Record]]:
    """Groups records by data, steps and budget, in the order of the file."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        names = [record["data"], record["steps"], record["budget"]]
        groups.setdefault(json.dumps(names), []).append(record)
    return list(groups.values())


def methods(records: Iterable[Record]) -> list[str]:
    """The methods of records, in their order."""
    return list(dict.fromkeys(record["method"] for record in records))


def values(records: Iterable[Record], method: str, column: Column) -> Values:
    """A method's figures in a column, one for each seed that has it."""
    found = [
        record["figures"].get(column.name)
        for record in records
        if record["method"] == method and record["stage"] == column.stage
    ]
    return [column.scale * value for value in found if value is not None]


def cell(found: Values, form: str) -> str:
    """Mean, spread over seeds (the sample's standard deviation) and number of seeds."""
    if not found:
        return ""
    mean = f"{statistics.mean(found):{form}}"
    if len(found) == 1:
        return f"{mean} (1)"
    return f"{mean} ± {statistics.stdev(found):{form}} ({len(found)})"


def table(records: Sequence[Record], rows: Iterable[str], columns: Sequence[Column]) -> list[str]:
    """The lines of a table: a row for each method."""
    lines = ["| begins with | " + " | ".join(column.title for column in columns) + " |"]
    lines.append("| --- " * (len(columns) + 1) + "|")
    for method in rows:
        cells = [cell(values(records, method, column), column.form) for column in columns]
        if any(cells):
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def tables(records: Sequence[Record], plot: str) -> str:
    """Everything between the markers, in Markdown.

    Args:
        records: of the file.
        plot: the picture's path as seen from the page.
    """
    lines = [
        "Mean ± standard deviation over seeds (number of seeds). `none` begins from scratch; its",
        "probes see an encoder that is not trained. A loss is that of a method's own masks, which",
        "may be harder or easier than another's. Steps to 50%: of fine-tuning, until the first of",
        "its evaluations that passes this; of the seeds that do.",
    ]
    for group in settings(records):
        lines += ["", f"### {group[0]['data']}: " + heading(group[0]), ""]
        after = table(group, methods(group), AFTER)
        lines += after if len(after) > 2 else ["Nothing has been fine-tuned or probed yet."]
        if (chance := chance_of(group)) is not None:
            lines += ["", f"Chance: {chance:.1f}%."]
        trained = [record for record in group if record["method"] != "none"]
        pretrained = table(trained, methods(trained), BEFORE)
        if len(pretrained) > 2:
            lines += ["", "The pretraining:", "", *pretrained]
        lines += ["", *origin(group)]
    lines += ["", f"![Accuracy after each way to begin]({plot})"]
    return "\n".join(lines)


def chance_of(records: Iterable[Record]) -> float | None:
    """The accuracy of guessing, in percent; None where no record tells it."""
    found = (record["figures"].get("chance") for record in records)
    return next((100 * value for value in found if value is not None), None)


def heading(record: Record) -> str:
    """The steps of each stage, in words."""
    steps = record["steps"]
    equal = " with random masks, and as many FLOPs with others" * (record["budget"] == "flops")
    return (
        f"{steps['pretrain']:,} steps of pretraining{equal}, {steps['finetune']:,} of fine-tuning, "
        f"{steps['probe']:,} of probing"
    )


def origin(records: Sequence[Record]) -> list[str]:
    """What the figures of a table were found with."""
    said = {
        "device": dict.fromkeys(record["device"] for record in records),
        "jax": dict.fromkeys(record["versions"]["jax"] for record in records),
        "commit": dict.fromkeys(record["commit"] for record in records),
        "date": dict.fromkeys(record["date"] for record in records),
    }
    hours = sum(record["seconds"] for record in records) / 3600
    parts = [f"{name} {', '.join(found)}" for name, found in said.items()]
    return [f"{'; '.join(parts)}; {hours:.1f} hours of training in all."]


# --- the page ---


def write(results: Path, page: Path, plot: Path) -> None:
    """Makes the page's tables and the plot from the file of figures.

    Raises:
        PageError: where the page has no markers, or there are no figures.
    """
    records = read(results)
    if not records:
        raise PageError(f"{results} has no figures yet: run launch/compare.sh first")
    text = page.read_text() if page.exists() else f"# Results\n\n{begin(page, results)}\n{END}\n"
    picture = os.path.relpath(plot, page.parent)
    write_whole(page, between_markers(text, tables(records, picture), begin(page, results), page))
    plot.parent.mkdir(parents=True, exist_ok=True)
    draw(records).save(plot)


def begin(page: Path, results: Path) -> str:
    """The first marker, which says where figures come from."""
    return BEGIN.format(os.path.relpath(results, page.parent))


def between_markers(text: str, made: str, first: str, page: Path, last: str = END) -> str:
    """Returns the page's text with what is made in the place of what was.

    Raises:
        PageError: where a marker is missing, or there are several.
    """
    if text.count(first) != 1 or text.count(last) != 1 or text.index(first) > text.index(last):
        raise PageError(f"{page} must have one line {first!r} and, below it, one {last!r}")
    above, _, rest = text.partition(first)
    return f"{above}{first}\n\n{made}\n\n{last}{rest.partition(last)[2]}"


# --- the plot ---

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 1000, 340, 60, 56, 34
PAPER, INK, LINES = (255, 255, 255), (30, 30, 30), (215, 215, 215)
FILLS = (
    (150, 150, 150),
    (222, 86, 60),
    (56, 108, 176),
    (250, 164, 42),
    (77, 146, 33),
    (158, 42, 99),
    (100, 200, 200),
)


def draw(records: Sequence[Record]) -> Image.Image:
    """Draws accuracies: a panel for each table, a bar for each method, a dot for each seed."""
    groups = settings(records)
    picture = Image.new("RGB", (WIDTH, HEIGHT * len(groups)), PAPER)
    for number, group in enumerate(groups):
        draw_panel(ImageDraw.Draw(picture), group, methods(records), number * HEIGHT)
    return picture


def draw_panel(
    pen: ImageDraw.ImageDraw, records: Sequence[Record], names: Sequence[str], top: int
) -> None:
    """Draws one panel.

    Args:
        pen: of the picture.
        records: of one table.
        names: of all methods of the picture, each with its own colour.
        top: of the panel, in pixels.
    """
    font = ImageFont.load_default(13)
    base, span = top + HEIGHT - BOTTOM, HEIGHT - TOP - BOTTOM

    def height(percent: float) -> float:
        return base - span * percent / 100

    title = f"{records[0]['data']}: {heading(records[0])}; top-1 in %"
    pen.text((LEFT, top + 8), title, fill=INK, font=font)
    for percent in range(0, 101, 20):
        pen.line([(LEFT, height(percent)), (WIDTH - 10, height(percent))], fill=LINES)
        pen.text((LEFT - 8, height(percent)), str(percent), fill=INK, font=font, anchor="rm")
    room = (WIDTH - LEFT - 10) / len(ACCURACIES)
    shown = [name for name in names if name in methods(records)]
    wide = 0.8 * room / max(1, len(shown))
    for place, column in enumerate(ACCURACIES):
        left = LEFT + place * room + 0.1 * room
        centre = left + 0.4 * room
        pen.text((centre, base + 8), column.title.split(",")[0], fill=INK, font=font, anchor="ma")
        for number, name in enumerate(shown):
            found = values(records, name, column)
            if not found:
                continue
            x = left + number * wide
            corners = [(x, height(statistics.mean(found))), (x + wide - 4, base)]
            pen.rectangle(corners, fill=FILLS[names.index(name) % len(FILLS)])
            for value in found:
                middle = x + wide / 2 - 2
                pen.circle((middle, height(value)), 3, fill=PAPER, outline=INK)
    if (chance := chance_of(records)) is not None:
        pen.line([(LEFT, height(chance)), (WIDTH - 10, height(chance))], fill=INK)
        pen.text((WIDTH - 10, height(chance) - 2), "chance", fill=INK, font=font, anchor="rd")
    draw_names(pen, shown, names, top + 30, font)


def draw_names(
    pen: ImageDraw.ImageDraw,
    shown: Sequence[str],
    names: Sequence[str],
    top: int,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    """Draws what each colour stands for, in one line."""
    x = float(LEFT)
    for name in shown:
        pen.rectangle([(x, top), (x + 12, top + 12)], fill=FILLS[names.index(name) % len(FILLS)])
        pen.text((x + 18, top - 2), name, fill=INK, font=font)
        x += 36 + pen.textlength(name, font=font)
