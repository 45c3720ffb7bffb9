"""The trainer: what every training job does between its config and its summary.

`train` is the whole story; its headings are the functions below it. A job describes its run as a
`Run` and knows nothing of resuming, checkpoints, evaluation or metrics.
"""

import contextlib
import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
from absl import logging
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from adamae_jax import config as configs
from adamae_jax.task import Task, Variables
from adamae_jax.training import evaluation, knn, partitioning, rundir
from adamae_jax.training.checkpoints import RunCheckpoints
from adamae_jax.training.evaluation import HostBatch
from adamae_jax.training.metrics import RunMetrics
from adamae_jax.training.optimizers import Optimizer
from adamae_jax.training.partitioning import put_batch
from adamae_jax.training.progress import Progress
from adamae_jax.training.state import TrainState, create_state
from adamae_jax.training.step import jit_train_step, make_train_step

Figures = dict[str, float]


class HeldOut(Protocol):
    """Clips to evaluate on: iterating gives this process's batches."""

    @property
    def num_examples(self) -> int:
        """How many are evaluated, over all processes."""

    def __iter__(self) -> Iterator[HostBatch]:
        """Each batch, once."""

    def check(self, unreadable: int) -> None:
        """Raises a `UserError` where too many could not be read, of all processes' clips."""


class Data(Protocol):
    """What the trainer needs of a run's data; see `adamae_jax.run_data`."""

    def train_batches(
        self, first_step: int
    ) -> contextlib.AbstractContextManager[Iterator[HostBatch]]:
        """This process's batches from a step on."""

    def held_out(self) -> contextlib.AbstractContextManager[HeldOut]:
        """What is evaluated."""

    def neighbours(self) -> contextlib.AbstractContextManager[HeldOut]:
        """Labelled training clips, for nearest neighbours."""

    def step_figures(self, step: int) -> Figures:
        """What is logged of the data of a step, such as the epoch."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a job trains.

    Attributes:
      config: the effective config.
      workdir: where everything of the run is kept.
      task: what is trained.
      optimizers: one for each of the task's groups.
      mesh: the devices.
      data: what is trained and evaluated on.
      metadata: is kept with each checkpoint.
      frozen: variables that never change, for a run that begins; None for those of `Task.init`.
      draw: makes pictures: ``(metrics, step, variables, prefix)``, with a prefix for those that go
        to files too; None for none.
      export: writes what is left when the run is complete: ``(variables)``.
      summary: from the last figures of each evaluation to what the summary says beside them.
    """

    config: ConfigDict
    workdir: Path
    task: Task
    optimizers: Mapping[str, Optimizer]
    mesh: Mesh
    data: Data
    metadata: Mapping[str, Any]
    frozen: Any = None
    draw: Callable[[RunMetrics, int, Variables, str | None], None] | None = None
    export: Callable[[Variables], None] = lambda variables: None
    summary: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda evaluated: {}


def train(run: Run) -> dict[str, Any]:
    """Trains to the end, from the newest checkpoint where there is one.

    Returns:
      What ``summary.json`` holds (in the first process; nothing in the others).

    Raises:
      UserError: for a workdir of another run, damaged data or a full disk.
    """
    config, workdir, first = run.config, run.workdir, jax.process_index() == 0
    use_compilation_cache(config.compilation_cache_dir)
    checkpoints = RunCheckpoints(
        workdir / rundir.CHECKPOINTS,
        keep=config.keep_checkpoints,
        metadata={"task": run.task.name, **run.metadata},
    )
    with rundir.claimed(workdir, config, write=first), checkpoints:
        # State
        start, state, shardings = restore_or_create(run, checkpoints)
        # Step
        step = make_train_step(
            run.task,
            run.optimizers,
            seed=config.seed,
            accumulation=config.optimizer.accumulation,
        )
        train_step = jit_train_step(step, run.mesh, shardings)
        # Loop: evaluation, metrics, pictures and checkpoints, each when it is due
        with RunMetrics(workdir, start_step=start) as metrics, progress_of(run, start) as progress:
            loop = Loop(run, train_step, checkpoints, metrics, progress)
            with run.data.train_batches(start) as batches:
                state = loop.run(start, state, batches)
        checkpoints.wait()
        # End
        variables = partitioning.to_host(state.variables)
        if not first:
            return {}
        run.export(variables)
        return rundir.summarize(workdir, config.steps, run.task.headline, run.summary)


def finished(run_config: ConfigDict, workdir: Path, steps: list[int]) -> dict[str, Any] | None:
    """Returns the summary of a run that is complete; None where there is something left to do.

    Args:
      run_config: the effective config.
      workdir: the run's directory.
      steps: of its checkpoints.
    """
    summary = workdir / rundir.SUMMARY
    if steps[-1:] != [run_config.steps] or not summary.is_file():
        return None
    logging.info("%s is complete at step %d", workdir, run_config.steps)
    return json.loads(summary.read_text())


def use_compilation_cache(directory: str) -> None:
    """Keeps compiled programs from one start to the next; "" turns it off."""
    if directory:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def progress_of(run: Run, start: int) -> Progress:
    """What a person sees of the run."""
    return Progress(run.config.steps, clips_per_step=run.config.batch_size, start_step=start)


def restore_or_create(run: Run, checkpoints: RunCheckpoints) -> tuple[int, TrainState, Any]:
    """Returns the step to go on from, the state at it, and where the state's arrays lie."""
    create = functools.partial(create_state, run.task, run.optimizers, run.config.seed)
    abstract = jax.eval_shape(create)
    shardings = partitioning.state_sharding(abstract, run.mesh, run.config.mesh_rules)
    log_size(abstract, shardings, run.mesh)
    like = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )
    restored = checkpoints.restore(like)
    if restored is not None:
        logging.info("resumed from step %d", restored[0])
        return *restored, shardings
    state = jax.jit(create, out_shardings=shardings)()
    if run.frozen is not None:
        state = state.replace(frozen=jax.device_put(run.frozen, shardings.frozen))
    parameter_overview.log_parameter_overview(state.params, include_stats=False)
    return 0, state, shardings


def log_size(abstract: TrainState, shardings: TrainState, mesh: Mesh) -> None:
    """Logs how large the state is, and what of it a device holds."""
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
    part = partitioning.bytes_per_device(abstract, shardings)
    logging.info(
        "mesh %s: the state has %.2f GB, of which each device holds %.2f GB",
        dict(mesh.shape),
        whole / 1e9,
        part / 1e9,
    )


@dataclasses.dataclass
class Clock:
    """Where the time of the steps since the last line went.

    Attributes:
      clips: clips per step, over all processes.
      seconds: seconds of training so far, those before this process started included.
    """

    clips: int
    seconds: float = 0.0
    _started: float = dataclasses.field(default_factory=lambda: time.monotonic())
    _waited: float = 0.0
    _steps: int = 0

    def restart(self) -> None:
        """Begins a new interval, such as after the compilation or an evaluation."""
        now = time.monotonic()
        self.seconds += now - self._started
        self._started, self._waited, self._steps = now, 0.0, 0

    def next(self, batches: Iterator[HostBatch]) -> HostBatch:
        """Takes a batch, and counts the time that it took to come."""
        begin = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - begin
        self._steps += 1
        return batch

    def read(self) -> Figures:
        """Returns the figures of the interval, and begins a new one."""
        elapsed = max(time.monotonic() - self._started, 1e-9)
        figures = {
            "clips_per_second": self._steps * self.clips / elapsed,
            "data_wait_share": min(1.0, self._waited / elapsed),
        }
        self.restart()
        return {**figures, "seconds": self.seconds}


class Loop:
    """The steps of a run, and what happens between them."""

    def __init__(
        self,
        run: Run,
        train_step: Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, Mapping[str, Any]]],
        checkpoints: RunCheckpoints,
        metrics: RunMetrics,
        progress: Progress,
    ) -> None:
        """Compiles nothing yet."""
        self._job, self._train_step = run, train_step
        self._checkpoints, self._metrics, self._progress = checkpoints, metrics, progress
        self._sums = evaluation.compile_sums(run.task, run.mesh, run.config.seed)
        self._features = knn.compile_features(run.task, run.mesh)

    def run(self, start: int, state: TrainState, batches: Iterator[HostBatch]) -> TrainState:
        """Trains from ``start`` updates to the config's steps; returns the last state."""
        config, last = self._job.config, self._job.config.steps
        if start == 0:
            self._metrics.write_texts(0, {"config": f"<pre>{configs.to_json(config)}</pre>"})
            self._draw(0, state, "start")
        clock = Clock(config.batch_size, rundir.seconds_so_far(self._job.workdir, start))
        previous: Any = None
        for step in range(start + 1, last + 1):
            batch = put_batch(clock.next(batches), self._job.mesh)
            state, metrics = self._train_step(state, batch)
            # The host runs one step ahead of the devices, and no more.
            jax.block_until_ready(previous)
            previous = metrics
            if step == start + 1:
                jax.block_until_ready(metrics)
                logging.info("compiled and ran step %d", step)
            figures: Figures = {}
            if step % config.log_every == 0 or step in (1, last):
                figures = {name: float(value) for name, value in jax.device_get(metrics).items()}
                figures |= clock.read()
            held_out = self._evaluate(state) if is_due(step, config.eval_every, last) else {}
            if figures or held_out:
                self._log(step, figures | held_out)
            drawn = config.pictures_every and step % config.pictures_every == 0 and step != last
            if drawn:
                self._draw(step, state, None)
            saved = is_due(step, config.checkpoint_every, last)
            if saved:
                self._metrics.flush()  # what a checkpoint covers is on disk before it
                self._checkpoints.save(step, state)
            if step == start + 1 or held_out or drawn or saved:
                clock.restart()
        self._draw(last, state, "end")
        return state

    def _draw(self, step: int, state: TrainState, prefix: str | None) -> None:
        if self._job.draw is not None and jax.process_count() == 1:
            self._job.draw(self._metrics, step, state.variables, prefix)

    def _evaluate(self, state: TrainState) -> Figures:
        """The task's figures on held-out clips and, where asked for, of nearest neighbours."""
        job, variables = self._job, state.variables
        with job.data.held_out() as clips:
            figures = evaluation.run(job.task, self._sums, variables, clips, job.mesh)
            unreadable = int(figures["eval_unreadable"])
            evaluation.check_count(int(figures["eval_examples"]) + unreadable, clips.num_examples)
            clips.check(unreadable)
        if job.config.eval.knn:
            bank, held_out = (
                self._labelled(opened, variables)
                for opened in (job.data.neighbours(), job.data.held_out())
            )
            figures["eval_knn_accuracy"] = knn.accuracy(
                bank, held_out, job.config.eval.knn_neighbours
            )
        return figures

    def _labelled(
        self, opened: contextlib.AbstractContextManager[HeldOut], variables: Variables
    ) -> knn.Labelled:
        with opened as clips:
            found = knn.collect(self._features, variables, clips, self._job.mesh)
            evaluation.check_count(found.clips, clips.num_examples)
        return found

    def _log(self, step: int, figures: Figures) -> None:
        """Writes a step's figures, and shows some."""
        headline = f"eval_{self._job.task.headline}"
        self._metrics.write(step, figures | self._job.data.step_figures(step))
        self._progress.update(step, figures.get("loss"))
        if headline in figures:
            shown = [f"{name} {value:.4g}" for name, value in figures.items() if "eval_" in name]
            self._progress.message(f"step {step}: {', '.join(shown)}")
        if figures.get("skipped"):
            logging.warning(
                "step %d: %d update(s) so far were not finite and were skipped",
                step,
                figures["skipped"],
            )


def is_due(step: int, every: int, last: int) -> bool:
    """Whether something happens at a step that happens every so often (0: never) and at the end."""
    return bool(every) and (step % every == 0 or step == last)
