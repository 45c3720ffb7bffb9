"""What becomes of items, and shards in the making: each has a note once it is finished.

A shard holds the records of items that follow each other. It is written under a private name, then
renamed to its place (`Shard.name`), and then a note beside it says what it holds. A job that is
killed goes on behind the last item that finished shards cover without a gap; whoever writes a shard
of the same items writes the same bytes.
"""

import contextlib
import csv
import dataclasses
import json
import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from adamae_jax import plain_json
from adamae_jax.prepare.shard_files import WRITERS
from adamae_jax.prepare.sources import Item

SKIPPED, TRUNCATED = "skipped", "truncated"
SKIPPED_NAME = "skipped.csv"


@dataclasses.dataclass(frozen=True)
class Flaw:
    """An item that is not, or not wholly, in the dataset: one line of ``skipped.csv``.

    Attributes:
        id: of the item.
        status: "skipped" (left out) or "truncated" (kept up to its damage).
        frames: how many could be read.
        reason: what is wrong.
    """

    id: str
    status: str
    frames: int
    reason: str


class Result(NamedTuple):
    """A serialised ``tf.train.Example``, or none, and what was wrong."""

    payload: bytes | None
    flaw: Flaw | None


def write_flaws(flaws: Sequence[Flaw], path: Path) -> None:
    """Writes a CSV table of flaws, sorted by id, with a line of column names."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([field.name for field in dataclasses.fields(Flaw)])
        table.writerows(dataclasses.astuple(flaw) for flaw in sorted(flaws, key=lambda f: f.id))


@dataclasses.dataclass(frozen=True)
class Shard:
    """What is known of a finished shard.

    Attributes:
        start: place of its first item among all items.
        stop: place behind its last item.
        split: that its records belong to; "" where it has none.
        records: how many; 0 where none of its items could be used, and there is no file then.
        num_bytes: of the records.
        flaws: of its items.
    """

    start: int
    stop: int
    split: str
    records: int
    num_bytes: int
    flaws: tuple[Flaw, ...]

    @property
    def name(self) -> str:
        """The name of the file while the dataset is in the making."""
        return f"{self.start:09d}-{self.stop:09d}"


def finished_shards(folder: Path) -> list[Shard]:
    """Returns the finished shards that cover the items from the first on without a gap."""
    notes = {shard.start: shard for shard in map(_read_note, folder.glob("*.json")) if shard}
    shards: list[Shard] = []
    while shard := notes.get(shards[-1].stop if shards else 0):
        shards.append(shard)
    return shards


def is_finished(folder: Path, start: int, stop: int) -> bool:
    """Whether there is a shard of exactly these items."""
    return (folder / f"{Shard(start, stop, '', 0, 0, ()).name}.json").is_file()


def _read_note(path: Path) -> Shard | None:
    try:
        values = plain_json.parse(path.read_text(encoding="utf-8"))
        return Shard(**{**values, "flaws": tuple(Flaw(**flaw) for flaw in values["flaws"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a power failure may leave an empty file: the shard is written again


def write_shards(
    folder: Path,
    file_format: str,
    start: int,
    results: Iterable[tuple[Item, Result]],
    shard_bytes: float,
) -> None:
    """Writes the results of items that follow each other.

    Args:
        folder: of the shards.
        file_format: of the shards, one of `WRITERS`.
        start: place of the first item among all items.
        results: items and what became of them; those of a split stand together.
        shard_bytes: a shard that has so many is finished.

    Raises:
        OSError: a file cannot be written.
    """
    shard = _OpenShard(folder, file_format, start)
    stop = start
    try:
        for item, result in results:
            split = item.split or "train"
            done = shard.num_bytes >= shard_bytes or split != shard.split
            if result.payload is not None and shard.records and done:
                shard.finish(stop)
                shard = _OpenShard(folder, file_format, stop)
            shard.add(split, result)
            stop += 1
        if stop > start:
            shard.finish(stop)
    finally:
        shard.abandon()


class _OpenShard:
    """The file that records go to at the moment."""

    def __init__(self, folder: Path, file_format: str, start: int):
        self.split = ""
        self.records = self.num_bytes = 0
        self._folder, self._start = folder, start
        self._path = folder / f".{uuid.uuid4().hex}"
        self._flaws: list[Flaw] = []
        self._writer = WRITERS[file_format](self._path)

    def add(self, split: str, result: Result) -> None:
        if result.payload is not None:
            self._writer.write(result.payload)
            self.split = split
            self.records += 1
            self.num_bytes += len(result.payload)
        if result.flaw is not None:
            self._flaws.append(result.flaw)

    def finish(self, stop: int) -> None:
        shard = Shard(
            self._start, stop, self.split, self.records, self.num_bytes, tuple(self._flaws)
        )
        if shard.records:
            self._writer.close()  # which brings it to the disk
            self._path.rename(self._folder / shard.name)
        note = self._path.with_suffix(".note")
        note.write_text(json.dumps(dataclasses.asdict(shard)), encoding="utf-8")
        note.rename(self._folder / f"{shard.name}.json")

    def abandon(self) -> None:
        """Removes what is not finished; does nothing after `finish`."""
        with contextlib.suppress(OSError):
            self._writer.abandon()
            os.unlink(self._path)
