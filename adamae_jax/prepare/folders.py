"""Folders of videos or images: how they are searched, which files count, what folders say of them.

Links are followed as far as they stay in the folder that is searched, and nothing is found twice: a
link to what is found anyway is passed over, which ends circles.
"""

import functools
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Generic, NamedTuple, TypeVar

from adamae_jax.errors import UserError
from adamae_jax.prepare.sources import Entry, in_threads, leads_out, outside, printable

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
        real: where it really is.
        folders: names of the folders in it, links to such among them.
        files: names of the files, links to such among them.
        links: those of both that are links.
        dangling: names of links that lead nowhere.
    """

    path: str
    real: str
    folders: list[str]
    files: list[str]
    links: set[str]
    dangling: list[str]


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

    Raises:
        UserError: a link to a folder leads out of `root`.
    """
    start = os.path.realpath(root)
    level, known = [("", start)], {start}  # folders to list next, and all so far
    links: list[tuple[str, str]] = []  # to folders: kept for last, since most are found without
    things: list[Seen] = []
    passed_over = []
    while level or links:
        if not level:
            path, real = links.pop()
            if real in known:
                passed_over.append(_found_anyway(path, real, start))
                continue
            known.add(real)
            level = [(path, real)]
        below = []
        for answer in in_threads(functools.partial(_look, root, look), level):
            if isinstance(answer, str):
                passed_over.append(answer)
                continue
            listing, seen = answer
            things.append(seen)
            for name in listing.folders:
                path, real = os.path.join(listing.path, name), os.path.join(listing.real, name)
                if name in listing.links:
                    links.append((path, _inside(root, path)))
                elif real not in known:
                    known.add(real)
                    below.append((path, real))
        level = below
        links.sort(reverse=True)
    return Found(things, passed_over)


def _look(
    root: Path, look: Callable[[Listing], Seen], folder: tuple[str, str]
) -> tuple[Listing, Seen] | str:
    """The folders in a folder and what was seen in it, or why it cannot be listed."""
    path, real = folder
    listing = Listing(path, real, [], [], set(), [])
    try:
        with os.scandir(os.path.join(root, path)) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    _sort_in(entry, listing)
    except OSError as error:
        if not path:
            raise UserError(f"--source={root} cannot be listed: {error.strerror}") from error
        return f"{printable(path)} (cannot be listed: {error.strerror})"
    # Without the names of files, which may be millions in all.
    return listing._replace(files=[], dangling=[]), look(listing)


def _found_anyway(path: str, real: str, real_root: str) -> str:
    target = os.path.relpath(real, real_root)
    return f"{printable(path)} (a link to {printable(target)}, which is found anyway)"


def _sort_in(entry: os.DirEntry[str], listing: Listing) -> None:
    # The listing says what is a link, a folder or a file: only links are asked where they lead.
    if not entry.is_symlink():
        folder, file = entry.is_dir(), entry.is_file()
    else:
        try:
            mode = entry.stat().st_mode
        except OSError:
            listing.dangling.append(entry.name)
            return
        folder, file = stat.S_ISDIR(mode), stat.S_ISREG(mode)
        listing.links.add(entry.name)
    if folder or file:
        (listing.folders if folder else listing.files).append(entry.name)


def _inside(root: Path, path: str) -> str:
    """Where a link below the root really leads.

    Raises:
        UserError: out of the root.
    """
    link = os.path.join(root, path)
    if leads_to := leads_out(link, os.path.join(os.path.realpath(root), "")):
        raise outside(printable(path), str(root), leads_to)
    return os.path.realpath(link)


def find_files(source: Path, images: bool = False) -> Found[str]:
    """Paths of all files that may be videos, below `source` and relative to it, sorted.

    Hidden files and folders are passed over, and files whose names say that they are something
    else (texts, tables, pictures, archives). Links that lead nowhere are among the files: they are
    to be listed as missing.

    Args:
        source: searched with all folders in it.
        images: look for images, known by their suffixes, instead.

    Raises:
        UserError: `source` is not a folder, holds no such file, or a link leads out of it.
    """
    if not source.is_dir():
        raise UserError(f"--source={source} is not a folder: give the one that holds the files")

    def counts(name: str) -> bool:
        suffix = os.path.splitext(name)[1].lower()
        return suffix in IMAGE_SUFFIXES if images else suffix not in NO_VIDEOS

    def look(listing: Listing) -> Listing:
        files, dangling = (list(filter(counts, kind)) for kind in (listing.files, listing.dangling))
        return listing._replace(files=files, dangling=dangling)

    folders, passed_over = search(source, look)
    found, links, known = [], [], set()
    for folder in folders:
        found += [os.path.join(folder.path, name) for name in folder.dangling]
        for name in folder.files:
            path = os.path.join(folder.path, name)
            if name in folder.links:
                links.append(path)
            else:
                found.append(path)
                known.add(os.path.join(folder.real, name))
    links.sort()
    for path, real in zip(
        links, in_threads(functools.partial(_inside, source), links), strict=True
    ):
        if real in known:
            passed_over.append(_found_anyway(path, real, os.path.realpath(source)))
        else:
            known.add(real)
            found.append(path)
    if not found:
        kind = "images" if images else "videos"
        more = "" if images else ", or add --frame_folders if folders of images are the videos"
        raise UserError(f"--source={source} holds no {kind}: give the folder that holds them{more}")
    return Found(sorted(found), passed_over)


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
    """The folder at this depth on the way to a file, as text.

    Raises:
        UserError: it lies in none.
    """
    folders = PurePosixPath(path).parts[:-1]
    if len(folders) <= depth:
        raise UserError(
            f"{path!r} lies in no class folder: move it into one, or leave out --class_folders"
        )
    return printable(folders[depth])
