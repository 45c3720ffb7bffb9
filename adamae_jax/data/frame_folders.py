"""Videos that are kept as folders of numbered images, one image a frame ("raw frames").

The images that a folder holds directly are its video, in natural order of their names: ``frame2``
comes before ``frame10``. Their numbers say nothing else, so that they may start at 0 or at 1 and be
apart by more than one. Images of several kinds in one folder, as TSN keeps ``img_00001.jpg`` beside
``flow_x_00001.jpg``, are told apart by a pattern.
"""

import collections
import dataclasses
import fnmatch
import glob
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from adamae_jax.data.sources import printable
from adamae_jax.data.video_folder import IMAGE_SUFFIXES
from adamae_jax.errors import UserError

_DIGITS = re.compile(r"([0-9]+)")
_MOST_KINDS = 4  # that a message names


@dataclasses.dataclass(frozen=True)
class FrameFolders:
    """Which files of a folder are the frames of its video, and how fast they follow each other.

    Attributes:
        names: pattern that the names of frames match, as a shell understands it; empty: all images
            are frames, and must be of one kind.
        rate: frames per second; 0 where it is not known.
    """

    names: str = ""
    rate: float = 0.0

    def is_frame(self, name: str) -> bool:
        """Whether a file is a frame, by its name."""
        return (
            os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
            and not name.startswith(".")
            and (not self.names or fnmatch.fnmatchcase(name, self.names))
        )

    def select(self, names: Iterable[str]) -> list[str]:
        """Those of some files that are frames, in the order in which they are shown."""
        return sorted(filter(self.is_frame, names), key=natural_order)

    def paths(self, folder: str) -> list[str]:
        """The frames of a folder, in the order in which they are shown.

        Links that lead nowhere are among them: reading them shows that a frame is missing.

        Raises:
            OSError: there is no such folder, or it cannot be listed.
        """
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.is_dir()]
        return [os.path.join(folder, name) for name in self.select(names)]

    def state(self, folder: str, root: Path) -> str:
        """What tells a folder's frames from others: a digest of their names and sizes.

        Args:
            folder: to look at; one that cannot be listed has a state as well.
            root: folder that all frames must lie in.

        Raises:
            UserError: a frame is a link that leads out of `root`, or no pattern of names is given
                and the images of the folder are of more than one kind.
        """
        sizes = {}
        top = os.path.join(os.path.realpath(root), "")
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if self.is_frame(entry.name) and not entry.is_dir():
                        if entry.is_symlink():
                            _check_link(entry.path, top)
                        sizes[entry.name] = _size(entry)
        except OSError:
            return ""  # it will be listed as skipped
        if not self.names:
            _check_kinds(sorted(sizes), folder)
        lines = "".join(f"{name}\t{size}\n" for name, size in sorted(sizes.items()))
        return hashlib.sha256(os.fsencode(lines)).hexdigest()


def natural_order(name: str) -> tuple[list[tuple[str, int]], str]:
    """A key by which names are sorted as people count: ``a2`` before ``a10``.

    It depends on nothing but the name. Names that differ only in their zeros (``a2``, ``a02``) have
    an order, too.
    """
    *texts, end = _DIGITS.split(name)
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return [*((text, int(digits)) for text, digits in pairs), (end, -1)], name


def find_folders(source: Path, folders: FrameFolders) -> list[str]:
    """Paths of all folders below `source` that directly hold frames, relative to it, sorted.

    Hidden folders are passed over. An empty folder beside them is one of a video whose frames are
    missing, and is found with them.

    Args:
        source: searched with all folders in it; images right in it are no video.
        folders: which images are frames.

    Raises:
        UserError: there is none.
    """
    found, empty = [], []
    for folder, inner, names in os.walk(source):
        inner[:] = [name for name in inner if not name.startswith(".")]
        below = os.path.relpath(folder, source)
        if below == ".":
            continue
        if any(map(folders.is_frame, names)):
            found.append(below)
        elif not inner and all(name.startswith(".") for name in names):
            empty.append(below)
    if not found:
        called = f" called {folders.names!r}" if folders.names else ""
        raise UserError(
            f"--source={source} holds no folder with images{called}: with --frame_folders, give "
            "the folder that holds a folder of numbered images for each video"
        )
    parents = {os.path.dirname(path) for path in found}
    return sorted([*found, *(path for path in empty if os.path.dirname(path) in parents)])


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return -1


def _check_link(path: str, top: str) -> None:
    """Raises an error where a link leads out of the folder `top`, which ends in a slash."""
    if not (real := os.path.realpath(path)).startswith(top):
        raise UserError(
            f"{printable(path)} lies outside of --source (it leads to {printable(real)}): move the "
            "file there, or give the folder that holds all files"
        )


def _check_kinds(names: Sequence[str], folder: str) -> None:
    """Raises an error where images are not numbered through under one name."""
    kinds: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    seen: dict[int, str] = {}
    for name in names:
        start, number, end = _around_number(name)
        kinds[start, end].append(name)
        first = seen.setdefault(number, name)
        if first != name and len(kinds) == 1:
            raise UserError(
                f"the folder {printable(folder)} holds frame {number} twice "
                f"({printable(first)}, {printable(name)}): remove one, or say which are the "
                f"frames, in quotes: --frame_names='*{os.path.splitext(first)[1]}', for instance"
            )
    if len(kinds) > 1:
        examples = [printable(of_kind[0]) for of_kind in kinds.values()]
        more = ", ..." if len(examples) > _MOST_KINDS else ""
        likely = max(kinds.values(), key=lambda of_kind: (len(of_kind), of_kind))
        raise UserError(
            f"the folder {printable(folder)} holds images of {len(kinds)} kinds "
            f"({', '.join(examples[:_MOST_KINDS])}{more}): say which are the frames, in quotes: "
            f"--frame_names='{printable(_pattern(likely[0]))}', for instance"
        )


def _around_number(name: str) -> tuple[str, int, str]:
    """What stands in front of the last number of a name, the number, and what stands behind it.

    Without the suffix; a name without a number has -1, and all of it stands in front.
    """
    *front, number, end = ["", *_DIGITS.split(os.path.splitext(name)[0])]
    return ("".join(front), int(number), end) if number else (end, -1, "")


def _pattern(name: str) -> str:
    """A pattern of all names of a kind: ``img_[0-9]*``, which ``img_mask_1.jpg`` does not match."""
    start, number, end = _around_number(name)
    if number < 0:
        return f"*{os.path.splitext(name)[1]}"
    return f"{glob.escape(start)}[0-9]*{glob.escape(end) + '.*' if end else ''}"
