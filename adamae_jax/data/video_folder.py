"""A folder of videos: which files count, in which order they come, how they are split."""

import collections
import csv
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from adamae_jax.data.parallel import ordered_map
from adamae_jax.data.video_file import EncodedVideo, UnreadableVideoError, read_video
from adamae_jax.errors import UserError

Item = TypeVar("Item")

# What lies beside videos; everything else is taken for a video, since FFmpeg knows them by content.
_OTHER_SUFFIXES = frozenset((
    ".bib", ".bz2", ".cfg", ".csv", ".db", ".doc", ".docx", ".gz", ".htm", ".html", ".ini",
    ".ipynb", ".jpeg", ".jpg", ".json", ".jsonl", ".lock", ".log", ".m3u", ".m3u8", ".mat", ".md",
    ".md5", ".npy", ".npz", ".pdf", ".pkl", ".png", ".pt", ".pth", ".py", ".rst", ".rtf", ".sh",
    ".sha1", ".sha256", ".srt", ".tar", ".tex", ".tgz", ".toml", ".tsv", ".txt", ".vtt", ".xls",
    ".xlsx", ".xml", ".xz", ".yaml", ".yml", ".zip",
))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Flaw:
    """A video that is not, or not wholly, in the dataset: one line of ``skipped.csv``.

    Attributes:
        id: the video.
        status: "skipped" (left out) or "truncated" (kept up to its damage).
        frames: how many could be read.
        reason: what is wrong.
    """

    id: str
    status: str
    frames: int
    reason: str


def find_videos(source: Path) -> list[str]:
    """Paths of all files that may be videos, below `source` and relative to it, sorted.

    Hidden files and folders are passed over, and files whose names say that they are something
    else (texts, tables, pictures, archives).

    Raises:
        UserError: `source` is not a folder, or holds no such file.
    """
    if not source.is_dir():
        raise UserError(f"--source={source} is not a folder: give the folder that holds the videos")
    found = []
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            hidden, other = name.startswith("."), path.suffix.lower() in _OTHER_SUFFIXES
            if not hidden and not other and path.is_file():
                found.append(path.relative_to(source).as_posix())
    if not found:
        raise UserError(f"--source={source} holds no videos: give the folder that holds them")
    return sorted(found)


def in_hash_order(paths: Sequence[str]) -> list[str]:
    """The same paths in an order that looks random but depends on nothing but the paths."""
    return sorted(paths, key=lambda path: (hashlib.sha256(os.fsencode(path)).digest(), path))


def read_videos(
    source: Path,
    paths: Sequence[str],
    short_side: int,
    min_frames: int,
    num_workers: int,
    flaws: list[Flaw],
) -> Iterator[tuple[str, EncodedVideo] | None]:
    """Reads videos in the given order.

    Args:
        source: folder that the paths are relative to.
        paths: of the videos.
        short_side: see `read_video`.
        min_frames: shorter videos are left out.
        num_workers: processes that read; 0 reads in this one.
        flaws: gets an entry for every video that is left out or damaged.

    Yields:
        Id and video, or None for a video that is left out.
    """
    read = functools.partial(_read, source, short_side)
    for path, result in zip(paths, ordered_map(read, paths, num_workers), strict=True):
        identity = _identity(path)
        if isinstance(result, str):
            flaws.append(Flaw(identity, "skipped", 0, result))
            yield None
            continue
        count = len(result.frames)
        if count < min_frames:
            reason = f"{count} frames, fewer than {min_frames}"
            reason += f" ({result.damage})" if result.damage else ""
            flaws.append(Flaw(identity, "skipped", count, reason))
            yield None
            continue
        if result.damage:
            flaws.append(Flaw(identity, "truncated", count, result.damage))
        yield identity, result


def _read(source: Path, short_side: int, path: str) -> EncodedVideo | str:
    """A video, or the reason why there is none."""
    try:
        return read_video(source / path, short_side)
    except UnreadableVideoError as error:
        return str(error)


def _identity(path: str) -> str:
    """A path as text: file names on Linux are bytes, and need not be valid UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def split(items: Iterator[Item], validation: int) -> dict[str, Iterator[Item]]:
    """Parts a stream whose length is not known yet.

    Args:
        items: of the dataset, in an order that looks random.
        validation: how many to set aside, if there are enough; at least 1.

    Returns:
        "validation" with the first items and "train" with the others, to be consumed in this order.
        Both have at least one item if there are two; a single item is for training; without items
        there are no splits.
    """
    waiting = collections.deque(item for _, item in zip(range(2), items, strict=False))
    if len(waiting) < 2:
        return {"train": iter(waiting)} if waiting else {}

    def set_aside() -> Iterator[Item]:
        yield waiting.popleft()
        for _, item in zip(range(1, validation), items, strict=False):
            waiting.append(item)  # so that one is always left for training
            yield waiting.popleft()

    def others() -> Iterator[Item]:
        yield from waiting
        yield from items

    return {"validation": set_aside(), "train": others()}


def write_flaws(flaws: Sequence[Flaw], path: Path) -> None:
    """Writes a CSV table of flaws, sorted by id, with a line of column names."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in dataclasses.fields(Flaw)])
        writer.writerows(dataclasses.astuple(flaw) for flaw in sorted(flaws, key=lambda f: f.id))
