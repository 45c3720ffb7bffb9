"""Lists of videos and of classes as the field writes them: lines, tables and JSON.

A list names the videos of one split. Its lines are ``path label``, parted by spaces, tabs, commas
or semicolons; the label, a name or a number, may be missing from all of them, and -1 says that a
video has none. A first line that names its columns is understood, Kinetics' own
``label,youtube_id,time_start,time_end`` included; see `adamae_jax.prepare.tables`. A JSON list is
Something-Something v2's: objects with an ``id``, which names the file, and a ``template``, which is
the class. A file called ``CLASS_test_split1.txt`` (2, 3) is one of HMDB51's: its lines are ``name
number``, and the number says whether the video is for training (1), for testing (2) or for neither
(0).

Lists of folders of frames have the same forms, and ``path total_frames label`` as well, where
``total_frames`` says how many frames of the folder are the video, from the first on, as the readers
of MMAction2 and VideoMAE take it. They may name a folder as the authors name its video, with a
suffix.
"""

import collections
import csv
import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from adamae_jax import plain_json
from adamae_jax.errors import UserError
from adamae_jax.prepare.sources import Entry
from adamae_jax.prepare.tables import SUFFIXES, read_table

_NO_LABEL = "-1"
# A first line of nothing but such words names the columns.
_HEADING = frozenset(
    ("category", "class", "class_id", "class_name", "classes", "id", "index", "label", "label_id",
     "label_name", "labels", "name", "number")
)  # fmt: skip
_HMDB51 = re.compile(r"(.+)_test_split[123]\.txt")
Locate = Callable[[Sequence[str]], str]  # which of some paths is there
# What Kinetics' tables call a split, and how the folder is called in which it is usually kept.
_KINETICS_FOLDERS = {"validate": "val"}


def read_list(path: Path, split: str, root: Path, frame_folders: bool = False) -> list[Entry]:
    """Returns the videos that a list names.

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
    content = _read_json(path, text)
    if content is not None:
        entries = list(_json_entries(path, content, split, locate))
    elif match := _HMDB51.fullmatch(path.name):
        entries = list(_hmdb51_entries(path, text, split, match[1]))
    else:
        entries = list(_table_entries(path, text, split, root, locate, frame_folders))
    if not entries:
        raise UserError(f"{path} names no videos: give a list with lines such as 'a.mp4 3'")
    labelled = [entry.label is not None for entry in entries]
    if any(labelled) and not all(labelled):
        entry = entries[labelled.index(False)]
        raise UserError(f"{entry.where}: the label is missing, though other videos have one")
    if frame_folders:
        entries = [entry._replace(path=locate([entry.path])) for entry in entries]
    return [entry._replace(label=None) if entry.label == _NO_LABEL else entry for entry in entries]


def _read_text(path: Path) -> str:
    """Returns the text in a file.

    Raises:
        UserError: it cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _read_json(path: Path, text: str) -> object:
    """Returns the content of a text in JSON; None of one that is not.

    Raises:
        UserError: it begins like JSON, or is called so, and is none.
    """
    if not re.match(r"\s*(\{|\[\s*[\"{])", text) and path.suffix.lower() != ".json":
        return None
    try:
        content: object = plain_json.parse(text)
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    return content


def _table_entries(
    path: Path, text: str, split: str, root: Path, locate: Locate, frame_folders: bool
) -> Iterator[Entry]:
    def is_there(name: str) -> bool:
        found = root / (locate([name]) if frame_folders else name)
        return found.is_dir() if frame_folders else found.is_file()

    for line, cells in read_table(path, text, is_there, frame_folders):
        where = f"{path}, line {line}"
        name = cells["path"] if "path" in cells else _kinetics_path(cells, locate, where)
        total = _number(cells["total_frames"], where) if "total_frames" in cells else None
        yield Entry(name, cells.get("label") or None, split, where, total)


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


def _kinetics_path(cells: dict[str, str], locate: Locate, where: str) -> str:
    """Returns where the usual scripts put a clip: ``[split/][label/]ID_START_END.mp4``, in seconds.

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
    """Returns the first of these files that exists, with any suffix; else the first name."""
    candidates = [stem + suffix for stem in stems for suffix in SUFFIXES]
    return next((name for name in candidates if (root / name).is_file()), candidates[0])


def _locate_folder(root: Path, names: Sequence[str]) -> str:
    """Returns the first of these folders that exists, with or without a video's suffix."""
    splits = [(name, *os.path.splitext(name)) for name in names]
    stems = [stem if suffix.lower() in SUFFIXES else name for name, stem, suffix in splits]
    candidates = [name for pair in zip(names, stems, strict=True) for name in pair]
    return next((name for name in candidates if (root / name).is_dir()), stems[0])


def _json_entries(path: Path, content: object, split: str, locate: Locate) -> Iterator[Entry]:
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


def read_classes(path: Path) -> dict[str, int]:
    """Returns classes by name and, where the file numbers them, by number.

    A text has one class a line, with its number in front or behind (``3 archery``, ``archery,3``),
    or without, when they count from 0; a heading (``name,id``) is passed over. JSON is an object
    from name to number, as Something-Something's, or a list of names. Indices follow the numbers,
    without gaps.

    Raises:
        UserError: it cannot be read or understood, or a name or number is there twice.
    """
    text = _read_text(path)
    content = _read_json(path, text)
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
    if all(map(str.isdecimal, content)) and not any(map(_is_decimal, content.values())):
        content = {str(name): number for number, name in content.items()}  # from number to name
    for name, number in content.items():
        if not _is_decimal(number):
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
            numbers = [row[number] if len(row) > 1 else "" for row in rows]
            heading = _has_heading(rows, numbers)
            if heading and separator == " ":  # which is in names, too
                raise UserError(
                    f"{path} may have a heading, or not: it begins with {lines[0]!r} and "
                    f"{lines[1]!r}: write one class a line, as 'number,name'"
                )
            if all(map(_is_decimal, numbers[heading:])):
                readings.append(
                    [
                        (separator.join(row[name]).strip("\"' "), int(row[number]))
                        for row in rows[heading:]
                    ]
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


def _has_heading(rows: Sequence[Sequence[str]], numbers: Sequence[str]) -> bool:
    """Returns whether the first row has words where all others have numbers that differ."""
    return (
        len(rows) > 2
        and len(rows[0]) > 1
        and not _is_decimal(numbers[0])
        and all(map(_is_decimal, numbers[1:]))
        and len({*numbers[1:]}) == len(rows) - 1
    )


def _is_decimal(value: object) -> bool:
    return str(value).isdecimal()


def _parted(line: str, separator: str) -> Sequence[str]:
    if separator == " ":
        return line.split()
    (cells,) = csv.reader([line], delimiter=separator, skipinitialspace=True)
    return [cell.strip() for cell in cells]
