"""The steps of a run, and what happens between them: evaluation, metrics, pictures, checkpoints."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from adamae_jax import config as configs
from adamae_jax.errors import PreemptedError, WorkerDeathError
from adamae_jax.task import Task, Variables
from adamae_jax.training import evaluation, knn, preemption, rundir
from adamae_jax.training.bad_steps import BadSteps
from adamae_jax.training.checkpoints import RunCheckpoints
from adamae_jax.training.clock import CHECKPOINT, EVALUATION, Clock, device_memory
from adamae_jax.training.evaluation import HostBatch
from adamae_jax.training.files import AnyPath
from adamae_jax.training.metrics import RunMetrics
from adamae_jax.training.optimizers import Optimizer
from adamae_jax.training.partitioning import put_batch
from adamae_jax.training.profiling import Trace
from adamae_jax.training.program import Program
from adamae_jax.training.progress import Progress
from adamae_jax.training.state import TrainState

Figures = dict[str, float]
T = TypeVar("T")


class HeldOut(Protocol):
    """Clips to evaluate on: iterating gives this process's batches."""

    @property
    def num_examples(self) -> int:
        """How many are evaluated, over all processes."""

    def __iter__(self) -> Iterator[HostBatch]:
        """Each batch, once; see `adamae_jax.task.Batch`."""

    def check(self, unreadable: int) -> None:
        """Raises a `UserError` where too many could not be read, of all processes' clips."""


class Data(Protocol):
    """What the trainer needs of a run's data; see `adamae_jax.run_data`."""

    def training_from(
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
      evaluated: is told of each evaluation, in every process: ``(step, figures, variables)``.
      initial: ``params`` and ``state``, or a part of them, and ``frozen`` variables, that a run
        begins with in the place of those of `Task.init`.
      draw: makes pictures: ``(metrics, step, variables, prefix)``, with a prefix for those that go
        to files too; None for none.
      export: writes what is left when the run is complete: ``(variables)``.
      summary: from the last figures of each evaluation to what the summary says beside them.
    """

    config: ConfigDict
    workdir: AnyPath
    task: Task
    optimizers: Mapping[str, Optimizer]
    mesh: Mesh
    data: Data
    metadata: Mapping[str, Any]
    evaluated: Callable[[int, Figures, Variables], None] | None = None
    initial: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    draw: Callable[[RunMetrics, int, Variables, str | None], None] | None = None
    export: Callable[[Variables], None] = lambda variables: None
    summary: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda evaluated: {}


class Loop:
    """The steps of a run, and what happens between them."""

    def __init__(
        self,
        run: Run,
        program: Program,
        checkpoints: RunCheckpoints,
        metrics: RunMetrics,
        progress: Progress,
        trace: Trace,
    ) -> None:
        """Compiles nothing yet."""
        self._run, self._program = run, program
        self._checkpoints, self._metrics, self._progress = checkpoints, metrics, progress
        self._trace = trace
        self._sums = evaluation.compile_sums(run.task, run.mesh, run.config.seed)
        self._features = knn.compile_features(run.task, run.mesh)
        self._knn_accuracy: float | None = None  # the last one

    def train(
        self,
        start: int,
        state: TrainState,
        batches: Iterator[HostBatch],
        notice: preemption.Notice,
    ) -> TrainState:
        """Trains from ``start`` updates to the config's steps; returns the last state.

        Raises:
          PreemptedError: where ``notice`` was given; the state is saved.
          UserError: where updates are not finite any more; the state before them is saved.
        """
        config, last = self._run.config, self._run.config.steps
        if start < last:
            self._progress.message("compiling; the first step may take minutes")
        if start == 0:
            self._metrics.write_texts(0, {"config": f"<pre>{configs.to_json(config)}</pre>"})
            self._draw(0, state, "start")
        so_far = rundir.clock_so_far(self._run.workdir, start)
        clock = Clock(config.batch_size, so_far["seconds"], so_far["computed"])
        bad = BadSteps(config.max_bad_steps, int(state.counters["skipped"]))
        previous: Any = None  # the metrics of the step before
        for step in range(start + 1, last + 1):
            batch = unless_given(notice, functools.partial(clock.next, batches))
            if batch is None:
                raise self._preempted(step - 1, state, bad)
            bad.expect(step, batch)
            stage = self._program.stage(step)
            is_changed = step > start + 1 and stage != self._program.stage(step - 1)
            if is_changed:
                self._progress.message(f"compiling stage {stage + 1} of the training")
            placed = put_batch(notice.added_to(batch), self._run.mesh)
            self._trace.before(step, previous)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = self._program.steps[stage](state, placed)
            self._trace.after(step, metrics)
            # The host runs one step ahead of the devices, and no more.
            jax.block_until_ready(previous)
            if previous is not None:
                bad.see(step - 1, int(previous["skipped"]))
            before, previous = previous, metrics
            is_compiled, is_logged = (
                step == start + 1 or is_changed,
                step % config.log_every == 0 or step in (1, last),
            )
            if is_compiled:
                jax.block_until_ready(metrics)
                self._progress.message(f"compiled and ran step {step}")
                if not is_logged:
                    clock.restart()
            figures: Figures = {}
            if is_logged:
                figures = {name: float(value) for name, value in jax.device_get(metrics).items()}
                figures.pop(preemption.MUST_END, None)
            held_out: Figures = {}
            if is_due(step, config.eval_every, last):
                jax.block_until_ready(metrics)  # what the step takes is not the evaluation's
                with clock.spending(EVALUATION):
                    held_out = unless_given(notice, functools.partial(self._evaluate, state)) or {}
                    if held_out and self._run.evaluated is not None:
                        self._run.evaluated(step, held_out, state.result)
            if is_logged:
                figures |= clock.read(compiled=is_compiled) | device_memory()
            if figures or held_out:
                self._log(step, figures | held_out)
            if config.pictures_every and step % config.pictures_every == 0 and step != last:
                with clock.spending(EVALUATION):
                    self._draw(step, state, None)
            must_end = notice.agreed(before) and step != last
            due = any(is_due(step, n, last) for n in (config.checkpoint_every, config.keep_every))
            saved = must_end or bad.too_many or due
            if saved:
                bad.see(step, int(metrics["skipped"]))
            if must_end:
                raise self._preempted(step, state, bad)
            if saved:
                with clock.spending(CHECKPOINT):
                    skipped = bad.streak if step != last or bad.too_many else 0
                    covered = self._save(step, state, skipped)
            if bad.too_many:
                listed = self._run.workdir / rundir.bad_steps_name()
                bad.write(listed)
                self._checkpoints.wait()
                raise bad.error(covered, listed)
        self._draw(last, state, "end")
        return state

    def _preempted(self, step: int, state: TrainState, bad: BadSteps) -> PreemptedError:
        """Saves the state after a step; returns what ends the run."""
        covered = self._save(step, state, bad.streak)
        self._checkpoints.wait()
        return PreemptedError(
            f"the state of step {covered} is saved in {self._run.workdir}: the same command goes "
            "on from it"
        )

    def _save(self, step: int, state: TrainState, streak: int) -> int:
        """Saves the state or, after skipped updates, that before them: it differs in counts only.

        While updates are skipped no good checkpoint makes room for another.

        Returns:
          The step whose state is on disk then.
        """
        if streak:
            step -= streak
            skipped = state.counters["skipped"] - streak
            state = state.replace(
                step=state.step - streak, counters={**state.counters, "skipped": skipped}
            )
        latest = self._checkpoints.latest_step()
        if latest is None or step > latest:
            self._metrics.flush()  # what a checkpoint covers is on disk before it
            self._checkpoints.save(step, state)
        return step

    def _draw(self, step: int, state: TrainState, prefix: str | None) -> None:
        if self._run.draw is None or jax.process_count() > 1:
            return
        try:
            self._run.draw(self._metrics, step, state.result, prefix)
        except OSError as error:  # a full disk, say: no reason to end a run
            logging.warning("step %d: pictures cannot be written: %s", step, error)

    def _evaluate(self, state: TrainState) -> Figures:
        """The task's figures on held-out clips and, where asked for, of nearest neighbours."""
        run, variables = self._run, state.result
        with run.data.held_out() as clips:
            figures = evaluation.run(run.task, self._sums, variables, clips, run.mesh)
            unreadable = int(figures["eval_unreadable"])
            evaluation.check_count(int(figures["eval_examples"]) + unreadable, clips.num_examples)
            clips.check(unreadable)
        if run.config.eval.knn:
            if self._knn_accuracy is None or run.task.trains_features:
                self._knn_accuracy = self._nearest_neighbours(variables)
            figures["eval_knn_accuracy"] = self._knn_accuracy
        return figures

    def _nearest_neighbours(self, variables: Variables) -> float:
        data = self._run.data
        bank, held_out = (
            self._labelled(opened, variables) for opened in (data.neighbours(), data.held_out())
        )
        return knn.accuracy(bank, held_out, self._run.config.eval.knn_neighbours)

    def _labelled(
        self, opened: contextlib.AbstractContextManager[HeldOut], variables: Variables
    ) -> knn.Labelled:
        with opened as clips:
            found = knn.collect(self._features, variables, clips, self._run.mesh)
            evaluation.check_count(found.clips, clips.num_examples)
        return found

    def _log(self, step: int, figures: Figures) -> None:
        """Writes a step's figures, and shows some."""
        headline = f"eval_{self._run.task.headline}"
        self._metrics.write(step, figures | self._run.data.step_figures(step))
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


def unless_given(notice: preemption.Notice, work: Callable[[], T]) -> T | None:
    """Returns what ``work`` gives; None where the notice to end has ended its workers, too.

    Of several processes none can end at a step of its own; so their workers ignore the signal, but
    for those that have just been started.
    """
    try:
        return work()
    except WorkerDeathError:
        if not notice.given or jax.process_count() > 1:
            raise
        return None


def is_due(step: int, every: int, last: int) -> bool:
    """Whether something happens at a step that happens every so often (0: never) and at the end."""
    return bool(every) and (step % every == 0 or step == last)
