"""The trainer: what every training job does between its config and its summary.

`train` is the whole story; its headings are the functions below it. A job describes its run as a
`Run` and knows nothing of resuming, checkpoints, evaluation or metrics.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from clu import parameter_overview
from flax import traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict

from adamae_jax import plain_json
from adamae_jax.errors import UserError
from adamae_jax.training import files, partitioning, preemption, rundir
from adamae_jax.training.checkpoints import RunCheckpoints
from adamae_jax.training.files import AnyPath
from adamae_jax.training.loop import Loop, Run
from adamae_jax.training.metrics import RunMetrics
from adamae_jax.training.profiling import Trace
from adamae_jax.training.program import Program, program
from adamae_jax.training.progress import Progress
from adamae_jax.training.state import TrainState, replace_group

__all__ = ["Run", "finished", "train"]


def train(run: Run) -> dict[str, Any]:
    """Trains to the end, from the newest checkpoint where there is one.

    Returns:
      What ``summary.json`` holds (in the first process; nothing in the others).

    Raises:
      UserError: for a workdir of another run, damaged data, a full disk, or training that is not
        finite any more.
      PreemptedError: where the run was told to end, and has saved its state.
    """
    config, workdir, first = run.config, run.workdir, jax.process_index() == 0
    use_compilation_cache(config.compilation_cache_dir)
    checkpoints = RunCheckpoints(
        workdir / rundir.CHECKPOINTS,
        keep=config.keep_checkpoints,
        keep_every=config.keep_every,
        metadata={"task": run.task.name, **run.metadata},
    )
    with rundir.claimed(workdir, config, write=first), checkpoints:
        # Step and state
        planned = program(config, run.task, run.optimizers, run.mesh)
        start, state = restore_or_create(run, checkpoints, planned)
        if first:
            rundir.note_start(workdir, start)
        log_rates(run)
        # Loop: evaluation, metrics, pictures and checkpoints, each when it is due
        with RunMetrics(workdir, start_step=start) as metrics, progress_of(run, start) as progress:
            trace = Trace(workdir / rundir.PROFILE, *config.profile.steps)
            loop = Loop(run, planned, checkpoints, metrics, progress, trace)
            with preemption.Notice() as notice, run.data.training_from(start) as batches, trace:
                state = loop.train(start, state, batches, notice)
        checkpoints.wait()
        # End
        variables = partitioning.to_host(state.result)
        if not first:
            return {}
        try:
            run.export(variables)
            return rundir.summarize(workdir, config.steps, run.task.headline, run.summary)
        except OSError as error:
            raise UserError(
                f"the run is complete, but what it leaves in {workdir} cannot be written "
                f"({files.reason(error)}): put that right and start the same command again"
            ) from error


def finished(run_config: ConfigDict, workdir: AnyPath, steps: list[int]) -> dict[str, Any] | None:
    """Returns the summary of a run that is complete; None where there is something left to do.

    Args:
      run_config: the effective config.
      workdir: the run's directory.
      steps: of its checkpoints.
    """
    path = workdir / rundir.SUMMARY
    if steps[-1:] != [run_config.steps]:
        return None
    try:
        summary = plain_json.parse(files.read(path))
    except (OSError, ValueError):
        return None  # it is made anew
    if not isinstance(summary, dict):
        return None
    logging.info("%s is complete at step %d", workdir, run_config.steps)
    return summary


def use_compilation_cache(directory: str) -> None:
    """Keeps compiled programs from one start to the next; "" turns it off."""
    if directory:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def progress_of(run: Run, start: int) -> Progress:
    """What a person sees of the run."""
    return Progress(run.config.steps, clips_per_step=run.config.batch_size, start_step=start)


def restore_or_create(
    run: Run, checkpoints: RunCheckpoints, planned: Program
) -> tuple[int, TrainState]:
    """Returns the step to go on from, and the state at it."""
    log_size(planned.abstract, planned.shardings, run.mesh)
    restored = checkpoints.restore(planned.abstract)
    if restored is not None:
        logging.info("resumed from step %d", restored[0])
        return restored
    shardings = planned.shardings
    state = begin_with(run.initial, jax.jit(planned.create, out_shardings=shardings)(), shardings)
    if "frozen" in run.initial:
        held = jax.device_put(run.initial["frozen"], shardings.frozen)
        state = state.replace(frozen=held)
    parameter_overview.log_parameter_overview(state.params, include_stats=False)
    return 0, state


def begin_with(initial: Mapping[str, Any], state: TrainState, shardings: TrainState) -> TrainState:
    """Returns a fresh state with the arrays of ``initial`` in it, each in its place on the mesh."""

    def replaced(part: str, tree: Any, places: Any) -> Any:
        own = traverse_util.flatten_dict(initial.get(part, {}), sep="/")
        flat = traverse_util.flatten_dict(places, sep="/")
        laid = {name: jax.device_put(array, flat[name]) for name, array in own.items()}
        return replace_group(tree, traverse_util.unflatten_dict(laid, sep="/"))

    params = replaced("params", state.params, shardings.params)
    return state.replace(
        params=params,
        model_state=replaced("state", state.model_state, shardings.model_state),
        average=jax.tree.map(jnp.copy, params) if state.average else {},
    )


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


def log_rates(run: Run) -> None:
    """Logs the learning rates that are used: the config's are for 256 clips."""
    rate = run.optimizers[run.task.groups[-1]].learning_rate
    warmup, last = run.config.optimizer.warmup_steps, run.config.steps - 1
    logging.info(
        "learning rate: %.4g at the peak (step %d), %.4g at the end (step %d)",
        *(float(rate(jnp.asarray(warmup))), warmup, float(rate(jnp.asarray(last))), last),
    )
