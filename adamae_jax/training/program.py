"""What is compiled of a run: how its state begins, where it lies, and the step that changes it."""

import bisect
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
from adamae_jax.training.preemption import MUST_END
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
      steps: the jitted step of each of the task's stages: ``(state, batch) -> (state, metrics)``.
      ends: the last update of each stage, as `stage_ends` gives them.
    """

    create: Callable[[], TrainState]
    abstract: TrainState
    shardings: TrainState
    steps: tuple[Any, ...]
    ends: tuple[int, ...]

    @property
    def step(self) -> Any:
        """The step of the last stage; most tasks have one stage alone."""
        return self.steps[-1]

    def stage(self, update: int) -> int:
        """Which of the steps makes an update; the first update is 1."""
        return bisect.bisect_left(self.ends, update)


def stage_ends(updates: int, stages: int) -> tuple[int, ...]:
    """Returns the last update of each stage: parts of the run that are equal but for rounding."""
    return tuple(-(-updates * (stage + 1) // stages) for stage in range(stages))


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
    steps = [
        make_train_step(
            stage,
            optimizers,
            seed=config.seed,
            steps=config.steps,
            accumulation=config.optimizer.accumulation,
            average_decay=config.optimizer.average_decay,
        )
        for stage in task.stages
    ]
    jitted = (
        jit_train_step(step, mesh, shardings, deterministic=config.deterministic) for step in steps
    )
    return Program(
        create,
        abstract,
        shardings,
        tuple(jitted),
        stage_ends(config.steps, len(steps)),
    )


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
        arrays[MUST_END] = ((batch_size,), np.bool_)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in arrays.items()
    }
