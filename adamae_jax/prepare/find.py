"""From options to the items that a dataset is made of."""

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
from adamae_jax.prepare.frame_folders import FrameFolders, find_folders
from adamae_jax.prepare.lists import read_classes, read_list
from adamae_jax.prepare.progress import count, progress, some
from adamae_jax.prepare.sources import Entry, Item, Source, in_threads, make_source, text_of
from adamae_jax.prepare.tfds_source import StoredFeatures, tfds_source

_MOST_NAMED = 10  # folders or links that a message names
_TINY = 10  # a split with fewer items says little


@dataclasses.dataclass(frozen=True)
class Found:
    """What there is to prepare.

    Attributes:
        root: the folder that it lies in.
        source: the items.
        images: whether they are images.
        stored: of records of a TFDS dataset, where they have what is wanted.
        frame_folders: of folders of images that are videos, which of their files are frames.
    """

    root: Path
    source: Source
    images: bool = False
    stored: StoredFeatures | None = None
    frame_folders: FrameFolders | None = None

    def fingerprint(self) -> dict[str, Any]:
        """Returns what tells this source from others: names, labels, splits and sizes.

        Raises:
            UserError: images are no frames of one video.
        """
        digest = hashlib.sha256("\n".join(self.source.label_names).encode())
        folders = self.frame_folders
        states = self._looks(folders) if folders else in_threads(_state, self.source.items)
        for item, state in zip(self.source.items, states, strict=True):
            digest.update(f"\n{item.id}\t{item.label}\t{item.split}\t{state}".encode())
        return {"source": str(self.root.resolve()), "items": digest.hexdigest()}

    def _looks(self, folders: FrameFolders) -> list[tuple[int | None, str]]:
        """Returns how many frames of each folder are its video, and what they are told by."""
        items = self.source.items
        _say(f"looking at {count(len(items), 'folder')} of frames in {self.root}")
        answers = in_threads(lambda item: folders.look(item.path), items)
        looks = list(progress(answers, 0, len(items), "folders", "looking", "looked at"))
        odd = {
            item.id: look.kinds
            for item, look in zip(items, looks, strict=True)
            if len(look.kinds) > 1
        }
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


def _no_videos(odd: Mapping[str, Mapping[str, int]]) -> UserError:
    """Returns the error of folders that hold images of several kinds."""
    folders = [f"{name} ({some(sorted(map(text_of, odd[name])), 4)})" for name in sorted(odd)]
    first = odd[min(odd)]
    pattern = max(sorted(first), key=first.__getitem__)
    return UserError(
        f"{count(len(odd), 'folder')} of frames with images of several kinds: "
        f"{some(folders, _MOST_NAMED)}: remove what is no frame, or say which are the frames, in "
        f"quotes: --frame_names='{text_of(pattern)}', for instance"
    )


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def find_source(values: flags.FlagValues) -> Found:
    """Returns the items that ``--source`` or ``--tfds``, and what comes with them, stand for.

    Raises:
        UserError: there is nothing, or something that makes no sense.
    """
    if not 0 <= values.rate < math.inf:
        raise UserError(f"--rate={values.rate} must be frames per second, above 0")
    if values.tfds is not None:
        root = Path(values.tfds)
        source, stored = tfds_source(root, values.rate)
        return Found(root, source, stored.images, stored)
    fraction = values.validation_fraction
    if not 0 <= fraction < 1:
        raise UserError(
            f"--validation_fraction={fraction} must be a fraction below 1, or 0 for no validation"
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
    source = make_source(root, entries, classes, fraction)
    if values.list:
        _check_listed(entries, root, values.max_skipped)
    elif any(entry.split is None for entry in entries) and fraction:
        _tell_split(source.items)
    return Found(root, source, values.images, frame_folders=folders)


def _found(values: flags.FlagValues, root: Path, folders: FrameFolders | None) -> list[Entry]:
    if folders:  # each holds hundreds of names, which takes a while
        _say(f"looking for folders of frames in {root}")
    found = find_folders(root, folders) if folders else find_files(root, values.images)
    if found.passed_over:
        _say(f"passed over in {root}: {some(found.passed_over, _MOST_NAMED)}")
    return folder_entries(found.things, values.class_folders)


def _tell_split(items: Sequence[Item]) -> None:
    """Says how many items were set aside for validation, and whether they are few."""
    aside = sum(item.split == "validation" for item in items)
    few = (
        ", which is too few for metrics that mean much: choose a larger --validation_fraction, or "
        "give a list of each split (--list=validation=FILE)"
    )
    _say(f"{aside} of {count(len(items), 'item')} set aside for validation{few * (aside < _TINY)}")


def _check_listed(entries: Sequence[Entry], root: Path, max_skipped: float) -> None:
    """Says how many of the files that lists name are there.

    Raises:
        UserError: none are, or so few that the job would fail at the end.
    """
    paths = [os.path.join(root, entry.path) for entry in entries]
    there = list(in_threads(os.path.exists, paths))
    if all(there):
        _say(f"all {count(len(paths), 'file')} of the lists are in {root}")
        return
    words = (
        f"{sum(there)} of the {count(len(paths), 'file')} that the lists name are in "
        f"--source={root}; the first that is not there is {text_of(paths[there.index(False)])}"
    )
    missing = there.count(False) / len(paths)
    if any(there) and missing <= max_skipped:
        _say(words)
        return
    enough = math.ceil(1000 * missing) / 1000
    raise UserError(
        f"only {words}: correct --source, or the paths in the lists"
        + (f"; or allow that so many are left out, --max_skipped={enough:g}" * any(there))
    )


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
    """Returns the files of each split: one, or as many as a pattern stands for."""
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
