import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest

from adamae_jax.data import tfrecord
from adamae_jax.data.tfrecord import BadRecordError, RecordReader, ShardIndex, load_index
from adamae_jax.errors import UserError
from tests.data.fixtures import flip_byte, frame_record

PAYLOADS = [bytes([number]) * (10 * number + 1) for number in range(7)]
COUNTS = [3, 0, 4]


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    paths = []
    rest = list(PAYLOADS)
    for shard, count in enumerate(COUNTS):
        paths.append(tmp_path / f"shard-{shard}")
        paths[-1].write_bytes(b"".join(frame_record(rest.pop(0)) for _ in range(count)))
    return paths


def load(shards: list[Path]) -> ShardIndex:
    return load_index(shards, COUNTS, shards[0].parent / "index.npz")


def test_reads_every_record_of_every_shard(shards: list[Path]) -> None:
    reader = RecordReader(load(shards))
    assert [reader.read(number) for number in range(7)] == PAYLOADS
    assert reader.read(5) == PAYLOADS[5]


def test_index_is_cached_and_rebuilt_when_a_shard_changes(
    shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(shards)
    assert (shards[0].parent / "index.npz").exists()
    scan, scanned = tfrecord._scan_shard, []

    def noted_scan(path: Path) -> tuple[np.ndarray, np.ndarray]:
        scanned.append(path)
        return scan(path)

    monkeypatch.setattr(tfrecord, "_scan_shard", noted_scan)
    again = load(shards)
    assert scanned == []
    assert again.paths == first.paths
    np.testing.assert_array_equal(again.offsets, first.offsets)
    os.utime(shards[2], (1, 1))
    load(shards)
    assert scanned == shards
    scanned.clear()
    (shards[0].parent / "index.npz").write_bytes(b"PK rubbish")
    assert len(load(shards)) == 7
    assert scanned == shards


def test_index_stays_in_memory_where_it_cannot_be_written(
    shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    assert RecordReader(load(shards)).read(6) == PAYLOADS[6]
    assert sorted(path.name for path in shards[0].parent.iterdir()) == [p.name for p in shards]


@pytest.mark.parametrize("length", [2**63, 10**6, 3])
def test_lying_length_is_not_believed(shards: list[Path], length: int) -> None:
    data = bytearray(shards[2].read_bytes())
    data[:8] = length.to_bytes(8, "little")
    if length == 10**6:  # with a checksum that fits, only the file's size gives it away
        data[8:12] = tfrecord.masked_checksum(bytes(data[:8])).to_bytes(4, "little")
    shards[2].write_bytes(data)
    with pytest.raises(UserError, match="shard-2 is damaged or cut off at byte 0, after 0"):
        load(shards)


def test_cut_off_shard_is_reported(shards: list[Path]) -> None:
    shards[2].write_bytes(shards[2].read_bytes()[:-1])
    with pytest.raises(UserError, match=r"shard-2 is damaged or cut off .* after 3 whole records"):
        load(shards)


def test_missing_records_are_reported(shards: list[Path]) -> None:
    shards[2].write_bytes(b"".join(map(frame_record, PAYLOADS[3:6])))
    with pytest.raises(UserError, match=r"shard-2 holds 3 records, .* says 4"):
        load(shards)


def test_missing_shard_is_reported(shards: list[Path]) -> None:
    shards[1].unlink()
    with pytest.raises(UserError, match=r"shard-1 cannot be opened \(No such file"):
        load(shards)


def test_damaged_payload_is_found_and_the_others_are_not_touched(shards: list[Path]) -> None:
    index = load(shards)
    flip_byte(shards[2], int(index.offsets[4]) + 3)
    reader = RecordReader(load(shards))
    with pytest.raises(BadRecordError, match="checksum"):
        reader.read(4)
    assert [reader.read(number) for number in (3, 5)] == [PAYLOADS[3], PAYLOADS[5]]


def test_shard_that_shrinks_under_the_reader_gives_a_bad_record(shards: list[Path]) -> None:
    reader = RecordReader(load(shards))
    os.truncate(shards[2], shards[2].stat().st_size - 2)
    with pytest.raises(BadRecordError, match="ends inside"):
        reader.read(6)


def test_passing_failure_is_retried_and_a_lasting_one_is_fatal(
    shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tfrecord, "RETRY_DELAYS_S", (0.0, 0.0))
    reader = RecordReader(load(shards))
    pread, failures = os.pread, [2]

    def failing(*arguments: int) -> bytes:
        failures[0] -= 1
        if failures[0] >= 0:
            raise OSError(5, "Input/output error")
        return pread(*arguments)

    monkeypatch.setattr(os, "pread", failing)
    assert reader.read(1) == PAYLOADS[1]
    failures[0] = 3
    with pytest.raises(OSError, match=r"Input/output error.*shard-0"):
        reader.read(1)


def test_few_files_stay_open(shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfrecord, "MAX_OPEN_SHARDS", 1)
    reader = RecordReader(load(shards))

    def open_shards() -> list[str]:
        links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
        return [os.readlink(link) for link in links if link.is_symlink()]

    for number in (0, 4, 1, 5):
        assert reader.read(number) == PAYLOADS[number]
        assert sum(str(shards[0].parent) in path for path in open_shards()) == 1


def test_reader_survives_pickling_and_forking(
    shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = RecordReader(load(shards))
    reader.read(0)
    assert pickle.loads(pickle.dumps(reader)).read(3) == PAYLOADS[3]
    reader._lock.acquire()  # as another thread might hold it at the moment of a fork
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert reader.read(0) == PAYLOADS[0]
