"""Several datasets as one.

A config and a command line name a mixture in the words of `parts_in`: ``k400:0.7,ssv2:0.3``.
Trained on are all parts; looked at from outside, by evaluations and pictures, is the first alone,
since no loss or accuracy over different datasets means much. So only the first needs a split for
validation.
"""

import bisect
import dataclasses
import hashlib
import itertools
import math
import os
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from adamae_jax.data.examples import Record
from adamae_jax.data.records import Dataset
from adamae_jax.errors import UserError

# Weights are taken as fractions with denominators up to this: 0.1 means a tenth.
_FINEST_WEIGHT = 10**6


class Part(NamedTuple):
    """One dataset of a mixture.

    Attributes:
        directory: of the dataset.
        weight: above 0; shares of the stream's videos are in proportion to the weights.
    """

    directory: str | os.PathLike[str]
    weight: float = 1.0


# What names a dataset or a mixture; see `parts_in`.
Directory = str | os.PathLike[str] | Sequence[Part]


class MixedDataset:
    """Datasets one behind the other, as one sequence of records.

    Each keeps its own labels. Masks of the foreground are there if all have them.

    Attributes:
        datasets: the parts, in order.
        weights: of the parts, of which the sum is 1.
        has_foreground: whether records carry foreground masks.
        label_names: those that all parts have; empty where they differ.
        fingerprint: digest of those of the parts and their shares of the stream.
    """

    def __init__(self, parts: Sequence[Part], split: str):
        """Opens the same split of every part.

        Raises:
            UserError: there is no part, a weight is not above 0, or a dataset cannot be used.
        """
        parts = [Part(*part) for part in parts]
        shares = _shares([float(part.weight) for part in parts])
        self.weights = tuple(map(float, shares))
        self.datasets = tuple(Dataset(part.directory, split) for part in parts)
        self._first = (0, *itertools.accumulate(map(len, self.datasets)))
        self.has_foreground = all(dataset.has_foreground for dataset in self.datasets)
        names = {dataset.label_names for dataset in self.datasets}
        self.label_names: tuple[str, ...] = names.pop() if len(names) == 1 else ()
        described = [dataset.fingerprint for dataset in self.datasets], list(map(str, shares))
        self.fingerprint = hashlib.sha256(repr(described).encode()).hexdigest()

    def __len__(self) -> int:
        """Returns the number of records of all parts."""
        return self._first[-1]

    def __getitem__(self, index: int) -> Record:
        """Reads one record, as `Dataset` does."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        part = self.part_of(index)
        record = self.datasets[part][index - self._first[part]]
        if record.foreground is not None and not self.has_foreground:
            return dataclasses.replace(record, foreground=None)
        return record

    def part_of(self, index: int) -> int:
        """Returns the number of the part that a record comes from."""
        return bisect.bisect_right(self._first, index) - 1

    def span(self, part: int) -> tuple[int, int]:
        """Returns the number of a part's first record, and how many it has."""
        return self._first[part], len(self.datasets[part])

    def place(self, index: int) -> tuple[str, int]:
        """Returns the file that holds a record, and the record's number in it."""
        part = self.part_of(index)
        return self.datasets[part].place(index - self._first[part])

    def where(self, index: int) -> str:
        """Returns words for messages: which record of which file this is."""
        part = self.part_of(index)
        return self.datasets[part].where(index - self._first[part])


def parts_in(directory: Directory) -> tuple[Part, ...]:
    """Returns the parts of a mixture; one part for a single dataset.

    Args:
        directory: one directory or address, the parts themselves, or their words in a config:
            ``DIR:WEIGHT,DIR:WEIGHT``. Words without a comma are one directory, colons and all.

    Raises:
        UserError: words with a comma have a part without a directory or a weight above 0.
    """
    if isinstance(directory, str) and "," in directory:
        return tuple(_part(words, directory) for words in directory.split(","))
    if isinstance(directory, str | os.PathLike):
        return (Part(directory),)
    return tuple(Part(*part) for part in directory)


def _part(words: str, mixture: str) -> Part:
    name, _, number = words.strip().rpartition(":")
    try:
        part = Part(name, float(number))
        _shares([part.weight])
    except (ValueError, UserError):
        name = ""
    if not name:
        raise UserError(
            f"{words!r} in the mixture {mixture!r} is no DIR:WEIGHT with a weight above 0: write "
            "k400:0.7,ssv2:0.3, for instance (a single dataset needs no weight)"
        )
    return part


def open_dataset(directory: Directory, split: str) -> Dataset | MixedDataset:
    """Opens a split of a dataset or of a mixture; raises as `parts_in` and their constructors."""
    parts = parts_in(directory)
    if len(parts) == 1:
        return Dataset(parts[0].directory, split)
    return MixedDataset(parts, split)


def open_first(directory: Directory, split: str) -> Dataset:
    """Opens a split of a dataset, or of the first part of a mixture; raises like them."""
    parts = parts_in(directory)
    _shares([part.weight for part in parts])
    return Dataset(parts[0].directory, split)


def parts_of(
    dataset: Dataset | MixedDataset,
) -> tuple[tuple[Dataset, ...], tuple[float, ...]]:
    """Returns the datasets of a mixture and their weights; one dataset is a mixture of itself."""
    if isinstance(dataset, MixedDataset):
        return dataset.datasets, dataset.weights
    return (dataset,), (1.0,)


def _shares(weights: Sequence[float]) -> list[Fraction]:
    """Returns weights as fractions of their sum."""
    if not weights:
        raise UserError("a mixture of no datasets: give (directory, weight) for each of them")
    for weight in weights:
        if not (0 < weight < math.inf) or not _fraction(weight):
            raise UserError(f"the weights of the parts are {tuple(weights)}, but must be above 0")
    fractions = [_fraction(weight) for weight in weights]
    return [fraction / sum(fractions) for fraction in fractions]


def _fraction(weight: float) -> Fraction:
    return Fraction(weight).limit_denominator(_FINEST_WEIGHT)
