"""Shards in the making: results appended to files, and a journal of the files that are finished.

The journal gets a line when a shard is whole and on the disk. A job that is killed continues after
the last such shard; what was written behind it is written again. Since items have a fixed order,
the shards are the same however often that happens.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from adamae_jax.data.damage import BadRecordError
from adamae_jax.prepare.shard_files import WRITERS, RecordWriter, payloads
from adamae_jax.prepare.sources import Item
from adamae_jax.prepare.transform import SKIPPED, Flaw, Result

JOURNAL_NAME = "journal.jsonl"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished file; without a name, only the flaws that came after the last one.

    Attributes:
        name: of the file; "" where there is none.
        split: that it belongs to.
        stop: how many items have been done when it was finished.
        records: in the file.
        payload_bytes: of its records.
        file_bytes: of the file.
        flaws: of the items since the shard before.
    """

    name: str
    split: str
    stop: int
    records: int
    payload_bytes: int
    file_bytes: int
    flaws: tuple[Flaw, ...]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Numbers that shards keep to.

    Attributes:
        shard_bytes: a shard that has so many is finished.
        set_aside: of items without a split, how many go to "validation"; the others to "train".
        max_skipped: how many items may be left out.
    """

    shard_bytes: int
    set_aside: int
    max_skipped: int


class TooManySkippedError(Exception):
    """More items than allowed cannot be used.

    Attributes:
        flaws: all that are known.
        done: how many items were looked at.
    """

    def __init__(self, flaws: list[Flaw], done: int):
        """Keeps both."""
        super().__init__(f"{len(flaws)} of {done}")
        self.flaws = flaws
        self.done = done


class Journal:
    """The finished shards of a folder.

    Attributes:
        folder: that they are in.
        file_format: of the files.
        shards: in order.
    """

    def __init__(self, folder: Path, file_format: str):
        """Reads what is there, as far as it is sound, and removes the rest."""
        self.folder = folder
        self.file_format = file_format
        self.shards = list(self._sound_shards())
        # A kill leaves half a line or half a file.
        text = "".join(shard_to_json(shard) for shard in self.shards)
        with open(folder / f"{JOURNAL_NAME}.new", "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a power failure could leave the new name with nothing
        os.replace(folder / f"{JOURNAL_NAME}.new", folder / JOURNAL_NAME)
        known = {JOURNAL_NAME, *(shard.name for shard in self.shards)}
        for path in folder.iterdir():
            if path.name not in known:
                path.unlink()

    @property
    def done(self) -> int:
        """How many items need not be looked at again."""
        return self.shards[-1].stop if self.shards else 0

    @property
    def files(self) -> list[Shard]:
        """The shards that are files."""
        return [shard for shard in self.shards if shard.name]

    @property
    def flaws(self) -> list[Flaw]:
        """All flaws of the items that are done."""
        return [flaw for shard in self.shards for flaw in shard.flaws]

    def add(self, shard: Shard) -> None:
        """Notes that a shard is finished."""
        with open(self.folder / JOURNAL_NAME, "a", encoding="utf-8") as file:
            file.write(shard_to_json(shard))
            file.flush()
            os.fsync(file.fileno())
        self.shards.append(shard)

    def _sound_shards(self) -> Iterator[Shard]:
        try:
            lines = (self.folder / JOURNAL_NAME).read_text(encoding="utf-8").splitlines()
        except OSError:
            return
        for number, line in enumerate(lines, 1):
            shard = shard_from_json(line)
            if shard is None:
                return
            if shard.name and not self._is_sound(shard, thoroughly=number == len(lines)):
                return
            yield shard

    def _is_sound(self, shard: Shard, thoroughly: bool) -> bool:
        """Whether the file has its size; the last, which was in work latest, is read as well."""
        path = self.folder / shard.name
        if not path.is_file() or path.stat().st_size != shard.file_bytes:
            return False
        try:
            return not thoroughly or shard.records == sum(
                1 for _ in payloads(path, self.file_format)
            )
        except (BadRecordError, OSError):
            return False


def shard_to_json(shard: Shard) -> str:
    """One line of text."""
    return json.dumps(dataclasses.asdict(shard)) + "\n"


def shard_from_json(line: str) -> Shard | None:
    """The opposite of `shard_to_json`; None where the line is incomplete."""
    try:
        values = json.loads(line)
        return Shard(**{**values, "flaws": tuple(Flaw(**flaw) for flaw in values["flaws"])})
    except (ValueError, KeyError, TypeError):
        return None


class _OpenShard:
    """The file that records go to at the moment."""

    def __init__(self, path: Path, split: str, writer: RecordWriter):
        self.path = path
        self.split = split
        self.records = 0
        self.payload_bytes = 0
        self._writer = writer

    def write(self, payload: bytes) -> None:
        self._writer.write(payload)
        self.records += 1
        self.payload_bytes += len(payload)

    def finish(self, stop: int, flaws: Sequence[Flaw]) -> Shard:
        self._writer.close()
        size = self.path.stat().st_size
        return Shard(
            self.path.name, self.split, stop, self.records, self.payload_bytes, size, tuple(flaws)
        )

    def abandon(self) -> None:
        self._writer.abandon()


def write_shards(
    journal: Journal,
    items: Sequence[Item],
    results: Iterable[Result],
    limits: Limits,
) -> None:
    """Writes the results of all items that the journal does not have yet.

    Args:
        journal: gets a line for each shard.
        items: all of them; those of a split stand together.
        results: of the items from `journal.done` on.
        limits: of the shards.

    Raises:
        TooManySkippedError: more than allowed are left out.
        OSError: a file cannot be written.
    """
    skipped = sum(flaw.status == SKIPPED for flaw in journal.flaws)
    finished = sum(shard.records for shard in journal.files if shard.split == "validation")
    to_set_aside = limits.set_aside - finished
    flaws: list[Flaw] = []
    shard: _OpenShard | None = None
    try:
        remaining = enumerate(zip(items[journal.done :], results, strict=True), journal.done)
        for position, (item, result) in remaining:
            if result.payload is not None:
                split = item.split or ("validation" if to_set_aside > 0 else "train")
                to_set_aside -= split == "validation"
                if shard and (shard.split != split or shard.payload_bytes >= limits.shard_bytes):
                    journal.add(shard.finish(position, flaws))
                    shard, flaws = None, []
                shard = shard or _open(journal, split)
                shard.write(result.payload)
            if result.flaw is not None:
                flaws.append(result.flaw)
                skipped += result.flaw.status == SKIPPED
            if skipped > limits.max_skipped:
                raise TooManySkippedError([*journal.flaws, *flaws], position + 1)
        if shard:
            journal.add(shard.finish(len(items), flaws))
            shard = None
        elif flaws:
            journal.add(Shard("", "", len(items), 0, 0, 0, tuple(flaws)))
    finally:
        if shard:
            with contextlib.suppress(OSError):
                shard.abandon()


def _open(journal: Journal, split: str) -> _OpenShard:
    number = sum(shard.split == split for shard in journal.files)
    path = journal.folder / f"{split}-{number:05d}"
    return _OpenShard(path, split, WRITERS[journal.file_format](path))
