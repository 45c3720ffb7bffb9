"""Files that list classes (``--labels``): names, with or without their numbers, in any order."""

import collections
import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from adamae_jax.errors import UserError
from adamae_jax.prepare.lists import read_json, read_text

# A first line of nothing but such words names the columns.
_HEADING = frozenset(
    ("category", "class", "class_id", "class_name", "classes", "id", "index", "label", "label_id",
     "label_name", "labels", "name", "number")
)  # fmt: skip


def read_classes(path: Path) -> dict[str, int]:
    """Returns classes by name and, where the file numbers them, by number.

    A text has one class a line, with its number in front or behind (``3 archery``, ``archery,3``),
    or without, when they count from 0; a heading (``name,id``) is passed over. JSON is an object
    from name to number, as Something-Something's, or a list of names. Indices follow the numbers,
    without gaps.

    Raises:
        UserError: it cannot be read or understood, or a name or number is there twice.
    """
    text = read_text(path)
    content = read_json(path, text)
    pairs = list(_classes(path, text) if content is None else _json_classes(path, content))
    names, numbers = [name for name, _ in pairs], [number for _, number in pairs]
    for kind, values in (("class", names), ("number", numbers)):
        for value, count in collections.Counter(values).most_common(1):
            if count > 1:
                raise UserError(f"{path} has the {kind} {value!r} {count} times: write it once")
    if not pairs or "" in names:
        raise UserError(f"{path} names no classes, or one without a name")
    indices = {number: index for index, number in enumerate(sorted(numbers))}
    # Names last: a class may be called by a number.
    by_number = {str(number): index for number, index in indices.items()}
    return {name: indices[number] for name, number in pairs} | {
        number: index for number, index in by_number.items() if number not in names
    }


def _json_classes(path: Path, content: object) -> Iterator[tuple[str, int]]:
    if isinstance(content, list):
        content = {str(name): number for number, name in enumerate(content)}
    if not isinstance(content, dict):
        raise UserError(f"{path} holds neither an object from class to number nor a list of names")
    for name, number in content.items():
        if not str(number).isdecimal():
            raise UserError(f"{path}: class {name!r} has the number {number!r}")
        yield str(name), int(number)


def _classes(path: Path, text: str) -> Iterator[tuple[str, int]]:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if lines and set(re.split(r"[,;\t ]+", lines[0].lower())) <= _HEADING:
        lines = lines[1:]
    readings = []
    for separator in "\t,; ":
        rows = [_parted(line, separator) for line in lines]
        for number, name in ((0, slice(1, None)), (-1, slice(None, -1))):
            if all(len(row) > 1 and row[number].isdecimal() for row in rows):
                readings.append(
                    [(separator.join(row[name]).strip("\"' "), int(row[number])) for row in rows]
                )
        if readings:
            break
    # What gives one name to several classes has taken a part of it for a number.
    readings = [pairs for pairs in readings if len({name for name, _ in pairs}) == len(pairs)]
    if len(readings) > 1 and readings[0] != readings[1]:
        raise UserError(
            f"{path} has numbers in front of and behind its classes: it begins with {lines[0]!r} "
            f"and {lines[1:2]}: write one class a line, as 'number,name'"
        )
    if readings:
        yield from readings[0]
    else:
        yield from ((line.strip('"'), number) for number, line in enumerate(lines))


def _parted(line: str, separator: str) -> Sequence[str]:
    if separator == " ":
        return line.split()
    (cells,) = csv.reader([line], delimiter=separator, skipinitialspace=True)
    return [cell.strip() for cell in cells]
