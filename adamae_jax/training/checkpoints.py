"""Run checkpoints: a training state on disk that survives kills, full disks and damaged files.

Layout of the directory of a run::

    <step>/state/              the arrays, as orbax (OCDBT) wrote them
    <step>/state/digests.json  SHA-256 of every file, the arrays' shapes, the run's metadata
    <step>.corrupt/            what once was a checkpoint and no longer is: moved, never deleted

A state is any pytree of arrays: dicts, lists, tuples, named tuples, `flax.struct` dataclasses,
``None`` and other empty nodes. Stored is the flat dictionary ``{"params/encoder/kernel": array}``;
containers are not stored but taken from the ``like`` of `RunCheckpoints.restore`. So a checkpoint
does not depend on Python classes, and any part of it can be read by name (`read_subtree`).
Dictionary keys must not contain a slash. Random keys are kept as plain integers
(``jax.random.key_data``).

The digests are written into the checkpoint *before* orbax renames it to its final name: a finished
checkpoint without digests cannot come about by a kill. orbax itself checks nothing (a flipped
byte is restored silently). Two small files that orbax adds afterwards, ``_CHECKPOINT_METADATA`` and
``commit_success.txt``, hold no state and are not read on restore. In a bucket nothing is renamed:
there ``commit_success.txt``, which is written last, says that a checkpoint is finished.

With several processes all of them call every method together; the directory is on a file system
that all of them see. Process 0 verifies, decides and moves.
"""

import contextlib
import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, EveryNSteps, LatestN

from adamae_jax.agreement import gathered
from adamae_jax.errors import UserError
from adamae_jax.training import digests, files
from adamae_jax.training.checkpoint_files import (
    CORRUPT,
    ITEM,
    checkpoint_steps,
    choose,
    quieten_orbax,
    read_metadata,
    read_subtree,
    read_variables,
)
from adamae_jax.training.files import AnyPath
from adamae_jax.training.named_arrays import describe, differences, flatten

__all__ = ["RunCheckpoints", "checkpoint_steps", "read_metadata", "read_subtree", "read_variables"]

PyTree = Any


class RunCheckpoints:
    """The checkpoints of one run, in one directory.

    Nothing is written or created before the first `save`, so a run may `restore` first and fail
    with a clear error while the directory is still untouched. Call `restore` before `save`.
    """

    def __init__(
        self,
        directory: str | AnyPath,
        *,
        keep: int,
        keep_every: int = 0,
        metadata: Mapping[str, Any],
    ) -> None:
        """Args:
        directory: Where the checkpoints are, or will be.
        keep: How many of the newest checkpoints stay.
        keep_every: Those whose step is a multiple of it stay too. 0: no others.
        metadata: JSON-valid values stored with each checkpoint, such as a data fingerprint.

        Raises:
          UserError: ``keep`` is less than 1.
        """
        if keep < 1:
            raise UserError(f"keep={keep} checkpoints: expected at least 1")
        self._directory = files.absolute(directory)
        stay = [LatestN(n=keep), *([EveryNSteps(interval_steps=keep_every)] if keep_every else [])]
        self._policy = AnyPreservationPolicy(stay)
        self._metadata = json.loads(json.dumps(metadata, allow_nan=False))
        self._manager: ocp.CheckpointManager | None = None
        self._handler: _DigestingHandler | None = None
        self._saving: int | None = None
        quieten_orbax()
        sys.unraisablehook = _report_all_but_late_writes

    def __enter__(self) -> "RunCheckpoints":
        """Returns itself; leaving the ``with`` block closes it."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes; see `close`."""
        self.close()

    def save(self, step: int, state: PyTree) -> None:
        """Starts to save ``state``; returns when it is safe to donate or change its arrays.

        Saving a step that is there already does nothing. The oldest checkpoints beyond ``keep``
        (but for those of ``keep_every``) are removed once the new one is complete.

        Raises:
          UserError: The previous or this save failed (a full disk, say), or the directory holds
            later steps than this one, which would mean that a run is started over another.
        """
        arrays = flatten(state)
        self.wait()
        latest = self.latest_step()
        if latest is not None and latest > step:
            raise UserError(
                f"{self._directory} holds a checkpoint of step {latest}, later than step {step} "
                "that is to be saved: resume that run, or choose an empty working directory"
            )
        manager, handler = self._open_manager()
        if step in manager.all_steps():
            return
        self._saving = step
        handler.content = {
            "step": step,
            "arrays": {name: describe(array) for name, array in arrays.items()},
            "metadata": self._metadata,
        }
        # orbax refuses arrays without elements; their shapes in the manifest say all there is.
        stored = {name: array for name, array in arrays.items() if array.size}
        try:
            manager.save(step, args=ocp.args.Composite(**{ITEM: _Save(stored)}), force=True)
        except Exception as error:
            raise self._save_failed(error) from error

    def restore(self, like: PyTree) -> tuple[int, PyTree] | None:
        """Loads the newest checkpoint whose files are as they were written.

        Newer ones that are damaged are reported as warnings and moved aside to ``<step>.corrupt``.

        Args:
          like: A pytree of `jax.ShapeDtypeStruct` with shardings (or of arrays): the structure,
            shapes, types and placement that are wanted. Leaves without a sharding go to this
            process's first device. The sharding need not be that of the saved arrays.

        Returns:
          The step and the state, or None where there is no checkpoint yet.

        Raises:
          UserError: There are checkpoints but none is intact, or they hold other arrays than
            ``like`` (another model). Nothing has been moved then.
        """
        self.close()  # orbax remembers the steps it has seen; some may be moved now
        choice = _decided_by_first_process(lambda: choose(self._directory))
        if choice is None:
            return None
        step, stored = choice["step"], choice["arrays"]
        leaves = flatten(like)
        _require_same_arrays(self._directory / str(step), stored, leaves)
        if jax.process_index() == 0:
            _move_aside(self._directory, choice["damaged"], step)
        targets = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf))
            for name, leaf in leaves.items()
        }
        restored = {name: _zeros(target) for name, target in targets.items() if not target.size}
        with ocp.StandardCheckpointer() as checkpointer:
            restored |= checkpointer.restore(
                self._directory / str(step) / ITEM,
                {name: target for name, target in targets.items() if target.size},
            )
        treedef = jax.tree.structure(like)
        return step, jax.tree.unflatten(treedef, [restored[name] for name in targets])

    def latest_step(self) -> int | None:
        """The newest finished step on disk, intact or not; None where there is none."""
        steps = checkpoint_steps(self._directory)
        return steps[-1] if steps else None

    def metadata(self, step: int) -> dict[str, Any]:
        """The metadata stored with a step; see `read_metadata`."""
        return read_metadata(self._directory, step)

    def wait(self) -> None:
        """Waits until a save in progress is complete.

        Raises:
          UserError: It failed.
        """
        if self._manager is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._save_failed(error) from error

    def close(self) -> None:
        """Waits for a save in progress and frees what orbax holds. May be called twice.

        Raises:
          UserError: The save failed.
        """
        manager = self._manager
        if manager is None:
            return
        try:
            self.wait()
        except UserError:
            with contextlib.suppress(Exception):  # orbax says the same once more, in its words
                manager.close()
            raise
        finally:
            self._manager = None
        manager.close()

    def _open_manager(self) -> tuple[ocp.CheckpointManager, "_DigestingHandler"]:
        if self._manager is not None and self._handler is not None:
            return self._manager, self._handler
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            cleanup_tmp_directories=True,  # what a killed process left half written
            lightweight_initialize=True,
            save_root_metadata=False,
            # Directories made in the background leave a thread that waits for ever, and a
            # process that does not end, when the save fails at its start.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        self._handler = _DigestingHandler()
        try:
            with files.os_errors(self._directory):
                self._manager = ocp.CheckpointManager(
                    self._directory, options=options, item_handlers={ITEM: self._handler}
                )
        except OSError as error:
            reason = f"cannot keep checkpoints in {self._directory}: {files.reason(error)}"
            raise UserError(reason) from error
        return self._manager, self._handler

    def _save_failed(self, error: Exception) -> UserError:
        """One line for whatever orbax or TensorStore raised; theirs run to pages."""
        code = re.search(r"os_error_code='(\d+)'", str(error))
        reason = os.strerror(int(code[1])) if code else " ".join(str(error).split())[-300:]
        return UserError(
            f"the checkpoint of step {self._saving} could not be written to {self._directory}: "
            f"{reason}; put that right and start the same command again: it resumes from the "
            "last complete checkpoint"
        )


class _DigestingHandler(ocp.StandardCheckpointHandler):
    """Saves as orbax does, and adds the manifest while the checkpoint has its temporary name."""

    content: Mapping[str, Any]

    def finalize(self, directory: epath.Path) -> None:
        """Called in process 0 when all processes have written all files of the item."""
        super().finalize(directory)
        digests.write_manifest(files.at(directory), self.content)


@ocp.args.register_with_handler(_DigestingHandler, for_save=True)
@dataclasses.dataclass
class _Save(ocp.args.StandardSave):
    """What `_DigestingHandler` saves."""


@ocp.args.register_with_handler(_DigestingHandler, for_restore=True)
@dataclasses.dataclass
class _Restore(ocp.args.StandardRestore):
    """orbax wants a restore type for each handler."""


_report = sys.unraisablehook


def _report_all_but_late_writes(raised: "sys.UnraisableHookArgs") -> None:
    """Drops what TensorStore says of the other arrays when one could not be written.

    That one ends the event loop that they report to, and each would print a traceback that it is
    closed. Such a one begins in asyncio: no Python has called it.
    """
    trace = raised.exc_traceback
    outermost = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
    if not outermost.startswith("asyncio."):
        _report(raised)


def _decided_by_first_process(decide: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    """Runs ``decide`` in process 0 and gives its answer, or its error, to every process."""
    answer = gathered(decide() if jax.process_index() == 0 else None)[0]
    if answer is not None and "error" in answer:
        raise UserError(answer["error"])
    return answer


def _move_aside(directory: AnyPath, damaged: Mapping[str, str], used: int) -> None:
    for name, reason in damaged.items():
        source, target, count = directory / name, directory / (name + CORRUPT), 1
        try:
            with files.os_errors(directory):
                while target.exists():
                    count += 1
                    target = directory / f"{name}{CORRUPT}{count}"
                source.rename(target)
        except OSError as error:
            raise UserError(
                f"checkpoint {source} is damaged ({reason}) and cannot be moved aside "
                f"({files.reason(error)}): move it away by hand"
            ) from error
        logging.warning(
            "checkpoint %s is damaged (%s): moved to %s, going back to step %d",
            *(source, reason, target, used),
        )


def _require_same_arrays(
    where: AnyPath, stored: Mapping[str, list[Any]], wanted: Mapping[str, Any]
) -> None:
    different = differences(stored, {name: describe(leaf) for name, leaf in wanted.items()})
    if different:
        more = f" (and {len(different) - 1} more arrays differ)" if len(different) > 1 else ""
        raise UserError(
            f"{where} holds a run of another model or optimiser: {different[0]}{more}; choose "
            "another working directory, or the configuration with which this run was started"
        )


def _sharding(leaf: Any) -> jax.sharding.Sharding:
    sharding = getattr(leaf, "sharding", None)
    return sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _zeros(target: jax.ShapeDtypeStruct) -> jax.Array:
    """Also where some devices of the sharding belong to other processes."""
    zeros = np.zeros(target.shape, target.dtype)
    return jax.make_array_from_callback(target.shape, target.sharding, zeros.__getitem__)
