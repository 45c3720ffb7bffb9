"""Datasets on a file system of fsspec, stood in for by its own in memory."""

import errno
import importlib.util
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from adamae_jax.data import storage, tfrecord
from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.records import Dataset
from adamae_jax.errors import UserError
from tests.data.fixtures import NAME, small_records, stored_frames, training, write_dataset

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
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A dataset in the cloud, whose local original is in ``tmp_path``."""
    fsspec.register_implementation("cloud", Cloud, clobber=True)
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
        training(Dataset(tmp_path, "train"), SPEC, **arguments) as here,
        training(Dataset(remote, "train"), SPEC, **arguments) as there,
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


def test_the_index_is_kept_in_the_cloud(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Dataset(remote, "train")
    assert fsspec.filesystem("cloud").exists("bucket/videos/.index-train.npy")
    monkeypatch.setattr(tfrecord, "_scan_shards", None)
    assert Dataset(remote, "train")[3] == first[3]
    assert pickle.loads(pickle.dumps(first))[3] == first[3]


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
    calls: list[int] = []

    def fail() -> bytes:
        calls.append(len(calls))
        raise OSError(errno.EIO, "the cable is loose")

    with pytest.raises(OSError, match="loose.*: 'there'"):
        storage.retried(fail, "there")
    assert len(slept) >= 3 and len(calls) == len(slept) + 1
    assert slept == sorted(set(slept))  # each longer than the one before
    assert 5 <= sum(slept) <= 30


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
