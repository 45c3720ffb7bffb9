"""A dataset from its items: read in parallel, written in shards, put in place when it is whole."""

import collections
import contextlib
import dataclasses
import math
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from adamae_jax.data.schema import FILE_FORMATS, PREPARED, TFRECORD
from adamae_jax.errors import UserError
from adamae_jax.prepare import beam, examples
from adamae_jax.prepare import output as folders
from adamae_jax.prepare.progress import count, describe, progress, some
from adamae_jax.prepare.sources import Item
from adamae_jax.prepare.transform import read_items
from adamae_jax.prepare.write import (
    SKIPPED,
    SKIPPED_NAME,
    TRUNCATED,
    Flaw,
    Result,
    Shard,
    finished_shards,
    write_flaws,
    write_shards,
)

# A video of ten seconds takes one or two; an hour of 1080p, about so many.
MAX_SECONDS = 1800.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a dataset is made of, and how.

    Attributes:
        name: of the dataset.
        thing: what one item is called.
        source: where items come from, in words.
        items: all of them; those of a split stand together, validation first.
        read: makes a record of an item; can be pickled.
        features: of the records.
        arguments: what determines the records; values that JSON can hold.
    """

    name: str
    thing: str
    source: str
    items: Sequence[Item]
    read: Callable[[Item], Result]
    features: tfds.features.FeaturesDict
    arguments: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Output:
    """Where a dataset goes, and how.

    Attributes:
        folder: to make; if it holds the same dataset already, nothing is done.
        max_skipped: fraction of the items that may be left out.
        shard_mb: of a shard, about, in MB.
        file_format: of the shards, one of `FILE_FORMATS`.

    Raises:
        UserError: a value that makes no sense.
    """

    folder: Path
    max_skipped: float = 0.01
    shard_mb: int = 256
    file_format: str = TFRECORD

    def __post_init__(self) -> None:
        """Checks the values."""
        if not 0 <= self.max_skipped <= 1:
            raise UserError(f"--max_skipped={self.max_skipped} must be a fraction from 0 to 1")
        if self.shard_mb < 1:
            raise UserError(f"--shard_mb={self.shard_mb} must be 1 or more")
        if self.file_format not in FILE_FORMATS:
            raise UserError(
                f"--file_format={self.file_format} must be one of: {', '.join(FILE_FORMATS)}"
            )

    def most_skipped(self, items: int) -> int:
        """Returns how many of these items may be left out: 0.29 of 100 are 29, not 28.999."""
        return math.floor(Fraction(repr(self.max_skipped)) * items)


@dataclasses.dataclass(frozen=True)
class Engine:
    """What does the work.

    Attributes:
        num_workers: processes that read; 0 reads in this one.
        on_beam: what Apache Beam is to do, which reads instead; None reads here.
        max_seconds: for one item, which is left out if it takes longer.

    Raises:
        UserError: a value that makes no sense.
    """

    num_workers: int = 0
    on_beam: beam.BeamOptions | None = None
    max_seconds: float = MAX_SECONDS

    def __post_init__(self) -> None:
        """Checks the values."""
        if not self.max_seconds > 0:
            raise UserError(f"--max_seconds_per_video={self.max_seconds} must be more than 0")


def build(plan: Plan, output: Output, engine: Engine) -> None:
    """Makes a dataset.

    Args:
        plan: of what.
        output: where to.
        engine: what does the work; all make the same records.

    Raises:
        UserError: too much cannot be read, a split would be empty, the disk is full, or the folder
            holds something else.
    """
    arguments = {
        **plan.arguments, "shard_mb": output.shard_mb, "file_format": output.file_format
    }  # fmt: skip
    if folders.already_written(output.folder, arguments):
        print(f"{output.folder} already holds this dataset: nothing to do")
        return
    with folders.workspace(output.folder, arguments) as workspace:
        shards_folder = folders.shards_folder(workspace, arguments)
        _fill(shards_folder, plan, output, engine)
        shards = finished_shards(shards_folder)
        flaws = [flaw for shard in shards for flaw in shard.flaws]
        _refuse_empty_splits(shards, flaws, plan)
        built = workspace / "dataset"
        clips = _assemble(shards_folder, shards, built, plan, output.file_format)
        write_flaws(flaws, built / SKIPPED_NAME)
        folders.publish(built, output.folder, arguments, clips=clips)
    _summarise(flaws, output.folder)
    print(f"wrote {output.folder}: {describe(clips, plan.thing)}")


def _fill(folder: Path, plan: Plan, output: Output, engine: Engine) -> None:
    """Writes the shards that are missing."""
    shards = finished_shards(folder)
    done = shards[-1].stop if shards else 0
    flaws = [flaw for shard in shards for flaw in shard.flaws]
    again = f", {done} of them done already" if done else ""
    print(f"reading {count(len(plan.items), plan.thing)} from {plan.source}{again}", flush=True)
    if engine.on_beam is not None:
        work = beam.Work(
            plan.read, output.file_format, folder, engine.max_seconds, output.shard_mb * 1_000_000
        )
        beam.fill(work, plan.items, done, engine.on_beam)
        flaws = [flaw for shard in finished_shards(folder) for flaw in shard.flaws]
        _refuse_too_many(flaws, len(plan.items), plan, output)
        return
    for half_written in folder.glob(".*"):
        os.unlink(half_written)
    remaining = plan.items[done:]
    results = read_items(plan.read, remaining, engine.num_workers, engine.max_seconds)
    with contextlib.closing(results):
        shown = progress(results, done, len(plan.items))
        within_limit = _watched(shown, flaws, done, plan, output)
        empty = any(item.split == "validation" for item in plan.items)
        empty = empty and all(shard.split != "validation" for shard in shards)
        pairs = _settled(zip(remaining, within_limit, strict=True), empty)
        write_shards(folder, output.file_format, done, pairs, output.shard_mb * 1_000_000)


def _settled(pairs: Iterable[tuple[Item, Result]], empty: bool) -> Iterator[tuple[Item, Result]]:
    """Gives the first usable item of no split to validation where that would be empty.

    Args:
        pairs: items and what became of them.
        empty: whether items were set aside for validation, and none before was usable.
    """
    for item, result in pairs:
        if result.payload is not None and empty and item.split in (None, "validation"):
            item, empty = dataclasses.replace(item, split="validation"), False
        yield item, result


def _watched(
    results: Iterable[Result], flaws: list[Flaw], done: int, plan: Plan, output: Output
) -> Iterator[Result]:
    """Hands results on until too many of them are skipped.

    Args:
        results: of the items that remain.
        flaws: of those done before; gets the others.
        done: how many were done before.
        plan: of the dataset.
        output: says how many may be skipped.

    Raises:
        UserError: too many are skipped.
    """
    _refuse_too_many(flaws, done, plan, output)
    for number, result in enumerate(results, done + 1):
        if result.flaw is not None:
            flaws.append(result.flaw)
            _refuse_too_many(flaws, number, plan, output)
        yield result


def _refuse_too_many(flaws: Sequence[Flaw], done: int, plan: Plan, output: Output) -> None:
    skipped = [flaw for flaw in flaws if flaw.status == SKIPPED]
    most = output.most_skipped(len(plan.items))
    if len(skipped) <= most:
        return
    table = folders.unfinished(output.folder) / SKIPPED_NAME
    write_flaws(flaws, table)
    stopped = f" (stopped after {done} of them)" if done < len(plan.items) else ""
    raise UserError(
        f"{len(skipped)} of {count(len(plan.items), plan.thing)} cannot be used{stopped}, more "
        f"than the {most} that --max_skipped={output.max_skipped:g} allows; {output.folder} was "
        f"not written; they are listed in {table}; run again with a larger --max_skipped, which "
        "continues; or mend or remove them and begin anew (rm -r "
        f"{shlex.quote(str(table.parent))}), for what is done is not read again:{_list(skipped)}"
    )


def _refuse_empty_splits(shards: Sequence[Shard], flaws: Sequence[Flaw], plan: Plan) -> None:
    usable = sum(shard.records for shard in shards)
    items = count(len(plan.items), "item")
    if not usable:
        raise UserError(f"none of the {items} can be used:{_list(flaws)}")
    wanted = {item.split or "train" for item in plan.items}
    missing = wanted - {shard.split for shard in shards}
    if missing:
        raise UserError(
            f"the split {min(missing)!r} would be empty: {usable} of {items} can be used, all of "
            "them in another split: mend or add some, or give a larger --validation_fraction or a "
            f"list of each split (--list=train=FILE):{_list(flaws)}"
        )


def _assemble(
    folder: Path, shards: Sequence[Shard], built: Path, plan: Plan, file_format: str
) -> dict[str, int]:
    """Gives shards their names, now that their number is known, and describes them.

    What a job that was killed in it has done is done again, or left as it is.

    Returns:
        The number of records of each split.
    """
    built.mkdir(exist_ok=True)
    splits = collections.defaultdict(list)
    for shard in shards:
        if shard.records:
            splits[shard.split].append(shard)
    for split, of_split in splits.items():
        for number, shard in enumerate(of_split):
            final = examples.shard_name(plan.name, split, file_format, number, len(of_split))
            if not (built / final).exists():
                (folder / shard.name).rename(built / final)
    sizes = {
        split: [(shard.records, shard.num_bytes) for shard in of_split]
        for split, of_split in splits.items()
    }
    description = f"{plan.name.replace('_', ' ').capitalize()}, {PREPARED}."
    examples.write_metadata(built, plan.features, sizes, file_format, plan.name, description)
    return {split: sum(shard.records for shard in of_split) for split, of_split in splits.items()}


def _list(flaws: Sequence[Flaw]) -> str:
    return f" {some([f'{f.id} ({f.reason})' for f in sorted(flaws, key=lambda f: f.id)])}"


def _summarise(flaws: Sequence[Flaw], destination: Path) -> None:
    for status, meaning in ((SKIPPED, "left out"), (TRUNCATED, "kept up to their damage")):
        concerned = [flaw for flaw in flaws if flaw.status == status]
        if concerned:
            where = destination / SKIPPED_NAME
            print(f"{meaning} (see {where}): {count(len(concerned), 'item')}:{_list(concerned)}")
