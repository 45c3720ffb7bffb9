"""The largest number of clips that a chip can take at once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from adamae_jax import experiment
from adamae_jax.errors import UserError
from adamae_jax.planning.plan import Plan, make
from adamae_jax.planning.topology import Topology
from adamae_jax.training.partitioning import DATA, FSDP, create_mesh

# Powers of two and the numbers halfway between them, which batches and tiles divide by.
LADDER = sorted({2**n for n in range(11)} | {3 * 2**n for n in range(9)})


def largest(
    config: ConfigDict,
    topology: Topology,
    *,
    memory_limit: int | None = None,
    recipe: Mapping[str, Any] | None = None,
    tried: Callable[[int, Plan], None] = lambda clips, plan: None,
) -> tuple[Plan, ConfigDict]:
    """Returns the plan with the most clips of `LADDER` on a chip at once, and its config.

    Memory is taken to grow with the clips: the ladder is halved again and again, beginning at what
    the config asks for. Each number is compiled as a batch of its own, without accumulation.

    Args:
      config: the experiment.
      topology: what to compile for.
      memory_limit: bytes of a chip, if not its kind's.
      recipe: see `adamae_jax.config.resolve`.
      tried: is told of each number and what came of it.

    Raises:
      UserError: where it is not known what memory there is, or not even the smallest batch fits.
    """
    if memory_limit is None and topology.chip.memory is None:
        raise UserError(
            f"--fit: what memory a chip of {topology.name} has is not known: give --memory_gb=N"
        )
    mesh = create_mesh(dict(config.mesh), topology.devices)
    parts = mesh.shape[DATA] * mesh.shape[FSDP]
    rungs = [clips for clips in LADDER if possible(with_batch(config, clips * parts))]
    if not rungs:
        raise UserError(
            "--fit: the config divides none of the batches that are tried, up to "
            f"{LADDER[-1]} clips a chip: see data.repeats and augment.mix_group"
        )
    found: dict[int, Plan] = {}

    def fits(clips: int) -> bool:
        own = with_batch(config, clips * parts)
        found[clips] = make(own, topology, memory_limit=memory_limit, recipe=recipe)
        tried(clips, found[clips])
        return found[clips].fits

    asked = config.batch_size // parts // config.optimizer.accumulation
    best = last_that_holds(rungs, fits, start=asked)
    best = rungs[0] if best is None else best
    return found[best], with_batch(config, best * parts)


def with_batch(config: ConfigDict, batch_size: int) -> ConfigDict:
    """Returns the config with one microbatch of so many clips."""
    config = config.copy_and_resolve_references()
    config.batch_size = batch_size
    config.eval.batch_size = 0
    config.optimizer.accumulation = 1
    return config


def possible(config: ConfigDict) -> bool:
    """Whether an experiment has such a batch: repeats and mixing have to divide it."""
    try:
        experiment.task(experiment.task_name(config), config)
    except UserError:
        return False
    return True


def last_that_holds(values: Sequence[int], holds: Callable[[int], bool], start: int) -> int | None:
    """Returns the last of sorted values for which something holds; None where it holds for none.

    Each value is tried once at most: upwards or downwards by doubling distances from ``start``,
    then by halves.

    Args:
      values: sorted; what holds for one holds for all before it.
      holds: the test.
      start: where to begin; the nearest value from below is taken.
    """
    low, high = -1, len(values)  # holds at low, not at high
    position = max((i for i, value in enumerate(values) if value <= start), default=0)
    stride = 1
    while high - low > 1:
        if holds(values[position]):
            low = position
        else:
            high = position
        if low < 0:  # still downwards
            position = max(0, high - stride)
        elif high == len(values):  # still upwards
            position = min(high - 1, low + stride)
        else:
            position = (low + high) // 2
        stride *= 2
    return None if low < 0 else values[low]
