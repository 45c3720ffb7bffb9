"""Several datasets as one, and which record of which of them stands where in a stream.

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
from adamae_jax.data.permutation import permuted
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
        weights: of the parts.
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
        self.weights = tuple(float(part.weight) for part in parts)
        shares = [str(share) for share in _shares(self.weights)]
        self.datasets = tuple(Dataset(part.directory, split) for part in parts)
        self._first = (0, *itertools.accumulate(map(len, self.datasets)))
        self.has_foreground = all(dataset.has_foreground for dataset in self.datasets)
        names = {dataset.label_names for dataset in self.datasets}
        self.label_names: tuple[str, ...] = names.pop() if len(names) == 1 else ()
        described = [dataset.fingerprint for dataset in self.datasets], shares
        self.fingerprint = hashlib.sha256(repr(described).encode()).hexdigest()

    def __len__(self) -> int:
        """Number of records of all parts."""
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
        """The number of the part that a record comes from."""
        return bisect.bisect_right(self._first, index) - 1

    def where(self, index: int) -> str:
        """Words for messages: which record of which file this is."""
        part = self.part_of(index)
        return self.datasets[part].where(index - self._first[part])


def parts_in(directory: Directory) -> tuple[Part, ...]:
    """The parts of a mixture; one part for a single dataset.

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
    """The datasets of a mixture and their weights; one dataset is a mixture of itself."""
    if isinstance(dataset, MixedDataset):
        return dataset.datasets, dataset.weights
    return (dataset,), (1.0,)


class Order:
    """Which record stands at a position of the training stream, in constant time and memory.

    The first part has its turns evenly among all positions, the second evenly among those that are
    left, and so on: before position ``p`` stand ``floor(p * share)`` turns of the first, and every
    batch has the parts in proportion. The turns of each part are numbered, and walk through epochs
    of its own, each in an order of its own: turn k is the record that the order of epoch
    ``k // size`` has at ``k % size``.
    """

    def __init__(self, dataset: Dataset | MixedDataset, seed: int):
        """Describes the order.

        Args:
            dataset: the records.
            seed: of all orders.
        """
        parts, weights = parts_of(dataset)
        self._sizes = [len(part) for part in parts]
        self._starts = [0, *itertools.accumulate(self._sizes)]
        self._seed = seed
        shares = _shares(weights)
        # Of each part but the last, among itself and those behind it.
        self._among_rest = [
            (share / sum(shares[part:])).as_integer_ratio()
            for part, share in enumerate(shares[:-1])
        ]

    def turn(self, position: int) -> tuple[int, int]:
        """The part whose turn it is at a position, and the number of that turn."""
        place = position  # among those that the parts before have left
        for part, (share, whole) in enumerate(self._among_rest):
            before = place * share // whole
            if (place + 1) * share // whole > before:
                return part, before
            place -= before
        return len(self._among_rest), place

    def record(self, position: int) -> int:
        """The record at a position, numbered through all parts."""
        part, turn = self.turn(position)
        epoch, place = divmod(turn, self._sizes[part])
        return self._starts[part] + permuted(
            place, self._sizes[part], self._seed, epoch, stream=part
        )

    def turns_of_parts(self, first: int, count: int) -> list[int]:
        """For each part, how many of the positions ``[first, first + count)`` are its turn."""
        turns = [0] * len(self._sizes)
        for position in range(first, first + count):
            turns[self.turn(position)[0]] += 1
        return turns

    def span(self, position: int) -> range:
        """The records of the part whose turn it is, among which a substitute is sought."""
        part, _ = self.turn(position)
        return range(self._starts[part], self._starts[part + 1])


def _shares(weights: Sequence[float]) -> list[Fraction]:
    """Weights as fractions of their sum."""
    if not weights:
        raise UserError("a mixture of no datasets: give (directory, weight) for each of them")
    for weight in weights:
        if not (0 < weight < math.inf) or not _fraction(weight):
            raise UserError(f"the weights of the parts are {tuple(weights)}, but must be above 0")
    fractions = [_fraction(weight) for weight in weights]
    return [fraction / sum(fractions) for fraction in fractions]


def _fraction(weight: float) -> Fraction:
    return Fraction(weight).limit_denominator(_FINEST_WEIGHT)
