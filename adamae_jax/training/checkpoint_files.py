"""What the checkpoints of a run hold, read without changing them.

`adamae_jax.training.checkpoints` says how they are laid out, and writes them.
"""

import logging as python_logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from adamae_jax.errors import UserError
from adamae_jax.training import digests, files
from adamae_jax.training.files import AnyPath

ITEM = "state"
CORRUPT = ".corrupt"
FINISHED = "commit_success.txt"  # orbax's, in buckets


def checkpoint_steps(directory: str | AnyPath) -> list[int]:
    """The steps of the finished checkpoints in a directory, ascending; none if it is not there."""
    path = files.at(directory)
    return sorted(
        int(name)
        for name in files.names(path)
        if name.isascii() and name.isdecimal() and _is_finished(path / name)
    )


def _is_finished(entry: AnyPath) -> bool:
    """In a bucket nothing is renamed: a file that orbax writes last says that all is there."""
    return entry.is_dir() if isinstance(entry, Path) else FINISHED in files.names(entry)


def read_metadata(directory: str | AnyPath, step: int) -> dict[str, Any]:
    """The metadata stored with a step of a run; its digest is checked, the arrays are not read.

    Raises:
      UserError: There is no such checkpoint, or its manifest is damaged.
    """
    try:
        return digests.read_manifest(files.at(directory) / str(step) / ITEM)["metadata"]
    except digests.DamagedError as error:
        raise UserError(f"no intact checkpoint of step {step} in {directory}: {error}") from error


def read_subtree(
    directory: str | AnyPath, prefix: str = "params", *, step: int | None = None
) -> tuple[int, dict[str, Any]]:
    """Loads one part of a checkpoint as NumPy arrays on the host; needs no shardings.

    Args:
      directory: The directory of a run's checkpoints.
      prefix: The part that is wanted, such as ``params`` or ``params/autoencoder``; "" for all.
      step: Which checkpoint; by default the newest whose digests verify.

    Returns:
      The step, and nested dictionaries of arrays in the shapes and types that were saved (lists
      and tuples come as dictionaries with the keys "0", "1", ...).

    Raises:
      UserError: There is no (intact) checkpoint, or it has no arrays under ``prefix``.
    """
    files.check_orbax(directory)
    directory = files.absolute(directory)
    steps = checkpoint_steps(directory)
    if step is not None and step not in steps:
        raise UserError(f"no checkpoint of step {step} in {directory}: it has {steps}")
    choice = choose(directory, step)
    if choice is None or "error" in choice:
        raise UserError(choice["error"] if choice else f"{directory} holds no checkpoint")
    for name, reason in choice["damaged"].items():
        logging.warning("checkpoint %s is damaged (%s): passed over", directory / name, reason)
    where = directory / str(choice["step"])
    start = f"{prefix}/" if prefix else ""
    arrays = {
        name: jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype))
        for name, (dtype, shape) in choice["arrays"].items()
        if name.startswith(start)
    }
    if not arrays:
        parts = sorted({name.split("/")[0] for name in choice["arrays"]})
        raise UserError(f"{where} has no arrays under {prefix!r}: it has {', '.join(parts)}")
    loaded = _read_on_host(where / ITEM, arrays)
    return choice["step"], _nest({name.removeprefix(start): loaded[name] for name in arrays})


def read_variables(directory: str | AnyPath, step: int | None = None) -> tuple[int, dict[str, Any]]:
    """Loads what a model consists of: ``params``, ``state`` and ``frozen``, as `read_subtree` does.

    Of a run that keeps moving averages of its parameters, those.

    Args:
      directory: The directory of a run's checkpoints.
      step: Which checkpoint; by default the newest whose digests verify.
    """
    step, params = read_subtree(directory, "params", step=step)
    parts = {str(name).split("/")[0] for name in stored_arrays(directory, step)}
    if "average" in parts:
        params = read_subtree(directory, "average", step=step)[1]
    variables = {"params": params}
    for name, part in (("state", "model_state"), ("frozen", "frozen")):
        variables[name] = read_subtree(directory, part, step=step)[1] if part in parts else {}
    return step, variables


def stored_arrays(directory: str | AnyPath, step: int) -> list[str]:
    """The names of the arrays in a checkpoint."""
    return list(digests.read_manifest(files.at(directory) / str(step) / ITEM)["arrays"])


def choose(directory: AnyPath, step: int | None = None) -> dict[str, Any] | None:
    """The newest intact checkpoint (or the given one), and the damaged ones passed over.

    Returns:
      None where nothing has ever been saved; otherwise ``{"step", "arrays", "damaged"}``, with the
      shapes of the arrays and what is wrong with each damaged checkpoint, or ``{"error"}`` with the
      line for the user. JSON-valid, to be sent to other processes.
    """
    damaged: dict[str, str] = {}
    for candidate in reversed(checkpoint_steps(directory)) if step is None else [step]:
        try:
            content = digests.verify(directory / str(candidate) / ITEM)
            if content["step"] != candidate:
                raise digests.DamagedError(f"it was saved as step {content['step']}")
        except digests.DamagedError as error:
            damaged[str(candidate)] = str(error)
        else:
            return {"step": candidate, "arrays": content["arrays"], "damaged": damaged}
    aside = sorted(directory.glob(f"*{CORRUPT}*")) if step is None else []
    if not damaged and not aside:
        return None
    found = [f"{name}: {reason}" for name, reason in damaged.items()]
    found += [f"{path.name}: found damaged earlier" for path in aside]
    return {
        "error": f"no intact checkpoint in {directory} ({'; '.join(found)}): put back a copy, "
        "or move the directory away to start again from step 0"
    }


def quieten_orbax() -> None:
    """Has orbax say warnings only: not dozens of lines a save, nor tracebacks that are raised."""
    python_logging.getLogger("absl").addFilter(_hear_orbax_warnings_only)


def _hear_orbax_warnings_only(record: python_logging.LogRecord) -> bool:
    return "/orbax/" not in record.pathname or record.levelno == python_logging.WARNING


def _read_on_host(path: AnyPath, arrays: dict[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
    loaded = {name: np.zeros(a.shape, a.dtype) for name, a in arrays.items() if not a.size}
    wanted = {name: array for name, array in arrays.items() if array.size}
    if not wanted:
        return loaded
    quieten_orbax()
    handler = ocp.PyTreeCheckpointHandler()
    on_host = ocp.RestoreArgs(restore_type=np.ndarray)
    arguments = ocp.args.PyTreeRestore(
        item=wanted, restore_args=dict.fromkeys(wanted, on_host), partial_restore=True
    )
    try:
        return loaded | handler.restore(epath.Path(path), args=arguments)
    finally:
        handler.close()


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree
