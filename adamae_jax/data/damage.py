"""Damaged records: which ones a run has met, and when they are too many.

Batches say where a damaged record stood (`adamae_jax.data.stream`). Distinct records are counted
here, since each comes up again in every epoch.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from absl import logging

from adamae_jax.data.examples import Record
from adamae_jax.data.frames import decode_frames
from adamae_jax.data.tfrecord import BadRecordError
from adamae_jax.errors import UserError

SHOWN = 10  # records named in a message, with the reason
# Of several hosts, each sees its share of an epoch only, a sample; a host speaks for all when it
# finds this many standard deviations more than it would of a dataset that is just good enough.
_SURE = 5.0


class Records(Protocol):
    """Records by number, such as a `Dataset`."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, index: int) -> Record:
        """Reads one; raises `BadRecordError` where it is damaged."""
        ...

    def where(self, index: int) -> str:
        """Words for messages: which record of which file this is."""
        ...


class TrainingDamage:
    """Watches one host's training batches, and ends the run where too much is damaged.

    The run ends as soon as more than ``max_bad_fraction`` of the dataset is known to be damaged. On
    one host that is exact. Of several, each knows at first of its own part only; it ends the run
    early if within one epoch its part holds so many damaged records that chance cannot explain it.
    A single damaged record never ends a run whose fraction is above 0.
    """

    def __init__(
        self, records: Records, max_bad_fraction: float, listing: Path, process_count: int = 1
    ):
        """Starts a count.

        Args:
            records: what the batches are made of.
            max_bad_fraction: share of the dataset that may be damaged, 0 to 1; 0 ends the run at
                the first.
            listing: file for the whole list, if it comes to that.
            process_count: number of hosts.

        Raises:
            UserError: ``max_bad_fraction`` is out of range.
        """
        _check_fraction(max_bad_fraction)
        self._records = records
        self._fraction = max_bad_fraction
        self._listing = listing
        self._limit = _limit(max_bad_fraction, len(records))
        self._videos_per_epoch = len(records) / process_count
        expected = max_bad_fraction * self._videos_per_epoch
        self._epoch_limit = math.inf
        if process_count > 1:
            self._epoch_limit = max(1.0, expected + _SURE * math.sqrt(expected))
        self._seen: set[int] = set()
        self._seen_this_epoch: set[int] = set()
        self._videos = 0

    @property
    def records(self) -> frozenset[int]:
        """The damaged records met so far."""
        return frozenset(self._seen)

    def see(self, batch: Mapping[str, np.ndarray]) -> None:
        """Counts the damaged records of a batch, by its ``bad_record`` and ``repeat``.

        Raises:
            UserError: there are too many; names some, and writes all to ``listing``.
        """
        self._videos += int((batch["repeat"] == 0).sum())
        met = {int(index) for index in batch["bad_record"] if index >= 0}
        if met:
            self._seen |= met
            self._seen_this_epoch |= met
            if len(self._seen) > self._limit:
                self._stop(f"of {len(self._records)} records")
            if len(self._seen_this_epoch) > self._epoch_limit:
                share = math.ceil(self._videos_per_epoch)
                self._stop(f"of at most {share} records that this host has read in an epoch")
        if self._videos >= self._videos_per_epoch:
            self._videos = 0
            self._seen_this_epoch.clear()

    def _stop(self, among: str) -> None:
        raise _too_many(self._records, self._seen, among, self._fraction, self._listing)


class EvaluationDamage:
    """Collects the unreadable videos of one evaluation, and fails it where they are too many."""

    def __init__(self, records: Records, max_bad_fraction: float, listing: Path):
        """Starts a list; see `TrainingDamage`."""
        _check_fraction(max_bad_fraction)
        self._records = records
        self._fraction = max_bad_fraction
        self._listing = listing
        self._unreadable: set[int] = set()

    def see(self, batch: Mapping[str, np.ndarray]) -> None:
        """Notes the unreadable videos of this host's batch."""
        self._unreadable |= {int(index) for index in batch["example_index"][batch["unreadable"]]}

    def check(self, unreadable: int, total: int) -> None:
        """To be called after the last batch, with the sums over all hosts.

        Args:
            unreadable: videos that could not be read.
            total: videos that were to be evaluated, those included.

        Raises:
            UserError: they are too many; names some, and writes all of this host to ``listing``.
        """
        if unreadable > _limit(self._fraction, total):
            among = f"of {total} evaluated"
            raise _too_many(
                self._records, self._unreadable, among, self._fraction, self._listing, unreadable
            )


def _check_fraction(fraction: float) -> None:
    if not 0 <= fraction <= 1:
        raise UserError(
            f"max_bad_fraction is {fraction}, but must be a share of the dataset from 0 to 1"
        )


def _limit(fraction: float, size: int) -> float:
    """How many may be damaged: never none at all, where the fraction allows some."""
    return max(1.0, fraction * size) if fraction else 0.0


def _too_many(
    records: Records,
    damaged: Iterable[int],
    among: str,
    fraction: float,
    listing: Path,
    count: int | None = None,
) -> UserError:
    """The error, after writing the whole list."""
    indices = sorted(damaged)
    reasons = [_reason(records, index) for index in indices[:SHOWN]]
    lines = [f"{records.where(index)}" for index in indices]
    for number, reason in enumerate(reasons):
        lines[number] = reason
    place = f"all are listed in {listing}"
    try:
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        place = f"the list could not be written to {listing} ({error.strerror})"
        logging.error("damaged: %s", "; ".join(lines))
    shown = "; ".join(lines[:SHOWN])
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return UserError(
        f"{count or len(indices)} damaged records {among} are more than max_bad_fraction "
        f"{fraction:g} allows: {shown}{more} ({place}): copy the dataset again, rebuild it with "
        "python -m adamae_jax.prepare, or allow a larger fraction"
    )


def _reason(records: Records, index: int) -> str:
    """Where a record lies and, if it can be found out again, what is wrong with it."""
    where = records.where(index)
    try:
        record = records[index]
        every = np.arange(len(record.frames))
        decode_frames(record.frames, every, (record.height, record.width))
    except BadRecordError as error:
        reason = str(error)
        return reason if reason.startswith(where) else f"{where}, {record.id!r}: {reason}"
    except OSError as error:
        return f"{where}: {error}"
    return where
