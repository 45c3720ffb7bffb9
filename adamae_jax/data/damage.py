"""Damaged records: which ones a run has met, and when they are too many.

Batches say where a damaged record stood, and what is wrong with it (`adamae_jax.data.stream`).
Distinct records are counted here, since each comes up again in every epoch.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from absl import logging

from adamae_jax.data.records import file_in
from adamae_jax.errors import UserError

SHOWN = 10  # records named in a message, with the reason
# Of several hosts, each sees its share of an epoch only, a sample; a host speaks for all when it
# finds this many standard deviations more than it would of a dataset that is just good enough.
_SURE = 5.0


class Listing:
    """A file with the damaged records that a process has met, one to a line, as they are met.

    Each is listed once, whatever the number of workers, epochs, evaluations and restarts. Of each
    shard, the first is logged when it is listed: a damaged disk may hold thousands.
    """

    def __init__(self, path: Path):
        """Goes on with what the file holds, if there is one."""
        self._path = path
        self._failure: str | None = None
        try:
            self._lines = set(path.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError):
            self._lines = set()
        self._shards = {file_in(line) for line in self._lines}

    def add(self, reason: str, consequence: str) -> None:
        """Lists a record, if it is not listed yet, and logs it, if it is the first of its shard.

        A list that cannot be written is no reason to end a run, or to end it otherwise; each record
        is logged then.

        Args:
            reason: where it lies, and what is wrong with it.
            consequence: what becomes of it, for the log.
        """
        line = " ".join(reason.split())
        if line in self._lines:
            return
        self._lines.add(line)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        except OSError as error:
            self._failure = error.strerror
        shard = file_in(line)
        if shard is None or self._failure is not None:
            logging.warning("%s: %s", consequence, line)
        elif shard not in self._shards:
            note = "others of this file are not logged"
            logging.warning("%s: %s; %s: %s", consequence, line, note, self)
        self._shards.add(shard)

    def __str__(self) -> str:
        """Words on where it is."""
        if self._failure is not None:
            return f"the list could not be written to {self._path} ({self._failure})"
        return f"all are listed in {self._path}"


class TrainingDamage:
    """Watches one host's training batches, and ends the run where too much is damaged.

    The run ends as soon as more than ``max_bad_fraction`` of the dataset is known to be damaged. On
    one host that is exact. Of several, each knows at first of its own part only; it ends the run
    early if within one epoch its part holds so many damaged records that chance cannot explain it.
    A single damaged record never ends a run whose fraction is above 0.
    """

    def __init__(
        self, num_records: int, max_bad_fraction: float, listing: Listing, process_count: int = 1
    ):
        """Starts a count.

        Args:
            num_records: size of the dataset that the batches are made of.
            max_bad_fraction: share of the dataset that may be damaged, 0 to 1; 0 ends the run at
                the first.
            listing: of the damaged records.
            process_count: number of hosts.

        Raises:
            UserError: ``max_bad_fraction`` is out of range.
        """
        _check_fraction(max_bad_fraction)
        self._num_records = num_records
        self._fraction = max_bad_fraction
        self._listing = listing
        self._limit = _limit(max_bad_fraction, num_records)
        self._videos_per_epoch = num_records / process_count
        expected = max_bad_fraction * self._videos_per_epoch
        self._epoch_limit = math.inf
        if process_count > 1:
            self._epoch_limit = max(1.0, expected + _SURE * math.sqrt(expected))
        self._seen: dict[int, str] = {}
        self._seen_this_epoch: set[int] = set()
        self._videos = 0

    @property
    def records(self) -> frozenset[int]:
        """The damaged records met so far."""
        return frozenset(self._seen)

    def see(self, batch: Mapping[str, np.ndarray]) -> None:
        """Counts and lists the damaged records of a batch; see `Listing`.

        It goes by ``bad_record``, ``bad_reason`` and ``repeat``.

        Raises:
            UserError: there are too many; names some.
        """
        self._videos += int((batch["repeat"] == 0).sum())
        met = dict(_reasons(batch["bad_record"], batch["bad_reason"], batch["bad_record"] >= 0))
        for index in met.keys() - self._seen.keys():
            self._listing.add(met[index], "replaced by another record")
        if met:
            self._seen = met | self._seen
            self._seen_this_epoch |= met.keys()
            if len(self._seen) > self._limit:
                self._stop(f"of {self._num_records} records")
            if len(self._seen_this_epoch) > self._epoch_limit:
                share = math.ceil(self._videos_per_epoch)
                self._stop(f"of at most {share} records that this host has read in an epoch")
        if self._videos >= self._videos_per_epoch:
            self._videos = 0
            self._seen_this_epoch.clear()

    def _stop(self, among: str) -> None:
        raise _too_many(len(self._seen), self._seen, among, self._fraction, self._listing)


class EvaluationDamage:
    """Collects the unreadable videos of one evaluation, and fails it where they are too many."""

    def __init__(self, max_bad_fraction: float, listing: Listing):
        """Starts a count; see `TrainingDamage`."""
        _check_fraction(max_bad_fraction)
        self._fraction = max_bad_fraction
        self._listing = listing
        self._unreadable: dict[int, str] = {}

    def see(self, batch: Mapping[str, np.ndarray]) -> None:
        """Notes and lists the unreadable videos of this host's batch; see `Listing`."""
        for index, reason in _reasons(
            batch["example_index"], batch["bad_reason"], batch["unreadable"]
        ):
            self._unreadable[index] = reason
            self._listing.add(reason, "left out of the evaluation")

    def check(self, unreadable: int, total: int) -> None:
        """To be called after the last batch, with the sums over all hosts.

        Args:
            unreadable: videos that could not be read.
            total: videos that were to be evaluated, those included.

        Raises:
            UserError: they are too many; names some of this host.
        """
        if unreadable > _limit(self._fraction, total):
            among = f"of {total} evaluated"
            raise _too_many(unreadable, self._unreadable, among, self._fraction, self._listing)


def _check_fraction(fraction: float) -> None:
    if not 0 <= fraction <= 1:
        raise UserError(
            f"max_bad_fraction is {fraction}, but must be a share of the dataset from 0 to 1"
        )


def _limit(fraction: float, size: int) -> float:
    """How many may be damaged: never none at all, where the fraction allows some."""
    return max(1.0, fraction * size) if fraction else 0.0


def _reasons(
    indices: np.ndarray, reasons: np.ndarray, chosen: np.ndarray
) -> Iterator[tuple[int, str]]:
    """The records that are chosen of a batch, and what is wrong with each."""
    for index, reason in zip(indices[chosen], reasons[chosen], strict=True):
        yield int(index), reason.decode(errors="replace")


def _too_many(
    count: int, reasons: Mapping[int, str], among: str, fraction: float, listing: Listing
) -> UserError:
    shown = [reasons[index] for index in sorted(reasons)[:SHOWN]]
    if len(reasons) > SHOWN:
        shown.append(f"and {len(reasons) - SHOWN} more")
    if reasons:
        shown[-1] += f" ({listing})"
    if count > len(reasons):
        shown.append(f"{count - len(reasons)} that other processes read and list")
    return UserError(
        f"{count} damaged records {among} are more than max_bad_fraction {fraction:g} allows: "
        f"{'; '.join(shown)}: copy the dataset again, rebuild it with "
        "python -m adamae_jax.prepare, or allow a larger fraction"
    )
