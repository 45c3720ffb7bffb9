"""The files of a Hugging Face directory: weights in one file or in shards, and JSON."""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adamae_jax.errors import UserError
from adamae_jax.interop import safetensors_files, torch_files
from adamae_jax.interop.safetensors_files import StateDict

WEIGHTS = "model.safetensors"
TORCH_WEIGHTS = "pytorch_model.bin"
INDEX = ".index.json"

# A file beside the index, never a path: an index may come from anywhere. (What such a name links
# to may lie elsewhere: so it does in the cache of their hub.)
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def read_weights(directory: Path) -> StateDict:
    """All tensors of the directory, under the names that they have there, in float32.

    Of several forms the first is read of: ``model.safetensors``, its shards,
    ``pytorch_model.bin`` (which needs PyTorch), its shards; so does transformers.

    Raises:
      UserError: where there is none, one is damaged, or the index of the shards does not fit them.
    """

    def plain(path: Path) -> StateDict:
        return safetensors_files.read(path, strip_prefixes=False)

    def pickled(path: Path) -> StateDict:
        return torch_files.read(path, strip_prefixes=False)

    for name, read in ((WEIGHTS, plain), (TORCH_WEIGHTS, pickled)):
        if (directory / name).is_file():
            return read(directory / name)
        if (directory / (name + INDEX)).is_file():
            return _read_shards(directory, name, read)
    raise UserError(
        f"{directory} holds no weights: expected {WEIGHTS} or {TORCH_WEIGHTS}, or their shards "
        f"with an index ({WEIGHTS}{INDEX})"
    )


def write_weights(directory: Path, tensors: StateDict) -> None:
    """Writes ``model.safetensors``.

    Raises:
      UserError: where it cannot be written.
    """
    safetensors_files.write(directory / WEIGHTS, tensors)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file with an object in it.

    Raises:
      UserError: where the file is missing or holds something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def write_json(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Writes a JSON object at once, its keys sorted as transformers sorts them.

    Raises:
      UserError: where it cannot be written.
    """
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    safetensors_files.replace_file(Path(path), text.encode())


def _read_shards(directory: Path, weights: str, read: Callable[[Path], StateDict]) -> StateDict:
    """The tensors of all shards, each where the index says."""
    index = directory / (weights + INDEX)
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index} has no weight_map that says where the tensors lie")
    suffix = Path(weights).suffix
    names: dict[str, set[str]] = {}
    for tensor, shard in places.items():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            raise UserError(
                f"{index}: {tensor} lies in {shard!r}, expected a file beside the index"
            )
        if not shard.endswith(suffix):
            raise UserError(f"{index}: {tensor} lies in {shard!r}, expected a {suffix} file")
        names.setdefault(shard, set()).add(tensor)
    state: StateDict = {}
    for shard, expected in sorted(names.items()):
        tensors = read(directory / shard)
        wrong = sorted(expected ^ set(tensors))
        if wrong:
            raise UserError(
                f"{directory / shard} and {index.name} do not agree on {', '.join(wrong)}: copy or "
                "download the directory again"
            )
        state |= tensors
    return state
