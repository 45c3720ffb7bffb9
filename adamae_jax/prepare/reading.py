"""Items read in processes of their own: what a bad one does to its process costs nothing else."""

import functools
from collections.abc import Callable, Generator, Iterable

from adamae_jax.prepare.pool import ordered_map
from adamae_jax.prepare.sources import Item
from adamae_jax.prepare.transform import SKIPPED, Flaw, Result

# A video of ten seconds takes one or two; an hour of 1080p, about so many.
MAX_SECONDS = 1800.0


def read_items(
    read: Callable[..., Result], items: Iterable[Item], num_workers: int, max_seconds: float
) -> Generator[Result, None, None]:
    """The results of items, in their order; to be closed.

    An item that ends its process, that needs too much memory, or that does not come to an end, is a
    flaw like others; storage that fails is none, and raises what `read` raises.

    Args:
        read: makes a record of an item; with ``alone=True`` for one that is tried again while
            nothing else is read.
        items: what to read.
        num_workers: processes; 0 reads in this one, which has to bear what the items do.
        max_seconds: for one item.
    """
    return ordered_map(
        read,
        items,
        num_workers,
        _crashed,
        retry=functools.partial(read, alone=True),
        max_seconds=max_seconds,
        on_timeout=functools.partial(_late, max_seconds),
    )


def _crashed(item: Item) -> Result:
    reason = "crashes the process that reads it, or needs more memory than there is"
    return Result(None, Flaw(item.id, SKIPPED, 0, reason))


def _late(max_seconds: float, item: Item) -> Result:
    reason = f"takes longer than --max_seconds_per_video={max_seconds:g}"
    return Result(None, Flaw(item.id, SKIPPED, 0, reason))
