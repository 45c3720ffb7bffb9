"""PyTorch's files as PyTorch writes and reads them."""

import argparse
import collections
import os
import pathlib
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamae_jax.errors import UserError
from adamae_jax.interop import files
from tests.interop.convert_cases import assert_same_arrays

torch: Any = pytest.importorskip("torch")
pytestmark = pytest.mark.interop

STATE = {
    "encoder.norm.weight": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32),
    "decoder.norm.weight": np.array([0.1, 2.0, np.inf], np.float32),
    "num_batches_tracked": np.array(7),
}


def tensors(state: dict[str, np.ndarray] | None = None) -> dict[str, Any]:
    return {name: torch.tensor(value) for name, value in (state or STATE).items()}


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path / "weights.pth", **options)
    return path / "weights.pth"


def test_there_and_back_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "new" / "weights.pth"
    frozen = {name: value.copy() for name, value in STATE.items()}
    for value in frozen.values():
        value.setflags(write=False)
    files.write_torch(path, frozen, {"said": "a text", "other": {"a": np.zeros(2, np.float32)}})
    found = files.read_torch(path, beside=("other", "missing"))
    assert_same_arrays(found.state, STATE)
    assert_same_arrays(dict(found.beside)["other"], {"a": np.zeros(2, np.float32)})
    assert found.texts == {"said": "a text"}
    content = torch.load(path, weights_only=True)
    assert list(content) == ["model", "said", "other"]
    for name, value in STATE.items():
        assert content["model"][name].shape == value.shape


ARGS = argparse.Namespace(output_dir=pathlib.Path("runs"), lr=np.float64(0.1), epochs=[1])
BESIDE = {
    "args": ARGS,
    "best": np.float32(0.5),
    "rates": np.linspace(0, 1, 3),
    "optimizer": {"param_groups": [{"lr": np.float64(1e-3), "params": [0]}]},
    "scaler": None,
}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: collections.OrderedDict(state),
        lambda state: {name: torch.nn.Parameter(t, False) for name, t in state.items()},
        lambda state: {"model": state, **BESIDE},
        lambda state: {"module": state},
        lambda state: {"model_state": state},
        lambda state: {"state_dict": state},
        lambda state: {"module": {}, "model": {"module": {"state_dict": state}}},
    ],
)
def test_wrappers_and_what_stands_beside_them(tmp_path: Path, wrap: Any) -> None:
    for new_format in (True, False):
        path = saved(tmp_path, wrap(tensors()), _use_new_zipfile_serialization=new_format)
        assert_same_arrays(files.read_torch(path).state, STATE)


def test_of_several_state_dicts_the_key_says_which(tmp_path: Path) -> None:
    other = {"a": np.array([1.0], np.float32)}
    path = saved(tmp_path, {"model": tensors(), "module": tensors(other), "ema": tensors(other)})
    with pytest.raises(UserError, match="several state dicts, model, module: say which with --key"):
        files.read_torch(path)
    assert_same_arrays(files.read_torch(path, "model").state, STATE)
    assert_same_arrays(files.read_torch(path, "ema").state, other)
    with pytest.raises(UserError, match="no state dict 'model_ema': it holds model, module, ema"):
        files.read_torch(path, "model_ema")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_real_numbers_become_float32(tmp_path: Path, dtype: str) -> None:
    values = torch.tensor([[1.5, -0.25], [3.0, 0.0]], dtype=getattr(torch, dtype))
    found = files.read_torch(saved(tmp_path, {"a": values})).state
    assert_same_arrays(found, {"a": values.to(torch.float32).numpy()})


def test_tensors_that_share_memory_come_apart(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    path = saved(tmp_path, {"whole": whole, "tied": whole, "slice": whole[1:, ::2], "t": whole.T})
    found = files.read_torch(path).state
    expected = whole.numpy().copy()
    arrays = {"whole": expected, "tied": expected, "slice": expected[1:, ::2], "t": expected.T}
    assert_same_arrays(found, arrays)
    found["whole"][:] = 0
    np.testing.assert_array_equal(found["tied"], expected)


class Harmful:
    """Runs a function when a pickle of it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def test_other_classes_are_refused_and_nothing_runs(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": tensors(), "extra": Harmful(tmp_path / "trace")})
    with pytest.raises(UserError, match="holds other objects than tensors") as raised:
        files.read_torch(path)
    told = "".join(traceback.format_exception(raised.value))
    assert "weights_only=False" not in told  # PyTorch's advice would run the code
    assert not (tmp_path / "trace").exists()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        files.read_torch(tmp_path / "weights.pth")
    path = saved(tmp_path, {"model": tensors()})
    data = path.read_bytes()
    for damaged in (b"", b"no weights", data[:100], data[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged, or holds other|cannot be read"):
            files.read_torch(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no state dict: it holds nothing"),
        ([1.0], "no state dict: it holds one list"),
        ({"epoch": 3, "weights": {}}, "2 value.s. are no tensors, first 'epoch' .int."),
        ({"a": torch.eye(2).to_sparse()}, "tensor a is no plain array"),
    ],
)
def test_what_holds_no_state_dict_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        files.read_torch(saved(tmp_path, content))
