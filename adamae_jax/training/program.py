"""What is compiled of a run: how its state begins, where it lies, and the step that changes it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from adamae_jax.task import Task
from adamae_jax.training import partitioning
from adamae_jax.training.optimizers import Optimizer
from adamae_jax.training.preemption import TOLD
from adamae_jax.training.state import TrainState, create_state
from adamae_jax.training.step import jit_train_step, make_train_step

# Of a training batch, besides the video; see `adamae_jax.task.Batch`.
PER_CLIP = (
    *("slot", "repeat", "example_index", "label"),
    *("replaced", "bad_record", "damage"),
)


@dataclasses.dataclass(frozen=True)
class Program:
    """The program of a run on a mesh; nothing is computed yet.

    Attributes:
      create: makes the state before the first step; to be jitted.
      abstract: shapes and types of the state, and where its arrays lie.
      shardings: the latter alone.
      step: the jitted step: ``(state, batch) -> (state, metrics)``.
    """

    create: Callable[[], TrainState]
    abstract: TrainState
    shardings: TrainState
    step: Any


def program(
    config: ConfigDict, task: Task, optimizers: Mapping[str, Optimizer], mesh: Mesh
) -> Program:
    """Returns the program that a config describes.

    Args:
      config: the effective config.
      task: what is trained.
      optimizers: one for each of its groups.
      mesh: the devices, attached or not.
    """
    create = functools.partial(
        create_state, task, optimizers, config.seed, averaged=config.optimizer.average_decay > 0
    )
    shapes = jax.eval_shape(create)
    shardings = partitioning.state_sharding(shapes, mesh, config.mesh_rules)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    step = make_train_step(
        task,
        optimizers,
        seed=config.seed,
        steps=config.steps,
        accumulation=config.optimizer.accumulation,
        average_decay=config.optimizer.average_decay,
    )
    jitted = jit_train_step(step, mesh, shardings, deterministic=config.deterministic)
    return Program(create, abstract, shardings, jitted)


def abstract_batch(
    clip_shape: Sequence[int], batch_size: int, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a training batch of a dataset without masks, as a run gets it.

    Args:
      clip_shape: ``[T, H, W, C]``.
      batch_size: clips.
      mesh: the devices, attached or not.
    """
    sharding = partitioning.batch_sharding(mesh)
    arrays: dict[str, tuple[tuple[int, ...], Any]] = {
        "video": ((batch_size, *clip_shape), np.uint8)
    }
    arrays |= {name: ((batch_size,), np.int32) for name in PER_CLIP}
    if len({device.process_index for device in mesh.devices.flat}) > 1:
        arrays[TOLD] = ((batch_size,), np.bool_)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in arrays.items()
    }
