"""From options to the items that a dataset is made of."""

import collections
import dataclasses
import glob
import hashlib
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from adamae_jax.errors import UserError
from adamae_jax.prepare.folders import class_of, find_files, folder_entries
from adamae_jax.prepare.frame_folders import FrameFolders, Odd, find_folders
from adamae_jax.prepare.lists import read_classes, read_list
from adamae_jax.prepare.progress import count, progress, some
from adamae_jax.prepare.sources import Entry, Item, Source, in_threads, make_source, printable
from adamae_jax.prepare.tfds_source import StoredFeatures, tfds_source

_MOST_NAMED = 10  # folders or links that a message names


@dataclasses.dataclass(frozen=True)
class Found:
    """What there is to prepare.

    Attributes:
        root: the folder that it lies in.
        source: the items.
        set_aside: how many of the items without a split are for validation.
        images: whether they are images.
        stored: of records of a TFDS dataset, where they have what is wanted.
        frame_folders: of folders of images that are videos, which of their files are frames.
    """

    root: Path
    source: Source
    set_aside: int
    images: bool = False
    stored: StoredFeatures | None = None
    frame_folders: FrameFolders | None = None

    def fingerprint(self) -> dict[str, Any]:
        """What tells this source from others: another one has other names, labels or sizes.

        Raises:
            UserError: images are no frames of one video, or a frame lies outside of the source.
        """
        digest = hashlib.sha256("\n".join(self.source.label_names).encode())
        folders = self.frame_folders
        states = self._looks(folders) if folders else in_threads(_state, self.source.items)
        for item, state in zip(self.source.items, states, strict=True):
            digest.update(f"\n{item.id}\t{item.label}\t{item.split}\t{state}".encode())
        return {
            "source": str(self.root.resolve()),
            "items": digest.hexdigest(),
            "set_aside": self.set_aside,
        }

    def _looks(self, folders: FrameFolders) -> list[tuple[int | None, str]]:
        """How many frames of each folder are its video, and what its frames are told by."""
        items, root = self.source.items, printable(str(self.root))
        _say(f"looking at {count(len(items), 'folder')} of frames in {root}")
        answers = in_threads(lambda item: folders.look(item.path, self.root), items)
        looks = list(progress(answers, 0, len(items), "folders", "looking", "looked at"))
        odd = {item.id: look.odd for item, look in zip(items, looks, strict=True) if look.odd}
        if odd:
            raise _no_videos(odd)
        return [(item.num_frames, look.state) for item, look in zip(items, looks, strict=True)]


def _state(item: Item) -> object:
    if item.span:
        return item.span
    try:
        return os.stat(item.path).st_size
    except OSError:
        return -1  # it will be listed as skipped


def _no_videos(odd: Mapping[str, Odd]) -> UserError:
    """The error of folders whose images are not the frames of one video."""
    reasons = [f"{name} {reason}" for name, (reason, _) in sorted(odd.items())]
    pattern, _ = collections.Counter(pattern for _, pattern in odd.values()).most_common(1)[0]
    many = f"{len(odd)} folders are no videos: " if len(odd) > 1 else "the folder "
    return UserError(
        f"{many}{some(reasons, _MOST_NAMED)}: remove what is no frame, or say which are the "
        f"frames, in quotes: --frame_names='{printable(pattern)}', for instance"
    )


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def find_source(values: flags.FlagValues) -> Found:
    """The items that ``--source`` or ``--tfds``, and what comes with them, stand for.

    Raises:
        UserError: there is nothing, or something that makes no sense.
    """
    if not 0 <= values.rate < math.inf:
        raise UserError(f"--rate={values.rate} must be frames per second, above 0")
    if values.tfds is not None:
        root = Path(values.tfds)
        source, stored = tfds_source(root, values.rate)
        return Found(root, source, 0, stored.images, stored)
    if not 0 <= values.validation_fraction < 1:
        raise UserError(
            f"--validation_fraction={values.validation_fraction} must be a fraction below 1, or 0 "
            "for no validation"
        )
    root = Path(values.source).absolute()  # Beam's workers start in other folders
    if not root.is_dir():
        raise UserError(f"--source={root} is not a folder: give the one that holds the files")
    folders = FrameFolders(values.frame_names, values.rate) if values.frame_folders else None
    entries = _listed(values, root) if values.list else _found(values, root, folders)
    classes = None
    if values.labels is not None:
        if not any(entry.label for entry in entries):
            raise UserError("--labels is given, but nothing has a label: leave it out")
        classes = read_classes(Path(values.labels))
    source = make_source(root, entries, classes)
    aside = _set_aside(source.items, values)
    return Found(root, source, aside, values.images, frame_folders=folders)


def _found(values: flags.FlagValues, root: Path, folders: FrameFolders | None) -> list[Entry]:
    if folders:  # each holds hundreds of names, which takes a while
        _say(f"looking for folders of frames in {printable(str(root))}")
    found = find_folders(root, folders) if folders else find_files(root, values.images)
    if found.passed_over:
        named = some(found.passed_over, _MOST_NAMED)
        _say(f"passed over in {printable(str(root))}: {named}")
    return folder_entries(found.things, values.class_folders)


def _listed(values: flags.FlagValues, root: Path) -> list[Entry]:
    entries: list[Entry] = []
    splits = _lists(values.list)
    if values["validation_fraction"].present:
        raise UserError("--validation_fraction means nothing with --list: leave it out")
    for split, paths in splits.items():
        for path in paths:
            entries += read_list(path, split, root, values.frame_folders)
    if values.class_folders:
        # UCF101's test lists have no labels, and the folder says the same as its training lists.
        return [entry._replace(label=class_of(entry.path)) for entry in entries]
    labelled = {entry.split for entry in entries if entry.label is not None}
    if labelled and "validation" in splits.keys() - labelled:
        raise UserError(
            f"--list=validation={splits['validation'][0]} has no labels, though other lists have: "
            "add --class_folders if the folders are the classes, or call the split otherwise"
        )
    return entries


def _lists(options: Sequence[str]) -> Mapping[str, Sequence[Path]]:
    """The files of each split: one, or as many as a pattern stands for."""
    splits: dict[str, Sequence[Path]] = {}
    for option in options:
        match = re.fullmatch(r"([A-Za-z]\w*)=(.+)", option)
        if match is None:
            raise UserError(f"--list={option} must be SPLIT=FILE: train=train.csv, for instance")
        if match[1] in splits:
            raise UserError(f"--list={option}: the split {match[1]} has a list already")
        splits[match[1]] = _matching(match[2])
    return splits


def _matching(name: str) -> Sequence[Path]:
    if os.path.exists(name) or not glob.has_magic(name):
        return [Path(name)]  # if it is not there, reading it says so
    if not (found := sorted(glob.glob(name))):
        raise UserError(f"no file is called like the list {name!r}: correct the pattern")
    return [Path(path) for path in found]


def _set_aside(items: Sequence[Item], values: flags.FlagValues) -> int:
    free = sum(item.split is None for item in items)
    if not free or not values.validation_fraction:
        return 0
    wanted = max(1, round(values.validation_fraction * free))
    return min(wanted, free - 1)  # one is left to train on
