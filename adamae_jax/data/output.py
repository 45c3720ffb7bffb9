"""Output folders that hold a whole dataset or nothing.

A dataset is built in a hidden folder beside its destination and then renamed, which the file system
does in one step. A process that is killed leaves only the hidden folder, and the next one that
writes to the same destination continues there if it is to make the same, or clears it away. A lock,
which the kernel drops with its owner, tells a dead process from one that is still writing.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adamae_jax.data import schema
from adamae_jax.errors import UserError

# Written last, beside the shards: what the dataset was made with, and the size of every file.
RECORD_NAME = "prepare.json"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What a file system says that fails; a network's, mostly.
_FAILING = (errno.EIO, errno.EROFS, errno.ESTALE, errno.ENOTCONN, errno.EREMOTEIO, errno.ETIMEDOUT)
# What one says that cannot sync a folder, and has no need to, or no way.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


def already_written(output: Path, arguments: Mapping[str, Any]) -> bool:
    """Whether `output` holds the whole dataset that these arguments make.

    Args:
        output: where the dataset is to be.
        arguments: what determines the dataset; values that JSON can hold.

    Returns:
        True if it is there, False if `output` does not exist or is an empty folder.

    Raises:
        UserError: `output` is a file, holds anything else, or cannot be read.
    """
    try:
        return _holds(output, arguments)
    except OSError as error:
        raise UserError(
            f"--output={output} cannot be read ({error}): see to its file system, or choose "
            "another --output"
        ) from error


def _holds(output: Path, arguments: Mapping[str, Any]) -> bool:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    remedy = "nothing was changed; choose another --output, or delete it first"
    if not (output / RECORD_NAME).is_file():
        raise UserError(f"--output={output} exists and is no dataset made by this job: {remedy}")
    record = _read_record(output / RECORD_NAME)
    if record["schema"] != schema.VERSION:
        raise UserError(
            f"--output={output} holds a dataset of another version of adamae_jax (its schema is "
            f"{record['schema']}, not {schema.VERSION}): {remedy}"
        )
    made_with, asked = record["arguments"], json.loads(json.dumps(arguments))
    differences = [
        f"{name} is {made_with.get(name)!r} there, {asked.get(name)!r} was asked for"
        for name in sorted({*made_with, *asked})
        if made_with.get(name) != asked.get(name)
    ]
    if differences:
        raise UserError(
            f"--output={output} holds a dataset made with other arguments "
            f"({'; '.join(differences)}): {remedy}"
        )
    for name, size in record["files"].items():
        if not (output / name).is_file() or (output / name).stat().st_size != size:
            raise UserError(
                f"--output={output} is damaged: {name} is missing or does not have its {size} "
                f"bytes: {remedy}"
            )
    return True


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
        return {
            "schema": record.get("schema", 1),  # the first was not written down
            "arguments": dict(record["arguments"]),
            "files": dict(record["files"]),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error!r}), so the dataset beside it may be damaged: choose "
            "another --output, or delete it first"
        ) from error


@contextlib.contextmanager
def workspace(output: Path, resume: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """A folder to build `output` in, on the same file system; gone when the work is done.

    Args:
        output: see `already_written`.
        resume: what determines the dataset. A failure then leaves the folder, and the next process
            that asks for the same finds it as it was. None always starts with an empty folder and
            leaves none.

    Raises:
        UserError: another process is writing to the same `output`, the folder cannot be made or
            locked, the disk is full, or the file system fails.
    """
    folder = unfinished(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")  # noqa: SIM115 (closed below, when its folder is gone)
    except OSError as error:
        raise UserError(f"--output={output} cannot be written: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is writing --output={output}: wait for it, or stop it"
            ) from None
        except OSError as error:  # Lustre and NFS know locks only where they were set up for them
            raise UserError(
                f"--output={output} cannot be locked ({error}), which keeps two jobs from writing "
                "there at once: mount its file system with locks (Lustre: -o flock; NFS: with its "
                "lock service), or choose another --output and copy the dataset"
            ) from error
        keep = False
        try:
            keep = resume is not None
            yield _leftovers(folder, resume)
            keep = False
        except OSError as error:
            if error.errno not in (*_FULL, *_FAILING):
                raise
            full = error.errno in _FULL
            why = "the disk (or a quota) is full" if full else "its file system fails"
            remedy = "make room" if full else "see to it"
            kept = f"; what is finished is kept in {folder}" if keep else ""
            raise UserError(
                f"--output={output} cannot be written, since {why}: {error}{kept}: {remedy} and "
                "run the same command again"
            ) from error
        finally:
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)


def unfinished(output: Path) -> Path:
    """The hidden folder in which `output` is built."""
    return output.parent / f".{output.name}.unfinished"


def _leftovers(folder: Path, resume: Mapping[str, Any] | None) -> Path:
    """The folder to build in: as a process before left it if that did the same, else empty."""
    build, note = folder / "build", folder / "arguments.json"
    wanted = json.dumps({"schema": schema.VERSION, "arguments": resume}, sort_keys=True)
    same = resume is not None and note.is_file() and note.read_text() == wanted
    if not same:
        note.unlink(missing_ok=True)  # first, so that a kill in between does not mix two jobs
        shutil.rmtree(build, ignore_errors=True)
        build.mkdir()
        note.write_text(wanted)
    return build


def publish(built: Path, output: Path, arguments: Mapping[str, Any], **facts: Any) -> None:
    """Completes a dataset with its record and moves it to its place in one step.

    Args:
        built: the finished folder, inside the `workspace` of `output`.
        output: missing, or an empty folder.
        arguments: see `already_written`.
        **facts: more to record beside the arguments.

    Raises:
        UserError: `output` appeared in the meantime, or cannot be replaced (a mount point).
    """
    files = sorted(path for path in built.rglob("*") if path.is_file())
    sizes = {path.relative_to(built).as_posix(): path.stat().st_size for path in files}
    record = {
        "schema": schema.VERSION,
        "arguments": dict(arguments),
        **facts,
        "files": sizes,
    }
    (built / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n")
    # On the disk before the rename is: after a power failure, too, the dataset is whole or absent.
    # Folders as well, since the names of files are theirs.
    for path in [*files, built / RECORD_NAME, *built.rglob("*/"), built]:
        _sync(path)
    try:
        os.rename(built, output)
    except OSError as error:
        raise UserError(f"--output={output} cannot be put in place: {error}") from error
    _sync(output.parent)


def _sync(path: Path) -> None:
    """Brings a file or the names in a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC or not path.is_dir():
            raise
    finally:
        os.close(descriptor)
