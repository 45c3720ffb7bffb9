"""Folders of videos or images: how they are searched, which files count, what folders say of them.

Links are followed, and nothing is found twice: of several ways to the same folder or file, the one
without links is taken, or else the first.
"""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Generic, NamedTuple, TypeVar

from adamae_jax.errors import UserError
from adamae_jax.prepare.sources import Entry, in_threads, text_of

IMAGE_SUFFIXES = frozenset((".bmp", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff",
                            ".webp"))  # fmt: skip
# What lies beside videos; everything else is taken for a video, since FFmpeg knows them by content.
NO_VIDEOS = IMAGE_SUFFIXES | frozenset((
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

Seen = TypeVar("Seen")


class Listing(NamedTuple):
    """What a folder holds, but for what is hidden.

    Attributes:
        path: of the folder, below the root; "" of the root itself.
        folders: names of the folders in it, links to such among them.
        files: names of the files, links to such and links that lead nowhere among them.
        links: those of both that are links.
    """

    path: str
    folders: list[str]
    files: list[str]
    links: set[str]


class Found(NamedTuple, Generic[Seen]):
    """What a search has found.

    Attributes:
        things: in order.
        passed_over: what was not looked into, or not counted, each with the reason in words.
    """

    things: list[Seen]
    passed_over: list[str]


def search(root: Path, look: Callable[[Listing], Seen]) -> Found[Seen]:
    """Looks into a folder and all folders in it, each once; hidden ones are passed over.

    Args:
        root: to search.
        look: takes what is wanted from a listing; called in threads.

    Returns:
        What `look` said of each folder, and the folders that were passed over.
    """
    start = os.path.realpath(root)
    # Folders to list next, each with where it really is; and all so far, by the latter.
    level, known = [("", start)], {start}
    links: list[str] = []  # to folders: kept for last, since most lead to what is found anyway
    found: Found[Seen] = Found([], [])
    while level or links:
        if not level:
            path = links.pop()
            real = os.path.realpath(os.path.join(root, path))
            if real in known or os.path.join(start, "").startswith(os.path.join(real, "")):
                found.passed_over.append(f"{text_of(path)} (a link to what is found anyway)")
                continue
            known.add(real)
            level = [(path, real)]
        below: list[tuple[str, str]] = []
        answers = in_threads(functools.partial(_look, root, look), [path for path, _ in level])
        for answer, (_, real) in zip(answers, level, strict=True):
            if isinstance(answer, str):
                found.passed_over.append(answer)
                continue
            listing, seen = answer
            found.things.append(seen)
            for name in listing.folders:
                path = os.path.join(listing.path, name)
                if name in listing.links:
                    links.append(path)
                elif (real_path := os.path.join(real, name)) not in known:
                    known.add(real_path)
                    below.append((path, real_path))
        level = below
        links.sort(reverse=True)
    return found


def _look(root: Path, look: Callable[[Listing], Seen], path: str) -> tuple[Listing, Seen] | str:
    """Returns the folders in a folder and what was seen in it, or why it cannot be listed."""
    listing = Listing(path, [], [], set())
    try:
        with os.scandir(os.path.join(root, path)) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                link = entry.is_symlink()
                if os.path.isdir(entry.path) if link else entry.is_dir():
                    listing.folders.append(entry.name)
                elif link or entry.is_file():
                    listing.files.append(entry.name)
                if link:
                    listing.links.add(entry.name)
    except OSError as error:
        if not path:
            raise UserError(f"--source={root} cannot be listed: {error.strerror}") from error
        return f"{text_of(path)} (cannot be listed: {error.strerror})"
    # Without the names of files, which may be millions in all.
    return listing._replace(files=[]), look(listing)


def find_files(source: Path, images: bool = False) -> Found[str]:
    """Returns the paths of all files that may be videos, relative to `source`, sorted.

    Hidden files and folders are passed over, and files whose names say that they are something
    else (texts, tables, pictures, archives). Links that lead nowhere are among the files: they are
    to be listed as missing.

    Args:
        source: searched with all folders in it.
        images: look for images, known by their suffixes, instead.

    Raises:
        UserError: `source` holds no such file.
    """

    def look(listing: Listing) -> tuple[list[str], list[str]]:
        """Returns the paths of files and of links to files."""
        kinds: tuple[list[str], list[str]] = ([], [])
        for name in listing.files:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in IMAGE_SUFFIXES if images else suffix not in NO_VIDEOS:
                kinds[name in listing.links].append(os.path.join(listing.path, name))
        return kinds

    folders, passed_over = search(source, look)
    found = [path for files, _ in folders for path in files]
    links = sorted(path for _, of_folder in folders for path in of_folder)

    def real_path(path: str) -> str:
        return os.path.realpath(os.path.join(source, path))

    known = set(in_threads(real_path, found)) if links else set()
    for path, real in zip(links, in_threads(real_path, links), strict=True):
        if real in known:
            passed_over.append(f"{text_of(path)} (a link to what is found anyway)")
        else:
            known.add(real)
            found.append(path)
    if not found:
        kind = "images" if images else "videos"
        more = "" if images else ", or add --frame_folders if folders of images are the videos"
        raise UserError(f"--source={source} holds no {kind}: give the folder that holds them{more}")
    return Found(sorted(found), passed_over)


def folder_entries(paths: Sequence[str], class_folders: bool) -> list[Entry]:
    """Returns what the folders of files say of them.

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
    """Returns the folder at this depth on the way to a file, as text.

    Raises:
        UserError: it lies in none.
    """
    folders = PurePosixPath(path).parts[:-1]
    if len(folders) <= depth:
        raise UserError(
            f"{path!r} lies in no class folder: move it into one, or leave out --class_folders"
        )
    return text_of(folders[depth])
