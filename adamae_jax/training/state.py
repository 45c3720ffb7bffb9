"""The train state: everything that a checkpoint has to hold."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct, traverse_util
from jaxtyping import Array, Int

from adamae_jax.task import Task, Variables
from adamae_jax.training.optimizers import Optimizer

COUNTERS = ("skipped", "replaced")


class TrainState(struct.PyTreeNode):
    """A run at one step.

    Attributes:
      step: updates made or skipped so far.
      params: the parameters of all groups.
      opt_state: state of each group's optimiser, by the group's name.
      model_state: variables that training changes but no optimiser, such as spectral-norm vectors.
      frozen: variables that never change.
      average: moving averages of the parameters; empty where none are kept.
      counters: since the start, ``skipped``: updates that were not finite; ``replaced``: damaged
        records that were met and replaced, once for each clip of a video.
    """

    step: Int[Array, ""]
    params: dict[str, Any]
    opt_state: dict[str, Any]
    model_state: Any
    frozen: Any
    average: Any
    counters: dict[str, Int[Array, ""]]

    @property
    def variables(self) -> Variables:
        """What a task works with."""
        return {"params": self.params, "state": self.model_state, "frozen": self.frozen}

    @property
    def result(self) -> Variables:
        """What is evaluated and handed on: the averaged parameters, where they are kept."""
        return {**self.variables, "params": self.average or self.params}


def select_group(params: Mapping[str, Any], task: Task, group: str) -> dict[str, Any]:
    """Returns the parameters of one group, as a tree of their own."""
    flat = traverse_util.flatten_dict(params, sep="/")
    own = {path: leaf for path, leaf in flat.items() if task.group_of(path) == group}
    return traverse_util.unflatten_dict(own, sep="/")


def replace_group(params: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all parameters with some of them, such as those of one group, replaced."""
    flat = traverse_util.flatten_dict(params, sep="/", keep_empty_nodes=True)
    new = traverse_util.flatten_dict(own, sep="/")
    return traverse_util.unflatten_dict({**flat, **new}, sep="/")


def create_state(
    task: Task, optimizers: Mapping[str, Optimizer], seed: int, *, averaged: bool = False
) -> TrainState:
    """Returns the state before the first step; to be jitted.

    Args:
      task: what is trained.
      optimizers: one for each of its groups.
      seed: of the initial variables.
      averaged: whether moving averages of the parameters are kept.
    """
    variables = task.init(jax.random.key(seed))
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state={
            group: optimizers[group].transform.init(select_group(params, task, group))
            for group in task.groups
        },
        model_state=variables["state"],
        frozen=variables["frozen"],
        average=jax.tree.map(jnp.copy, params) if averaged else {},
        counters={name: jnp.zeros((), jnp.int32) for name in COUNTERS},
    )
