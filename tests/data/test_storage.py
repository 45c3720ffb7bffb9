"""Datasets on a file system of fsspec, stood in for by its own in memory."""

import contextlib
import errno
import functools
import importlib.util
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from adamae_jax.data import storage, tfrecord
from adamae_jax.data.batches import train_batches
from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.records import Dataset
from adamae_jax.errors import UserError
from tests.data.fixtures import NAME, small_records, stored_frames, write_dataset

REMOTE = "cloud://bucket/videos"
SPEC = ClipSpec(4, 1, (16, 16))


class Cloud(MemoryFileSystem):
    """Counts bytes, fails when told to, and says of files what object stores say."""

    protocol = "cloud"
    store: dict[str, Any] = {}  # noqa: RUF012 (as in the class above)
    pseudo_dirs = [""]  # noqa: RUF012
    requests: list[int] = []  # noqa: RUF012 (bytes of each, cleared by the tests)
    failures = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("cloud://")))

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        fail_if_told()
        return super().ls(path, detail, **options)

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        fail_if_told()
        data = bytes(super().cat_file(path, start, end, **options))
        Cloud.requests.append(len(data))
        return data


def fail_if_told() -> None:
    if Cloud.failures:
        Cloud.failures -= 1
        raise ConnectionResetError("connection reset")


@pytest.fixture
def remote(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A dataset in the cloud, whose local original is in ``tmp_path``."""
    fsspec.register_implementation("cloud", Cloud, clobber=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user")))
    monkeypatch.setattr(storage, "RETRY_DELAYS_S", (0.0, 0.0))
    Cloud.store.clear()
    cloud = fsspec.filesystem("cloud")
    write_dataset(tmp_path, {"train": small_records(9)}, shards=2)
    for path in tmp_path.iterdir():
        cloud.pipe_file(f"bucket/videos/{path.name}", path.read_bytes())
    yield REMOTE
    Cloud.failures = 0


def test_a_remote_dataset_is_what_the_local_one_is(remote: str, tmp_path: Path) -> None:
    here, there = Dataset(tmp_path, "train"), Dataset(remote, "train")
    assert there.fingerprint == here.fingerprint
    assert there.label_names == ("a", "b", "c")
    assert [there[index] for index in range(9)] == [here[index] for index in range(9)]
    shard = f"{REMOTE}/{NAME}-train.tfrecord-00001-of-00002"
    assert there.where(4) == f"record 4 of split 'train' (number 0 in {shard})"


def test_training_batches_come_from_remote_shards(remote: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"seed": 1, "videos_per_step": 6, "first_step": 2, "num_steps": 3}
    with (
        train_batches(Dataset(tmp_path, "train"), SPEC, **arguments) as here,
        train_batches(Dataset(remote, "train"), SPEC, **arguments) as there,
    ):
        for one, other in zip(here, there, strict=True):
            np.testing.assert_array_equal(one["video"], other["video"])


def test_a_small_record_is_one_request(remote: str) -> None:
    dataset = Dataset(remote, "train")
    Cloud.requests.clear()
    record = dataset[5]
    assert record.id == "video-5" and len(list(stored_frames(record))) == 6
    assert Cloud.requests == [len(small_records(9)[5])]


def test_of_a_large_record_only_what_is_needed_is_fetched(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = stored_frames(Dataset(tmp_path, "train")[5])
    dataset = Dataset(remote, "train")
    monkeypatch.setattr(storage, "REMOTE_GAP", 300)
    Cloud.requests.clear()
    frames = stored_frames(dataset[5])
    assert len(Cloud.requests) <= 2  # frames may stand among the other features
    Cloud.requests.clear()
    # Frames are of about 900 bytes: one between two is more than the gap, none is less.
    assert frames.fetch([0, 1, 4]) == here.fetch([0, 1, 4])
    sizes = frames.sizes
    assert len(Cloud.requests) == 2 and Cloud.requests[1] == sizes[4]
    assert sizes[0] + sizes[1] < Cloud.requests[0] < sizes[0] + sizes[1] + 8
    Cloud.requests.clear()
    monkeypatch.setattr(storage, "REMOTE_GAP", 3000)
    assert dataset[5].frames == here
    Cloud.failures = 2
    assert frames.fetch([4, 0]) == here.fetch([4, 0])
    Cloud.failures = 3
    with pytest.raises(OSError, match=r"connection reset.*cloud://bucket/videos/small-train"):
        frames.fetch([0])


def test_the_index_is_kept_in_the_cloud_and_by_the_user(
    remote: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Dataset(remote, "train")
    assert fsspec.filesystem("cloud").exists("bucket/videos/.index-train.npy")
    with monkeypatch.context() as patch:
        patch.setattr(tfrecord, "_scan_shards", None)
        assert Dataset(remote, "train")[3] == first[3]
        assert pickle.loads(pickle.dumps(first))[3] == first[3]
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("another")))
        assert Dataset(remote, "train")[3] == first[3]  # on another machine
    path = f"bucket/videos/{NAME}-train.tfrecord-00000-of-00002"
    content = fsspec.filesystem("cloud").cat_file(path)
    fsspec.filesystem("cloud").pipe_file(path, content[:-1] + b"\0")  # as large, but another one
    monkeypatch.setattr(tfrecord, "_scan_shards", lambda *_: pytest.fail("scanned again"))
    with pytest.raises(BaseException, match="scanned again"):
        Dataset(remote, "train")


def test_passing_failures_are_retried_and_lasting_ones_fatal(remote: str) -> None:
    Cloud.failures = 2
    dataset = Dataset(remote, "train")  # while it is described, ...
    Cloud.failures = 2
    assert dataset[0].id == "video-0"  # ... and while it is read
    Cloud.failures = 3
    with pytest.raises(OSError, match=r"connection reset.*cloud://bucket/videos/small-train"):
        dataset[0]
    Cloud.failures = 10**6
    with pytest.raises(UserError, match=r"cloud://bucket/videos cannot be read \(.*reset"):
        Dataset(remote, "train")


def test_failing_storage_is_given_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the delays that users get, which the other tests replace."""
    slept: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", slept.append)
    read = Failing(lambda: b"")
    read.fails = set(range(100))
    with pytest.raises(OSError, match="loose.*: 'there'"):
        storage.retried(read, "there")
    assert len(slept) >= 3 and read.calls == len(slept) + 1
    assert slept == sorted(set(slept))  # each longer than the one before
    assert 5 <= sum(slept) <= 30


@pytest.mark.parametrize("place", ["remote", "local"])
def test_whatever_fails_once_while_a_dataset_is_opened_is_tried_again(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    directory = remote if place == "remote" else str(tmp_path)
    expected = Dataset(directory, "train").fingerprint  # and the index is kept
    monkeypatch.setattr(storage, "RETRY_DELAYS_S", (0.0,))
    for owner, name in (
        [(Cloud, "ls"), (Cloud, "cat_file")]
        if place == "remote"
        else [(storage, "_list_local"), (storage, "_read_local"), (storage, "_stat")]
    ):
        whole = Failing(getattr(owner, name))
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, whole)
            Dataset(directory, "train")
            calls = whole.calls
            assert calls
            for number in range(calls):
                whole.calls, whole.fails = 0, {number}
                assert Dataset(directory, "train").fingerprint == expected
                assert whole.calls > calls
            whole.calls, whole.fails = 0, set(range(100))
            with pytest.raises(UserError, match=r"cannot be read \(.*loose.*: see to the storage"):
                Dataset(directory, "train")


class Failing:
    """A function that fails in those of its calls whose numbers are given."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.calls, self.fails = function, 0, set[int]()

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls - 1 in self.fails:
            raise OSError(errno.EIO, "the cable is loose")
        return self.function(*arguments, **options)

    def __get__(self, instance: Any, owner: Any) -> Any:
        return functools.partial(self, instance)


def test_what_is_not_there_is_reported(remote: str) -> None:
    with pytest.raises(UserError, match=r"at cloud://nowhere, which holds no dataset_info"):
        Dataset("cloud://nowhere", "train")
    with pytest.raises(UserError, match=r"no split 'test'"):
        Dataset(remote, "test")
    fsspec.filesystem("cloud").rm_file(f"bucket/videos/{NAME}-train.tfrecord-00001-of-00002")
    with pytest.raises(UserError, match=r"00001-of-00002 cannot be opened \(No such file"):
        Dataset(remote, "train")


@pytest.mark.parametrize(
    ("address", "package", "remedy"),
    [
        ("nonsense://bucket/videos", "Protocol not known: nonsense", "give a local path, gs://"),
        ("gs://bucket/videos", "gcsfs", r"pip install -e '.\[gcs\]' in the"),
        ("s3://bucket/videos", "s3fs", r"pip install -e '.\[s3\]' in the"),
    ],
)
def test_a_missing_package_is_named(address: str, package: str, remedy: str) -> None:
    if importlib.util.find_spec(package.partition(":")[0]):
        pytest.skip(f"{package} is installed, and would look for the bucket")
    with pytest.raises(UserError, match=f"^{address} cannot be opened: .*{package}.*: {remedy}"):
        Dataset(address, "train")


def test_files_by_an_address_of_the_local_file_system(tmp_path: Path) -> None:
    """fsspec's own takes a range literally, and would make room for it."""
    path = tmp_path / "small"
    path.write_bytes(b"content")
    assert storage.read_file(f"file://{path}") == b"content"


def test_what_vanishes_while_a_folder_is_listed_hides_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the temporary file of an index does that another process is keeping."""
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).write_bytes(b"12")
    scandir = os.scandir

    @contextlib.contextmanager
    def listed_before(path: str) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        (tmp_path / "b").unlink()
        yield found

    monkeypatch.setattr(os, "scandir", listed_before)
    listed = storage.list_directory(str(tmp_path))
    assert {name: state.size for name, state in listed.items()} == {"a": 2, "c": 2, "d": 2}
