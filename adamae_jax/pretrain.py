"""Pretrains a masked autoencoder: python -m adamae_jax.pretrain --config=FILE.py --workdir=DIR.

Started again with the same arguments, a run goes on from its newest checkpoint, or ends at once
where it is complete.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags, logging
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from adamae_jax import cli, experiment, frozen, licenses, pictures, pretrained
from adamae_jax import config as configs
from adamae_jax.data.batches import Batch, first_clips
from adamae_jax.data.damage import EvaluationDamage, Listing, TrainingDamage
from adamae_jax.data.mixture import parts_of
from adamae_jax.data.records import Dataset
from adamae_jax.errors import UserError
from adamae_jax.frozen import Frozen
from adamae_jax.objectives import Pretraining
from adamae_jax.peers import Peers
from adamae_jax.splits import Data, watched
from adamae_jax.training import evaluation, knn, loop, rundir
from adamae_jax.training.checkpoints import RunCheckpoints, checkpoint_steps
from adamae_jax.training.mesh import check_batch, create_mesh, replicated
from adamae_jax.training.metrics import RunMetrics
from adamae_jax.training.progress import Progress
from adamae_jax.training.state import TrainState, create_state
from adamae_jax.training.step import example_keys, jit_train_step, make_train_step

TRAIN_ARRAYS = ("video", "slot", "repeat", "foreground", "replaced")
EVAL_ARRAYS = ("video", "example_index", "foreground", "valid", "unreadable", "label")
PICTURE_CLIPS = 4


def define_flags() -> None:
    """Defines this job's options; importing the module does not."""
    cli.define_config()
    flags.DEFINE_string(
        "workdir", None, "Where checkpoints, metrics and pictures go.", required=True
    )


def main(argv: Sequence[str]) -> None:
    """Trains as the flags say, and prints the summary."""
    del argv
    peers = Peers()
    try:
        summary = pretrain(flags.FLAGS.config, Path(flags.FLAGS.workdir))
    except (Exception, KeyboardInterrupt) as error:
        if jax.process_count() == 1:
            raise
        peers.leave(error)
    if jax.process_index() == 0:
        print(json.dumps(summary, indent=2))
    peers.finish()


def pretrain(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Pretrains to the end.

    Args:
      config: the experiment.
      workdir: the run's directory; where it holds this run, training goes on from there.

    Returns:
      What ``summary.json`` holds (in the first process; nothing in the others).

    Raises:
      UserError: for whatever is wrong with config, data, workdir or devices, before anything is
        compiled or written in the workdir; later for damaged data or a disk that is full.
    """
    pretraining = experiment.pretraining(config)
    experiment.check_device(config)
    mesh = create_mesh(dict(config.mesh))
    check_batch("batch_size", config.batch_size, mesh, config.optimizer.accumulation)
    data = Data.open(config)
    config = configs.resolve(config, len(data.train))
    data = dataclasses.replace(data, config=config)
    check_batch("eval.batch_size", config.eval.batch_size, mesh)
    rundir.check(workdir, config)
    place, summary = workdir / rundir.CHECKPOINTS, workdir / rundir.SUMMARY
    steps = checkpoint_steps(place)
    if steps:
        data.check_trained_on(place, steps[-1])
    if steps[-1:] == [config.steps] and summary.is_file():
        logging.info("%s is complete at step %d", workdir, config.steps)
        return json.loads(summary.read_text())
    # A run that goes on has both in its checkpoint: the source may be another by now, or gone.
    held = Frozen(None, licenses.of(workdir)) if steps else frozen.read(pretraining)
    metadata = {"data_fingerprint": data.train.fingerprint, licenses.RECORD: held.license}
    checkpoints = RunCheckpoints(place, keep=config.keep_checkpoints, metadata=metadata)
    first = jax.process_index() == 0
    use_compilation_cache(config.compilation_cache_dir)
    with rundir.claimed(workdir, config, write=first), checkpoints:
        run = Run(config, workdir, pretraining, mesh, data, checkpoints, held.variables)
        with run.metrics, run.progress:
            state = run.train()
            checkpoints.wait()
        if not first:
            return {}
        variables = {
            "params": state.params,
            "state": state.model_state,
            "frozen": state.frozen,
        }
        described = (config, config.steps, data.train.label_names, held.license)
        pretrained.save(workdir / rundir.MODEL, variables, *described)
        return rundir.summarize(workdir, config.steps, data.foreground_source)


def use_compilation_cache(directory: str) -> None:
    """Keeps compiled programs from one start to the next; "" turns it off."""
    if directory:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


class Run:
    """One process's share of a run: what happens before, between and after the steps."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        pretraining: Pretraining,
        mesh: Mesh,
        data: Data,
        checkpoints: RunCheckpoints,
        frozen_variables: Any,
    ) -> None:
        """Restores the newest checkpoint or makes a new state, and opens the run's files."""
        self.config, self.workdir, self.pretraining = config, workdir, pretraining
        self.mesh, self.data, self.checkpoints = mesh, data, checkpoints
        self.damaged = Listing(workdir / rundir.damaged_name())
        self.optimizers = experiment.optimizers(config)
        self.first_step, self.state = self._restore_or_create(frozen_variables)
        seconds = rundir.seconds_so_far(workdir, self.first_step)
        self.metrics = RunMetrics(workdir, start_step=self.first_step)
        self.progress = Progress(
            config.steps, clips_per_step=config.batch_size, start_step=self.first_step
        )
        self.clock = loop.Clock(config.batch_size, seconds)
        self.evaluate_sums = evaluation.Evaluator(
            pretraining, mesh, config.seed, config.eval.random_draws
        ).compile()
        self.features = knn.compile_features(pretraining, mesh)

    def _restore_or_create(self, frozen_variables: Any) -> tuple[int, TrainState]:
        create = functools.partial(
            create_state, self.pretraining, self.optimizers, self.config.seed
        )
        sharding = replicated(self.mesh)
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(create),
        )
        restored = self.checkpoints.restore(like)
        if restored is not None:
            step, state = restored
            logging.info("resumed from step %d", step)
            return step, state
        state = jax.jit(create, out_shardings=sharding)()
        if frozen_variables is not None:
            state = state.replace(frozen=jax.device_put(frozen_variables, sharding))
        parameter_overview.log_parameter_overview(state.params, include_stats=False)
        return 0, state

    def train(self) -> TrainState:
        """Runs the steps that are left; returns the last state."""
        config = self.config
        train_step = jit_train_step(
            make_train_step(
                self.pretraining,
                self.optimizers,
                seed=config.seed,
                accumulation=config.optimizer.accumulation,
            ),
            self.mesh,
        )
        if self.first_step == 0:
            self.metrics.write_texts(0, {"config": f"<pre>{configs.to_json(config)}</pre>"})
            self.draw(0, self.state, "start")
        damage = TrainingDamage(self.data.train, config.data.max_bad_fraction, self.damaged)
        with self.data.train_batches(self.first_step) as batches:
            state = loop.Loop(
                train_step=train_step,
                put=lambda batch: loop.device_put(batch, self.mesh, TRAIN_ARRAYS),
                clock=self.clock,
                steps=config.steps,
                log_every=config.log_every,
                validate=self.validate,
                on_log=self.log,
                actions=self._actions(),
            ).run(self.state, self.first_step, watched(batches, damage.see))
        self.draw(config.steps, state, "end")
        return state

    def _actions(self) -> list[Callable[..., bool]]:
        """Pictures, then checkpoints: what a checkpoint covers comes before it."""
        # Imports TensorFlow, which has been told to be quiet by the time that metrics are open.
        from clu.periodic_actions import PeriodicCallback

        config = self.config
        return [
            PeriodicCallback(
                every_steps=config.pictures_every or None, callback_fn=self._draw_now_and_then
            ),
            PeriodicCallback(
                every_steps=config.checkpoint_every,
                on_steps={config.steps},
                callback_fn=self._save,
            ),
        ]

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Writes a step's figures, and shows some."""
        data = self.config.data
        videos = step * self.config.batch_size // data.repeats
        figures["epoch"] = videos / data.num_examples
        figures |= self.data.clips_of_parts(step)
        self.metrics.write(step, figures)
        self.progress.update(step, figures.get("loss"))
        if "eval_loss_reconstruction" in figures:
            self.progress.message(
                f"step {step}: held-out loss {figures['eval_loss_reconstruction']:.4f}, "
                f"foreground lift {figures['eval_foreground_lift']:.3f} "
                f"(random masks {figures['eval_foreground_lift_random']:.3f})"
            )
        if figures.get("skipped"):
            logging.warning(
                "step %d: %d update(s) so far were not finite and were skipped",
                step,
                figures["skipped"],
            )

    def validate(self, step: int, state: TrainState) -> dict[str, float]:
        """Held-out figures, every ``eval_every`` steps and at the end."""
        every, options = self.config.eval_every, self.config.eval
        if not every or (step % every and step != self.config.steps):
            return {}
        assert self.data.validation is not None  # it is opened wherever eval_every is set
        damage = EvaluationDamage(
            self.data.validation, self.config.data.max_bad_fraction, self.damaged
        )
        put = functools.partial(loop.device_put, mesh=self.mesh, names=EVAL_ARRAYS)
        with self.data.eval_batches(self.data.validation, options.num_examples) as batches:
            figures = evaluation.run(self.evaluate_sums, state, watched(batches, damage.see), put)
        unreadable = int(figures["eval_unreadable"])
        total = _num_evaluated(self.data.validation, options.num_examples)
        evaluation.check_count(int(figures["eval_examples"]) + unreadable, total)
        damage.check(unreadable, total)
        if options.knn:
            figures["eval_knn_accuracy"] = self._knn_accuracy(state, put)
        return figures

    def _knn_accuracy(self, state: TrainState, put: Callable[..., Any]) -> float:
        options = self.config.eval
        assert self.data.validation is not None
        sides = []
        for dataset, count in (
            (parts_of(self.data.train)[0][0], options.knn_examples),
            (self.data.validation, options.num_examples),
        ):
            damage = EvaluationDamage(dataset, self.config.data.max_bad_fraction, self.damaged)
            with self.data.eval_batches(dataset, count) as batches:
                seen = watched(batches, damage.see)
                sides.append(knn.collect(self.features, state.params["autoencoder"], seen, put))
            evaluation.check_count(sides[-1].clips, _num_evaluated(dataset, count))
        return knn.accuracy(sides[0], sides[1], options.knn_neighbours)

    def _save(self, step: int, t: float, state: TrainState) -> None:
        del t
        self.metrics.flush()  # what a checkpoint covers is on disk before it
        self.checkpoints.save(step, state)

    def _draw_now_and_then(self, step: int, t: float, state: TrainState) -> None:
        del t
        if step != self.config.steps:  # at the end they are drawn anyway
            self.draw(step, state, None)

    @functools.cached_property
    def _drawn_clips(self) -> Batch:
        assert self.data.validation is not None
        spec = experiment.clip_spec(self.config)
        return first_clips(self.data.validation, spec, PICTURE_CLIPS)

    def draw(self, step: int, state: TrainState, prefix: str | None) -> None:
        """Draws a few held-out clips: to TensorBoard and, with a prefix, as files."""
        if jax.process_count() > 1 or self.data.validation is None:
            return
        try:
            batch = self._drawn_clips
        except UserError as error:  # no reason to end a run
            logging.warning("no pictures: %s", error)
            return
        keys = example_keys(self.config.seed, jnp.int32(0), jnp.asarray(batch["example_index"]))
        variables = {"params": state.params, "state": state.model_state, "frozen": state.frozen}
        panels = pictures.compute(self.pretraining, variables, batch["video"], keys)
        self.metrics.write_images(step, {"clips": pictures.sheet(panels)})
        if prefix is not None:
            pictures.save(panels, self.workdir / rundir.PICTURES, prefix)


def _num_evaluated(dataset: Dataset, most: int) -> int:
    """How many clips an evaluation looks at; 0 sets no limit."""
    return min(most or len(dataset), len(dataset))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
