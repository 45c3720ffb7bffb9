"""What a dataset is made of: items, each with the place of its bytes, its label and its split.

Every kind of source (files, folders of frames, list files, a dataset of TFDS) ends in a `Source`;
what comes after knows nothing of where items came from.
"""

import collections
import dataclasses
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
        split: the split that it belongs to; None: training, or validation if that would be empty.
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
    root: Path,
    entries: Sequence[Entry],
    classes: Mapping[str, int] | None = None,
    validation_fraction: float = 0.0,
) -> Source:
    """Checks paths, numbers labels, decides on splits and brings the items into their order.

    Items are ordered by split and then by a hash of their ids: it looks random, so that shards mix
    classes, but depends on nothing but the ids.

    Args:
        root: folder that all files lie in.
        entries: at least one.
        classes: index by name, and by number where classes are numbered; None takes the labels
            themselves, which are then all numbers or else all names, numbered alphabetically.
        validation_fraction: of the entries without a split, see `with_splits`.

    Raises:
        UserError: a path leads out of `root` by ``..``, is named twice, or a label is unknown.
    """
    if classes is None:
        classes = _classes_of(entries)
    seen: dict[str, str] = {}
    items = []
    for entry in entries:
        relative = _path_below(root, entry)
        if relative in seen:
            raise UserError(
                f"{entry.where}: {entry.path!r} is there already ({seen[relative]}): name each "
                "file once, in one split"
            )
        seen[relative] = entry.where
        path, label = os.path.join(root, relative), _label(entry, classes)
        item = Item(text_of(relative), path, label, entry.split, num_frames=entry.num_frames)
        items.append(item)
    names = {index: name for name, index in reversed(list(classes.items()))}
    ordered = in_order(with_splits(items, validation_fraction))
    return Source(ordered, tuple(names[index] for index in sorted(names)))


def with_splits(items: Iterable[Item], validation_fraction: float) -> Iterator[Item]:
    """Yields all items, with a part of those without a split set aside for "validation".

    Of each class (and of what has none), the fraction is for validation, rounded, but at least one
    item if the class has two or more: metrics of a class need an example of it. Which items it is
    follows from a hash of their ids.

    Args:
        items: of a dataset.
        validation_fraction: from 0, which sets nothing aside, to below 1.
    """
    classes: dict[int, list[Item]] = collections.defaultdict(list)
    for item in items:
        if item.split is None:
            classes[item.label].append(item)
        else:
            yield item
    groups = list(classes.values())
    if all(len(group) < 2 for group in groups):  # one item of each class: classes cannot be parted
        groups = [[item for group in groups for item in group]]
    for of_class in groups:
        wanted = max(1, round(validation_fraction * len(of_class))) if validation_fraction else 0
        aside = min(wanted, len(of_class) - 1)  # one is left to train on
        for place, item in enumerate(in_order(of_class)):
            yield dataclasses.replace(item, split="validation") if place < aside else item


def in_order(items: Iterable[Item]) -> tuple[Item, ...]:
    """Returns items by split, validation first, and within a split by a hash of the id."""

    def place(item: Item) -> tuple[str, bytes, str]:
        # The small split comes first, so that what is wrong with it shows early.
        split = "" if item.split == "validation" else item.split or "train"
        return split, hashlib.sha256(item.id.encode()).digest(), item.id

    return tuple(sorted(items, key=place))


def _path_below(root: Path, entry: Entry) -> str:
    """Returns the path of an entry relative to the root; what links lead to may lie elsewhere."""
    if not entry.path or "\0" in entry.path:
        raise UserError(f"{entry.where}: the path {entry.path!r} names no file")
    top = os.path.join(os.path.abspath(root), "")
    path = os.path.normpath(os.path.join(top, entry.path))
    if not path.startswith(top) and os.path.isabs(entry.path):  # by another name, perhaps
        top, path = os.path.join(os.path.realpath(root), ""), os.path.realpath(path)
    if not path.startswith(top):
        raise UserError(
            f"{entry.where}: {text_of(entry.path)!r} lies outside of --source={root}: give the "
            "folder that holds all files"
        )
    return path.removeprefix(top)


def in_threads(work: Callable[[Thing], Answer], things: Sequence[Thing]) -> Iterator[Answer]:
    """Yields what `work` says of each thing, in their order, asked by many threads at once.

    For questions to the file system, while which other threads can work.
    """

    # In blocks: to hand over each thing alone would cost more than to ask a local disk.
    size = min(_AT_ONCE, 1 + len(things) // _THREADS)

    def answers(start: int) -> list[Answer]:
        return [work(thing) for thing in things[start : start + size]]

    with ThreadPoolExecutor(_THREADS) as threads:
        for block in threads.map(answers, range(0, len(things), size)):
            yield from block


def text_of(path: str) -> str:
    """Returns a path as text: file names on Linux are bytes, and need not be valid UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _classes_of(entries: Sequence[Entry]) -> dict[str, int]:
    """Returns classes that nobody has listed: 0 to the highest number, or names alphabetically."""
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
