"""A run's workdir: whose it is, and what is said at the end."""

import contextlib
import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
from absl import logging
from ml_collections import ConfigDict

from adamae_jax import changes
from adamae_jax import config as configs
from adamae_jax.errors import UserError
from adamae_jax.training import files, metrics
from adamae_jax.training.files import AnyPath

CONFIG, SUMMARY, METRICS = "config.json", "summary.json", metrics.FILE_NAME
CHECKPOINTS, PICTURES, MODEL, BEST = "checkpoints", "pictures", "model", "best"
MODEL_JSON = "model.json"  # in MODEL, as in every model directory
DAMAGED = "damaged_records"
STARTS, BAD_STEPS, PROFILE = "starts.jsonl", "bad_steps", "profile"
LOCK = ".lock"


def damaged_name() -> str:
    """The file for the damaged records that this process meets: of several, each has its own."""
    return f"{DAMAGED}_{jax.process_index()}.txt" if jax.process_count() > 1 else f"{DAMAGED}.txt"


def bad_steps_name() -> str:
    """The file for the examples of updates that were not finite; each process has its own."""
    return f"{BAD_STEPS}_{jax.process_index()}.jsonl"


def check(workdir: AnyPath, config: ConfigDict) -> None:
    """Raises a `UserError` where the workdir holds another run; changes nothing.

    Args:
      workdir: need not exist.
      config: the effective config.
    """
    if isinstance(workdir, Path) and not _is_there(workdir):
        return
    path, checkpoints = workdir / CONFIG, workdir / CHECKPOINTS
    if files.exists(path):
        try:
            # On today's tree of fields: a field that is newer than the run has its default.
            stored = configs.from_json(files.read(path).decode())
        except (OSError, ValueError, UserError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): put back the run's {CONFIG}, or give another "
                "--workdir"
            ) from error
        last = max((line["step"] for line in read_metrics(workdir)), default=0)
        are_there = bool(files.names(checkpoints))
        if last or are_there:
            changes.check_allowed(str(workdir), stored, config)
        # A run that was killed before its first checkpoint has an empty folder, and starts anew.
        was_saved = last > stored.checkpoint_every or files.exists(workdir / SUMMARY)
        # In a bucket there are no empty folders.
        is_lost = was_saved or not (files.is_bucket(workdir) or checkpoints.is_dir())
        if last and not are_there and is_lost:
            raise UserError(
                f"{workdir / METRICS} has steps up to {last}, but {checkpoints} holds no "
                f"checkpoint: put them back; to start from step 0, remove {METRICS} or give "
                "another --workdir"
            )
    else:
        for name in (
            CHECKPOINTS,
            METRICS,
            SUMMARY,
            MODEL,
            BEST,
            MODEL_JSON,
            "events.out.tfevents.*",
        ):
            if any(workdir.glob(name)):
                raise UserError(
                    f"{workdir} holds {name} but no {CONFIG}: it is not a run that could be "
                    "resumed; give another --workdir"
                )


def _is_there(workdir: Path) -> bool:
    """Whether a local workdir is there, with files and folders where a run has such."""
    try:
        os.stat(workdir)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be reached: {error.strerror}") from error
    if not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file: give a directory")
    are_folders = dict.fromkeys((CHECKPOINTS, MODEL, PICTURES), Path.is_dir)
    are_files = dict.fromkeys((CONFIG, METRICS, SUMMARY), Path.is_file)
    for name, is_right in {**are_folders, **are_files}.items():
        place = workdir / name
        if os.path.lexists(place) and not is_right(place):
            raise UserError(
                f"{place} is not what a run keeps there (a link to a place that is not mounted?): "
                "put it right, or give another --workdir"
            )
    return True


def config_of(workdir: AnyPath) -> ConfigDict | None:
    """Returns the config of the run in a workdir; None where none has begun."""
    if not files.names(workdir / CHECKPOINTS):
        return None
    try:
        return configs.from_json(files.read(workdir / CONFIG).decode())
    except (OSError, ValueError, UserError):
        return None  # `check` says what is wrong


@contextlib.contextmanager
def claimed(workdir: AnyPath, config: ConfigDict, *, write: bool) -> Iterator[None]:
    """Makes the workdir this job's while the block runs, and writes its config.

    Args:
      workdir: made where it is missing.
      config: the effective config.
      write: whether this process writes (the first of the job); the others do nothing.

    Raises:
      UserError: where another job is at work in it, or it cannot be written.
    """
    if not write:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            files.make_directory(workdir)
            if isinstance(workdir, Path):
                # The kernel gives the lock back however the process ends.
                lock = stack.enter_context(open(workdir / LOCK, "w"))
                _lock(lock, workdir)
            files.write(workdir / CONFIG, configs.to_json(config).encode())
            files.make_directory(workdir / CHECKPOINTS)  # whose absence will tell that it is lost
        except OSError as error:
            reason = files.reason(error)
            raise UserError(f"--workdir={workdir} cannot be written: {reason}") from error
        yield


def _lock(lock: TextIO, workdir: Path) -> None:
    """Locks a workdir by an open file in it; a bucket has no locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"another process is at work in {workdir}: wait for it, or give another --workdir"
        ) from None
    except OSError as error:  # some network file systems know no locks
        logging.warning(
            "%s cannot be locked (%s): see to it that no other process uses it", workdir, error
        )


def read_metrics(workdir: AnyPath) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; what is none (a kill may tear the last) is passed over."""
    return _lines_of(workdir / METRICS)


def _lines_of(path: AnyPath) -> list[dict[str, Any]]:
    try:
        lines = files.read(path).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [found for line in lines if (found := metrics.parse_line(line)) is not None]


def clock_so_far(workdir: AnyPath, step: int) -> dict[str, float]:
    """Returns a `Clock`'s ``seconds`` and ``computed`` at a step of a run, from its metrics."""
    found = {"seconds": 0.0, "computed": 0.0}
    for line in read_metrics(workdir):
        for name, logged in (("seconds", "seconds"), ("computed", "computed_seconds")):
            if line["step"] <= step and line.get(logged) is not None:
                found[name] = line[logged]
    return found


def note_start(workdir: AnyPath, step: int) -> None:
    """Adds a line to the run's starts: when, and from which step it goes on.

    Raises:
      UserError: where it cannot be written.
    """
    line = json.dumps({"step": step, "time": time.time()}) + "\n"
    try:
        files.append(workdir / STARTS, line.encode())
    except OSError as error:
        reason = files.reason(error)
        raise UserError(f"{workdir / STARTS} cannot be written: {reason}") from error


def goodput(workdir: AnyPath, computed: float) -> dict[str, Any]:
    """Returns how much of the time since the first start went into steps that count.

    Args:
      workdir: of the run.
      computed: the seconds of those steps; see `Clock`.
    """
    starts = [line for line in _lines_of(workdir / STARTS) if line.get("time")]
    since = max(time.time() - starts[0]["time"], computed) if starts else 0.0
    return {
        "starts": len(starts),
        "wall_seconds": since or None,
        "goodput": computed / since if since else None,
    }


def summarize(
    workdir: AnyPath,
    steps: int,
    headline: str,
    more: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> dict[str, Any]:
    """Writes ``summary.json`` from what the run has logged, and returns it.

    Args:
      workdir: of the run.
      steps: that it was trained for.
      headline: the figure whose means over the logged steps among the first and the last 5% are
        given: over all of those where ``log_every`` is 1.
      more: from the last figures of each evaluation, by name, to what else is written.
    """
    lines = read_metrics(workdir)
    logged = [line for line in lines if headline in line]
    evaluated: dict[str, Any] = {}
    for line in lines:
        evaluated |= {name: value for name, value in line.items() if name.startswith("eval_")}
    edge = max(1, math.ceil(0.05 * steps))

    def mean(chosen: list[dict[str, Any]]) -> float | None:
        usable = [line[headline] for line in chosen if line[headline] is not None]
        return sum(usable) / len(usable) if usable else None

    rates = sorted(line["clips_per_second"] for line in logged if line.get("clips_per_second"))
    clock = clock_so_far(workdir, steps)
    summary = {
        "steps": steps,
        "seconds": clock["seconds"],
        "computed_seconds": clock["computed"],
        **goodput(workdir, clock["computed"]),
        "clips_per_second": rates[len(rates) // 2] if rates else None,
        f"{headline}_first": mean([line for line in logged if line["step"] <= edge]),
        f"{headline}_last": mean([line for line in logged if line["step"] > steps - edge]),
        **evaluated,
        **more(evaluated),
    }
    files.write(workdir / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
    return summary
