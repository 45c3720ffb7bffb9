"""ArrayRecord files: what the package checks, what it does not, and how its errors come out."""

import errno
import os
import pickle
import resource
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamae_jax.data import storage
from adamae_jax.data.array_records import ArrayRecordReader
from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.damage import BadRecordError
from adamae_jax.data.records import Dataset
from adamae_jax.data.schema import ARRAY_RECORD, FILE_FORMATS
from adamae_jax.errors import UserError
from adamae_jax.prepare import examples as writing
from adamae_jax.prepare.shard_files import WRITERS, records
from tests.data.fixtures import flip_byte, small_records, stored_frames, training

pytest.importorskip("array_record")

PAYLOADS = [np.random.default_rng(number).bytes(500 * number + 1) for number in range(7)]
COUNTS = [3, 0, 4]


def write_shard(path: Path, payloads: list[bytes], file_format: str = ARRAY_RECORD) -> Path:
    shard = WRITERS[file_format](path)
    for payload in payloads:
        shard.write(payload)
    shard.close()
    return path


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    ends = np.cumsum(COUNTS)
    return [
        str(write_shard(tmp_path / f"shard-{number}", PAYLOADS[end - count : end]))
        for number, (end, count) in enumerate(zip(ends, COUNTS, strict=True))
    ]


def read(reader: ArrayRecordReader, record: int) -> bytes:
    payload = reader.payload(record)
    assert payload.size == len(payload.whole())
    return payload.whole()


def test_reads_every_record_of_every_shard(shards: list[str]) -> None:
    reader = ArrayRecordReader(shards, COUNTS)
    assert len(reader) == 7
    assert [read(reader, number) for number in range(7)] == PAYLOADS
    assert [reader.place(number) for number in (0, 2, 3, 6)] == [
        (shards[0], 0), (shards[0], 2), (shards[2], 0), (shards[2], 3)
    ]  # fmt: skip


def test_survives_pickling_and_serves_threads(shards: list[str]) -> None:
    reader = ArrayRecordReader(shards, COUNTS)
    read(reader, 0)
    assert read(pickle.loads(pickle.dumps(reader)), 5) == PAYLOADS[5]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(7, size=200):
            if read(reader, number) != PAYLOADS[number]:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_passing_failure_is_retried_and_a_lasting_one_is_fatal(
    shards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "RETRY_DELAYS_S", (0.0, 0.0))
    reader = ArrayRecordReader(shards, COUNTS)
    read(reader, 0)
    # The descriptor of the open file becomes one that cannot be read.
    (descriptor,) = (
        int(link.name)
        for link in Path("/proc/self/fd").iterdir()
        if link.is_symlink() and os.readlink(link) == shards[0]
    )
    with open(os.devnull, "wb") as unreadable:
        os.dup2(unreadable.fileno(), descriptor)
    assert read(reader, 2) == PAYLOADS[2]  # opened anew
    Path(shards[2]).rename(f"{shards[2]}.away")
    with pytest.raises(FileNotFoundError, match="shard-2"):
        reader.payload(5)
    Path(f"{shards[2]}.away").rename(shards[2])
    assert read(reader, 5) == PAYLOADS[5]


def test_a_full_disk_is_known_for_one(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    shard = WRITERS[ARRAY_RECORD](tmp_path / "shard")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        with pytest.raises(OSError, match="File too large") as caught:
            for _ in range(60):
                shard.write(np.random.default_rng(0).bytes(20_000))
            shard.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    shard.abandon()


def test_records_of_a_damaged_file_are_told_apart(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "shard", PAYLOADS)
    flip_byte(path, path.read_bytes().index(PAYLOADS[2][100:120]))
    found = list(records(path, ARRAY_RECORD))
    assert isinstance(found.pop(2), BadRecordError)
    assert found == PAYLOADS[:2] + PAYLOADS[3:]
    os.truncate(path, 3000)
    (problem,) = records(path, ARRAY_RECORD)
    assert isinstance(problem, BadRecordError) and "cut off" in str(problem)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        list(records(path, ARRAY_RECORD))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda path: path.unlink(), r"shard-2 cannot be opened \(No such file"),
        (lambda path: os.truncate(path, 300), "shard-2 is damaged or cut off"),
        (lambda path: path.write_bytes(b""), "shard-2 (is damaged|holds 0 records)"),
        (lambda path: path.write_bytes(b"rubbish" * 50), "shard-2 is damaged or cut off"),
        (lambda path: write_shard(path, PAYLOADS[:3]), "shard-2 holds 3 records, but .* says 4"),
    ],
)
def test_shards_are_looked_at_when_they_are_opened(
    shards: list[str], change: Any, complaint: str
) -> None:
    change(Path(shards[2]))
    with pytest.raises(UserError, match=complaint):
        ArrayRecordReader(shards, COUNTS)


def test_a_missing_package_is_named(shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "array_record.python", None)
    with pytest.raises(UserError, match="need a package that cannot .*: pip install array_record"):
        ArrayRecordReader(shards, COUNTS)


def test_remote_shards_are_refused() -> None:
    with pytest.raises(UserError, match="^gs://b/shard is an ArrayRecord file, .* copy "):
        ArrayRecordReader(["gs://b/shard"], [3])


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same records in files of every format."""
    folders = {}
    examples = small_records(9)
    for file_format in FILE_FORMATS:
        folder = tmp_path_factory.mktemp(file_format)
        sizes = []
        for shard, part in enumerate([examples[:5], examples[5:]]):
            name = writing.shard_name("small", "train", file_format, shard, 2)
            write_shard(folder / name, part, file_format)
            sizes.append((len(part), sum(map(len, part))))
        described = writing.features(("a", "b", "c"), foreground=True)
        writing.write_metadata(folder, described, {"train": sizes}, file_format, "small", "Small.")
        folders[file_format] = folder
    return folders


def test_a_dataset_is_what_it_is_in_tfrecords(datasets: dict[str, Path]) -> None:
    one, other = (Dataset(datasets[file_format], "train") for file_format in FILE_FORMATS)
    assert len(one) == len(other) == 9
    other = pickle.loads(pickle.dumps(other))
    for number in range(9):
        assert one[number] == other[number]
        assert list(stored_frames(one[number])) == list(stored_frames(other[number]))
    assert other.where(6).startswith("record 6 of split 'train' (number 1 in ")
    assert [path.name for path in datasets[ARRAY_RECORD].glob(".*")] == []  # no index beside it


def test_training_batches_are_the_same(datasets: dict[str, Path]) -> None:
    batches = {}
    for file_format, folder in datasets.items():
        with training(
            Dataset(folder, "train"), ClipSpec(4, 1, (16, 16)),
            seed=1, videos_per_step=6, first_step=2, num_steps=3,
        ) as stream:  # fmt: skip
            batches[file_format] = [batch["video"] for batch in stream]
    one, other = batches.values()
    np.testing.assert_array_equal(one, other)


def test_a_damaged_record_is_named(datasets: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in datasets[ARRAY_RECORD].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (shard,) = folder.glob("*-00001-of-*")
    flip_byte(shard, shard.read_bytes().index(b"video-6"))
    dataset = Dataset(folder, "train")
    assert dataset[5].id == "video-5" and dataset[7].id == "video-7"
    with pytest.raises(BadRecordError, match=r"record 6 .*\(number 1 in .*-00001-of-00002\): "):
        dataset[6]
