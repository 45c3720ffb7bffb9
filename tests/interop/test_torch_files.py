"""PyTorch's files where PyTorch is not installed: a refusal that says what to do."""

import sys
from pathlib import Path

import numpy as np
import pytest

from adamae_jax.errors import UserError
from adamae_jax.interop import torch_files


@pytest.fixture(autouse=True)
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import of torch fails, whether it is installed or not."""
    monkeypatch.setitem(sys.modules, "torch", None)


def test_reading_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weights.pth.*-e '.\[interop\]'.*safetensors"):
        torch_files.read(tmp_path / "weights.pth")


def test_writing_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weights.pth.*-e '.\[interop\]'.*safetensors"):
        torch_files.write(tmp_path / "weights.pth", {"a": np.zeros(1)})
    assert not list(tmp_path.iterdir())
