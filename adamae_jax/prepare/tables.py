"""Tables of paths and labels: what parts the columns, and which is which, follows from the content.

A first line with known names of columns decides. Otherwise each way of parting the lines is tried,
and the one is taken whose paths are there, or are called like videos. Suffixes of lists say
nothing: VideoMAE's ``train.csv`` is parted by spaces.
"""

import csv
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from adamae_jax.errors import UserError

PATH_COLUMNS = ("path", "video_path", "file_path", "filepath", "video", "video_name", "file",
                "filename", "file_name")  # fmt: skip
TOTAL_COLUMNS = ("total_frames", "num_frames", "frames")
LABEL_COLUMNS = ("label", "class", "label_name", "class_name", "label_id", "action", "category")
KINETICS_COLUMNS = ("youtube_id", "time_start", "time_end")
# Columns that make a video of a part of a folder.
_PART_COLUMNS = frozenset(("start", "end", "stop", "offset", "start_frame", "end_frame",
                           "stop_frame"))  # fmt: skip
# Columns that are known to be no labels.
_OTHER_COLUMNS = frozenset(("split", "subset", "duration", "fps", *TOTAL_COLUMNS, *_PART_COLUMNS))
_SAMPLE = 100  # lines that are looked at to understand a list
# Where a list names videos without their suffix; the first that exists is taken.
SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov")

Cells = Sequence[str]
Line = tuple[int, str]  # number and text


class Row(NamedTuple):
    """One line of a table.

    Attributes:
        line: its number in the file.
        cells: by the meaning of their columns: "path", "label", "total_frames", or the names that
            Kinetics gives them.
    """

    line: int
    cells: dict[str, str]


def read_table(
    path: Path, text: str, is_there: Callable[[str], bool], frame_folders: bool
) -> list[Row]:
    """Reads a list of videos, one a line.

    Args:
        path: of the list, for messages.
        text: its content.
        is_there: whether a video of this name is where it should be.
        frame_folders: whether videos are folders of frames.

    Raises:
        UserError: it cannot be understood.
    """
    lines = [
        (number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()
    ]
    if not lines:
        return []
    table = _Table(path, lines, is_there, frame_folders)
    rows = table.with_known_names()
    return table.without_known_names() if rows is None else rows


class _Reading(NamedTuple):
    """One way to part lines.

    Attributes:
        part: makes cells of a line.
        paths: columns in which the path may stand.
    """

    part: Callable[[str], Cells]
    paths: Sequence[int]


class _Table:
    """A list that is being understood."""

    def __init__(
        self,
        path: Path,
        lines: Sequence[Line],
        is_there: Callable[[str], bool],
        frame_folders: bool,
    ):
        self.path, self.lines = path, lines
        self.is_there, self.frame_folders = is_there, frame_folders
        self.sample = [line for _, line in lines[1 : _SAMPLE + 1] or lines]

    def with_known_names(self) -> list[Row] | None:
        """Returns the rows if the first line names the columns; else None."""
        first = self.lines[0][1]
        words = len(first.split())
        # From the right: paths have spaces more often than labels, which are mostly numbers.
        by_spaces = functools.partial(_from_right, words - 1)
        for part in (_parted_by("\t"), _parted_by(","), _parted_by(";"), by_spaces):
            if columns := self._known_columns(part(first)):
                return self._rows(self.lines[1:], part, columns)
        return None

    def without_known_names(self) -> list[Row]:
        """Returns the rows of a list whose first line is a video, or has unknown names."""
        reading, column = self._best_reading()
        cells = [reading.part(line) for _, line in self.lines]
        number = max(map(len, cells))
        numbered = all(len(row) == 3 and row[1].isdecimal() for row in cells[1:] or cells)
        if number == 3 and self.frame_folders and column == 0 and numbered:
            columns = {"path": 0, "total_frames": 1, "label": 2}
        elif number > 2:
            raise self._unclear(f"has {number} columns")
        else:
            columns = {"path": column, **({"label": 1 - column} if number == 2 else {})}
        names_columns = self._names_columns(cells, column)
        return self._rows(self.lines[names_columns:], reading.part, columns)

    def _rows(
        self, lines: Sequence[Line], part: Callable[[str], Cells], columns: dict[str, int]
    ) -> list[Row]:
        rows = []
        for number, line in lines:
            cells = part(line)
            missing = [name for name, place in columns.items() if place >= len(cells)]
            if missing and missing != ["label"]:
                raise UserError(f"{self.path}, line {number}: {line!r} has no {missing[0]}")
            known = {name: cells[place] for name, place in columns.items() if name not in missing}
            rows.append(Row(number, known))
        return rows

    def _known_columns(self, first: Cells) -> dict[str, int]:
        """Returns the places of the columns that matter, if this line names them."""
        names = [name.strip().lower() for name in first]
        columns: dict[str, int] = {}
        if any(map(_is_number, names)):
            return columns
        meanings = [("path", PATH_COLUMNS), ("label", LABEL_COLUMNS)]
        meanings += [("total_frames", TOTAL_COLUMNS)] * self.frame_folders
        for meaning, known in meanings:
            places = [names.index(name) for name in known if name in names]
            if places:
                columns[meaning] = places[0]
        if "path" not in columns:
            if not all(name in names for name in KINETICS_COLUMNS):
                return {}
            more = [name for name in (*KINETICS_COLUMNS, "split") if name in names]
            return columns | {name: names.index(name) for name in more}
        if self.frame_folders and (parts := _PART_COLUMNS.intersection(names)):
            raise UserError(
                f"{self.path} has the column {min(parts)!r}, but parts of folders cannot be taken "
                "over: give each video a folder, or remove the column to take whole folders"
            )
        if len(names) == 2 and len(columns) == 1:
            other = 1 - columns["path"]
            if names[other] not in _OTHER_COLUMNS:
                columns["label"] = other
        return columns

    def _best_reading(self) -> tuple[_Reading, int]:
        """Returns how lines are parted, and in which column the path stands."""
        readings = self._readings()
        choices = [(reading, column) for reading in readings for column in reading.paths]
        scores = [self._score(*choice) for choice in choices]
        if max(scores)[0] > 0:
            return choices[scores.index(max(scores))]
        words = {word for line in self.sample for word in line.split()}
        if max(map(self._evidence, words)) > 0:
            raise self._unclear("cannot be parted into paths and labels")
        if not self.frame_folders and all(_ends_in_two_numbers(line) for line in self.sample):
            raise self._unclear("has three columns")
        return choices[0]  # nothing is there, which will be said

    def _readings(self) -> list[_Reading]:
        first = self.lines[0][1]
        separators = [
            separator
            for separator in "\t,;"
            if separator in first and all(separator in line for line in self.sample)
        ]
        readings = [
            _Reading(_parted_by(separator), (0, 1))
            for separator in sorted(separators, key=first.index)
        ]
        if self.frame_folders and all(_ends_in_number_and_word(line) for line in self.sample):
            readings.append(_Reading(functools.partial(_from_right, 2), (0,)))
        readings.append(_Reading(functools.partial(_from_right, 1), (0,)))
        if '"' in first:
            readings.append(_Reading(_parted_by(" "), (0, 1)))
        readings.append(_Reading(lambda line: [line], (0,)))
        readings.append(_Reading(lambda line: line.split(None, 1), (1,)))
        return readings

    def _score(self, reading: _Reading, column: int) -> tuple[int, int]:
        """Returns how well a column passes for paths: evidence, and how many are different."""
        parted = [reading.part(line) for line in self.sample]
        cells = [row[column] for row in parted if column < len(row)]
        return sum(map(self._evidence, cells)), len(set(cells))

    def _evidence(self, cell: str) -> int:
        """Returns how much a cell looks like a path: 2 if it is there, 1 if it is called so."""
        if cell and self.is_there(cell):
            return 2
        return int(cell.lower().endswith(SUFFIXES))

    def _names_columns(self, cells: Sequence[Cells], column: int) -> bool:
        """Returns whether the first line names columns, though with unknown names."""
        first, others = cells[0], cells[1 : _SAMPLE + 1]
        paths = [row[column] for row in others if column < len(row)]
        known = [path for path in paths if self._evidence(path)]
        if len(first) <= column or self._evidence(first[column]) or 2 * len(known) <= len(others):
            return False
        if all(path.lower().endswith(SUFFIXES) for path in known):
            return True
        numbers = [
            place
            for place in range(len(first))
            if place != column
            and all(len(row) > place and _is_number(row[place]) for row in others)
        ]
        if not numbers:  # a heading, or a folder that is missing?
            raise self._unclear("may have a heading, or not")
        return not all(_is_number(first[place]) for place in numbers)

    def _unclear(self, why: str) -> UserError:
        shown = " and ".join(repr(line) for _, line in self.lines[:2])
        form = "path label"
        if self.frame_folders:
            form += ", or path total_frames label (parts of folders, by start and end or an offset,"
            form += " and several labels cannot be taken over)"
        hint = ""
        if not self.frame_folders and _ends_in_two_numbers(self.sample[0].replace(",", " ")):
            hint = "; if these are folders of frames with their number, add --frame_folders"
        return UserError(
            f"{self.path} {why}: it begins with {shown}, but the form {form} was expected: write "
            "a first line that names the columns, such as path,label, and part them by commas or "
            f"tabs if labels have spaces{hint}"
        )


def _from_right(spaces: int, line: str) -> Cells:
    return line.rsplit(None, spaces)


def _parted_by(separator: str) -> Callable[[str], Cells]:
    def part(line: str) -> Cells:
        (cells,) = csv.reader([line], delimiter=separator, skipinitialspace=True)
        cells = [cell.strip() for cell in cells]
        while len(cells) > 2 and not cells[-1]:
            cells.pop()
        return cells

    return part


def _is_number(cell: str) -> bool:
    return cell.removeprefix("-").isdecimal()


def _ends_in_number_and_word(line: str) -> bool:
    words = line.split()
    return len(words) > 2 and words[-2].isdecimal()


def _ends_in_two_numbers(line: str) -> bool:
    return _ends_in_number_and_word(line) and _is_number(line.split()[-1])
