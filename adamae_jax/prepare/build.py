"""A dataset from its source: read in parallel, written in shards, put in place when it is whole."""

import collections
import contextlib
import dataclasses
import functools
import math
import shlex
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from adamae_jax.data.schema import FILE_FORMATS, TFRECORD
from adamae_jax.errors import UserError
from adamae_jax.prepare import beam, writer
from adamae_jax.prepare import output as folders
from adamae_jax.prepare.find import Found
from adamae_jax.prepare.flaws import write_flaws
from adamae_jax.prepare.mounts import Mount
from adamae_jax.prepare.progress import count, describe, progress, some
from adamae_jax.prepare.reading import MAX_SECONDS, read_items
from adamae_jax.prepare.shards import Journal, Limits, Shard, TooManySkippedError, write_shards
from adamae_jax.prepare.sources import printable
from adamae_jax.prepare.transform import (
    SKIPPED,
    TRUNCATED,
    Flaw,
    Recipe,
    transform,
)

SKIPPED_NAME = "skipped.csv"


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


@dataclasses.dataclass(frozen=True)
class Engine:
    """What does the work.

    Attributes:
        num_workers: processes that read; 0 reads in this one.
        beam_runner: of Apache Beam, which reads instead; None reads here.
        beam_options: more of Beam's own options, as on a command line.
        beam_mount: the folder that Beam's workers know by its address only; None: they see all.
        max_seconds: for one item, which is left out if it takes longer.

    Raises:
        UserError: a value that makes no sense.
    """

    num_workers: int = 0
    beam_runner: str | None = None
    beam_options: str = ""
    beam_mount: Mount | None = None
    max_seconds: float = MAX_SECONDS

    def __post_init__(self) -> None:
        """Checks the values."""
        if not self.max_seconds > 0:
            raise UserError(f"--max_seconds_per_video={self.max_seconds} must be more than 0")


def build(found: Found, recipe: Recipe, output: Output, engine: Engine) -> None:
    """Makes a dataset.

    Args:
        found: of what.
        recipe: how each record is made.
        output: where to.
        engine: what does the work; all make the same records.

    Raises:
        UserError: too much cannot be read, a split would be empty, the disk is full, or the folder
            holds something else.
    """
    if output.folder.resolve().is_relative_to(found.root.resolve()):
        raise UserError(
            f"--output={output.folder} lies inside --source={found.root}: choose another one"
        )
    arguments = {
        **found.fingerprint(),
        **dataclasses.asdict(recipe),
        "shard_mb": output.shard_mb,
        "file_format": output.file_format,
    }
    if folders.already_written(output.folder, arguments):
        print(f"{output.folder} already holds this dataset: nothing to do")
        return
    with folders.workspace(output.folder, resume=arguments) as workspace:
        shards, built = workspace / "shards", workspace / "dataset"
        _take_back(built, shards)
        journal = Journal(shards, output.file_format)
        _fill(journal, found, recipe, output, engine)
        _refuse_empty_splits(journal, found)
        _assemble(journal, built, recipe, found)
        clips = {name: sum(n for n, _ in sizes) for name, sizes in _splits(journal.files).items()}
        folders.publish(built, output.folder, arguments, clips=clips)
    _summarise(journal.flaws, output.folder)
    print(f"wrote {output.folder}: {describe(clips, _thing(recipe))}")


def _thing(recipe: Recipe) -> str:
    """What one item is called."""
    return "image" if recipe.images else "video"


def _fill(journal: Journal, found: Found, recipe: Recipe, output: Output, engine: Engine) -> None:
    """Writes the shards that are missing."""
    items = found.source.items
    again = f", {journal.done} of them done already" if journal.done else ""
    thing, root = _thing(recipe), printable(str(found.root))
    print(f"reading {count(len(items), thing)} from {root}{again}", flush=True)
    limits = Limits(
        shard_bytes=output.shard_mb * 1_000_000,
        set_aside=found.set_aside,
        max_skipped=_most(output.max_skipped, len(items)),
    )
    try:
        if engine.beam_runner is not None:
            options = beam.BeamOptions(
                engine.beam_runner, engine.beam_options, engine.num_workers, engine.beam_mount
            )
            beam.fill(journal, items, recipe, limits, options, engine.max_seconds)
            return
        remaining = items[journal.done :]
        work = functools.partial(transform, recipe)
        results = read_items(work, remaining, engine.num_workers, engine.max_seconds)
        with contextlib.closing(results) as read:
            write_shards(journal, items, progress(read, journal.done, len(items)), limits)
    except TooManySkippedError as error:
        table = folders.unfinished(output.folder) / SKIPPED_NAME
        write_flaws(error.flaws, table)
        skipped = [flaw for flaw in error.flaws if flaw.status == SKIPPED]
        stopped = f" (stopped after {error.done} of them)" if error.done < len(items) else ""
        raise UserError(
            f"{len(skipped)} of {count(len(items), thing)} cannot be used{stopped}, more than the "
            f"{limits.max_skipped} that --max_skipped={output.max_skipped:g} allows; "
            f"{output.folder} was not written; they are listed in {table}; run again with a larger "
            "--max_skipped, which continues; or mend or remove them and begin anew (rm -r "
            f"{shlex.quote(str(table.parent))}), for what is done is not read again:"
            f"{_list(skipped)}"
        ) from None


def _most(fraction: float, number: int) -> int:
    """How many a fraction allows, as it is written: 0.29 of 100 are 29, not 28.999."""
    return math.floor(Fraction(repr(fraction)) * number)


def _refuse_empty_splits(journal: Journal, found: Found) -> None:
    items = found.source.items
    written = {shard.split for shard in journal.files}
    if not written:
        raise UserError(
            f"none of the {count(len(items), 'item')} can be used:{_list(journal.flaws)}"
        )
    wanted = {item.split or "train" for item in items}
    wanted |= {"validation"} if found.set_aside else set()
    if missing := sorted(wanted - written):
        usable = sum(shard.records for shard in journal.files)
        raise UserError(
            f"the split {missing[0]!r} would be empty: {usable} of {count(len(items), 'item')} can "
            "be used, all of them in another split: mend or add some, or give a list of each split "
            f"(--list=train=FILE):{_list(journal.flaws)}"
        )


def _splits(shards: Sequence[Shard]) -> dict[str, list[tuple[int, int]]]:
    """Records and bytes of the shards of each split."""
    splits = collections.defaultdict(list)
    for shard in shards:  # a split may come twice: begun by Beam, continued by this process
        splits[shard.split].append((shard.records, shard.payload_bytes))
    return dict(splits)


def _assemble(journal: Journal, built: Path, recipe: Recipe, found: Found) -> None:
    """Gives shards their names, now that their number is known, and describes them."""
    built.mkdir()
    splits = _splits(journal.files)
    name = "images" if recipe.images else "videos"
    for shard in journal.files:
        number = int(shard.name.rpartition("-")[2])
        final = writer.shard_name(
            name, shard.split, journal.file_format, number, len(splits[shard.split])
        )
        (journal.folder / shard.name).rename(built / final)
    names = found.source.label_names
    described = (
        writer.image_features(names)
        if recipe.images
        else writer.features(names, codec=recipe.codec)
    )
    description = f"{name.capitalize()} prepared by adamae_jax; codec {recipe.codec}."
    writer.write_metadata(built, described, splits, journal.file_format, name, description)
    write_flaws(journal.flaws, built / SKIPPED_NAME)


def _take_back(built: Path, shards: Path) -> None:
    """Undoes `_assemble` where a job was killed in it; makes the folder of shards if need be."""
    shards.mkdir(exist_ok=True)
    if not built.is_dir():
        return
    for path in built.glob("*-of-*"):
        split, number = path.name.split("-")[1].split(".")[0], path.name.split("-")[2]
        path.rename(shards / f"{split}-{number}")
    for path in built.iterdir():
        path.unlink()
    built.rmdir()


def _list(flaws: Sequence[Flaw]) -> str:
    return f" {some([f'{f.id} ({f.reason})' for f in sorted(flaws, key=lambda f: f.id)])}"


def _summarise(flaws: Sequence[Flaw], destination: Path) -> None:
    for status, meaning in ((SKIPPED, "left out"), (TRUNCATED, "kept up to their damage")):
        concerned = [flaw for flaw in flaws if flaw.status == status]
        if concerned:
            where = destination / SKIPPED_NAME
            print(f"{meaning} (see {where}): {count(len(concerned), 'item')}:{_list(concerned)}")
