"""State dicts in files: ``.safetensors``, PyTorch's ``.pth`` and ``.bin``, and JSON beside them.

Real numbers are float32 here, whatever precision a file has: that holds every half and bfloat16
value exactly and rounds float64. Integers (counters of batch norms and the like) and booleans stay
as they are. PyTorch is imported only where one of its files is read or written, and reads them in
its restricted way: no code in them is run.
"""

import dataclasses
import importlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from adamae_jax import plain_json
from adamae_jax.errors import UserError
from adamae_jax.training import files as run_files

# A PyTorch model's arrays under the names that its authors use.
StateDict = dict[str, np.ndarray]

# What PyTorch's wrappers of a model put before every name: data parallelism, a pre-training
# model around its encoder, a detector around its backbone, `torch.compile`.
PREFIXES = ("module.", "encoder.", "backbone.", "_orig_mod.")

# Where trainers put the state dict: the authors' own, DeepSpeed, SlowFast and MAE-ST, Lightning.
WRAPPERS = ("model", "module", "model_state", "state_dict")

# Values of these classes stand beside the weights in the authors' checkpoints: command lines with
# paths, and NumPy's numbers. None is needed: an `_Ignored` takes the place of each.
_IGNORED_CLASSES = (
    "argparse.Namespace",
    *(f"pathlib.{name}" for name in ("PosixPath", "WindowsPath")),
    *(f"pathlib._local.{name}" for name in ("PosixPath", "WindowsPath")),  # Python 3.13
    *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),  # NumPy 1 and 2
    *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
    "numpy.dtype",
    "numpy.ndarray",
)


class _Ignored:
    """Stands for a value that is not read."""

    def __new__(cls, *_: Any) -> "_Ignored":
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None: ...


def read_safetensors(path: Path) -> StateDict:
    """Reads a ``.safetensors`` file.

    Raises:
      UserError: where it is missing, damaged, empty, or holds arrays of another type.
    """
    _check_file(path)
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
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
    return {name: as_plain(name, array) for name, array in arrays.items()}


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the texts in the header of a ``.safetensors`` file."""
    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata() or {})


def write_safetensors(
    path: Path, state: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a ``.safetensors`` file, whole or not at all.

    Args:
      path: the file; its directory is made where it is missing.
      state: the arrays by name; real numbers are written in float32.
      metadata: kept in the header beside ``{"format": "pt"}``, which PyTorch's readers ask for.

    Raises:
      UserError: where an array has another type or the file cannot be written.
    """
    arrays = {name: as_plain(name, array) for name, array in state.items()}
    write_file(path, serialize(arrays, {"format": "pt", **(metadata or {})}))


def as_plain(name: str, array: np.ndarray) -> np.ndarray:
    """Returns a contiguous array in float32, or of the integer or boolean type that it has.

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


def strip_prefixes(state: StateDict) -> StateDict:
    """Returns the arrays without those of `PREFIXES` that every name has, however many in a row.

    A pretraining dict, with an encoder and a decoder, keeps its names.
    """

    def common() -> str | None:
        shared = (prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state))
        return next(shared, None) if state else None

    while prefix := common():
        state = {name.removeprefix(prefix): array for name, array in state.items()}
    return state


def write_file(path: Path, data: bytes) -> None:
    """Writes a file, whole or not at all, in a directory that is made where it is missing.

    Raises:
      UserError: where the disk is full, the path is a directory, or it may not be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        run_files.write(path, data)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): {len(data)} bytes are needed "
            "in a directory that may be written"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file with an object in it.

    Raises:
      UserError: where the file is missing or holds something else.
    """
    try:
        value = plain_json.parse(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def _check_file(path: Path) -> None:
    """Raises a `UserError` where a path is no file."""
    if path.is_dir():
        raise UserError(f"{path} is a directory: give the file of weights in it")
    if not path.exists():
        raise UserError(f"{path} does not exist: give the path of a file of weights")


# PyTorch's checkpoints.


@dataclasses.dataclass(frozen=True)
class TorchCheckpoint:
    """What a PyTorch file holds.

    Attributes:
      state: the model's weights.
      beside: further state dicts, by the names that were asked for, where they are there.
      texts: the strings at the top of the file, by name.
    """

    state: StateDict
    beside: Mapping[str, StateDict]
    texts: Mapping[str, str]


def read_torch(path: Path, key: str | None = None, beside: Sequence[str] = ()) -> TorchCheckpoint:
    """Reads a PyTorch checkpoint.

    The state dict is the file's whole content or lies in it under one of `WRAPPERS`, of which one
    may hold another. All else in the file (optimizer, epoch, arguments) is left aside.

    Args:
      path: the file, as `torch.save` writes it.
      key: of a file with several state dicts, where the one to read lies, such as ``model_ema``.
      beside: names of further state dicts to read, where they are there.

    Raises:
      UserError: where PyTorch is not installed; the file is missing, damaged or no checkpoint;
        it holds objects that could run code; it holds no state dict, or several and no ``key``
        says which.
    """
    _check_file(path)
    torch = _import_torch(path)
    content = _load(torch, path)
    fields = content if isinstance(content, Mapping) else {}
    return TorchCheckpoint(
        _arrays(torch, _find_state_dict(content, key, path), path),
        {
            name: _arrays(torch, _find_state_dict(fields[name], None, path), path)
            for name in beside
            if isinstance(fields.get(name), Mapping)
        },
        {str(name): value for name, value in fields.items() if isinstance(value, str)},
    )


def write_torch(
    path: Path,
    state: Mapping[str, np.ndarray],
    beside: Mapping[str, Mapping[str, np.ndarray] | str] | None = None,
) -> None:
    """Writes ``{"model": state}``, as the authors' trainers do, whole or not at all.

    Args:
      path: the file; its directory is made where it is missing.
      state: the arrays by name; real numbers are written as float32 tensors.
      beside: further state dicts and strings, at the top of the file like the model's.

    Raises:
      UserError: where PyTorch is not installed, an array has another type, or the file cannot be
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
    write_file(path, buffer.getvalue())


def _import_torch(path: Path) -> Any:
    """Returns PyTorch, which only this module needs and few installations have."""
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise UserError(
            f"{path}: every file but .safetensors needs PyTorch, and PyTorch cannot be imported "
            f"({error}): pip install -e '.[interop]' in the repository, or use .safetensors"
        ) from error


def _load(torch: Any, path: Path) -> Any:
    """Returns the file's content, with an `_Ignored` for every value of `_IGNORED_CLASSES`."""
    ignored = [(_Ignored, name) for name in _IGNORED_CLASSES]
    try:
        with open(path, "rb") as file, torch.serialization.safe_globals(ignored):
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}): copy or download it again"
        ) from error
    except Exception as error:  # damaged bytes raise whatever the parser stumbles over
        raise UserError(
            f"{path} is damaged, or holds other objects than tensors ({type(error).__name__}), "
            "which are not loaded, for they could run any code: copy or download it again, or save "
            "its state dict alone where it was made"
        ) from None  # PyTorch's own advice is to run the code, by weights_only=False


def _find_state_dict(content: Any, key: str | None, path: Path) -> Mapping[str, Any]:
    """Returns the innermost dict, reached through ``key`` and then through `WRAPPERS`."""
    if key is not None:
        if not isinstance(content, Mapping) or not isinstance(content.get(key), Mapping):
            raise UserError(f"{path} holds no state dict {key!r}: it holds {_listing(content)}")
        content = content[key]
    while inner := _wrapped(content):
        if len(inner) > 1:
            raise UserError(
                f"{path} holds several state dicts, {', '.join(inner)}: say which with --key"
            )
        content = content[inner[0]]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(n, str) for n in content)
    ):
        raise UserError(
            f"{path} holds no state dict: it holds {_listing(content)}; expected tensors by name, "
            f"perhaps under {', '.join(WRAPPERS)}"
        )
    return content


def _wrapped(content: Any) -> list[str]:
    """Returns the `WRAPPERS` under which something lies in a dict."""
    fields = content if isinstance(content, Mapping) else {}
    return [name for name in WRAPPERS if isinstance(fields.get(name), Mapping) and fields[name]]


def _listing(content: Any) -> str:
    """Returns what a file holds, in few words."""
    if not isinstance(content, Mapping):
        return f"one {type(content).__name__}"
    names = [str(name) for name in content]
    return ", ".join(names[:8]) + ", ..." * bool(names[8:]) or "nothing"


def _arrays(torch: Any, tensors: Mapping[str, Any], path: Path) -> StateDict:
    """Returns a state dict in NumPy."""
    strange = [name for name, value in tensors.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise UserError(
            f"{path} holds a state dict in which {len(strange)} value(s) are no tensors, first "
            f"{strange[0]!r} ({type(tensors[strange[0]]).__name__}): give a file or a key that "
            "holds weights only"
        )
    return {name: _as_array(torch, name, tensor) for name, tensor in tensors.items()}


def _as_array(torch: Any, name: str, tensor: Any) -> np.ndarray:
    """Returns a copy, for tensors of one file may share memory or be slices of a larger one."""
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
