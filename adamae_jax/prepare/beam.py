"""The same records by Apache Beam, for when one machine is not enough.

The unit of work is a block of items, which becomes one shard: a worker reads its items, in a
process of their own, and writes the shard itself, so that no pixels pass through Beam. Source and
output must lie where every worker sees them under the same path. A block that is done is found
again by the next run.
"""

import contextlib
import dataclasses
import functools
import pickle
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from adamae_jax.errors import UserError
from adamae_jax.prepare.sources import Item
from adamae_jax.prepare.transform import read_items
from adamae_jax.prepare.write import Result, finished_shards, is_finished, write_shards

# Beside the shards: all items. A request to a runner is limited to some MB (of Dataflow, 10), which
# the paths of a hundred thousand videos exceed.
ITEMS_NAME = "items.pickle"
_SAMPLE = 8  # items that are tried to know how large records are
# For the items of a block. A crash in Beam's own would end that, and the job after some attempts.
_PROCESSES = 1

Block = tuple[int, int]  # places of the first item and behind the last one, among all items


@dataclasses.dataclass(frozen=True)
class BeamOptions:
    """What Beam is to do.

    Attributes:
        runner: Beam's name of what does the work: DirectRunner, FlinkRunner, DataflowRunner, ...
        more: of Beam's own options, as on a command line.
        num_workers: of the DirectRunner; 0 and 1 let it work in this process.
    """

    runner: str
    more: str = ""
    num_workers: int = 0

    def arguments(self) -> list[str]:
        """Returns the options as Beam takes them."""
        arguments = [f"--runner={self.runner}", *shlex.split(self.more)]
        if self.runner == "DirectRunner" and self.num_workers > 1:
            arguments.append("--direct_running_mode=multi_processing")
            arguments.append(f"--direct_num_workers={self.num_workers}")
        return arguments


@dataclasses.dataclass(frozen=True)
class Work:
    """How blocks become shards; what is sent to Beam's workers.

    Attributes:
        read: makes a record of an item.
        file_format: of the shards.
        folder: where they go.
        max_seconds: for one item.
        shard_bytes: of a shard, about.
    """

    read: Callable[[Item], Result]
    file_format: str
    folder: Path
    max_seconds: float
    shard_bytes: int

    def write(self, block: Block) -> None:
        """Writes a block's shard.

        Beam may start the same work twice, even at once: the shards are the same.
        """
        start, stop = block
        items = _read_items(self.folder / ITEMS_NAME)[start:stop]
        results = read_items(self.read, items, _PROCESSES, self.max_seconds)
        with contextlib.closing(results):
            pairs = zip(items, results, strict=True)
            write_shards(self.folder, self.file_format, start, pairs, float("inf"))

    def items_per_block(self, items: Sequence[Item]) -> int:
        """Returns how many items make a shard, judged by the first of them."""
        results = read_items(self.read, items[:_SAMPLE], _PROCESSES, self.max_seconds)
        sizes = [len(result.payload or b"") for result in results]
        return max(1, self.shard_bytes * len(sizes) // max(1, sum(sizes)))


@functools.lru_cache(maxsize=1)
def _read_items(path: Path) -> Sequence[Item]:
    items: Sequence[Item] = pickle.loads(path.read_bytes())
    return items


def fill(work: Work, items: Sequence[Item], done: int, options: BeamOptions) -> None:
    """Writes the shards that are missing.

    Args:
        work: in a folder that all workers see.
        items: all of them; those of a split stand together.
        done: how many of them, from the first on, are in finished shards.
        options: what Beam is to do.

    Raises:
        UserError: Beam is not installed, does not know the runner or the options, or fails.
    """
    if done == len(items):
        return
    new = work.folder / f".{ITEMS_NAME}"
    new.write_bytes(pickle.dumps(tuple(items)))
    new.rename(work.folder / ITEMS_NAME)
    planned = blocks(items, done, work.items_per_block(items))
    todo = [block for block in planned if not is_finished(work.folder, *block)]
    _run(work.write, todo, options)
    shards = finished_shards(work.folder)
    if not shards or shards[-1].stop < len(items):
        raise UserError(
            f"Beam has ended, but not all shards are in {work.folder}: do all workers see --source "
            "and --output under the same paths?"
        )


def blocks(items: Sequence[Item], first: int, per_block: int) -> Iterator[Block]:
    """Yields the items from the first on in blocks of one split, each at most so many."""
    start = first
    for stop in range(first + 1, len(items) + 1):
        full = stop - start == per_block
        if stop == len(items) or full or items[stop].split != items[start].split:
            yield start, stop
            start = stop


def _run(work: Callable[[Block], None], todo: Sequence[Block], options: BeamOptions) -> None:
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
