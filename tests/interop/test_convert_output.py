"""What a conversion writes is there whole, or not at all, and over nothing."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamae_jax import pretrained
from adamae_jax.convert import output as output_module
from adamae_jax.errors import UserError
from adamae_jax.interop import exports
from tests.interop.convert_cases import (
    bring,
    export,
    loaded,
    written,
)


def test_what_is_there_already_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    exports.write_authors(loaded("mae"), file)
    ours = written(tmp_path / "ours", "mae")
    before = file.read_bytes()
    for source, output in ((file, ours), (file, file)):
        with pytest.raises(UserError, match=f"--output={output} is there already"):
            bring(source, output)
    for form in ("authors", "huggingface"):
        with pytest.raises(UserError, match="is there already"):
            export(ours, file, f"--format={form}")
    with pytest.raises(UserError, match="is there already"):
        export(ours, ours, "--format=huggingface")
    assert file.read_bytes() == before
    (tmp_path / "empty").mkdir()
    bring(file, tmp_path / "empty")  # an empty directory is nothing
    assert pretrained.load(tmp_path / "empty").step == loaded("mae").step


def test_an_output_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file.safetensors"
    exports.write_authors(loaded("mae"), file)
    ours = written(tmp_path / "ours", "mae")
    with pytest.raises(UserError, match=f"/ours lies in {file}, which is a file: give another"):
        bring(file, file / "ours")
    with pytest.raises(UserError, match="which is a file: give another"):
        export(ours, file / "deep" / "other.safetensors")

    def read_only(*_: Any, **__: Any) -> None:  # what a directory's mode does not do to root
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(output_module.tempfile, "mkdtemp", read_only)
    with pytest.raises(UserError, match="--output=.*/new cannot be written: Permission denied"):
        bring(file, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.safetensors", "ours"]


def test_an_outputs_name_says_its_form(tmp_path: Path) -> None:
    ours = written(tmp_path / "ours", "mae")
    with pytest.raises(UserError, match="should be a file that ends in one of .pth,"):
        export(ours, tmp_path / "theirs")
    with pytest.raises(UserError, match="is called like a file: huggingface makes a directory"):
        export(ours, tmp_path / "theirs.pth", "--format=huggingface")


def full_disk(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    """From now on, only so many files can be replaced."""
    count = iter(range(10**6))
    replace = os.replace

    def limited(*arguments: Any) -> None:
        if next(count) >= allowed:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(*arguments)

    monkeypatch.setattr(os, "replace", limited)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file.safetensors"
    exports.write_authors(loaded("mae"), file)
    ours = written(tmp_path / "ours", "mae")
    jobs: list[Callable[[], Path]] = [
        lambda: bring(file, tmp_path / "new"),
        lambda: export(ours, tmp_path / "new.safetensors"),
        lambda: export(ours, tmp_path / "theirs", "--format=huggingface"),
    ]
    for job in jobs:
        with monkeypatch.context() as patch:
            full_disk(patch, allowed=1)
            with pytest.raises(UserError, match=rf"{tmp_path}/\w.*No space left on device"):
                job()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file.safetensors", "ours"]
