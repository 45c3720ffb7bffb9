"""What a dataset is made of: items, each with the place of its bytes, its label and its split.

Every kind of source (files, folders of frames, list files, a dataset of TFDS) ends in a `Source`;
what comes after knows nothing of where items came from.
"""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from adamae_jax.data import schema
from adamae_jax.errors import UserError

_MOST_CLASSES = 6  # that a message names
MAX_CLASSES = 1_000_000  # a larger number in a list is no class, but a slip
_NUMBERS = re.compile(r"[+-]?\d+(\.\d*)?")  # also those that no class can have
# A file system over a network answers each question late, but many at once.
_THREADS, _AT_ONCE = 32, 64

Thing = TypeVar("Thing")
Answer = TypeVar("Answer")


@dataclasses.dataclass(frozen=True)
class Item:
    """One video or image that is to go into a dataset; small, and can be pickled.

    Attributes:
        id: unique within the dataset; for a file, its path below the root.
        path: of the file that holds it, or of the folder that holds its frames.
        label: class index, or `schema.UNLABELLED`.
        split: the split that it belongs to; None where a share of all items is set aside.
        span: (offset, length) of the ``tf.train.Example`` in the file; None: it is the whole file.
        num_frames: how many frames of a folder are the video, from the first on; None: all.
    """

    id: str
    path: str
    label: int = schema.UNLABELLED
    split: str | None = None
    span: tuple[int, int] | None = None
    num_frames: int | None = None


class Source(NamedTuple):
    """Items in the order in which they are to be stored, and the names of their classes."""

    items: tuple[Item, ...]
    label_names: tuple[str, ...]


class Entry(NamedTuple):
    """An item as a user has written it down.

    Attributes:
        path: of the file or folder, below the root or absolute.
        label: name or number of its class; None where it has none.
        split: as in `Item`.
        where: words for messages: the line of a list, for instance.
        num_frames: as in `Item`.
    """

    path: str
    label: str | None
    split: str | None
    where: str
    num_frames: int | None = None


def make_source(
    root: Path, entries: Sequence[Entry], classes: Mapping[str, int] | None = None
) -> Source:
    """Checks paths, numbers labels and brings the items into their order.

    Items are ordered by split and then by a hash of their ids: it looks random, so that shards mix
    classes, but depends on nothing but the ids.

    Args:
        root: folder that all files must lie in.
        entries: at least one.
        classes: index by name, and by number where classes are numbered; None takes the labels
            themselves, which are then all numbers or else all names, numbered alphabetically.

    Raises:
        UserError: a path leads out of `root`, is named twice, or a label is unknown.
    """
    if classes is None:
        classes = _classes_of(entries)
    # With a slash at the end: what begins so lies below.
    top, real_top = (os.path.join(place(root), "") for place in (os.path.abspath, os.path.realpath))
    real_folder = functools.cache(os.path.realpath)  # folders have many files
    below = functools.partial(_path_below, top, real_top, real_folder)
    seen: dict[str, str] = {}
    items = []
    for entry, relative in zip(entries, in_threads(below, entries), strict=True):
        if relative in seen:
            raise UserError(
                f"{entry.where}: {entry.path!r} is there already ({seen[relative]}): name each "
                "file once, in one split"
            )
        seen[relative] = entry.where
        path, label = os.path.join(root, relative), _label(entry, classes)
        item = Item(printable(relative), path, label, entry.split, num_frames=entry.num_frames)
        items.append(item)
    names = {index: name for name, index in reversed(list(classes.items()))}
    return Source(in_order(items), tuple(names[index] for index in sorted(names)))


def in_order(items: Iterable[Item]) -> tuple[Item, ...]:
    """By split, validation first, and within a split by a hash of the id."""

    def place(item: Item) -> tuple[str, bytes, str]:
        return _split_place(item.split), hashlib.sha256(item.id.encode()).digest(), item.id

    return tuple(sorted(items, key=place))


def _split_place(split: str | None) -> str:
    # The small split comes first, so that what is wrong with it shows early.
    return "" if split in (None, "validation") else str(split)


def _path_below(top: str, real_top: str, real_folder: Callable[[str], str], entry: Entry) -> str:
    """The path of an entry relative to the root, after making sure that it stays there.

    Links are followed to see where they end, and then left as they are.

    Args:
        top: the root, with a slash at the end.
        real_top: where it really is, likewise.
        real_folder: where a folder really is.
        entry: what to look at.
    """
    if not entry.path or "\0" in entry.path:
        raise UserError(f"{entry.where}: the path {entry.path!r} names no file")
    path = os.path.normpath(os.path.join(top, entry.path))
    folder, name = os.path.split(path)
    real = os.path.join(real_folder(folder), name)
    if os.path.islink(real):
        real = leads_out(real, real_top) or real
    parents = [parent for parent in (top, real_top) if path.startswith(parent)]
    if not parents or not real.startswith(real_top):
        called = f"{entry.where}: {printable(entry.path)!r}"
        raise outside(called, top[:-1], real if parents else None)
    return path.removeprefix(parents[0])


def leads_out(link: str, real_top: str) -> str | None:
    """Where a link leads to, if that lies outside; None where it stays or leads nowhere.

    What is not there is no file of somebody else's: it is left out like any file that is missing.

    Args:
        link: to follow.
        real_top: folder to stay in, itself no link; with a slash at the end.
    """
    real = os.path.realpath(link)
    inside = os.path.join(real, "").startswith(real_top)
    return None if inside or not os.path.exists(real) else real


def outside(what: str, root: str, leads_to: str | None) -> UserError:
    """The error of a path that lies outside of the root.

    Args:
        what: the path, with what a message needs in front of it.
        root: what was given as ``--source``.
        leads_to: for what begins in the root, where links have led to; else None.
    """
    if leads_to is None:
        remedy = "move the file there, or give the folder that holds all files"
        return UserError(f"{what} lies outside of --source={printable(root)}: {remedy}")
    common = os.path.commonpath([os.path.realpath(root), leads_to])
    such_as = f" (--source={printable(common)})" if common != os.sep else ""
    target = leads_to if os.path.isdir(leads_to) else os.path.dirname(leads_to)
    return UserError(
        f"{what} lies outside of --source={printable(root)} (it leads to {printable(leads_to)}), "
        f"and links are not followed there: give the folder that holds all files{such_as}, or "
        f"mount the other one in --source in place of links (mount --bind {printable(target)} "
        "FOLDER)"
    )


def in_threads(work: Callable[[Thing], Answer], things: Sequence[Thing]) -> Iterator[Answer]:
    """What `work` says of each thing, in their order, asked by many threads at once.

    For questions to the file system, while which other threads can work.
    """

    # In blocks: to hand over each thing alone would cost more than to ask a local disk.
    size = min(_AT_ONCE, 1 + len(things) // _THREADS)

    def answers(start: int) -> list[Answer]:
        return [work(thing) for thing in things[start : start + size]]

    with ThreadPoolExecutor(_THREADS) as threads:
        for block in threads.map(answers, range(0, len(things), size)):
            yield from block


def printable(path: str) -> str:
    """A path as text: file names on Linux are bytes, and need not be valid UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _classes_of(entries: Sequence[Entry]) -> dict[str, int]:
    """Classes that nobody has listed: 0 to the highest number, or all names alphabetically."""
    given = {entry.label: entry.where for entry in entries if entry.label is not None}
    names = [label for label in given if not _is_number(label)]
    # In alphabetical order 10 comes before 2: numbers among names would get others' places.
    if numbers := [label for label in given if _NUMBERS.fullmatch(label)]:
        if names:
            number, name = numbers[0], next((n for n in names if n != numbers[0]), names[0])
            raise UserError(
                f"the label {number!r} ({given[number]}) is a number and {name!r} ({given[name]}) "
                "is not one that counts classes from 0: write all labels as such numbers or all "
                "as names, -1 in a list where there is none, or give all classes as --labels=FILE"
            )
    else:
        return {name: index for index, name in enumerate(sorted(names))}
    highest = max(map(int, numbers))
    if highest >= MAX_CLASSES:
        raise UserError(f"a label is {highest}: classes are numbered from 0, below {MAX_CLASSES}")
    return {str(index): index for index in range(highest + 1)}


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdecimal()


def _label(entry: Entry, classes: Mapping[str, int]) -> int:
    if entry.label is None:
        return schema.UNLABELLED
    # Numbers may be written with zeros in front; names that look so are found as they are.
    number = str(int(entry.label)) if _is_number(entry.label) else entry.label
    index = classes.get(entry.label, classes.get(number))
    if index is None:
        some = ", ".join([*list(classes)[:_MOST_CLASSES], *["..."][: len(classes) > _MOST_CLASSES]])
        raise UserError(
            f"{entry.where}: the label {entry.label!r} is not among the known ones ({some}): "
            "correct it, or the file given as --labels"
        )
    return index
