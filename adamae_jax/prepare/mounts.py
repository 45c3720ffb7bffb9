"""A folder that is mounted here, and that workers elsewhere know by its address (``gs://``).

The workers of a service such as Dataflow have no folder in common with the machine that starts the
job, but all of them reach the same bucket.
"""

import contextlib
import dataclasses
import errno
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import fsspec

from adamae_jax.data import storage
from adamae_jax.errors import UserError
from adamae_jax.prepare.frame_folders import FrameFolders
from adamae_jax.prepare.sources import Item
from adamae_jax.prepare.transform import SKIPPED, Flaw, Recipe, Result, transform

_PRIVATE = "tmp-"  # what the names of folders begin with that belong to one worker
_MARGIN_S = 900.0  # for a process to start on a slow file system, and to write what it has read


@dataclasses.dataclass(frozen=True)
class Mount:
    """Where a folder really is.

    Attributes:
        folder: where it is mounted here; absolute.
        address: by which workers know it.
    """

    folder: str
    address: str

    @classmethod
    def parse(cls, words: str) -> "Mount":
        """The mount in ``FOLDER=ADDRESS``.

        Raises:
            UserError: it is none, nothing is there, or no package knows such addresses.
        """
        folder, _, address = words.partition("=")
        if not folder or not storage.is_remote(address):
            raise UserError(
                f"--beam_mount={words} must be FOLDER=ADDRESS: /mnt/data=gs://bucket, for instance"
            )
        if not os.path.isdir(folder):
            raise UserError(
                f"--beam_mount={words}: {folder} is not a folder: mount {address} there"
            )
        try:
            fsspec.get_filesystem_class(address.partition("://")[0])
        except (ImportError, ValueError) as error:
            raise UserError(
                f"--beam_mount={words}: {error} (pip install -e '.[gcs]' for gs://, '.[s3]' for "
                "s3://, here and where the workers are)"
            ) from error
        return cls(os.path.abspath(folder), address)

    def address_of(self, path: str | os.PathLike[str]) -> str:
        """The address of a file or folder.

        Raises:
            UserError: it lies elsewhere.
        """
        inside = os.path.relpath(os.path.abspath(path), self.folder)
        if inside.split(os.sep)[0] == os.pardir:
            raise UserError(
                f"{path} lies outside of {self.folder}, which is all that workers can reach by "
                f"--beam_mount={self.folder}={self.address}"
            )
        return storage.join(self.address, inside.replace(os.sep, "/"))


def transform_fetched(
    recipe: Recipe, mount: Mount, scratch: Path, item: Item, alone: bool = False
) -> Result:
    """Reads one item from its address and encodes it, as `transform` does from its path.

    Args:
        recipe: how the record is made.
        mount: that the item's path lies in, on another machine.
        scratch: folder of this machine, for a copy.
        item: a whole file, or a folder of frames.
        alone: that nobody else takes memory.

    Raises:
        OSError: the storage keeps failing, which is no fault of the item.
    """
    address = mount.address_of(item.path)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        if recipe.frame_folders is not None:
            copy = folder
            there = _fetch_frames(address, copy, recipe.frame_folders, item.num_frames)
        else:
            copy = os.path.join(folder, f"copy{Path(item.path).suffix}")
            there = _fetch_file(address, copy)
        if not there:
            return Result(None, Flaw(item.id, SKIPPED, 0, f"{address} is empty or does not exist"))
        return transform(recipe, dataclasses.replace(item, path=copy), alone)


def _fetch_file(address: str, copy: str) -> bool:
    """Makes a copy; false where there is nothing, which is no failure of the storage."""
    try:
        _fetch([address], [copy])
    except FileNotFoundError:
        return False
    return True


def _fetch_frames(address: str, copy: str, folders: FrameFolders, most: int | None) -> bool:
    """Copies the frames of a folder, or so many of them; false where there are none."""
    names = folders.select(storage.list_directory(address))
    if wanted := names[:most]:
        addresses = [storage.join(address, name) for name in wanted]
        _fetch(addresses, [os.path.join(copy, name) for name in wanted])
    return bool(names)


def _fetch(addresses: Sequence[str], copies: Sequence[str]) -> None:
    """Makes copies of files, at once where the file system knows how.

    Raises:
        OSError: one is not there, or the storage fails again and again.
    """

    def fetch() -> None:
        systems_and_names = [fsspec.core.url_to_fs(address) for address in addresses]
        system, _ = systems_and_names[0]
        try:
            system.get([name for _, name in systems_and_names], list(copies))
        except FileNotFoundError:
            raise
        except Exception as error:  # each file system has kinds of its own
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}", addresses[0]) from error

    storage.retried(fetch, addresses[0])


@contextlib.contextmanager
def delivered(folder: Path, mount: Mount | None) -> Iterator[Path]:
    """A private folder to write files in, which go to their own at the end, in order of names.

    Args:
        folder: their own, as the machine sees it that started the job.
        mount: that it lies in; None where this machine sees it too.
    """
    address = "" if mount is None else mount.address_of(folder)
    with tempfile.TemporaryDirectory(prefix=_PRIVATE, dir=None if mount else folder) as private:
        yield Path(private)
        for path in sorted(Path(private).iterdir()):
            if mount is None:
                path.replace(folder / path.name)
            else:
                system, name = fsspec.core.url_to_fs(storage.join(address, path.name))
                system.put_file(str(path), name)


def remove_stale(folder: Path, max_seconds: float) -> None:
    """Removes what workers that were killed have left of `delivered`: up to a shard each.

    A worker that lives touches its folder after every item, which it tries twice at most: what has
    not been touched for longer is nobody's. (One of a run that was started with more seconds may
    lose its folder to a run with less. It then fails, for there is nothing to touch or to deliver,
    and its block is done again; nothing wrong comes of it.)

    Args:
        folder: that private ones lie in.
        max_seconds: that an item may take.
    """
    # The file system's own time, which need not be this machine's.
    with tempfile.TemporaryDirectory(prefix=_PRIVATE, dir=folder) as now:
        oldest = os.stat(now).st_mtime - 2 * max_seconds - _MARGIN_S
    for private in folder.glob(f"{_PRIVATE}*"):
        if _last_touched(private) < oldest:
            shutil.rmtree(private, ignore_errors=True)


def _last_touched(private: Path) -> float:
    try:
        return private.stat().st_mtime
    except OSError:
        return math.inf  # just delivered, or removed by somebody else
