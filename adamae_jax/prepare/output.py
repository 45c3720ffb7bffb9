"""Output folders that hold a whole dataset or nothing.

A dataset is built in a hidden folder beside its destination and then renamed, which the file system
does in one step. A process that is killed leaves only the hidden folder, and the next one that
writes to the same destination continues there if it is to make the same. If it is not, finished
shards, which may be the work of days, keep it from starting. A lock, which the kernel drops with
its owner, tells a dead process from one that is still writing.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import google_crc32c

from adamae_jax import plain_json
from adamae_jax.data import schema
from adamae_jax.data.storage import FAILING, FULL
from adamae_jax.errors import UserError

# Written last, beside the shards: what the dataset was made with, the size of every file, and
# checksums of those that describe it.
RECORD_NAME = "prepare.json"
_TEXTS = (".json", ".txt", ".csv")
_NOTE = "arguments.json"  # in the hidden folder: what is being made there


def already_written(output: Path, arguments: Mapping[str, Any]) -> bool:
    """Returns whether `output` holds the whole dataset that these arguments make.

    Args:
        output: where the dataset is to be.
        arguments: what determines the dataset; values that JSON can hold.

    Returns:
        True if it is there, False if `output` does not exist or is an empty folder.

    Raises:
        UserError: `output` is a file, a link or a mount point, or holds anything else.
    """
    if output.is_symlink() or os.path.ismount(output) or output.name in ("", ".."):
        raise UserError(
            f"--output={output} is a link or a mount point, which a dataset cannot take the place "
            "of: give the path of a new folder"
        )
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    remedy = "nothing was changed; choose another --output, or delete it first"
    if not (output / RECORD_NAME).is_file():
        raise UserError(f"--output={output} exists and is no dataset made by this job: {remedy}")
    try:
        record = plain_json.parse((output / RECORD_NAME).read_text())
        there, sizes = dict(record["arguments"]), dict(record["files"])
        version = record["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{output / RECORD_NAME} cannot be read ({error!r}): {remedy}") from error
    if version != schema.VERSION:
        raise UserError(
            f"--output={output} holds a dataset of another version of adamae_jax (its schema is "
            f"{version}, not {schema.VERSION}): {remedy}"
        )
    if differences := _differences(there, arguments):
        raise UserError(
            f"--output={output} holds a dataset made with other arguments ({differences}): {remedy}"
        )
    for name, size in sizes.items():
        if not (output / name).is_file() or (output / name).stat().st_size != size:
            raise UserError(
                f"--output={output} is damaged: {name} is missing or does not have its {size} "
                f"bytes: {remedy}"
            )
    return True


def _differences(there: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """Returns what is there and what was asked for, in words, where it is not the same."""
    asked = json.loads(json.dumps(arguments))
    words = {
        name: f"{name} is {there.get(name)!r} there, {asked.get(name)!r} was asked for"
        for name in sorted({*there, *asked})
        if there.get(name) != asked.get(name)
    }
    if "items" in words:  # a digest, which says nothing to a reader
        words["items"] = "the files of --source, their labels or splits have changed"
    return "; ".join(words.values())


@contextlib.contextmanager
def workspace(output: Path, arguments: Mapping[str, Any]) -> Iterator[Path]:
    """A folder to build `output` in, on the same file system; gone when the work is done.

    A failure leaves the folder, and the next process that asks for the same goes on there.

    Args:
        output: see `already_written`.
        arguments: what determines the dataset.

    Yields:
        The folder, which holds a folder for shards (`shards_folder`).

    Raises:
        UserError: another process is writing to the same `output`, one that was to make something
            else has left finished shards, the folder cannot be made or locked, the disk is full, or
            the file system fails.
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
                f"--output={output} cannot be locked ({error}): mount its file system with locks, "
                "or choose another --output and copy the dataset"
            ) from error
        try:
            _claim(folder, output, arguments)
            yield folder
        except OSError as error:
            if error.errno not in FULL | FAILING:
                raise
            full = error.errno in FULL
            why = "the disk (or a quota) is full" if full else "its file system fails"
            raise UserError(
                f"--output={output} cannot be written, since {why}: {error}; what is finished is "
                f"kept in {folder}: {'make room' if full else 'see to it'} and run the same "
                "command again"
            ) from error
        shutil.rmtree(folder, ignore_errors=True)


def unfinished(output: Path) -> Path:
    """Returns the hidden folder in which `output` is built."""
    return output.parent / f".{output.name}.unfinished"


def shards_folder(folder: Path, arguments: Mapping[str, Any]) -> Path:
    """Returns where the finished shards of this dataset go, in the hidden folder.

    It is named after the arguments, so that Beam's workers that outlive another job do not write
    their shards among these.
    """
    digest = hashlib.sha256(json.dumps([schema.VERSION, arguments], sort_keys=True).encode())
    return folder / f"shards-{digest.hexdigest()[:16]}"


def _claim(folder: Path, output: Path, arguments: Mapping[str, Any]) -> None:
    """Makes the hidden folder this dataset's own; what another one has finished is not removed."""
    shards = shards_folder(folder, arguments)
    if shards.is_dir():
        return
    if finished := sum(1 for _ in folder.glob("shards-*/*.json")):
        begun: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            begun = plain_json.parse((folder / _NOTE).read_text())
        why = _differences(begun, arguments) or "by another version of adamae_jax"
        raise UserError(
            f"{folder} holds {finished} finished shards of a dataset that was begun with other "
            f"arguments ({why}): start it again as it was, which goes on; or choose another "
            f"--output than {output}; or remove what is there: rm -r {shlex.quote(str(folder))}"
        )
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
    (folder / _NOTE).write_text(json.dumps(arguments))
    shards.mkdir()


def publish(built: Path, output: Path, arguments: Mapping[str, Any], **facts: Any) -> None:
    """Completes a dataset with its record and moves it to its place in one step.

    Args:
        built: the finished folder, inside the `workspace` of `output`.
        output: missing, or an empty folder.
        arguments: see `already_written`.
        **facts: more to record beside the arguments.

    Raises:
        UserError: `output` appeared in the meantime, or cannot be replaced.
    """
    files = sorted(path for path in built.iterdir() if path.name != RECORD_NAME)
    texts = [path for path in files if path.suffix in _TEXTS]
    record = {
        "schema": schema.VERSION,
        "arguments": dict(arguments),
        **facts,
        "files": {path.name: path.stat().st_size for path in files},
        # Of what has no checksums in itself, as shards have.
        "checksums": {path.name: google_crc32c.value(path.read_bytes()) for path in texts},
    }
    (built / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n")
    # On the disk before the rename is, as shards are already: after a power failure, too, the
    # dataset is whole or absent.
    for path in [*texts, built / RECORD_NAME, built]:
        _sync(path)
    try:
        os.rename(built, output)
    except OSError as error:
        raise UserError(f"--output={output} cannot be put in place: {error}") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system knows this of folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
