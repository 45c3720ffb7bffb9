"""State dicts in .safetensors files: exact values, clear refusals, no half-written file."""

import errno
import json
import os
import struct
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from adamae_jax.errors import UserError
from adamae_jax.interop import safetensors_files

RNG = np.random.default_rng(0)
STATE = {
    "encoder.norm.weight": RNG.normal(size=(3, 4)).astype(np.float32),
    "decoder.norm.weight": np.array([0.1, 2.0, np.inf], np.float32),
    "num_batches_tracked": np.array(7),
}


def in_a_file(header: Any, data: bytes = b"") -> bytes:
    """A .safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_there_and_back_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "new" / "weights.safetensors"
    safetensors_files.write(path, STATE, {"source": "a test"})
    back = safetensors_files.read(path)
    assert set(back) == set(STATE)
    for name, value in STATE.items():
        np.testing.assert_array_equal(back[name], value, strict=True, err_msg=name)
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"format": "pt", "source": "a test"}


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_real_numbers_become_float32(tmp_path: Path, dtype: Any) -> None:
    values = np.array([[1.5, -0.25], [3.0, 0.0]], dtype)
    save_file({"a": values}, tmp_path / "a.safetensors")
    found = safetensors_files.read(tmp_path / "a.safetensors")["a"]
    np.testing.assert_array_equal(found, values.astype(np.float32), strict=True)
    safetensors_files.write(tmp_path / "b.safetensors", {"a": values})
    found = safetensors_files.read(tmp_path / "b.safetensors")["a"]
    np.testing.assert_array_equal(found, values.astype(np.float32), strict=True)


def test_transposed_arrays_are_written_as_they_look(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3).T
    safetensors_files.write(tmp_path / "a.safetensors", {"a": values})
    np.testing.assert_array_equal(safetensors_files.read(tmp_path / "a.safetensors")["a"], values)


def test_only_what_all_names_begin_with_is_stripped() -> None:
    def stripped(*names: str) -> list[str]:
        return list(safetensors_files.strip_common_prefixes(dict.fromkeys(names, np.zeros(1))))

    assert stripped("module.encoder.a", "module.encoder.b.c") == ["a", "b.c"]
    assert stripped("_orig_mod.module.backbone.a") == ["a"]
    assert stripped("encoder.a", "decoder.a") == ["encoder.a", "decoder.a"]
    assert stripped("module.encoder.a", "module.decoder.a") == ["encoder.a", "decoder.a"]
    assert stripped("encoder_to_decoder.a") == ["encoder_to_decoder.a"]


@hypothesis.given(
    prefixes=st.lists(st.sampled_from(safetensors_files.PREFIXES), max_size=4),
    names=st.sets(st.sampled_from(["norm.weight", "blocks.0.b", "head.bias"]), min_size=1),
)
def test_any_row_of_common_prefixes_is_stripped(prefixes: list[str], names: set[str]) -> None:
    state = {"".join(prefixes) + name: np.full(1, i) for i, name in enumerate(sorted(names))}
    found = safetensors_files.strip_common_prefixes(state)
    assert found == {name: np.full(1, i) for i, name in enumerate(sorted(names))}


def test_stripping_can_be_left_out(tmp_path: Path) -> None:
    safetensors_files.write(tmp_path / "a.safetensors", {"module.a": np.zeros(1)})
    assert list(safetensors_files.read(tmp_path / "a.safetensors")) == ["a"]
    assert list(safetensors_files.read(tmp_path / "a.safetensors", strip_prefixes=False)) == [
        "module.a"
    ]


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
BROKEN = {
    "empty": b"",
    "text": b"these are no weights at all",
    "header of 2^60 bytes": struct.pack("<Q", 2**60) + b"{}",
    "no JSON": in_a_file(b"{]"),
    "deep JSON": in_a_file(b'{"a":' + b"[" * 100_000),
    "overlapping arrays": in_a_file({"a": ENTRY, "b": ENTRY}, b"1234"),
    "data beyond the end": in_a_file({"a": ENTRY}, b"12"),
    "overflowing shape": in_a_file({"a": {**ENTRY, "shape": [2**62, 2**62]}}, b"1234"),
    "unknown type": in_a_file({"a": {**ENTRY, "dtype": "Q9"}}, b"1234"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_damaged_and_hostile_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(BROKEN[name])
    with pytest.raises(UserError, match=r"a\.safetensors is no whole .safetensors file"):
        safetensors_files.read(tmp_path / "a.safetensors")


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors_files.write(path, STATE)
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match="no whole"):
            safetensors_files.read(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (in_a_file({}), "holds no arrays"),
        (in_a_file({"a": {**ENTRY, "dtype": "F8_E4M3", "shape": [4]}}, b"1234"), "NumPy lacks"),
        (in_a_file({"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}, b"12345678"),
         "array a has the type complex64"),
    ],
)  # fmt: skip
def test_what_holds_no_weights_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=message):
        safetensors_files.read(tmp_path / "a.safetensors")


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        safetensors_files.read(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="is a directory"):
        safetensors_files.read(tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        safetensors_files.write(tmp_path, STATE)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        safetensors_files.write(tmp_path / "file" / "a.safetensors", STATE)


def test_strings_and_objects_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="array a has the type"):
        safetensors_files.write(tmp_path / "a.safetensors", {"a": np.array(["text"])})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    safetensors_files.write(path, STATE)
    old = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot be written.*No space left"):
        safetensors_files.write(path, {"other": np.zeros(100)})
    assert path.read_bytes() == old
