"""Damaged records: what is wrong with them, which a run has met, and when they are too many.

A batch says by numbers which record is damaged and how (`adamae_jax.data.stream`); the file that
holds it is looked up here, where it is told. Distinct records are counted, since each comes up
again in every epoch.
"""

import enum
import os
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
from absl import logging

from adamae_jax.data import storage
from adamae_jax.errors import UserError

SHOWN = 10  # records named in a message


class Damage(enum.IntEnum):
    """What is wrong with a record: a number that travels between processes."""

    NONE = 0
    CHECKSUM = 1
    CUT_OFF = 2
    FEATURES = 3
    FRAMES = 4
    FOREGROUND = 5
    NO_RATE = 6

    def __str__(self) -> str:
        """Returns the kind of damage in words."""
        return _WORDS[self]


_WORDS = {
    Damage.NONE: "nothing is wrong with it",
    Damage.CHECKSUM: "its checksum does not match its content",
    Damage.CUT_OFF: "its file ends before it does",
    Damage.FEATURES: "its features are not those of the dataset",
    Damage.FRAMES: "its frames cannot be decoded",
    Damage.FOREGROUND: "its foreground masks cannot be decoded",
    Damage.NO_RATE: "its frame rate is unknown, which frame_sampling 'time_scaled' needs",
}


class BadRecordError(UserError):
    """One record cannot be used: checksum, structure or image data are damaged.

    Attributes:
        damage: what kind of damage it is; the message has the details.
    """

    def __init__(self, message: str, damage: Damage = Damage.FEATURES):
        """Describes the damage."""
        super().__init__(message)
        self.damage = damage


class Records(Protocol):
    """A dataset or a mixture, as far as messages need it."""

    def __len__(self) -> int:
        """Returns the number of records."""
        ...

    def place(self, index: int) -> tuple[str, int]:
        """Returns the file that holds a record, and the record's number in it."""
        ...

    def where(self, index: int) -> str:
        """Returns which record of which file this is, in words."""
        ...


class Listing:
    """A file with the damaged records that a process has met, one to a line, as they are met.

    Each is listed once, whatever the number of workers, epochs, evaluations and restarts. Of each
    file of a dataset, the first is logged: a damaged disk may hold thousands.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Goes on with what the file holds, if there is one; it may be in a bucket."""
        self._path = os.fspath(path)
        self._failure: str | None = None
        try:
            listed = storage.read_file(self._path).decode().splitlines()
        except (OSError, UnicodeDecodeError):
            listed = []
        self._lines = dict.fromkeys(listed)  # in their order
        self._files: set[str] = set()

    def add(self, records: Records, index: int, damage: Damage, consequence: str) -> None:
        """Lists a record, if it is not listed yet, and logs it, if it is the first of its file.

        A list that cannot be written does not end a run.

        Args:
            records: of which it is one.
            index: which one it is.
            damage: what is wrong with it.
            consequence: what becomes of it, for the log.
        """
        line = described(records, index, damage)
        if line in self._lines:
            return
        self._lines[line] = None
        try:
            self._write(f"{line}\n".encode())
        except OSError as error:
            self._failure = error.strerror
        path, _ = records.place(index)
        if path not in self._files:
            note = "others of this file are not logged"
            logging.warning("%s: %s; %s: %s", consequence, line, note, self)
        self._files.add(path)

    def _write(self, line: bytes) -> None:
        if storage.is_remote(self._path):  # nothing can be added to an object
            storage.write_file(self._path, "".join(f"{each}\n" for each in self._lines).encode())
            return
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        with open(self._path, "ab") as file:
            file.write(line)

    def __str__(self) -> str:
        """Returns where the list is, in words."""
        if self._failure is not None:
            return f"the list could not be written to {self._path} ({self._failure})"
        return f"all are listed in {self._path}"


def described(records: Records, index: int, damage: Damage) -> str:
    """Returns in one line where a damaged record lies and what is wrong with it."""
    return f"{records.where(index)}: {damage}"


class TrainingDamage:
    """Watches one process's training batches, and ends the run where too much is damaged.

    The run ends as soon as one of its processes has met more damaged records than
    ``max_bad_fraction`` of the dataset. A single damaged record never ends a run whose fraction is
    above 0.
    """

    def __init__(self, records: Records, max_bad_fraction: float, listing: Listing):
        """Starts a count.

        Args:
            records: the dataset, or mixture, that the batches are made of.
            max_bad_fraction: share of the dataset that may be damaged, 0 to 1; 0 ends the run at
                the first.
            listing: of the damaged records.

        Raises:
            UserError: ``max_bad_fraction`` is out of range.
        """
        self._limit = _limit(max_bad_fraction, len(records))
        self._records = records
        self._fraction = max_bad_fraction
        self._listing = listing
        self._seen: dict[int, Damage] = {}

    @property
    def seen(self) -> frozenset[int]:
        """The damaged records met so far."""
        return frozenset(self._seen)

    def see(self, batch: Mapping[str, np.ndarray]) -> None:
        """Counts and lists the damaged records of a batch: ``bad_record`` and ``damage``.

        Raises:
            UserError: there are too many; names some.
        """
        for index, damage in zip(batch["bad_record"], batch["damage"], strict=True):
            if damage and int(index) not in self._seen:
                self._seen[int(index)] = Damage(damage)
                self._listing.add(
                    self._records, int(index), Damage(damage), "replaced by another record"
                )
        if len(self._seen) > self._limit:
            among = f"of {len(self._records)} records"
            lines = (described(self._records, *item) for item in sorted(self._seen.items()))
            raise _too_many(len(self._seen), lines, among, self._fraction, self._listing)


class EvaluationDamage:
    """Collects the unreadable videos of one evaluation, and fails it where they are too many."""

    def __init__(self, records: Records, max_bad_fraction: float, listing: Listing):
        """Starts a count; see `TrainingDamage`."""
        _limit(max_bad_fraction, 0)
        self._records = records
        self._fraction = max_bad_fraction
        self._listing = listing
        self._unreadable: dict[int, Damage] = {}

    def see(self, batch: Mapping[str, np.ndarray]) -> None:
        """Notes and lists the unreadable videos of this process's batch; see `Listing`."""
        for index, damage in zip(batch["example_index"], batch["damage"], strict=True):
            if damage:
                self._unreadable[int(index)] = Damage(damage)
                self._listing.add(
                    self._records, int(index), Damage(damage), "left out of the evaluation"
                )

    def check(self, unreadable: int, total: int) -> None:
        """Fails an evaluation with too much damage; to be called after the last batch.

        Args:
            unreadable: videos that could not be read, summed over all processes.
            total: videos that were to be evaluated, those included, summed likewise.

        Raises:
            UserError: they are too many; names some of this process.
        """
        if unreadable > _limit(self._fraction, total):
            lines = (described(self._records, *item) for item in sorted(self._unreadable.items()))
            among = f"of {total} evaluated"
            raise _too_many(unreadable, lines, among, self._fraction, self._listing)


def _limit(fraction: float, size: int) -> float:
    """Returns how many may be damaged: never none at all, where the fraction allows some."""
    if not 0 <= fraction <= 1:
        raise UserError(
            f"max_bad_fraction is {fraction}, but must be a share of the dataset from 0 to 1"
        )
    return max(1.0, fraction * size) if fraction else 0.0


def _too_many(
    count: int, lines: Iterable[str], among: str, fraction: float, listing: Listing
) -> UserError:
    known = list(lines)
    shown = known[:SHOWN]
    if len(known) > SHOWN:
        shown.append(f"and {len(known) - SHOWN} more")
    if known:
        shown[-1] += f" ({listing})"
    if count > len(known):
        shown.append(f"{count - len(known)} that other processes read and list")
    return UserError(
        f"{count} damaged records {among} are more than max_bad_fraction {fraction:g} allows: "
        f"{'; '.join(shown)}: copy the dataset again, rebuild it with "
        "python -m adamae_jax.prepare, or allow a larger fraction"
    )
