"""Output folders that hold a whole dataset or nothing.

A dataset is built in a hidden folder beside its destination and then renamed, which the file system
does in one step. A process that is killed leaves only the hidden folder, and the next one that
writes to the same destination continues there if it is to make the same. If it is not, finished
shards, which may be the work of days, keep it from starting; what is less is cleared away. A lock,
which the kernel drops with its owner, tells a dead process from one that is still writing.
"""

import contextlib
import errno
import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import google_crc32c

from adamae_jax.data import schema
from adamae_jax.data.storage import FAILING, FULL
from adamae_jax.errors import UserError
from adamae_jax.prepare.shards import JOURNAL_NAME, shard_from_json

# Written last, beside the shards: what the dataset was made with, the size of every file, and
# checksums of those that describe it.
RECORD_NAME = "prepare.json"
_TEXTS = (".json", ".txt", ".csv")
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
        UserError: `output` is a file, a link or a mount point, holds anything else, or cannot be
            read.
    """
    if output.name in ("", ".."):
        raise UserError(f"--output={output} does not end in a name: give the folder's own path")
    if output.is_symlink():
        raise UserError(
            f"--output={output} is a link, which a dataset cannot take the place of: give the path "
            f"it leads to, {os.readlink(output)}"
        )
    if os.path.ismount(output):
        raise UserError(
            f"--output={output} is a mount point, which a dataset cannot take the place of: give "
            f"a folder in it, such as {output / 'dataset'}"
        )
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
    if differences := _differences(record["arguments"], arguments):
        raise UserError(
            f"--output={output} holds a dataset made with other arguments "
            f"({'; '.join(differences.values())}): {remedy}"
        )
    for name, size in record["files"].items():
        if not (output / name).is_file() or (output / name).stat().st_size != size:
            raise UserError(
                f"--output={output} is damaged: {name} is missing or does not have its {size} "
                f"bytes: {remedy}"
            )
    return True


def _differences(there: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, str]:
    """What is there and what was asked for, in words, of each argument that is not the same."""
    asked = json.loads(json.dumps(arguments))
    return {
        name: f"{name} is {there.get(name)!r} there, {asked.get(name)!r} was asked for"
        for name in sorted({*there, *asked})
        if there.get(name) != asked.get(name)
    }


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
                f"--output={output} cannot be locked ({error}), which keeps two jobs from writing "
                "there at once: mount its file system with locks (Lustre: -o flock; NFS: with its "
                "lock service), or choose another --output and copy the dataset"
            ) from error
        keep = True
        try:
            build = _leftovers(folder, output, resume)
            keep = resume is not None
            yield build
            keep = False
        except OSError as error:
            if error.errno not in FULL | FAILING:
                raise
            full = error.errno in FULL
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


def _leftovers(folder: Path, output: Path, resume: Mapping[str, Any] | None) -> Path:
    """The folder to build in: as a process before left it if that did the same, else empty.

    Raises:
        UserError: that one did something else, and has finished shards.
    """
    build, note = folder / "build", folder / "arguments.json"
    begun: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError, ValueError):
        begun = json.loads(note.read_text())
    if why := _what_differs(begun, resume):
        if sizes := _finished_shards(build):
            shards = f"{len(sizes)} finished shard{'' if len(sizes) == 1 else 's'}"
            raise UserError(
                f"{folder} holds {shards} ({sum(sizes) / 1e6:.1f} MB) of a dataset that was begun "
                f"{why}: start it again as it was, which goes on; or choose another --output than "
                f"{output}; or remove what is there: rm -r {shlex.quote(str(folder))}"
            )
        note.unlink(missing_ok=True)  # first, so that a kill in between does not mix two jobs
        shutil.rmtree(build, ignore_errors=True)
        build.mkdir()
        note.write_text(json.dumps({"schema": schema.VERSION, "arguments": resume}))
        _sync(note)  # lost in a power failure, it could not tell whose the shards are
    return build


def _what_differs(begun: Mapping[str, Any], resume: Mapping[str, Any] | None) -> str:
    """How what was begun differs from what was asked for, in words; "" where it does not."""
    made_with, version = begun.get("arguments"), begun.get("schema")
    if made_with is None:
        return "with arguments that are not known any more"
    if version != schema.VERSION:
        return f"by another version of adamae_jax (its schema is {version}, not {schema.VERSION})"
    if resume is None:
        return f"of source {made_with.get('source')!r}"
    differences = _differences(made_with, resume)
    if "items" in differences:
        differences["items"] = "the files of --source, their labels or splits have changed"
        differences.pop("set_aside", None)  # a number that follows from them
    return f"with other arguments ({'; '.join(differences.values())})" if differences else ""


def _finished_shards(build: Path) -> list[int]:
    """Bytes of each shard that a journal, or a note beside a shard, says is finished."""
    sizes = {}
    for path in (*build.glob(f"*/{JOURNAL_NAME}"), *build.glob("*/*.json")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            shard = shard_from_json(line)
            if shard is not None and shard.records:
                # A shard that Beam's worker has noted may be in the journal too: it ends there.
                sizes[shard.stop] = shard.file_bytes
    return list(sizes.values())


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
        # Of what has no checksums in itself, as shards have.
        "checksums": {
            name: google_crc32c.value((built / name).read_bytes())
            for name in sizes
            if name.endswith(_TEXTS)
        },
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
