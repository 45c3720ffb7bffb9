"""PyTorch's checkpoint files, ``.pth`` and ``.bin``, read without running what is in them.

Such a file is a pickle, which can name any function to be called. PyTorch's restricted reader
calls only what rebuilds tensors. Checkpoints of the authors' trainers also hold the command line
and, in the optimizer, NumPy numbers: `INERT` lists these classes, and an empty object stands in
for each of their values, so that not even NumPy's own unpickling sees the file's bytes.
"""

import dataclasses
import importlib
import io
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adamae_jax.errors import UserError
from adamae_jax.interop.safetensors_files import (
    StateDict,
    as_plain,
    replace_file,
    strip_common_prefixes,
)

# Where trainers put the state dict: the authors' own, DeepSpeed, SlowFast and MAE-ST, Lightning.
WRAPPERS = ("model", "module", "model_state", "state_dict")

# Values of these classes stand beside the weights in practice: the arguments with their paths, and
# learning rates, which NumPy computed. None of them is needed to read the weights.
INERT = (
    "argparse.Namespace",
    *(f"pathlib.{name}" for name in ("PosixPath", "WindowsPath")),
    *(f"pathlib._local.{name}" for name in ("PosixPath", "WindowsPath")),  # Python 3.13
    *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),  # NumPy 1 and 2
    *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
    "numpy.dtype",
    "numpy.ndarray",
)


class _Inert:
    """Stands for a value that is not read."""

    def __new__(cls, *_: Any) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None: ...


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
      state: the model's weights.
      beside: further state dicts, by the names that were asked for, where they are there.
      texts: the strings at the top of the file, by name.
    """

    state: StateDict
    beside: Mapping[str, StateDict]
    texts: Mapping[str, str]


def read(
    path: str | os.PathLike[str], *, key: str | None = None, strip_prefixes: bool = True
) -> StateDict:
    """The weights of a PyTorch checkpoint; see `read_checkpoint`."""
    return read_checkpoint(path, key=key, strip_prefixes=strip_prefixes).state


def read_checkpoint(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    beside: Sequence[str] = (),
    strip_prefixes: bool = True,
) -> Checkpoint:
    """Reads a PyTorch checkpoint.

    The state dict is the file's whole content or lies in it under one of `WRAPPERS`, of which one
    may hold another. All else in the file (optimizer, epoch, arguments) is left aside.

    Args:
      path: the file, as `torch.save` writes it.
      key: of a file with several state dicts, where the one to read lies, such as ``model_ema``.
      beside: names of further state dicts to read, where they are there.
      strip_prefixes: take `safetensors_files.PREFIXES` away where all names have them.

    Returns:
      Arrays by name, each with memory of its own. Half, bfloat16 and float64 become float32,
      integers and booleans stay.

    Raises:
      UserError: where PyTorch is not installed; the file is missing, damaged or no checkpoint;
        it holds objects of a class that is neither a tensor nor in `INERT`; it holds no state
        dict, or several and no ``key`` says which.
    """
    torch = _import_torch(path)
    contents = _load(torch, Path(path))
    content = contents if isinstance(contents, Mapping) else {}
    return Checkpoint(
        _arrays(torch, _find_state_dict(contents, key, path), path, strip_prefixes),
        {
            name: _arrays(torch, _find_state_dict(contents, name, path), path, strip_prefixes)
            for name in beside
            if isinstance(content.get(name), Mapping)
        },
        {str(name): value for name, value in content.items() if isinstance(value, str)},
    )


def _arrays(
    torch: Any, tensors: Mapping[str, Any], path: str | os.PathLike[str], strip_prefixes: bool
) -> StateDict:
    """A state dict in NumPy."""
    strange = [name for name, value in tensors.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise UserError(
            f"{path} holds a state dict in which {len(strange)} value(s) are no tensors, first "
            f"{strange[0]!r} ({type(tensors[strange[0]]).__name__}): give a file or a key that "
            "holds weights only"
        )
    state = {name: _as_array(torch, name, tensor) for name, tensor in tensors.items()}
    return strip_common_prefixes(state) if strip_prefixes else state


def write(
    path: str | os.PathLike[str],
    state: Mapping[str, np.ndarray],
    beside: Mapping[str, Mapping[str, np.ndarray] | str] | None = None,
) -> None:
    """Writes ``{"model": state}`` as the authors' trainers do, for `torch.load` to read.

    The file is replaced whole or not at all.

    Args:
      path: the file; its directory is made where it is missing.
      state: the arrays by name; real numbers are written as float32 tensors.
      beside: further state dicts and strings, at the top of the file like the model's.

    Raises:
      UserError: where PyTorch is not installed, an array is no plain one, or the file cannot be
        written.
    """
    torch = _import_torch(path)

    def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        # Copies: a tensor must not share memory with an array that may be read-only.
        return {
            name: torch.from_numpy(np.array(as_plain(name, array)))
            for name, array in arrays.items()
        }

    content = {
        name: value if isinstance(value, str) else tensors(value)
        for name, value in {"model": state, **(beside or {})}.items()
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    replace_file(Path(path), buffer.getvalue())


def _import_torch(path: str | os.PathLike[str]) -> Any:
    """PyTorch, which only this package needs and few installations have."""
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise UserError(
            f"{path}: every file but .safetensors needs PyTorch, and PyTorch cannot be imported "
            f"({error}): pip install -e '.[interop]' in the repository, or use .safetensors"
        ) from error


def _load(torch: Any, path: Path) -> Any:
    """The file's content, with empty objects for those of the classes in `INERT`."""
    if path.is_dir():
        raise UserError(f"{path} is a directory: give the checkpoint file in it")
    try:
        with (
            open(path, "rb") as file,
            torch.serialization.safe_globals([(_Inert, name) for name in INERT]),
        ):
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: give the path of a checkpoint") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # damaged bytes raise whatever the parser stumbles over
        refused = isinstance(error, pickle.UnpicklingError) and re.search(
            r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error)
        )
        if refused:
            raise UserError(
                f"{path} holds an object of {refused[1]}, which is no tensor and is not loaded, "
                "for it could run any code: if you trust the file, load it where it was made and "
                "save its state dict alone"
            ) from error
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{path} is no whole PyTorch checkpoint ({type(error).__name__}: {reason}): copy or "
            "download it again"
        ) from error


def _find_state_dict(
    contents: Any, key: str | None, path: str | os.PathLike[str]
) -> Mapping[str, Any]:
    """The innermost dict, reached through ``key`` and then through `WRAPPERS`."""
    if key is not None:
        if not isinstance(contents, Mapping) or not isinstance(contents.get(key), Mapping):
            raise UserError(f"{path} holds no state dict {key!r}: it holds {_listing(contents)}")
        contents = contents[key]
    while isinstance(contents, Mapping):
        inner = [
            name for name in WRAPPERS if isinstance(contents.get(name), Mapping) and contents[name]
        ]
        if len(inner) > 1:
            raise UserError(
                f"{path} holds several state dicts, {', '.join(inner)}: say by key which to read"
            )
        if not inner:
            break
        contents = contents[inner[0]]
    names = contents if isinstance(contents, Mapping) else {}
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{path} holds no state dict: it holds {_listing(contents)}; expected tensors by name, "
            f"perhaps under {', '.join(WRAPPERS)}"
        )
    return names


def _listing(contents: Any) -> str:
    """What a file holds, in few words."""
    if not isinstance(contents, Mapping):
        return f"one {type(contents).__name__}"
    return _abbreviated([str(name) for name in contents]) or "nothing"


def _abbreviated(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")


def _as_array(torch: Any, name: str, tensor: Any) -> np.ndarray:
    """A copy, for tensors of one file may share memory, be transposed or be slices of a larger."""
    try:
        tensor = tensor.detach()
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float32)
        return as_plain(name, np.array(tensor.numpy(), order="C"))
    except (RuntimeError, TypeError, NotImplementedError) as error:  # sparse, quantized, no data
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"the tensor {name} is no plain array of numbers ({reason}): save it as a dense "
            "float32 tensor"
        ) from error
