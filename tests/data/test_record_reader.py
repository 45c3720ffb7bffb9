import os
import pickle
from pathlib import Path

import pytest

from adamae_jax.data import open_files, storage
from adamae_jax.data.record_reader import RecordReader
from adamae_jax.data.tfrecord import BadRecordError, ShardIndex, load_index
from tests.data.fixtures import flip_byte, frame_record, within

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
    return load_index(shards, COUNTS, shards[0].parent / "index.npy")


def test_damaged_payload_is_found_and_the_others_are_not_touched(shards: list[Path]) -> None:
    index = load(shards)
    flip_byte(shards[2], int(index.offsets[4]) + 3)
    reader = RecordReader(load(shards))
    with pytest.raises(BadRecordError, match="checksum"):
        reader.payload(4).whole()
    assert [reader.payload(number).whole() for number in (3, 5)] == [PAYLOADS[3], PAYLOADS[5]]


def test_shard_that_shrinks_under_the_reader_gives_a_bad_record(shards: list[Path]) -> None:
    reader = RecordReader(load(shards))
    os.truncate(shards[2], shards[2].stat().st_size - 2)
    with pytest.raises(BadRecordError, match="ends inside"):
        reader.payload(6).whole()


def test_passing_failure_is_retried_and_a_lasting_one_is_fatal(
    shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "RETRY_DELAYS_S", (0.0, 0.0))
    reader = RecordReader(load(shards))
    pread, failures = os.pread, [2]

    def failing(*arguments: int) -> bytes:
        failures[0] -= 1
        if failures[0] >= 0:
            raise OSError(5, "Input/output error")
        return pread(*arguments)

    monkeypatch.setattr(os, "pread", failing)
    assert reader.payload(1).whole() == PAYLOADS[1]
    failures[0] = 3
    with pytest.raises(OSError, match=r"Input/output error.*shard-0"):
        reader.payload(1).whole()


def test_few_files_stay_open(shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "MAX_OPEN", 1)
    reader = RecordReader(load(shards))

    def open_shards() -> list[str]:
        links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
        return [os.readlink(link) for link in links if link.is_symlink()]

    for number in (0, 4, 1, 5):
        assert reader.payload(number).whole() == PAYLOADS[number]
        assert sum(str(shards[0].parent / "shard-") in path for path in open_shards()) == 1


def test_reader_survives_pickling_and_forking(
    shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = RecordReader(load(shards))
    reader.payload(0).whole()
    assert pickle.loads(pickle.dumps(reader)).payload(3).whole() == PAYLOADS[3]
    reader._files._lock.acquire()  # as another thread might hold it at the moment of a fork
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert within(10, lambda: reader.payload(0).whole()) == PAYLOADS[0]


def test_a_stale_handle_is_not_used_again(
    shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "RETRY_DELAYS_S", (0.0,))
    reader = RecordReader(load(shards))
    reader.payload(0).whole()
    file = reader._files[0]
    assert isinstance(file, storage._LocalFile)
    with open(os.devnull, "wb") as unreadable:  # as a network file system leaves it
        os.dup2(unreadable.fileno(), file._descriptor)
    assert reader.payload(1).whole() == PAYLOADS[1]


def test_a_part_is_read_alone_and_within_the_record(shards: list[Path]) -> None:
    payload = RecordReader(load(shards)).payload(5)
    assert payload.size == len(PAYLOADS[5]) and payload.gap == storage.LOCAL_GAP
    assert payload.read(7, 11) == PAYLOADS[5][7:18]
    for start, count in ((0, payload.size + 1), (-1, 2), (payload.size, 1)):
        with pytest.raises(BadRecordError, match="it ends before"):
            payload.read(start, count)
