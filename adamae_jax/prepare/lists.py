"""Lists of videos as the field writes them: lines, tables and Something-Something's JSON.

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

import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from adamae_jax.errors import UserError
from adamae_jax.prepare.sources import Entry
from adamae_jax.prepare.tables import SUFFIXES, read_table

_NO_LABEL = "-1"
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
    text = read_text(path)
    locate = functools.partial(_locate_folder if frame_folders else _locate, root)
    content = read_json(path, text)
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


def read_text(path: Path) -> str:
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


def read_json(path: Path, text: str) -> object:
    """Returns the content of a text in JSON; None of one that is not.

    Raises:
        UserError: it begins like JSON, or is called so, and is none.
    """
    if not re.match(r"\s*(\{|\[\s*[\"{])", text) and path.suffix.lower() != ".json":
        return None
    try:
        content: object = json.loads(text)
    except (ValueError, RecursionError) as error:
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
