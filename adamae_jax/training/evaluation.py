"""Evaluation on held-out clips: figures of the task, averaged over all of them."""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from adamae_jax.errors import UserError
from adamae_jax.task import Batch, Task, Variables, example_keys, fold
from adamae_jax.training.partitioning import on_mesh, put_batch, replicated

# Folded into the keys of evaluation, so that its draws are not those of training.
_HELD_OUT = 0x5EED
ACCURACY = "accuracy"  # begins the names of figures that are shares of all clips

HostBatch = Mapping[str, np.ndarray]
Sums = dict[str, Float[Array, ""]]


def compile_sums(task: Task, mesh: Mesh, seed: int) -> Callable[[Variables, Batch], Sums]:
    """Returns the jitted sums of a task's figures over the valid clips of a batch.

    Args:
      task: what is evaluated.
      mesh: the devices.
      seed: of whatever is random; a clip's draws depend on it and on the clip's index alone.
    """

    def sums(variables: Variables, batch: Batch) -> Sums:
        valid = batch["valid"].astype(jnp.float32)
        keys = fold(example_keys(seed, 0, batch["example_index"]), _HELD_OUT)
        figures = task.evaluate(variables, batch, keys)
        totals = {name: (value * valid).sum() for name, value in figures.items()}
        unreadable = batch["unreadable"].astype(jnp.float32).sum()
        return {**totals, "examples": valid.sum(), "unreadable": unreadable}

    return jax.jit(on_mesh(sums, mesh), out_shardings=replicated(mesh))


def run(
    task: Task,
    sums_of: Callable[[Variables, Batch], Sums],
    variables: Variables,
    batches: Iterable[HostBatch],
    mesh: Mesh,
) -> dict[str, float]:
    """Evaluates variables on held-out batches.

    Args:
      task: what is evaluated.
      sums_of: from `compile_sums`.
      variables: ``params``, ``state`` and ``frozen``.
      batches: this process's batches, with ``valid`` false where padded or ``unreadable``.
      mesh: the devices.

    Returns:
      The task's figures averaged over all clips that can be read (NaN where nothing defines one)
      under names that start with ``eval_``, and the numbers ``eval_examples`` and
      ``eval_unreadable``. In an accuracy, a clip that cannot be read counts as wrong.

    Raises:
      UserError: where not one clip can be read.
    """
    totals: dict[str, float] = {}
    for batch in batches:
        for name, value in jax.device_get(sums_of(variables, put_batch(batch, mesh))).items():
            totals[name] = totals.get(name, 0.0) + float(value)
    count, unreadable = totals.pop("examples", 0.0), totals.pop("unreadable", 0.0)
    if not count:
        raise UserError(
            "none of the held-out clips can be read: look at the warnings above, and make the "
            "dataset anew with `python -m adamae_jax.prepare`"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        means = {
            name: np.float64(value) / (count + unreadable * name.startswith(ACCURACY))
            for name, value in totals.items()
        }
        figures = {f"eval_{name}": float(v) for name, v in task.summarize(means).items()}
    return {**figures, "eval_examples": count, "eval_unreadable": unreadable}


def check_count(found: int, expected: int) -> None:
    """Raises a `UserError` where an evaluation did not look at every clip once, over all processes.

    Args:
      found: clips that were read, and those that could not be.
      expected: clips that were to be evaluated.
    """
    if found != expected:
        raise UserError(
            f"an evaluation of {expected} clips has counted {found}: its figures are "
            "wrong; if several processes train, give all of them the same data, else report this "
            "as a fault of adamae_jax"
        )
