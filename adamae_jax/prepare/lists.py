"""Lists of videos as the field writes them: lines, CSV tables and Something-Something's JSON.

A list names the videos of one split. Its lines are ``path label`` or, in CSV (a name that ends in
``.csv``, or a comma in the first line), ``path,label``; the label, a name or a number, may be
missing from all of them, and -1 says that a video has none. A first line that names its columns is
understood, Kinetics' own ``label,youtube_id,time_start,time_end`` included. A JSON list is
Something-Something v2's: objects with an ``id``, which names the file, and a ``template``, which is
the class; version 1's lists are CSV with semicolons. A file called ``CLASS_test_split1.txt`` (2, 3)
is one of HMDB51's: its lines are ``name number``, and the number says whether the video is for
training (1), for testing (2) or for neither (0).

Lists of folders of frames have the same forms, and ``path total_frames label`` as well, where
``total_frames`` says how many frames of the folder are the video, from the first on, as the readers
of MMAction2 and VideoMAE take it. They may name a folder as the authors name its video, with a
suffix.
"""

import collections
import csv
import functools
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from adamae_jax.errors import UserError
from adamae_jax.prepare.sources import Entry

PATH_COLUMNS = ("path", "video_path", "file_path", "video", "file", "filename", "file_name")
TOTAL_COLUMNS = ("total_frames", "num_frames", "frames")
LABEL_COLUMNS = ("label", "class", "label_name", "class_name", "label_id", "action")
# Columns that make a video of a part of a folder.
_PART_COLUMNS = frozenset(("start", "end", "stop", "offset", "start_frame", "end_frame",
                           "stop_frame"))  # fmt: skip
KINETICS_COLUMNS = ("youtube_id", "time_start", "time_end")
# Where a list names videos without their suffix; the first that exists is taken.
SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov")
_NO_LABEL = "-1"
# A path with another column behind it, where columns are parted by spaces: a number, or anything
# behind a video's name.
_TWO_COLUMNS = re.compile(rf".+\s[+-]?\d+|.+({'|'.join(map(re.escape, SUFFIXES))})\s.*", re.I)
_WITH_NUMBER = re.compile(r"(.+?)\s+(\d+)")
_HMDB51 = re.compile(r"(.+)_test_split[123]\.txt")
Locate = Callable[[Sequence[str]], str]  # which of some paths is there
# What Kinetics' tables call a split, and how the folder is called in which it is usually kept.
_KINETICS_FOLDERS = {"validate": "val"}


def read_list(path: Path, split: str, root: Path, frame_folders: bool = False) -> list[Entry]:
    """The videos that a list names.

    Args:
        path: of the list.
        split: the split that its videos belong to; of HMDB51's lists, ``train`` takes those for
            training, and any other split those for testing.
        root: folder in which videos that are named without suffix are looked for.
        frame_folders: whether videos are folders of frames.

    Raises:
        UserError: it cannot be read, is empty, or one of its lines makes no sense.
    """
    text = _read_text(path)
    locate = functools.partial(_locate_folder if frame_folders else _locate, root)
    if path.suffix.lower() == ".json":
        entries = list(_json_entries(path, text, split, locate))
    elif match := _HMDB51.fullmatch(path.name):
        entries = list(_hmdb51_entries(path, text, split, match[1]))
    else:
        rows = list(_rows(path, text, root, frame_folders))
        entries = list(_table_entries(path, rows, split, locate, frame_folders))
    if not entries:
        raise UserError(f"{path} names no videos: give a list with lines such as 'a.mp4 3'")
    labelled = [entry.label is not None for entry in entries]
    if any(labelled) and not all(labelled):
        entry = entries[labelled.index(False)]
        raise UserError(f"{entry.where}: the label is missing, though other videos have one")
    if frame_folders:
        entries = [entry._replace(path=locate([entry.path])) for entry in entries]
    return [entry._replace(label=None) if entry.label == _NO_LABEL else entry for entry in entries]


def read_classes(path: Path) -> dict[str, int]:
    """Classes by name and, where the file numbers them, by number.

    A text file has one class a line, with or without its number in front (``3 archery``,
    ``3,archery``); without, they count from 0. JSON is an object from name to number, as
    Something-Something's, or a list of names. Indices follow the numbers, without gaps.

    Raises:
        UserError: it cannot be read, or a name or number is there twice.
    """
    text = _read_text(path)
    pairs = list(_json_classes(path, text) if path.suffix.lower() == ".json" else _classes(text))
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


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _table_entries(
    path: Path,
    rows: Sequence[tuple[int, list[str]]],
    split: str,
    locate: Locate,
    frame_folders: bool,
) -> Iterator[Entry]:
    columns = _named_columns(rows[0][1], frame_folders, path) if rows else None
    for line, cells in rows if columns is None else rows[1:]:
        where = f"{path}, line {line}"
        if columns is None:
            meanings = _meanings(len(cells), frame_folders, where)
            named = dict(zip(meanings, cells, strict=True))
        else:
            if len(cells) <= max(columns.values()):
                raise UserError(f"{where}: only {len(cells)} columns, fewer than the first line")
            named = {name: cells[index] for name, index in columns.items()}
        name = named["path"] if "path" in named else _kinetics_path(named, locate, where)
        total = _number(named["total_frames"], where) if "total_frames" in named else None
        yield Entry(name, named.get("label") or None, split, where, total)


def _meanings(columns: int, frame_folders: bool, where: str) -> Sequence[str]:
    """What the columns of a line mean where no first line names them.

    Raises:
        UserError: there are too many.
    """
    if columns <= 2:
        return ("path", "label")[:columns]
    if not frame_folders:
        folders = "if these are folders of frames with their number, add --frame_folders; "
        raise UserError(
            f"{where}: {columns} columns, but path and label were expected; "
            f"{folders if columns == 3 else ''}name the columns in the first line "
            f"({PATH_COLUMNS[0]},{LABEL_COLUMNS[0]},...)"
        )
    if columns > 3:
        raise UserError(
            f"{where}: {columns} columns, but 'path total_frames label' or 'path label' was "
            "expected; parts of folders (by start and end, or an offset) and several labels cannot "
            "be taken over: give each video a folder and one label"
        )
    return "path", "total_frames", "label"


def _number(total: str, where: str) -> int:
    if not (total.isascii() and total.isdecimal()):
        raise UserError(
            f"{where}: total_frames is {total!r}, which is no number of frames; 'path total_frames "
            "label' was expected"
        )
    return int(total)


def _hmdb51_entries(path: Path, text: str, split: str, label: str) -> Iterator[Entry]:
    wanted = "1" if split == "train" else "2"
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        name, _, part = line.strip().rpartition(" ")
        where = f"{path}, line {number}"
        if part not in ("0", "1", "2") or not name:
            raise UserError(f"{where}: {line.strip()!r} is no name with 0, 1 or 2, as HMDB51's are")
        if part == wanted:
            yield Entry(f"{label}/{name.strip()}", label, split, where)


def _rows(
    path: Path, text: str, root: Path, frame_folders: bool
) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of every line that is not empty."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    if path.suffix.lower() == ".csv" or "," in first:
        # Something-Something v1's are "id;label", with commas in the labels.
        delimiter = ";" if re.match(r"[^,;]*;", first) else ","
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        try:
            for row in reader:
                if any(cells := [cell.strip() for cell in row]):
                    yield reader.line_num, cells
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}") from error
        return
    named = frame_folders and _named_columns(first.split(), frame_folders, path)
    for number, line in enumerate(text.split("\n"), 1):
        if not (line := line.strip()):
            continue
        # From the right: paths have spaces more often than labels, which are mostly numbers.
        if "\t" in first:
            cells = line.split("\t")
        elif named:
            cells = line.rsplit(maxsplit=len(first.split()) - 1)
        elif frame_folders:
            cells = _with_total(line, root)
        else:
            cells = line.rsplit(maxsplit=1)
            _check_two_columns(cells, f"{path}, line {number}", root)
        yield number, [cell.strip() for cell in cells]


def _check_two_columns(cells: Sequence[str], where: str, root: Path) -> None:
    """Raises an error where a path that may have spaces has swallowed a column."""
    name = cells[0]
    swallowed = _TWO_COLUMNS.fullmatch(name) and not name.lower().endswith(SUFFIXES)
    if len(cells) == 2 and swallowed and not (root / name).is_file():
        raise UserError(
            f"{where}: {' '.join(cells)!r} has three columns, but path and label were expected "
            "(if this is 'path total_frames label' of a folder of frames, add --frame_folders; "
            "spaces in labels need a comma or tab behind the path)"
        )


def _with_total(line: str, root: Path) -> list[str]:
    """``path total_frames label``, ``path label`` or ``path``; more columns, if there are more.

    A number at the end of a name belongs to the name where there is such a folder.
    """
    name, *label = line.rsplit(maxsplit=1)
    numbers: list[str] = []
    while label and (match := _WITH_NUMBER.fullmatch(name)) and not (root / name).is_dir():
        name, numbers = match[1], [match[2], *numbers]
    return [name, *numbers, *label]


def _named_columns(first: Sequence[str], frame_folders: bool, path: Path) -> dict[str, int] | None:
    """Places of the columns that matter, if this line names them.

    Raises:
        UserError: one of them says that videos are parts of folders.
    """
    names = [name.lower() for name in first]
    meanings = [("path", PATH_COLUMNS), ("label", LABEL_COLUMNS)]
    if frame_folders:
        meanings.append(("total_frames", TOTAL_COLUMNS))
    columns = {}
    for meaning, known in meanings:
        places = [names.index(name) for name in known if name in names]
        if places:
            columns[meaning] = places[0]
    if "path" in columns:
        if frame_folders and (parts := _PART_COLUMNS.intersection(names)):
            raise UserError(
                f"{path} has the column {min(parts)!r}, but parts of folders cannot be taken over: "
                "give each video a folder, or remove the column to take whole folders"
            )
        return columns
    if all(name in names for name in KINETICS_COLUMNS):
        more = [name for name in (*KINETICS_COLUMNS, "split") if name in names]
        return columns | {name: names.index(name) for name in more}
    return None


def _kinetics_path(cells: dict[str, str], locate: Locate, where: str) -> str:
    """Where the usual scripts put a clip: ``[split/][label/]ID_START_END.mp4``, in seconds.

    Some write the label with underscores.
    """
    try:
        start, end = (int(float(cells[name])) for name in ("time_start", "time_end"))
    except ValueError as error:
        raise UserError(f"{where}: time_start and time_end must be seconds ({error})") from error
    name = f"{cells['youtube_id']}_{start:06d}_{end:06d}"
    label, split = cells.get("label", ""), cells.get("split", "")
    labels = dict.fromkeys(("", label, label.replace(" ", "_")))
    splits = dict.fromkeys(("", split, _KINETICS_FOLDERS.get(split, "")))
    folders = [PurePosixPath(split, label) for label in labels for split in splits]
    return locate([str(folder / name) for folder in folders])


def _locate(root: Path, stems: Sequence[str]) -> str:
    """The first of these files that exists, with any suffix; else the first name."""
    candidates = [stem + suffix for stem in stems for suffix in SUFFIXES]
    return next((name for name in candidates if (root / name).is_file()), candidates[0])


def _locate_folder(root: Path, names: Sequence[str]) -> str:
    """The first of these folders that exists, with or without a video's suffix; else the first."""
    splits = [(name, *os.path.splitext(name)) for name in names]
    stems = [stem if suffix.lower() in SUFFIXES else name for name, stem, suffix in splits]
    candidates = [name for pair in zip(names, stems, strict=True) for name in pair]
    return next((name for name in candidates if (root / name).is_dir()), stems[0])


def _json_entries(path: Path, text: str, split: str, locate: Locate) -> Iterator[Entry]:
    content = _json(path, text)
    if not isinstance(content, list):
        raise UserError(f"{path} holds no list: give one of Something-Something's, of objects")
    for number, video in enumerate(content, 1):
        where = f"{path}, entry {number}"
        if not isinstance(video, dict) or not str(video.get("id") or "").strip():
            raise UserError(f"{where}: {video!r} is no object with an 'id'")
        # "Holding [something]": the class is known without its brackets.
        label = str(video.get("template") or video.get("label") or "")
        label = label.replace("[", "").replace("]", "")
        yield Entry(locate([str(video["id"])]), label or None, split, where)


def _json_classes(path: Path, text: str) -> Iterator[tuple[str, int]]:
    content = _json(path, text)
    if isinstance(content, list):
        content = {str(name): number for number, name in enumerate(content)}
    if not isinstance(content, dict):
        raise UserError(f"{path} holds neither an object from class to number nor a list of names")
    for name, number in content.items():
        if not str(number).isdecimal():
            raise UserError(f"{path}: class {name!r} has the number {number!r}")
        yield str(name), int(number)


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error}") from error


def _classes(text: str) -> Iterator[tuple[str, int]]:
    """Of lines: numbered where all of them (but a heading) begin with a number."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    parts = [line.replace(",", " ", 1).split(maxsplit=1) for line in lines]
    if lines and lines[0].lower() in ("id,name", "id name"):
        del lines[0], parts[0]
    if all(len(part) == 2 and part[0].isdecimal() for part in parts):
        yield from ((part[1].strip("\"' "), int(part[0])) for part in parts)
    else:
        yield from ((line, number) for number, line in enumerate(lines))
