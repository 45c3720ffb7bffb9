"""The files of Hugging Face's directories: shards, hostile indices, missing and damaged files."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from adamae_jax.errors import UserError
from adamae_jax.interop import huggingface
from tests.interop.huggingface_models import FACTS, assert_same, state

KIND: huggingface.Kind = "videomae_classifier"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole directory."""
    directory = tmp_path_factory.mktemp("original")
    huggingface.write(directory, KIND, state(KIND), FACTS[KIND])
    return directory


@pytest.fixture
def whole(original: Path, tmp_path: Path) -> Path:
    """A whole directory that may be changed."""
    return Path(shutil.copytree(original, tmp_path / "model"))


@pytest.fixture
def sharded(whole: Path) -> Path:
    """The same in three shards."""
    tensors = load_file(whole / "model.safetensors")
    (whole / "model.safetensors").unlink()
    places: dict[str, str] = {}
    for shard in range(3):
        name = f"model-{shard + 1:05d}-of-00003.safetensors"
        part = dict(sorted(tensors.items())[shard::3])
        save_file(part, whole / name)
        places |= dict.fromkeys(part, name)
    set_index(whole, places)
    return whole


def set_index(directory: Path, places: Any) -> None:
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def get_index(directory: Path) -> dict[str, str]:
    places: dict[str, str] = json.loads((directory / INDEX).read_text())["weight_map"]
    return places


def test_shards_are_put_together(sharded: Path) -> None:
    assert_same(huggingface.read(sharded).state, state(KIND))


def test_one_whole_file_comes_before_shards(whole: Path) -> None:
    set_index(whole, {"a": "nothing.safetensors"})
    (whole / "pytorch_model.bin").write_bytes(b"")
    assert_same(huggingface.read(whole).state, state(KIND))


def test_shards_may_be_links_to_elsewhere_as_in_their_cache(sharded: Path, tmp_path: Path) -> None:
    shard = sharded / "model-00002-of-00003.safetensors"
    shard.rename(tmp_path / "blob")
    shard.symlink_to(tmp_path / "blob")
    assert_same(huggingface.read(sharded).state, state(KIND))


@pytest.mark.parametrize(
    "place",
    [
        "../secret.safetensors",
        "/tmp/secret.safetensors",
        "parts/secret.safetensors",
        "..\\secret.safetensors",
        ".secret.safetensors",
        "se\0cret.safetensors",
        "secret.safetensors\n",
        "..",
        "",
        None,
        3,
        ["secret.safetensors"],
    ],
)
def test_an_index_reaches_no_file_but_those_beside_it(
    sharded: Path, tmp_path: Path, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: dict[str, Any] = get_index(sharded)
    places["classifier.bias"] = place
    set_index(sharded, places)
    (sharded / "parts").mkdir()
    for directory in (sharded / "parts", tmp_path):
        shutil.copy(sharded / "model-00001-of-00003.safetensors", directory / "secret.safetensors")
    monkeypatch.setattr(
        "adamae_jax.interop.safetensors_files.read", lambda *_, **__: pytest.fail("a file was read")
    )
    with pytest.raises(UserError, match="classifier.bias lies in .* expected a file beside"):
        huggingface.read(sharded)


def test_an_index_of_plain_files_reaches_no_pickle(sharded: Path) -> None:
    set_index(sharded, get_index(sharded) | {"classifier.bias": "pytorch_model-1.bin"})
    with pytest.raises(UserError, match="pytorch_model-1.bin', expected a .safetensors file"):
        huggingface.read(sharded)


def test_an_index_that_does_not_fit_is_refused(sharded: Path) -> None:
    places = get_index(sharded)
    set_index(sharded, {name: place for name, place in places.items() if name != "fc_norm.bias"})
    with pytest.raises(UserError, match="do not agree on fc_norm.bias"):
        huggingface.read(sharded)
    set_index(sharded, places | {"more": places["fc_norm.bias"]})
    with pytest.raises(UserError, match="do not agree on more"):
        huggingface.read(sharded)
    set_index(sharded, places | {"more": "model-4.safetensors"})
    with pytest.raises(UserError, match="model-4.safetensors does not exist"):
        huggingface.read(sharded)
    nothing: Any
    for nothing in ({}, [], None):
        set_index(sharded, nothing)
        with pytest.raises(UserError, match="has no weight_map"):
            huggingface.read(sharded)


def test_a_damaged_shard_is_refused(sharded: Path) -> None:
    shard = sharded / "model-00003-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match="model-00003-of-00003.safetensors is no whole"):
        huggingface.read(sharded)


def test_pickled_weights_need_torch(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (whole / "model.safetensors").rename(whole / "pytorch_model.bin")
    with pytest.raises(
        UserError,
        match=r"pytorch_model.bin: every file but .safetensors needs PyTorch.*\[interop\]",
    ):
        huggingface.read(whole)


def test_missing_files_are_refused(whole: Path, tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "nothing", whole / "config.json"):
        with pytest.raises(UserError, match="holds no config.json"):
            huggingface.read(directory)
    (whole / "preprocessor_config.json").unlink()
    facts = huggingface.read(whole).facts
    assert (facts.pixel_mean, facts.pixel_std) == (None, None)
    (whole / "model.safetensors").unlink()
    with pytest.raises(UserError, match="model holds no weights"):
        huggingface.read(whole)


def test_the_processor_of_videos_is_read_too(whole: Path) -> None:
    (whole / "preprocessor_config.json").rename(whole / "video_preprocessor_config.json")
    assert huggingface.read(whole).facts == FACTS[KIND]


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"3"])
def test_damaged_json_is_refused(whole: Path, name: str, data: bytes) -> None:
    (whole / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name} (is not JSON|holds a .*expected a JSON object)"):
        huggingface.read(whole)


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        huggingface.write(tmp_path / "file", KIND, state(KIND), FACTS[KIND])
