"""State dicts in .safetensors files: exact values, clear refusals, no half-written file."""

import errno
import os
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from adamae_jax.errors import UserError
from adamae_jax.interop import files

STATE = {
    "encoder.norm.weight": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "num_batches_tracked": np.array(7),
}


def test_there_and_back_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "new" / "weights.safetensors"
    files.write_safetensors(path, STATE, {"source": "a test"})
    back = files.read_safetensors(path)
    assert set(back) == set(STATE)
    for name, value in STATE.items():
        np.testing.assert_array_equal(back[name], value, strict=True, err_msg=name)
    assert files.read_metadata(path) == {"format": "pt", "source": "a test"}


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_real_numbers_become_float32(tmp_path: Path, dtype: Any) -> None:
    values = np.array([[1.5, -0.25], [3.0, 0.0]], dtype)
    save_file({"a": values}, tmp_path / "a.safetensors")
    files.write_safetensors(tmp_path / "b.safetensors", {"a": values})
    for name in ("a", "b"):
        found = files.read_safetensors(tmp_path / f"{name}.safetensors")["a"]
        np.testing.assert_array_equal(found, values.astype(np.float32), strict=True)


@pytest.mark.parametrize(
    ("names", "stripped"),
    [
        (["module.encoder.a", "module.encoder.b.c"], ["a", "b.c"]),
        (["_orig_mod.module.backbone.a"], ["a"]),
        (["encoder.a", "decoder.a"], ["encoder.a", "decoder.a"]),
        (["module.encoder.a", "module.decoder.a"], ["encoder.a", "decoder.a"]),
        (["encoder_to_decoder.a"], ["encoder_to_decoder.a"]),
    ],
)
def test_only_what_all_names_begin_with_is_stripped(names: list[str], stripped: list[str]) -> None:
    assert list(files.strip_prefixes(dict.fromkeys(names, np.zeros(1)))) == stripped


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    files.write_safetensors(path, STATE)
    data = path.read_bytes()
    for damaged in (b"", b"no weights at all", data[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.safetensors is no whole .safetensors file"):
            files.read_safetensors(path)


def test_what_holds_no_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({}, path)
    with pytest.raises(UserError, match="holds no arrays"):
        files.read_safetensors(path)
    save_file({"a": np.zeros(1, np.complex64)}, path)
    with pytest.raises(UserError, match="array a has the type complex64"):
        files.read_safetensors(path)
    with pytest.raises(UserError, match="array a has the type"):
        files.write_safetensors(tmp_path / "b.safetensors", {"a": np.array(["text"])})
    with pytest.raises(UserError, match=r"b\.safetensors does not exist"):
        files.read_safetensors(tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="is a directory"):
        files.read_safetensors(tmp_path)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    files.write_safetensors(path, STATE)
    old = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot be written.*No space left"):
        files.write_safetensors(path, {"other": np.zeros(100)})
    assert path.read_bytes() == old
    with safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == set(STATE)


def test_without_torch_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "weights.pth"
    with pytest.raises(UserError, match=r"weights.pth.*-e '.\[interop\]'.*safetensors"):
        files.write_torch(path, {"a": np.zeros(1)})
    assert not path.exists()
    path.touch()
    with pytest.raises(UserError, match=r"weights.pth.*-e '.\[interop\]'.*safetensors"):
        files.read_torch(path)
