"""Files of a run on a disk and in a bucket, which a server on this machine stands in for."""

import functools
import os
from pathlib import Path

import pytest
from etils import epath

from adamae_jax.data import storage
from adamae_jax.errors import UserError
from adamae_jax.training import files
from adamae_jax.training.checkpoint_files import checkpoint_steps, read_subtree
from adamae_jax.training.files import AnyPath
from tests.object_store import ObjectStore


@pytest.fixture(params=["disk", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> AnyPath:
    """An empty directory, and an empty place in a bucket."""
    if request.param == "disk":
        return tmp_path
    return files.at(request.getfixturevalue("bucket") + "/run")


def test_what_is_written_is_read(place: AnyPath) -> None:
    files.make_directory(place / "model")
    files.write(place / "model" / "a.json", b"one")
    files.write(place / "model" / "a.json", b"second")
    files.append(place / "starts", b"1\n")
    files.append(place / "starts", b"2\n")
    assert files.read(place / "model" / "a.json") == b"second"
    assert files.read(place / "starts") == b"1\n2\n"
    assert files.list_files(place) == ["model/a.json", "starts"]
    assert files.names(place) == ["model", "starts"] and files.names(place / "none") == []
    assert files.exists(place / "model") and files.exists(place / "starts")
    assert not files.exists(place / "none")
    assert files.size(place / "model" / "a.json") == 6
    assert (place / "model").is_dir() and (place / "starts").is_file()
    files.remove(place / "starts")
    files.remove(place / "starts")
    assert files.list_files(place) == ["model/a.json"]
    with pytest.raises(FileNotFoundError):
        files.read(place / "starts")


def test_a_growing_file_is_whole_after_a_flush(place: AnyPath) -> None:
    files.write(place / "lines", b"0\n")
    growing = files.growing(place / "lines")
    growing.append(b"1\n")
    growing.append(b"2\n")
    growing.flush()
    assert files.read(place / "lines") == b"0\n1\n2\n"
    growing.append(b"3\n")
    growing.close()
    growing.close()
    assert files.read(place / "lines") == b"0\n1\n2\n3\n"


def test_lines_reach_a_bucket_between_flushes(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    growing = files.growing(files.at(f"{bucket}/lines"))
    growing.append(b"1\n")
    assert not files.at(f"{bucket}/lines").exists()
    monkeypatch.setattr(files, "SENT_EVERY_S", 0.0)
    growing.append(b"2\n")
    assert files.read(files.at(f"{bucket}/lines")) == b"1\n2\n"


def test_what_fails_between_flushes_is_made_good(
    bucket: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SENT_EVERY_S", 0.0)
    growing = files.growing(files.at(f"{bucket}/lines"))
    store.refuse = lambda method, name: 403 if method == "POST" else 0
    growing.append(b"1\n")  # a warning
    with pytest.raises(OSError, match=r"403|orbidden"):
        growing.flush()
    store.refuse = lambda method, name: 0
    growing.flush()
    assert files.read(files.at(f"{bucket}/lines")) == b"1\n"


def test_what_a_library_writes_comes_into_the_bucket(place: AnyPath) -> None:
    growing = files.GrowingDirectory(place)
    (growing.local / "plugins").mkdir()
    (growing.local / "plugins" / "trace").write_bytes(b"one")
    growing.flush()
    assert files.read(place / "plugins" / "trace") == b"one"
    with open(growing.local / "plugins" / "trace", "ab") as file:
        file.write(b" two")
    growing.flush()
    assert files.read(place / "plugins" / "trace") == b"one two"
    growing.close()


def test_a_bucket_that_cannot_be_used_is_one_line(
    bucket: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "RETRY_DELAYS_S", ())
    workdir = files.open_workdir(f"{bucket}/run")
    assert files.list_files(workdir) == []  # what it has written is gone
    for refused in ("GET", "POST", "DELETE"):
        store.refuse = functools.partial(_refusing, refused)
        with pytest.raises(UserError, match=rf"^--workdir={workdir} cannot be used \(.*allowed to"):
            files.open_workdir(workdir)


def test_what_a_bucket_does_not_say_is_not_missing(
    bucket: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose checkpoints cannot be seen for a moment must not begin anew."""
    monkeypatch.setattr(storage, "RETRY_DELAYS_S", ())
    workdir = files.at(f"{bucket}/run")
    store.refuse = functools.partial(_refusing, "GET")
    for look in (files.exists, files.names, files.read, checkpoint_steps):
        with pytest.raises(OSError, match=r"403|orbidden"):
            look(workdir)


def _refusing(refused: str, method: str, name: str) -> int:
    return 403 if method == refused else 0


def test_other_addresses_are_refused(tmp_path: Path) -> None:
    assert files.open_workdir(tmp_path) == tmp_path
    with pytest.raises(UserError, match="^az://bucket/run is no place for a run: give a directory"):
        files.at("az://bucket/run")


def test_orbax_has_no_way_into_s3() -> None:
    with pytest.raises(UserError, match=r"^s3://bucket/run: orbax, .* give gs://BUCKET"):
        files.open_workdir("s3://bucket/run")
    with pytest.raises(UserError, match=r"^s3://bucket/run/checkpoints: orbax, .* its model dir"):
        read_subtree(epath.Path("s3://bucket/run/checkpoints"))


def test_a_path_stays_what_it_is() -> None:
    assert files.at("runs/mine") == Path("runs/mine")
    assert files.absolute("runs/mine") == Path(os.getcwd()) / "runs" / "mine"
