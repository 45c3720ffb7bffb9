"""Damaged records: what is wrong with them, which a run has met, and when they are too many.

A batch says by numbers which record is damaged and how (`adamae_jax.data.stream`); the file that
holds it is looked up here, where it is told. Distinct records are counted, since each comes up
again in every epoch.
"""

import enum
import os
from collections.abc import Mapping, Sequence
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

    def where(self, index: int) -> str:
        """Returns which record of which file this is, in words."""
        ...


def described(records: Records, index: int, damage: Damage) -> str:
    """Returns in one line where a damaged record lies and what is wrong with it."""
    return f"{records.where(index)}: {damage}"


class DamageWatch:
    """Lists the damaged records that one process meets, and says when they are too many.

    The list is a file of the run, with a line for each record, whatever the number of workers,
    epochs, evaluations and restarts. A list that cannot be written does not end a run.
    """

    def __init__(self, records: Records, max_bad_fraction: float, path: str | os.PathLike[str]):
        """Starts a count.

        Args:
            records: the dataset, or mixture, that batches are made of.
            max_bad_fraction: share of the records that may be damaged, 0 to 1. Above 0 it is never
                less than one record.
            path: of the list; it may be in a bucket.

        Raises:
            UserError: ``max_bad_fraction`` is out of range.
        """
        if not 0 <= max_bad_fraction <= 1:
            raise UserError(
                f"max_bad_fraction is {max_bad_fraction}, but must be a share of the dataset from "
                "0 to 1"
            )
        self._records = records
        self._fraction = max_bad_fraction
        self._path = os.fspath(path)
        self._list_is = f"all are listed in {self._path}"
        self._met: dict[int, Damage] = {}
        self._logged = 0

    @property
    def count(self) -> int:
        """How many damaged records this process has met."""
        return len(self._met)

    def see(self, batch: Mapping[str, np.ndarray]) -> None:
        """Notes the damaged records of a batch: ``bad_record``, or of an evaluation its own."""
        is_training = "bad_record" in batch
        indices = batch["bad_record" if is_training else "example_index"]
        damages = zip(indices.tolist(), batch["damage"].tolist(), strict=True)
        new = {index: Damage(damage) for index, damage in damages if damage}
        new = {index: damage for index, damage in new.items() if index not in self._met}
        if not new:
            return
        self._met |= new
        consequence = "replaced by another" if is_training else "left out of the evaluation"
        for line in self._listed([described(self._records, *item) for item in new.items()]):
            self._logged += 1
            if self._logged <= SHOWN:  # a damaged disk may hold thousands
                logging.warning("damaged, %s: %s; %s", consequence, line, self._list_is)

    def check(self, count: int, total: int) -> None:
        """Fails a training or an evaluation with too much damage.

        Args:
            count: damaged records that were met, perhaps by several processes.
            total: records, those included.

        Raises:
            UserError: they are too many; names some of this process.
        """
        if count <= (max(1.0, self._fraction * total) if self._fraction else 0.0):
            return
        known = [described(self._records, *item) for item in sorted(self._met.items())]
        shown = known[:SHOWN]
        if known:
            more = f"; and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
            shown[-1] += f"{more} ({self._list_is})"
        if count > len(known):
            shown.append(f"{count - len(known)} that other processes read and list")
        raise UserError(
            f"{count} damaged records of {total} are more than max_bad_fraction "
            f"{self._fraction:g} allows: {'; '.join(shown)}: copy the dataset again, rebuild it "
            "with python -m adamae_jax.prepare, or allow a larger fraction"
        )

    def _listed(self, lines: Sequence[str]) -> list[str]:
        """Adds lines to the list; returns those that were not there."""
        try:  # anew each time, since the run's training and its evaluations share the list
            listed = storage.read_file(self._path).decode().splitlines()
        except (OSError, UnicodeDecodeError):
            listed = []
        new = [line for line in lines if line not in set(listed)]
        try:
            if new and storage.is_remote(self._path):  # nothing can be added to an object
                text = "".join(f"{line}\n" for line in [*listed, *new])
                storage.write_file(self._path, text.encode())
            elif new:
                os.makedirs(os.path.dirname(self._path), exist_ok=True)
                with open(self._path, "a") as file:
                    file.writelines(f"{line}\n" for line in new)
        except OSError as error:
            self._list_is = f"the list could not be written to {self._path} ({error.strerror})"
        return new
