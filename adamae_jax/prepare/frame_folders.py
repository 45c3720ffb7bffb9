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
from typing import NamedTuple

from adamae_jax.errors import UserError
from adamae_jax.prepare.folders import IMAGE_SUFFIXES, NO_VIDEOS, Found, Listing, search
from adamae_jax.prepare.sources import leads_out, outside, printable

_DIGITS = re.compile(r"([0-9]+)")
_SUFFIXES = tuple(IMAGE_SUFFIXES)
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
            name.lower().endswith(_SUFFIXES)
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

    def look(self, folder: str, root: Path) -> "Look":
        """What a folder's listing says of its frames.

        Args:
            folder: to look at; one that cannot be listed, which will be left out, has a state too.
            root: folder that all frames must lie in.

        Raises:
            UserError: a frame is a link that leads out of `root`.
        """
        try:
            with os.scandir(folder) as entries:
                frames = [entry for entry in entries if self.is_frame(entry.name)]
                frames = [entry for entry in frames if not entry.is_dir()]
        except OSError:
            return Look("", None)
        if links := [entry.path for entry in frames if entry.is_symlink()]:
            real_top = os.path.join(os.path.realpath(root), "")
            for link in links:
                if real := leads_out(link, real_top):
                    raise outside(printable(link), str(root), real)
        names = sorted(entry.name for entry in frames)
        # A dataset has many millions of images: two sizes of each folder stand for all. They tell
        # frames that were extracted anew, in another size or quality, and a copy that was cut
        # short. What this misses: an image between the first and the last that was replaced under
        # its name. The folder's own time would mostly tell of it, but also of a file beside the
        # frames or of a copy of the whole, neither of which makes another dataset.
        sizes = [_size(os.path.join(folder, name)) for name in {*names[:1], *names[-1:]}]
        digest = hashlib.sha256(os.fsencode("\n".join([*names, f"/{sorted(sizes)}"])))
        return Look(digest.hexdigest(), None if self.names else _odd(names))


class Odd(NamedTuple):
    """Why the images of a folder are no frames of one video.

    Attributes:
        reason: in words.
        pattern: that would choose some of them, for `FrameFolders.names`.
    """

    reason: str
    pattern: str


class Look(NamedTuple):
    """What the listing of a folder says.

    Attributes:
        state: tells its frames from others, by their names and by the sizes of the first and the
            last; "" where it cannot be listed.
        odd: None where the images are frames of one video, or chosen by a pattern.
    """

    state: str
    odd: Odd | None


def natural_order(name: str) -> tuple[list[tuple[str, int]], str]:
    """A key by which names are sorted as people count: ``a2`` before ``a10``.

    It depends on nothing but the name. Names that differ only in their zeros (``a2``, ``a02``) have
    an order, too.
    """
    *texts, end = _DIGITS.split(name)
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return [*((text, int(digits)) for text, digits in pairs), (end, -1)], name


def find_folders(source: Path, folders: FrameFolders) -> Found[str]:
    """Paths of all folders below `source` that directly hold frames, relative to it, sorted.

    Hidden folders are passed over. An empty folder beside them is one of a video whose frames are
    missing, and is found with them; so is a link that leads nowhere.

    Args:
        source: searched with all folders in it; images right in it are no video.
        folders: which images are frames.

    Raises:
        UserError: there is none, or a link to a folder leads out of `source`.
    """

    def look(listing: Listing) -> tuple[str, bool, bool, list[str]]:
        """Path, whether it holds frames, whether it is empty, and the links to no folder."""
        frames = any(map(folders.is_frame, (*listing.files, *listing.dangling)))
        lost = [name for name in listing.dangling if _may_be_folder(name)]
        empty = not (listing.folders or listing.files or listing.dangling)
        return listing.path, frames, empty, [os.path.join(listing.path, name) for name in lost]

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
    empty = [path for path, _, empty, _ in seen if empty and path]
    beside = [path for path in empty if os.path.dirname(path) in parents]
    return Found(sorted([*found, *lost, *beside]), passed_over)


def _may_be_folder(name: str) -> bool:
    """Whether a link that leads nowhere is to a folder, as far as its name says."""
    return os.path.splitext(name)[1].lower() not in NO_VIDEOS


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1  # reading it will show that it is missing


def _odd(names: Sequence[str]) -> Odd | None:
    """What is wrong where images are not numbered through under one name."""
    if _differ_in_number(names):
        return None
    kinds: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    seen: dict[int, str] = {}
    twice: Odd | None = None
    for name in names:
        start, number, end = _around_number(name)
        kinds[start, end].append(name)
        first = seen.setdefault(number, name)
        if first != name and twice is None:
            reason = f"holds frame {number} twice ({printable(first)}, {printable(name)})"
            twice = Odd(reason, f"*{os.path.splitext(first)[1]}")
    if len(kinds) < 2:
        return twice
    examples = [printable(of_kind[0]) for of_kind in kinds.values()]
    more = ", ..." if len(examples) > _MOST_KINDS else ""
    likely = max(kinds.values(), key=lambda of_kind: (len(of_kind), of_kind))
    return Odd(
        f"holds images of {len(kinds)} kinds ({', '.join(examples[:_MOST_KINDS])}{more})",
        _pattern(likely[0]),
    )


def _differ_in_number(names: Sequence[str]) -> bool:
    """Whether names differ in their last number and in nothing else.

    It says of nearly all folders, in a tenth of the time, that nothing is wrong.
    """
    if not names or not (runs := list(_DIGITS.finditer(os.path.splitext(names[0])[0]))):
        return False
    start, end = names[0][: runs[-1].start()], names[0][runs[-1].end() :]
    alike = [name for name in names if name.startswith(start) and name.endswith(end)]
    digits = [name[len(start) : len(name) - len(end)] for name in alike]
    numbers = {int(number) for number in digits if number.isascii() and number.isdecimal()}
    return len(numbers) == len(names)


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
