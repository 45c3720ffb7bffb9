"""The same records by Apache Beam, for when one machine is not enough.

The unit of work is a block of items, which becomes one shard: a worker reads its items, in a
process of their own, and writes the shard itself, so that no pixels pass through Beam. (So many
items are set aside for validation, then; where one process sees all results, so many records.)
Sources and output must lie where every worker sees them under the same path (a network file system,
or a mounted bucket), or knows them by their address (see `adamae_jax.prepare.mounts`). A block that
is done is found again by the next run.

Workers may outlive the job: a service goes on when the machine that started it does not. All that
decides on what is in a block therefore has a digest, which names the folder of blocks. Workers of
an earlier run of the same job, who find their items where they always were, make the same blocks;
those of another job write into a folder that nobody looks at, or find none and fail.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import itertools
import json
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from adamae_jax.data import schema, storage
from adamae_jax.errors import UserError
from adamae_jax.prepare.mounts import Mount, delivered, remove_stale, transform_fetched
from adamae_jax.prepare.reading import read_items
from adamae_jax.prepare.shard_files import WRITERS
from adamae_jax.prepare.shards import (
    Journal,
    Limits,
    Shard,
    TooManySkippedError,
    shard_from_json,
    shard_to_json,
)
from adamae_jax.prepare.sources import Item
from adamae_jax.prepare.transform import SKIPPED, Recipe, Result, transform

ITEMS_NAME = "items.jsonl"  # beside the blocks; never changed, since workers read it
_SAMPLE = 8  # items that are tried to know how large records are
# For the items of a block. A crash in Beam's own would end that, and the job after some attempts.
_PROCESSES = 1


@dataclasses.dataclass(frozen=True)
class Block:
    """Items that follow each other and become one shard; small, since Beam carries all of them.

    Attributes:
        start: place of the first among all items.
        stop: place behind the last.
        split: of all of them.
        span: (offset, length) of what says what they are, in the file `ITEMS_NAME`.
    """

    start: int
    stop: int
    split: str
    span: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        """Of its file, the same in every run."""
        return f"block-{self.start:09d}-{self.stop:09d}"


@dataclasses.dataclass(frozen=True)
class BeamOptions:
    """What Beam is to do.

    Attributes:
        runner: Beam's name of what does the work: DirectRunner, DataflowRunner, FlinkRunner, ...
        more: of Beam's own options, as on a command line.
        num_workers: of the DirectRunner; 0 and 1 let it work in this process.
        mount: the folder that workers know by its address only; None: they see all paths.
    """

    runner: str
    more: str = ""
    num_workers: int = 0
    mount: Mount | None = None

    def arguments(self) -> list[str]:
        """As Beam takes them."""
        arguments = [f"--runner={self.runner}", *shlex.split(self.more)]
        if self.runner == "DirectRunner" and self.num_workers > 1:
            arguments.append("--direct_running_mode=multi_processing")
            arguments.append(f"--direct_num_workers={self.num_workers}")
        return arguments


def fill(
    journal: Journal,
    items: Sequence[Item],
    recipe: Recipe,
    limits: Limits,
    options: BeamOptions,
    max_seconds: float,
) -> None:
    """Adds the shards that are missing to a journal.

    Args:
        journal: of a folder that all workers see; the folder gets a neighbour for blocks.
        items: all of them; those of a split stand together.
        recipe: how each record is made.
        limits: of the shards; their size is judged by the first items.
        options: what Beam is to do.
        max_seconds: for one item.

    Raises:
        TooManySkippedError: more than allowed are left out.
        UserError: Beam is not installed, does not know the runner or the options, or fails.
    """
    per_block = _items_per_block(items, recipe, limits.shard_bytes, max_seconds)
    todo = list(blocks(items, journal.done, per_block, limits.set_aside))
    made_with = [dataclasses.asdict(recipe), journal.file_format, limits.set_aside]
    folder, todo = list_items(items, todo, journal.folder.parent, made_with)
    remove_stale(folder, max_seconds)
    block_of = Blocks(recipe, journal.file_format, folder, max_seconds, options.mount)
    _run(block_of.write, [block for block in todo if finished(block, folder) is None], options)
    for block in todo:
        shard = finished(block, folder)
        if shard is None:
            raise UserError(
                f"Beam has ended, but {folder / block.name} is not there: do all workers see "
                f"{folder} under this path? If they reach it by an address only, give --beam_mount"
            )
        if shard.records:
            number = sum(other.split == block.split for other in journal.files)
            shard = dataclasses.replace(shard, name=f"{block.split}-{number:05d}")
            (folder / block.name).rename(journal.folder / shard.name)
        journal.add(shard)
    if sum(flaw.status == SKIPPED for flaw in journal.flaws) > limits.max_skipped:
        raise TooManySkippedError(journal.flaws, len(items))


def blocks(items: Sequence[Item], first: int, per_block: int, set_aside: int) -> Iterator[Block]:
    """The items from the first on in blocks of one split, each at most so many."""
    splits = [
        item.split or ("validation" if place < set_aside else "train")
        for place, item in enumerate(items)
    ]
    start = first
    for stop in range(first + 1, len(items) + 1):
        full = stop - start == per_block
        if stop == len(items) or full or splits[stop] != splits[start]:
            yield Block(start, stop, splits[start])
            start = stop


def list_items(
    items: Sequence[Item], chosen: Sequence[Block], parent: Path, made_with: object
) -> tuple[Path, list[Block]]:
    """Writes a file of what blocks are made of, a line of JSON for each item, unless it is there.

    A request to a runner is limited to some MB (of Dataflow, 10), which the paths of a hundred
    thousand videos exceed.

    Args:
        items: all of them.
        chosen: blocks of them.
        parent: where the folder of blocks is to be.
        made_with: what decides on a block beside its items, as JSON can hold it.

    Returns:
        The folder, and the blocks with their place in the file.
    """
    lines = [(json.dumps(dataclasses.astuple(item)) + "\n").encode() for item in items]
    digest = hashlib.sha256(json.dumps([schema.VERSION, made_with], sort_keys=True).encode())
    for line in lines:
        digest.update(line)
    folder = parent / f"blocks-{digest.hexdigest()[:16]}"
    folder.mkdir(exist_ok=True)
    if not (folder / ITEMS_NAME).exists():
        with delivered(folder, None) as private, open(private / ITEMS_NAME, "wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())  # other machines read it next
    ends = [0, *itertools.accumulate(map(len, lines))]
    spans = [(ends[block.start], ends[block.stop] - ends[block.start]) for block in chosen]
    placed = zip(chosen, spans, strict=True)
    return folder, [dataclasses.replace(block, span=span) for block, span in placed]


def read_list(path: str, block: Block) -> list[Item]:
    """The items of a block.

    Args:
        path: of what `list_items` has written, or its address.
        block: one that it has returned.

    Raises:
        OSError: the file is not there, ends too early, or cannot be read again and again.
    """
    offset, length = block.span
    lines = storage.retried(lambda: storage.open_file(path).read(offset, length), path)
    if len(lines) < length:
        raise OSError(errno.EIO, f"it ends before byte {offset + length}", path)
    rows = map(json.loads, lines.splitlines())
    return [
        Item(identity, path_of_item, label, split, span and (span[0], span[1]), num_frames)
        for identity, path_of_item, label, split, span, num_frames in rows
    ]


def _items_per_block(
    items: Sequence[Item], recipe: Recipe, shard_bytes: int, max_seconds: float
) -> int:
    work = functools.partial(transform, recipe)
    results = read_items(work, items[:_SAMPLE], _PROCESSES, max_seconds)
    sizes = [len(result.payload or b"") for result in results]
    return max(1, shard_bytes * len(sizes) // max(1, sum(sizes)))


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How blocks become shards; what is sent to Beam's workers.

    Attributes:
        recipe: how each record is made.
        file_format: of the shards.
        folder: where they go, as the machine sees it that started the job.
        max_seconds: for one item.
        mount: that all paths lie in, if workers know it by its address only.
    """

    recipe: Recipe
    file_format: str
    folder: Path
    max_seconds: float
    mount: Mount | None = None

    def write(self, block: Block) -> None:
        """Writes a block's shard and then a note on it.

        Beam may start the same work twice, even at once: each writes files of its own, and the
        last takes the place of the others, which hold the same.
        """
        with (
            tempfile.TemporaryDirectory() as scratch,
            delivered(self.folder, self.mount) as place,
        ):
            if self.mount is None:
                remove_stale(self.folder, self.max_seconds)
            work = functools.partial(transform, self.recipe)
            if self.mount is not None:
                work = functools.partial(transform_fetched, self.recipe, self.mount, Path(scratch))
            table = self.folder / ITEMS_NAME
            items = read_list(self.mount.address_of(table) if self.mount else str(table), block)
            shard = self._write_shard(work, place / block.name, block, items)
            note = place / f"{block.name}.json"
            note.write_text(shard_to_json(shard), encoding="utf-8")

    def _write_shard(
        self, work: Callable[[Item], Result], path: Path, block: Block, items: Sequence[Item]
    ) -> Shard:
        flaws, records, num_bytes = [], 0, 0
        writer = WRITERS[self.file_format](path)
        results = read_items(work, items, _PROCESSES, self.max_seconds)
        with contextlib.closing(results):
            for result in results:
                os.utime(path.parent)  # a sign of life: see `remove_stale`
                if result.payload is not None:
                    writer.write(result.payload)
                    records, num_bytes = records + 1, num_bytes + len(result.payload)
                if result.flaw is not None:
                    flaws.append(result.flaw)
        writer.close()
        return Shard(
            block.name if records else "",
            block.split if records else "",
            block.stop,
            records,
            num_bytes,
            path.stat().st_size if records else 0,
            tuple(flaws),
        )


def finished(block: Block, folder: Path) -> Shard | None:
    """What was noted of a block, if it is done."""
    try:
        shard = shard_from_json((folder / f"{block.name}.json").read_text(encoding="utf-8"))
        size = (folder / block.name).stat().st_size
    except OSError:
        return None
    return shard if shard and (size == shard.file_bytes or not shard.records) else None


def _run(work: Callable[[Block], None], todo: Sequence[Block], options: BeamOptions) -> None:
    if not todo:
        return
    try:
        import apache_beam as beam  # type: ignore[import-not-found,unused-ignore]
        from apache_beam.options.pipeline_options import (  # type: ignore[import-not-found,unused-ignore]
            PipelineOptions,
        )
    except ImportError as error:
        raise UserError(
            f"--beam_runner={options.runner} needs Apache Beam, which cannot be imported "
            f"({error}): pip install -e '.[beam]' in the repository"
        ) from error
    try:
        pipeline = beam.Pipeline(options=PipelineOptions(options.arguments()))
        # Reshuffle: without it a runner may give all blocks to one worker.
        _ = pipeline | beam.Create(list(todo)) | beam.Reshuffle() | beam.Map(work)
        pipeline.run().wait_until_finish()
    except SystemExit as error:
        raise UserError(
            f"--beam_options={options.more!r} are no options of Beam: see its message above"
        ) from error
    except Exception as error:  # Beam wraps whatever its workers raise in kinds of its own
        reason = (str(error).strip().splitlines() or [repr(error)])[-1]
        raise UserError(f"--beam_runner={options.runner} failed: {reason}") from error
