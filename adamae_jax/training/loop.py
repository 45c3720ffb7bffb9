"""The loop: batches in, steps done, and what happens between them."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from adamae_jax.training.mesh import batch_sharding
from adamae_jax.training.step import Batch

State = TypeVar("State")  # a `TrainState`; the loop looks at nothing in it
HostBatch = Mapping[str, np.ndarray]
Scalars = dict[str, float]


def device_put(batch: HostBatch, mesh: Mesh, names: Sequence[str]) -> Batch:
    """Hands this process's part of a global batch to its devices.

    Args:
      batch: arrays with the batch axis first.
      mesh: sharded over its data axis.
      names: the arrays that the device needs; those missing from the batch are passed over.
    """
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, batch[name])
        for name in names
        if name in batch
    }


@dataclasses.dataclass
class Clock:
    """Where the time of the steps since the last line went.

    Attributes:
      clips: clips per step, over all processes.
      seconds: seconds of training before this process started.
    """

    clips: int
    seconds: float = 0.0
    _started: float = dataclasses.field(default_factory=lambda: time.monotonic())
    _waited: float = 0.0
    _steps: int = 0

    def restart(self) -> None:
        """Begins a new interval, such as after the compilation or a validation."""
        now = time.monotonic()
        self.seconds += now - self._started
        self._started, self._waited, self._steps = now, 0.0, 0

    def next(self, batches: Iterator[HostBatch]) -> HostBatch:
        """Takes a batch and counts the time that it took to come."""
        begin = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - begin
        self._steps += 1
        return batch

    def read(self) -> Scalars:
        """The figures of the interval, and a new interval."""
        elapsed = max(time.monotonic() - self._started, 1e-9)
        figures = {
            "clips_per_second": self._steps * self.clips / elapsed,
            "data_wait_share": min(1.0, self._waited / elapsed),
        }
        self.restart()
        return {**figures, "seconds": self.seconds}


@dataclasses.dataclass
class Loop(Generic[State]):
    """Runs the step from where the state is to the end.

    Attributes:
      train_step: the jitted step.
      put: hands a host's batch to the devices.
      clock: times the steps.
      steps: where the run ends.
      log_every: steps between logged lines; the first and the last step are logged too.
      validate: called after every step, with the state: figures to log beside those of the step,
        none where no validation is due.
      on_log: called with step and figures, once for each step that has some.
      actions: clu's `PeriodicAction` and its like, called after that with the state: pictures,
        checkpoints. Each says whether it did something.
    """

    train_step: Callable[[State, Batch], tuple[State, Mapping[str, Any]]]
    put: Callable[[HostBatch], Batch]
    clock: Clock
    steps: int
    log_every: int
    validate: Callable[[int, State], Scalars]
    on_log: Callable[[int, Scalars], None]
    actions: Sequence[Callable[..., bool]]

    def run(self, state: State, first_step: int, batches: Iterator[HostBatch]) -> State:
        """Trains from ``first_step`` updates to ``steps``; returns the last state."""
        previous: Any = None
        for step in range(first_step + 1, self.steps + 1):
            batch = self.clock.next(batches)
            state, metrics = self.train_step(state, self.put(batch))
            # The host runs one step ahead of the devices, and no more.
            jax.block_until_ready(previous)
            previous = metrics
            if step == first_step + 1:
                jax.block_until_ready(metrics)
                logging.info("compiled and ran step %d", step)
            figures: Scalars = {}
            if step % self.log_every == 0 or step in (1, self.steps):
                figures = {name: float(value) for name, value in jax.device_get(metrics).items()}
                figures |= self.clock.read()
            elif step == first_step + 1:
                self.clock.restart()
            held_out = self.validate(step, state)
            if figures or held_out:
                self.on_log(step, figures | held_out)
            if any([action(step, state=state) for action in self.actions]) or held_out:
                self.clock.restart()
        return state
