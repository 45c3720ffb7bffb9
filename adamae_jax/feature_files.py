"""The folder that ``features`` writes: a file for each video, and a record of what they are of.

``features.json`` says which model, videos and options the files come from. It is there before the
first of them, so that a later start never takes the features of another model for its own.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from adamae_jax import plain_json
from adamae_jax.errors import UserError
from adamae_jax.training import files

RECORD = "features.json"


def file_of(output: Path, name: str) -> Path:
    """Returns where the features of a video are kept."""
    return output / f"{name}.npz"


def digest(params: Any) -> str:
    """Returns a hexadecimal digest of a model's parameters, wherever they are loaded from."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def begin(output: Path, described: Mapping[str, Any], names: Iterable[str]) -> None:
    """Writes the record of a new folder, or compares that of one to go on with.

    Args:
      output: the folder.
      described: of the features: values that JSON can hold.
      names: of the videos.

    Raises:
      UserError: where the folder holds other features, or cannot be written.
    """
    path = output / RECORD
    again = "give another --output, or remove this one"
    try:
        stored = plain_json.parse(path.read_bytes())
    except FileNotFoundError:
        stored = None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {again}") from error
    if stored is None:
        if any(file_of(output, name).exists() for name in names):
            raise UserError(f"--output={output} has files of videos, but no {RECORD}: {again}")
        try:
            output.mkdir(parents=True, exist_ok=True)
            files.write(path, (json.dumps(described, indent=2) + "\n").encode())
        except OSError as error:
            raise UserError(f"--output={output} cannot be written: {error.strerror}") from error
        return
    stored = stored if isinstance(stored, dict) else {}
    wanted = json.loads(json.dumps(described))
    different = [
        f"{name} {stored.get(name)!r}, not {wanted.get(name)!r}"
        for name in dict.fromkeys([*wanted, *stored])
        if stored.get(name) != wanted.get(name)
    ]
    if different:
        raise UserError(f"--output={output} holds features of {'; '.join(different)}: {again}")


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a file at once: it is whole, or not there."""
    data = io.BytesIO()
    np.savez(data, allow_pickle=False, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, data.getvalue())
