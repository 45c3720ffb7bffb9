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
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from adamae_jax.errors import UserError
from adamae_jax.prepare.folders import IMAGE_SUFFIXES, NO_VIDEOS, Found, Listing, search

_DIGITS = re.compile(r"([0-9]+)")
_LAST_NUMBER = re.compile(r"(.*?)[0-9]+([^0-9]*)", re.S)
_SUFFIXES = tuple(IMAGE_SUFFIXES)


class Look(NamedTuple):
    """What the listing of a folder says.

    Attributes:
        state: tells its frames from others, by their names and by the sizes of the first and the
            last; "" where it cannot be listed.
        kinds: how many images there are of each kind, by a pattern of their names; images of one
            kind differ in their last number only. One at most, if they are frames of one video.
    """

    state: str
    kinds: Mapping[str, int]


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

    def is_frame(self, name: str, is_dir: Callable[[], bool] = lambda: False) -> bool:
        """Returns whether a file is a frame, by its name; a folder is none."""
        return (
            name.lower().endswith(_SUFFIXES)
            and not name.startswith(".")
            and (not self.names or fnmatch.fnmatchcase(name, self.names))
            and not is_dir()
        )

    def list_names(self, folder: str) -> list[str]:
        """Returns the names of the frames of a folder, in no order.

        Links that lead nowhere are among them: reading them shows that a frame is missing.

        Raises:
            OSError: there is no such folder, or it cannot be listed.
        """
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if self.is_frame(entry.name, entry.is_dir)]

    def paths(self, folder: str) -> list[str]:
        """Returns the frames of a folder as they are shown; see `list_names`."""
        names = sorted(self.list_names(folder), key=natural_order)
        return [os.path.join(folder, name) for name in names]

    def look(self, folder: str) -> Look:
        """Returns what a folder's listing says of its frames."""
        try:
            names = sorted(self.list_names(folder))
        except OSError:  # it will be left out, and listed
            return Look("", {})
        # A dataset has many millions of images: two sizes of each folder stand for all. They tell
        # frames that were extracted anew, in another size or quality, and a copy that was cut
        # short. What this misses: an image between the first and the last that was replaced under
        # its name.
        sizes = [_size(os.path.join(folder, name)) for name in {*names[:1], *names[-1:]}]
        digest = hashlib.sha256(os.fsencode("\n".join([*names, f"/{sorted(sizes)}"])))
        kinds = collections.Counter(map(_around_number, [] if self.names else names))
        return Look(digest.hexdigest(), {_pattern(*kind): count for kind, count in kinds.items()})


def natural_order(name: str) -> tuple[list[tuple[str, int]], str]:
    """Returns a key by which names are sorted as people count: ``a2`` before ``a10``.

    It depends on nothing but the name. Names that differ only in their zeros (``a2``, ``a02``) have
    an order, too.
    """
    *texts, end = _DIGITS.split(name)
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return [*((text, int(digits)) for text, digits in pairs), (end, -1)], name


def find_folders(source: Path, folders: FrameFolders) -> Found[str]:
    """Returns the paths of all folders that directly hold frames, relative to `source`, sorted.

    Hidden folders are passed over. An empty folder beside them is one of a video whose frames are
    missing, and is found with them; so is a link that leads nowhere.

    Args:
        source: searched with all folders in it; images right in it are no video.
        folders: which images are frames.

    Raises:
        UserError: there is none.
    """

    def look(listing: Listing) -> tuple[str, bool, bool, list[str]]:
        """Returns path, whether it holds frames, whether it is empty, and links to nowhere."""
        lost = [
            os.path.join(listing.path, name)
            for name in listing.links.difference(listing.folders)
            if os.path.splitext(name)[1].lower() not in NO_VIDEOS
            and not os.path.exists(os.path.join(source, listing.path, name))
        ]
        empty = not (listing.folders or listing.files)
        return listing.path, any(map(folders.is_frame, listing.files)), empty, lost

    seen, passed_over = search(source, look)
    found = [path for path, frames, _, _ in seen if frames and path]
    lost = [path for *_, paths in seen for path in paths]
    if not found:
        called = f" called {folders.names!r}" if folders.names else ""
        raise UserError(
            f"--source={source} holds no folder with images{called}: with --frame_folders, give "
            "the folder that holds a folder of numbered images for each video"
        )
    parents = {os.path.dirname(path) for path in found}
    beside = [
        path for path, _, empty, _ in seen if empty and path and os.path.dirname(path) in parents
    ]
    return Found(sorted([*found, *lost, *beside]), passed_over)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1  # reading it will show that it is missing


def _around_number(name: str) -> tuple[str, bool, str, str]:
    """Returns what is in front of a name's last number, whether it has one, its end and suffix."""
    stem, dot, suffix = name.rpartition(".")
    start = stem.rstrip(string.digits)
    if start != stem:
        return start, True, "", dot + suffix  # by far the most: quicker than a pattern
    match = _LAST_NUMBER.fullmatch(stem)
    front, end = (match[1], match[2]) if match else (stem, "")
    return front, match is not None, end, dot + suffix


def _pattern(start: str, number: bool, end: str, suffix: str) -> str:
    return f"{glob.escape(start)}{'[0-9]*' * number}{glob.escape(end)}{suffix}"
