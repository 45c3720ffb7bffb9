"""Folders of videos or images: which files count, and what their folders say of them."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from adamae_jax.data.sources import Entry
from adamae_jax.errors import UserError

IMAGE_SUFFIXES = frozenset((".bmp", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff",
                            ".webp"))  # fmt: skip
# What lies beside videos; everything else is taken for a video, since FFmpeg knows them by content.
_NO_VIDEOS = IMAGE_SUFFIXES | frozenset((
    ".bib", ".bz2", ".cfg", ".csv", ".db", ".doc", ".docx", ".gz", ".htm", ".html", ".ini",
    ".ipynb", ".json", ".jsonl", ".lock", ".log", ".m3u", ".m3u8", ".mat", ".md", ".md5", ".npy",
    ".npz", ".pdf", ".pkl", ".pt", ".pth", ".py", ".rst", ".rtf", ".sh", ".sha1", ".sha256", ".srt",
    ".tar", ".tex", ".tgz", ".toml", ".tsv", ".txt", ".vtt", ".xls", ".xlsx", ".xml", ".xz",
    ".yaml", ".yml", ".zip",
))  # fmt: skip
# Folders right below the source that stand for splits, by the names that the field gives them.
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def find_files(source: Path, images: bool = False) -> list[str]:
    """Paths of all files that may be videos, below `source` and relative to it, sorted.

    Hidden files and folders are passed over, and files whose names say that they are something
    else (texts, tables, pictures, archives).

    Args:
        source: searched with all folders in it.
        images: look for images, known by their suffixes, instead.

    Raises:
        UserError: `source` is not a folder, or holds no such file.
    """
    if not source.is_dir():
        raise UserError(f"--source={source} is not a folder: give the one that holds the files")
    found = []
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(folder, source)
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            counts = suffix in IMAGE_SUFFIXES if images else suffix not in _NO_VIDEOS
            if counts and not name.startswith(".") and os.path.isfile(os.path.join(folder, name)):
                found.append(os.path.join(below, name) if below != "." else name)
    if not found:
        kind = "images" if images else "videos"
        more = "" if images else ", or add --frame_folders if folders of images are the videos"
        raise UserError(f"--source={source} holds no {kind}: give the folder that holds them{more}")
    return sorted(found)


def folder_entries(paths: Sequence[str], class_folders: bool) -> list[Entry]:
    """What the folders of files say of them.

    Where every file lies in a folder called train, val, validation or test, these are the splits.

    Args:
        paths: as `find_files` gives them, or of folders of frames.
        class_folders: whether the next folder on the way to a file is its class.

    Raises:
        UserError: a file lies in no class folder.
    """
    parts = [path.split("/") for path in paths]
    splits = all(len(part) > 1 and part[0].lower() in SPLIT_FOLDERS for part in parts)
    entries = []
    for path, part in zip(paths, parts, strict=True):
        split = SPLIT_FOLDERS[part[0].lower()] if splits else None
        label = class_of(path, depth=int(splits)) if class_folders else None
        entries.append(Entry(path, label, split, "--source"))
    return entries


def class_of(path: str, depth: int = 0) -> str:
    """The folder at this depth on the way to a file.

    Raises:
        UserError: it lies in none.
    """
    folders = PurePosixPath(path).parts[:-1]
    if len(folders) <= depth:
        raise UserError(
            f"{path!r} lies in no class folder: move it into one, or leave out --class_folders"
        )
    return folders[depth]
