import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamae_jax.data import index_files, tfrecord
from adamae_jax.data.record_reader import RecordReader
from adamae_jax.data.tfrecord import ShardIndex, load_index
from adamae_jax.errors import UserError
from tests.data.fixtures import frame_record

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


def test_reads_every_record_of_every_shard(shards: list[Path]) -> None:
    reader = RecordReader(load(shards))
    assert [reader.payload(number).whole() for number in range(7)] == PAYLOADS
    assert reader.payload(5).whole() == PAYLOADS[5]


def test_index_is_cached_and_rebuilt_when_a_shard_changes(
    shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(shards)
    assert (shards[0].parent / "index.npy").exists()
    scan, scanned = tfrecord._scan_shard, []

    def noted_scan(path: str, size: int) -> Any:
        scanned.append(Path(path))
        return scan(path, size)

    monkeypatch.setattr(tfrecord, "_scan_shard", noted_scan)
    again = load(shards)
    assert scanned == []
    assert again.paths == first.paths
    np.testing.assert_array_equal(again.offsets, first.offsets)
    os.utime(shards[2], (1, 1))
    load(shards)
    assert sorted(scanned) == shards
    scanned.clear()
    (shards[0].parent / "index.npy").write_bytes(b"\x93NUMPY rubbish")
    assert len(load(shards)) == 7
    assert sorted(scanned) == shards


def test_a_damaged_index_is_built_again(shards: list[Path]) -> None:
    """Such as a power cut leaves: the right size, and pages of zeros."""
    good = load(shards)
    index = shards[0].parent / "index.npy"
    whole = index.read_bytes()
    for place in (len(whole) - 1, len(whole) - 30, len(whole) - 8 * 12):
        index.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        again = load(shards)
        np.testing.assert_array_equal(again.offsets, good.offsets)
        np.testing.assert_array_equal(again.lengths, good.lengths)
        assert index.read_bytes() == whole


def test_an_index_with_a_damaged_header_is_built_again(shards: list[Path]) -> None:
    """NumPy evaluates a header as Python source, which ends in errors of many kinds."""
    good = load(shards)
    index = shards[0].parent / "index.npy"
    whole = index.read_bytes()
    assert good.mapped is not None
    size = whole.index(good.mapped[1])
    assert np.load(index).tobytes() == whole[size:]  # it is a header for others to read
    damages = [(place, value) for place in range(size) for value in b"\0\n(,'9\xff"]
    damages += [(place, whole[place] ^ 1 << bit) for place in range(size) for bit in range(8)]
    for place, value in damages:
        if value != whole[place]:
            index.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            assert index_files.read(*good.mapped) is None, (place, value)
    for torn in (0, 1, size - 1, size, size + 8, len(whole) - 8, len(whole) - 1):
        index.write_bytes(whole[:torn])
        assert index_files.read(*good.mapped) is None, torn
    index.write_bytes(whole[:60] + b"\0" + whole[61:])
    again = load(shards)
    np.testing.assert_array_equal(again.offsets, good.offsets)
    assert index.read_bytes() == whole


def refuse_in(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets nobody write there, as permissions would, which do not bind a superuser."""
    mkstemp = tempfile.mkstemp

    def refusing(*, dir: str | Path, prefix: str = "tmp") -> tuple[int, str]:
        if Path(dir) in folders:
            raise PermissionError("read-only")
        return mkstemp(dir=dir, prefix=prefix)

    monkeypatch.setattr(tempfile, "mkstemp", refusing)


@pytest.fixture
def user_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("user")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "adamae_jax" / "indexes"


def test_index_of_read_only_data_is_kept_by_the_user(
    shards: list[Path], user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shards[0].parent
    refuse_in([folder], monkeypatch)
    index = load(shards)
    assert RecordReader(index).payload(6).whole() == PAYLOADS[6]
    assert sorted(path.name for path in folder.iterdir()) == [p.name for p in shards]
    (kept,) = user_cache.iterdir()
    assert index.mapped is not None and index.mapped[0] == str(kept)
    monkeypatch.setattr(tfrecord, "_scan_shards", None)
    assert RecordReader(load(shards)).payload(6).whole() == PAYLOADS[6]


def test_index_stays_in_memory_where_it_cannot_be_written(
    shards: list[Path], user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_in([shards[0].parent, user_cache], monkeypatch)
    index = load(shards)
    assert index.mapped is None
    assert RecordReader(pickle.loads(pickle.dumps(index))).payload(6).whole() == PAYLOADS[6]
    assert not list(user_cache.iterdir())


def test_a_mapped_index_travels_as_the_name_of_its_file(shards: list[Path]) -> None:
    load(shards)
    index = load(shards)
    assert isinstance(index.offsets, np.memmap)
    # 9 records or 9 million: what a worker is sent does not hold them.
    pickled = pickle.dumps(index)
    assert index.offsets.tobytes() not in pickled and len(pickled) < 1000
    copy = pickle.loads(pickled)
    assert isinstance(copy.offsets, np.memmap)
    assert [RecordReader(copy).payload(number).whole() for number in range(7)] == PAYLOADS
    os.utime(shards[0], (1, 1))
    load(shards)
    with pytest.raises(UserError, match=r"index.npy has changed since the dataset was opened"):
        pickle.loads(pickled)


def test_records_smaller_than_a_block_are_found(tmp_path: Path) -> None:
    payloads = [bytes(number % 50) for number in range(2000)]
    (tmp_path / "shard").write_bytes(b"".join(map(frame_record, payloads)))
    reader = RecordReader(load_index([tmp_path / "shard"], [2000], tmp_path / "index.npy"))
    assert [reader.payload(number).whole() for number in range(2000)] == payloads


@pytest.mark.full
def test_ten_million_records_take_less_than_500_megabytes(tmp_path: Path) -> None:
    block = b"".join(frame_record(bytes(number % 90)) for number in range(100_000))
    for shard in range(4):
        with open(tmp_path / f"shard-{shard}", "wb") as file:
            for _ in range(25):
                file.write(block)
    script = (
        "import pathlib, re, sys, time\n"
        "from adamae_jax.data.tfrecord import load_index\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "paths = sorted(folder.glob('shard-*'))\n"
        "start = time.monotonic()\n"
        "index = load_index(paths, [2_500_000] * 4, folder / 'index.npy')\n"
        "assert len(index) == 10**7 and index.shard_of(9_999_999) == 3\n"
        "int(index.offsets.sum())\n"
        # Not ru_maxrss, which begins with that of the process it was forked from.
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "peak = int(re.search(r'VmHWM:\\s+(\\d+)', status)[1])\n"
        "print(time.monotonic() - start, peak / 1024)\n"
    )
    for _ in ("built", "mapped"):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
        )
        seconds, megabytes = map(float, done.stdout.split())
        print(f"{seconds:.1f} s, {megabytes:.0f} MB at most")
        assert megabytes < 500


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
