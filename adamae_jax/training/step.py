"""The train step: a pure function of state and batch, the same for every task."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Num

from adamae_jax.errors import UserError
from adamae_jax.task import PROGRESS, Batch, Task, example_keys, microbatches
from adamae_jax.training.optimizers import Optimizer
from adamae_jax.training.partitioning import batch_sharding, on_mesh, replicated
from adamae_jax.training.preemption import MUST_END
from adamae_jax.training.state import TrainState, replace_group, select_group

Metrics = dict[str, Num[Array, ""]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
KEYS = "keys"  # of the examples, in a prepared batch


def make_train_step(
    task: Task,
    optimizers: Mapping[str, Optimizer],
    *,
    seed: int,
    steps: int = 0,
    accumulation: int = 1,
    average_decay: float = 0.0,
) -> TrainStep:
    """Builds the step: an update of each group of parameters, in the task's order.

    An update that is not finite is skipped, and with it those of the other groups: the step still
    counts, and so do data and schedule.

    Args:
      task: what is trained.
      optimizers: one for each group.
      seed: of all that is random in the step.
      steps: of the whole run, for tasks that look at how far it has come; 0: it has no known end,
        and the batch no progress.
      accumulation: microbatches per update.
      average_decay: of the moving averages of the parameters, where the state keeps them.

    Raises:
      UserError: where a group has no optimiser.
    """
    if not set(task.groups) <= set(optimizers):
        raise UserError(
            f"optimisers {sorted(optimizers)} are given, {sorted(task.groups)} are needed"
        )

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        batch = dict(batch)
        notice = {MUST_END: batch.pop(MUST_END).any()} if MUST_END in batch else {}
        if steps:
            batch[PROGRESS] = jnp.full(len(batch["slot"]), state.step / steps, jnp.float32)
        keys = example_keys(seed, state.step, batch["slot"], batch.get("repeat"))
        prepared = task.prepare(state.variables, batch, keys, accumulation)
        metrics: Metrics = {}
        updated, finite = state, jnp.asarray(True)
        for group in task.groups:
            updated, figures, group_finite = update_group(
                task, group, optimizers[group], updated, {**prepared, KEYS: keys}, accumulation
            )
            metrics |= figures
            finite &= group_finite
        if updated.average:
            updated = updated.replace(
                average=optax.incremental_update(updated.params, state.average, 1 - average_decay)
            )
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        replaced = batch["replaced"].sum() if "replaced" in batch else 0
        counters = {
            "skipped": state.counters["skipped"] + jnp.logical_not(finite),
            "replaced": (state.counters["replaced"] + replaced).astype(jnp.int32),
        }
        metrics = task.summarize(metrics | counters) | notice
        return kept.replace(step=state.step + 1, counters=counters), metrics

    return train_step


def update_group(
    task: Task, group: str, optimizer: Optimizer, state: TrainState, batch: Batch, count: int
) -> tuple[TrainState, Metrics, Bool[Array, ""]]:
    """Updates one group of parameters; returns state, metrics, and whether all was finite."""
    own = select_group(state.params, task, group)

    def weighted_sum(own: Any, model_state: Any, part: Batch) -> tuple[Array, Any]:
        variables = {**state.variables, "params": replace_group(state.params, own)}
        found = task.loss(group, {**variables, "state": model_state}, part, part[KEYS], True)
        weight = jax.lax.stop_gradient(found.weight)
        figures = {"loss": found.loss, **found.figures}
        sums = {name: (value * weight).sum() for name, value in figures.items()}
        return sums["loss"], (sums, weight.sum(), found.state)

    def gradients(model_state: Any, part: Batch) -> tuple[Any, Any]:
        grads, (sums, weight, new) = jax.grad(weighted_sum, has_aux=True)(own, model_state, part)
        return (grads, sums, weight), new

    (grads, sums, weight), model_state = accumulate(gradients, state.model_state, batch, count)
    weight = jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)  # no example may count
    grads, metrics = jax.tree.map(lambda total: total / weight, (grads, sums))
    metrics["grad_norm"] = optax.tree.norm(grads)
    finite = jnp.isfinite(metrics["loss"] + metrics["grad_norm"])
    metrics["learning_rate"] = optimizer.learning_rate(state.step)
    if group != task.groups[-1]:
        names = ("loss", "grad_norm", "learning_rate")
        metrics |= {f"{name}_{group}": metrics.pop(name) for name in names}
    elif len(grads) > 1:
        metrics |= {f"grad_norm_{part}": optax.tree.norm(grads[part]) for part in grads}
    own, opt_state = optimizer.update(grads, state.opt_state[group], own, state.step)
    state = state.replace(
        params=replace_group(state.params, own),
        opt_state={**state.opt_state, group: opt_state},
        model_state=model_state,
    )
    return state, metrics, finite


def accumulate(
    gradients: Callable[[Any, Batch], tuple[Any, Any]], model_state: Any, batch: Batch, count: int
) -> tuple[Any, Any]:
    """Sums over microbatches, one after the other.

    Args:
      gradients: ``(model state, microbatch) -> (sums, new model state)``.
      model_state: is handed from one microbatch to the next.
      batch: the whole batch.
      count: number of microbatches.
    """
    if count == 1:
        return gradients(model_state, batch)

    def body(carry: tuple[Any, Any], part: Batch) -> tuple[tuple[Any, Any], None]:
        totals, model_state = carry
        sums, model_state = gradients(model_state, part)
        return (jax.tree.map(jnp.add, totals, sums), model_state), None

    parts = microbatches(batch, count)
    shapes, _ = jax.eval_shape(gradients, model_state, jax.tree.map(lambda a: a[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (totals, model_state), _ = jax.lax.scan(body, (zeros, model_state), parts)
    return totals, model_state


def jit_train_step(
    train_step: TrainStep, mesh: Mesh, state_shardings: Any, *, deterministic: bool = False
) -> Any:
    """Returns the jitted step, with explicit shardings; the state is donated.

    Args:
      train_step: from `make_train_step`.
      mesh: the devices.
      state_shardings: where the state lies: `partitioning.state_sharding`.
      deterministic: sums on GPUs are made in a fixed order; on other devices they always are.
    """
    return jax.jit(
        on_mesh(train_step, mesh),
        in_shardings=(state_shardings, batch_sharding(mesh)),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options={"xla_gpu_deterministic_ops": True} if deterministic else None,
    )
