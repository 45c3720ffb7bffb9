"""Outputs that are there whole, or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from adamae_jax.errors import UserError


def check_new(output: Path) -> None:
    """Raises a `UserError` where something is there already; an empty directory is nothing."""
    is_empty = output.is_dir() and not any(output.iterdir())
    if output.exists() and not is_empty:
        raise UserError(f"--output={output} is there already: give a path that is not")
    for parent in output.absolute().parents:
        if parent.exists() and not parent.is_dir():
            raise UserError(f"--output={output} lies in {parent}, which is a file: give another")


@contextlib.contextmanager
def whole(output: Path) -> Iterator[Path]:
    """Yields a path beside ``output``; what is made there moves to it when all went well.

    Args:
      output: the file or directory to make; its directory is made where it is missing.

    Raises:
      UserError: where it cannot be written; then nothing of it is left.
    """
    output = output.absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise UserError(f"--output={output} cannot be written: {error.strerror}") from error
    try:
        yield temporary / output.name
        if output.is_dir():
            output.rmdir()  # it was empty
        os.replace(temporary / output.name, output)
    except UserError as error:
        # The user knows only the path that was asked for.
        raise UserError(str(error).replace(str(temporary), str(output.parent))) from error
    except OSError as error:
        raise UserError(f"--output={output} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
