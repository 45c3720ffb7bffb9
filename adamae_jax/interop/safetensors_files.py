"""The currency of this package, a PyTorch model's state dict in NumPy, and its plainest file.

A `StateDict` has the names and shapes that the model's authors use. Whatever precision a file
has, its real numbers are float32 here, which holds every half and bfloat16 value exactly and
rounds float64; integers (counters of batch norms and the like) and booleans stay as they are.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from adamae_jax.errors import UserError
from adamae_jax.training.digests import write_atomically

StateDict = dict[str, np.ndarray]

# What PyTorch's wrappers of a model put before every name: data parallelism, a pre-training
# model around its encoder, a detector around its backbone, `torch.compile`.
PREFIXES = ("module.", "encoder.", "backbone.", "_orig_mod.")


def read(path: str | os.PathLike[str], *, strip_prefixes: bool = True) -> StateDict:
    """Reads a ``.safetensors`` file.

    Args:
      path: the file.
      strip_prefixes: take `PREFIXES` away where all names have them.

    Returns:
      The arrays by name, in float32 or of their integer type.

    Raises:
      UserError: where it is missing, damaged, empty, or holds arrays of another type.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a directory: give the .safetensors file in it")
    try:
        with safe_open(path, framework="numpy") as file:
            # By name: `get_tensors` would let one type that NumPy lacks hide which array it was.
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: give the path of a .safetensors file") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise UserError(
            f"{path} is no whole .safetensors file ({error}): copy or download it again"
        ) from error
    except (AttributeError, TypeError) as error:  # a number format that NumPy has not
        raise UserError(
            f"{path} holds arrays of a type that NumPy lacks ({error}): save them as float32"
        ) from error
    if not arrays:
        raise UserError(f"{path} holds no arrays: give the file that holds the model's weights")
    state = {name: as_plain(name, array) for name, array in arrays.items()}
    return strip_common_prefixes(state) if strip_prefixes else state


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """What the header of a ``.safetensors`` file says beside the arrays.

    Raises:
      UserError: where it is missing or damaged.
    """
    try:
        with safe_open(Path(path), framework="numpy") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no whole .safetensors file ({error})") from error


def write(
    path: str | os.PathLike[str],
    state: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a ``.safetensors`` file, at once: an old file is replaced whole or not at all.

    Args:
      path: the file; its directory is made where it is missing.
      state: the arrays by name; real numbers are written in float32.
      metadata: kept in the header beside ``{"format": "pt"}``, which PyTorch's readers ask for.

    Raises:
      UserError: where an array is no plain one or the file cannot be written.
    """
    arrays = {name: as_plain(name, array) for name, array in state.items()}
    replace_file(Path(path), serialize(arrays, {"format": "pt", **(metadata or {})}))


def as_plain(name: str, array: np.ndarray) -> np.ndarray:
    """A contiguous array in float32, or of the integer or boolean type that it has.

    Raises:
      UserError: for complex numbers, strings, objects.
    """
    if array.dtype.kind == "f" or array.dtype == jnp.bfloat16:  # which JAX adds to NumPy's types
        return np.asarray(array, np.float32, order="C")
    if array.dtype.kind in "biu":
        return np.asarray(array, order="C")
    raise UserError(
        f"the array {name} has the type {array.dtype}: weights are real numbers or integers"
    )


def strip_common_prefixes(state: StateDict) -> StateDict:
    """The same arrays without those of `PREFIXES` that every name has, however many in a row.

    A pre-training dict, with an encoder and a decoder, keeps its names.
    """
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            return strip_common_prefixes({name.removeprefix(prefix): state[name] for name in state})
    return state


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file at once, in a directory that is made where it is missing.

    Raises:
      UserError: where the disk is full, the path is a directory, or it may not be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): {len(data)} bytes are needed "
            "in a directory that may be written"
        ) from error
