"""PyTorch's files as PyTorch writes and reads them."""

import argparse
import collections
import os
import pathlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamae_jax.errors import UserError
from adamae_jax.interop import torch_files

torch: Any = pytest.importorskip("torch")
pytestmark = pytest.mark.interop

STATE = {
    "encoder.norm.weight": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32),
    "decoder.norm.weight": np.array([0.1, 2.0, np.inf], np.float32),
    "num_batches_tracked": np.array(7),
}


def tensors(state: dict[str, np.ndarray] | None = None) -> dict[str, Any]:
    return {name: torch.tensor(value) for name, value in (state or STATE).items()}


def saved(path: Path, contents: Any, **options: Any) -> Path:
    torch.save(contents, path / "weights.pth", **options)
    return path / "weights.pth"


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray] = STATE) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, strict=True, err_msg=name)
        assert found[name].flags.c_contiguous
        assert found[name].flags.owndata


def test_there_and_back_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "new" / "weights.pth"
    frozen = {name: value.copy() for name, value in STATE.items()}
    for value in frozen.values():
        value.setflags(write=False)
    torch_files.write(path, frozen)
    assert_same(torch_files.read(path))
    contents = torch.load(path, weights_only=True)
    assert list(contents) == ["model"]
    for name, value in STATE.items():
        assert contents["model"][name].shape == value.shape
        assert contents["model"][name].is_contiguous()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: collections.OrderedDict(state),
        lambda state: {name: torch.nn.Parameter(t, False) for name, t in state.items()},
        lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 3, "scaler": None},
        lambda state: {"module": state},
        lambda state: {"model_state": state},
        lambda state: {"state_dict": state},
        lambda state: {"module": {}, "model": {"module": {"state_dict": state}}},
    ],
)
def test_wrappers(tmp_path: Path, wrap: Any) -> None:
    assert_same(torch_files.read(saved(tmp_path, wrap(tensors()))))


def test_the_older_format_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": tensors()}, _use_new_zipfile_serialization=False)
    assert_same(torch_files.read(path))


def test_of_several_state_dicts_the_key_says_which(tmp_path: Path) -> None:
    other = {"a": np.array([1.0], np.float32)}
    path = saved(tmp_path, {"model": tensors(), "module": tensors(other), "ema": tensors(other)})
    with pytest.raises(UserError, match="several state dicts, model, module: say by key"):
        torch_files.read(path)
    assert_same(torch_files.read(path, key="model"))
    assert_same(torch_files.read(path, key="ema"), other)
    with pytest.raises(UserError, match="no state dict 'model_ema': it holds model, module, ema"):
        torch_files.read(path, key="model_ema")


def test_common_prefixes_are_stripped_unless_asked_not_to(tmp_path: Path) -> None:
    path = saved(tmp_path, {f"module.encoder.{name}": t for name, t in tensors().items()})
    assert_same(torch_files.read(path))
    kept = torch_files.read(path, strip_prefixes=False)
    assert_same(kept, {f"module.encoder.{name}": value for name, value in STATE.items()})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_real_numbers_become_float32(tmp_path: Path, dtype: str) -> None:
    values = torch.tensor([[1.5, -0.25], [3.0, 0.0]], dtype=getattr(torch, dtype))
    found = torch_files.read(saved(tmp_path, {"a": values}))
    assert_same(found, {"a": values.to(torch.float32).numpy()})


def test_tensors_that_share_memory_come_apart(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    path = saved(tmp_path, {"whole": whole, "tied": whole, "slice": whole[1:, ::2], "t": whole.T})
    found = torch_files.read(path)
    expected = whole.numpy().copy()
    assert_same(
        found,
        {"whole": expected, "tied": expected, "slice": expected[1:, ::2], "t": expected.T},
    )
    found["whole"][:] = 0
    np.testing.assert_array_equal(found["tied"], expected)


def test_what_trainers_keep_beside_the_weights_is_left_aside(tmp_path: Path) -> None:
    args = argparse.Namespace(output_dir=pathlib.Path("runs"), lr=np.float64(0.1), epochs=[1])
    beside = {
        "args": args,
        "best": np.float32(0.5),
        "rates": np.linspace(0, 1, 3),
        "optimizer": {"param_groups": [{"lr": np.float64(1e-3), "params": [0]}]},
    }
    assert_same(torch_files.read(saved(tmp_path, {"model": tensors(), **beside})))


def test_numpy_arrays_are_no_tensors(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": {"a": torch.zeros(1), "b": np.zeros(1)}})
    with pytest.raises(UserError, match="1 value.s. are no tensors, first 'b'"):
        torch_files.read(path)


class Harmful:
    """Runs a function when a pickle of it is loaded."""

    def __init__(self, function: Any, argument: str) -> None:
        self.function, self.argument = function, argument

    def __reduce__(self) -> Any:
        return self.function, (self.argument,)


class Foreign:
    """A class of somebody's trainer."""


@pytest.mark.parametrize("new_format", [True, False])
def test_other_classes_are_refused_by_name_and_nothing_runs(
    tmp_path: Path, new_format: bool
) -> None:
    trace = tmp_path / "trace"
    refused = {
        "os|posix.*mkdir": Harmful(os.mkdir, str(trace)),
        "eval": Harmful(eval, f"__import__('os').mkdir({str(trace)!r})"),
        "test_torch_files_interop.Foreign": Foreign(),
        "torch.nn.modules.linear.Linear": torch.nn.Linear(1, 1),
        "collections.deque": collections.deque([1]),
    }
    for name, value in refused.items():
        contents = {"model": tensors(), "extra": value}
        path = saved(tmp_path, contents, _use_new_zipfile_serialization=new_format)
        with pytest.raises(UserError, match=f"holds an object of .*{name}.* is not loaded"):
            torch_files.read(path)
        assert not trace.exists()


def test_the_allowed_classes_are_allowed_only_while_reading(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": tensors(), "args": argparse.Namespace()})
    torch_files.read(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(UserError, match="does not exist"):
        torch_files.read(path)
    with pytest.raises(UserError, match="is a directory"):
        torch_files.read(tmp_path)
    for data in (b"", b"these are no weights", b"\x80\x02.", bytes(range(256)), b"PK\x03\x04"):
        path.write_bytes(data)
        with pytest.raises(UserError, match="is no whole PyTorch checkpoint"):
            torch_files.read(path)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, new_format: bool) -> None:
    path = saved(tmp_path, {"model": tensors()}, _use_new_zipfile_serialization=new_format)
    data = path.read_bytes()
    for length in range(0, len(data), 41):
        path.write_bytes(data[:length])
        with pytest.raises(UserError):
            torch_files.read(path)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({}, "no state dict: it holds nothing"),
        ({"model": {}}, "no state dict|no tensors"),
        ([1.0], "no state dict: it holds one list"),
        (3, "no state dict: it holds one int"),
        ({0: 1}, "no state dict: it holds 0"),
        ({"epoch": 3, "weights": {}}, "2 value.s. are no tensors, first 'epoch' .int."),
    ],
)
def test_what_holds_no_state_dict_is_refused(tmp_path: Path, contents: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        torch_files.read(saved(tmp_path, contents))


def test_tensors_that_are_no_plain_arrays_are_refused(tmp_path: Path) -> None:
    for value in (
        torch.eye(2).to_sparse(),
        torch.zeros(1, dtype=torch.complex64),
        torch.zeros(2, device="meta"),
    ):
        with pytest.raises(UserError, match="(tensor|array) a "):
            torch_files.read(saved(tmp_path, {"a": value}))


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        torch_files.write(tmp_path, STATE)
