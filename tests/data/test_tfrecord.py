import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from adamae_jax.data import storage, tfrecord
from adamae_jax.data.damage import BadRecordError
from adamae_jax.data.tfrecord import RecordIndex, RecordReader, load_index
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


def load(shards: list[Path]) -> RecordIndex:
    return load_index(shards, COUNTS, str(shards[0].parent / "index.npy"))


def read_all(index: RecordIndex) -> list[bytes]:
    reader = RecordReader(index)
    return [reader.payload(number).whole() for number in range(len(reader))]


def test_reads_every_record_of_every_shard(shards: list[Path]) -> None:
    reader = RecordReader(load(shards))
    assert read_all(reader.index) == PAYLOADS
    assert [reader.place(number) for number in (0, 2, 3, 6)] == [
        (str(shards[0]), 0), (str(shards[0]), 2), (str(shards[2]), 0), (str(shards[2]), 3)
    ]  # fmt: skip
    assert pickle.loads(pickle.dumps(reader)).payload(3).whole() == PAYLOADS[3]


def test_a_part_is_read_alone_and_within_the_record(shards: list[Path]) -> None:
    payload = RecordReader(load(shards)).payload(5)
    assert payload.size == len(PAYLOADS[5]) and payload.gap == storage.LOCAL_GAP
    assert payload.read(7, 11) == PAYLOADS[5][7:18]
    for start, count in ((0, payload.size + 1), (-1, 2), (payload.size, 1)):
        with pytest.raises(BadRecordError, match="it ends before"):
            payload.read(start, count)


def test_records_smaller_than_a_block_are_found(tmp_path: Path) -> None:
    payloads = [bytes(number % 50) for number in range(2000)]
    (tmp_path / "shard").write_bytes(b"".join(map(frame_record, payloads)))
    assert read_all(load_index([tmp_path / "shard"], [2000])) == payloads


def test_index_is_kept_and_rebuilt_when_a_shard_or_the_index_changes(
    shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = load(shards).bounds.tolist()
    path = shards[0].parent / "index.npy"
    whole = path.read_bytes()
    scan, scanned = tfrecord._scan_shards, []

    def noted_scan(*arguments: object) -> object:
        scanned.append(arguments)
        return scan(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tfrecord, "_scan_shards", noted_scan)
    assert load(shards).bounds.tolist() == bounds and not scanned
    shards[2].write_bytes(b"".join(map(frame_record, [b"longer than before", *PAYLOADS[4:]])))
    assert load(shards).bounds.tolist() != bounds and len(scanned) == 1
    shards[2].write_bytes(b"".join(map(frame_record, PAYLOADS[3:])))
    assert load(shards).bounds.tolist() == bounds and len(scanned) == 2
    # Such as a power cut leaves: cut off, pages of zeros, single bits.
    whole = path.read_bytes()
    damages = [whole[:0], whole[:60], whole[:-8], whole[:64] + bytes(len(whole) - 64)]
    damages += [
        whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]
        for place in (0, 9, 30, 61, len(whole) - 70, len(whole) - 30, len(whole) - 1)
    ]
    for number, damaged in enumerate(damages, 3):
        path.write_bytes(damaged)
        assert load(shards).bounds.tolist() == bounds
        assert len(scanned) == number and path.read_bytes() == whole


def test_an_index_is_good_for_a_copy_of_the_shards(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(shards)
    folder = shards[0].parent
    copy = shutil.copytree(folder, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    monkeypatch.setattr(tfrecord, "_scan_shards", None)
    assert read_all(load([Path(copy, shard.name) for shard in shards])) == PAYLOADS


def test_the_index_of_read_only_data_is_made_at_each_start(
    shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**where: object) -> None:  # as permissions would, which do not bind a superuser
        raise PermissionError("read-only")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    for _ in range(2):
        assert read_all(load(shards)) == PAYLOADS
    assert sorted(path.name for path in shards[0].parent.iterdir()) == [p.name for p in shards]


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
        "index = load_index(paths, [2_500_000] * 4, str(folder / 'index.npy'))\n"
        "assert len(index) == 10**7 and index.place(9_999_999) == (3, 2_499_999)\n"
        "int(index.bounds.sum())\n"
        # Not ru_maxrss, which begins with that of the process it was forked from.
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "peak = int(re.search(r'VmHWM:\\s+(\\d+)', status)[1])\n"
        "print(time.monotonic() - start, peak / 1024)\n"
    )
    for _ in ("built", "read"):
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


def test_shards_that_are_cut_off_incomplete_or_missing_are_named(shards: list[Path]) -> None:
    shards[2].write_bytes(shards[2].read_bytes()[:-1])
    with pytest.raises(UserError, match=r"shard-2 is damaged or cut off .* after 3 whole records"):
        load(shards)
    shards[2].write_bytes(b"".join(map(frame_record, PAYLOADS[3:6])))
    with pytest.raises(UserError, match=r"shard-2 holds 3 records, .* says 4"):
        load(shards)
    shards[1].unlink()
    with pytest.raises(UserError, match=r"shard-1 cannot be opened \(No such file"):
        load(shards)


def test_damage_is_found_and_the_other_records_are_not_touched(shards: list[Path]) -> None:
    flip_byte(shards[2], load(shards).span(4)[0] + 3)
    reader = RecordReader(load(shards))
    with pytest.raises(BadRecordError, match="checksum"):
        reader.payload(4).whole()
    assert [reader.payload(number).whole() for number in (3, 5)] == [PAYLOADS[3], PAYLOADS[5]]
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


def test_few_files_stay_open_and_a_stale_handle_is_not_used_again(
    shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "MAX_OPEN", 1)
    monkeypatch.setattr(storage, "RETRY_DELAYS_S", (0.0,))
    reader = RecordReader(load(shards))

    def open_shards() -> list[int]:
        links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
        prefix = str(shards[0].parent / "shard-")
        return [int(p.name) for p in links if p.is_symlink() and prefix in os.readlink(p)]

    for number in (0, 4, 1, 5, 2):
        assert reader.payload(number).whole() == PAYLOADS[number]
        (descriptor,) = open_shards()
    with open(os.devnull, "wb") as unreadable:  # as a network file system leaves it
        os.dup2(unreadable.fileno(), descriptor)
    assert reader.payload(1).whole() == PAYLOADS[1]
