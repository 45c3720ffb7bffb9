import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from adamae_jax.data.schema import ARRAY_RECORD, FILE_FORMATS, TFRECORD
from adamae_jax.prepare.shard_files import records
from adamae_jax.prepare.sources import Item
from adamae_jax.prepare.write import (
    Flaw,
    Result,
    finished_shards,
    is_finished,
    write_flaws,
    write_shards,
)

BAD = {3: "skipped", 7: "truncated", 19: "skipped"}  # the last item is one of them
ITEMS = [Item(f"v{n}", "", 0, "validation" if n < 7 else None) for n in range(20)]


def results(first: int, last: int = 20) -> Iterator[Result]:
    """Payloads of 100 bytes; some items have flaws."""
    for number in range(first, last):
        flaw = Flaw(f"v{number}", BAD[number], 0, "why") if number in BAD else None
        skipped = flaw is not None and flaw.status == "skipped"
        yield Result(None if skipped else b"%03d" % number + bytes(97), flaw)


def write(folder: Path, last: int = 20, file_format: str = TFRECORD) -> None:
    """The items that are missing, or the first of them until the process fails."""
    shards = finished_shards(folder)
    start = shards[-1].stop if shards else 0
    try:
        pairs = zip(ITEMS[start:], results(start, last), strict=True)
        write_shards(folder, file_format, start, pairs, 350)
    except ValueError:  # zip: the results ended before the items did
        assert last < 20


def content(folder: Path, file_format: str = TFRECORD) -> list[tuple[str, list[int]]]:
    found = []
    for shard in finished_shards(folder):
        sound = (r for r in records(folder / shard.name, file_format) if isinstance(r, bytes))
        found.append((shard.split, [int(record[:3]) for record in sound]))
    return found


WHOLE = [
    ("validation", [0, 1, 2, 4]),
    ("validation", [5, 6]),
    ("train", [7, 8, 9, 10]),
    ("train", [11, 12, 13, 14]),
    ("train", [15, 16, 17, 18]),
]


@pytest.mark.parametrize("file_format", FILE_FORMATS)
def test_shards(tmp_path: Path, file_format: str) -> None:
    if file_format == ARRAY_RECORD:
        pytest.importorskip("array_record")
    write(tmp_path, file_format=file_format)
    assert content(tmp_path, file_format) == WHOLE
    shards = finished_shards(tmp_path)
    assert [(flaw.id, flaw.status) for shard in shards for flaw in shard.flaws] == [
        (f"v{number}", status) for number, status in BAD.items()
    ]
    assert [shard.records * 100 for shard in shards] == [shard.num_bytes for shard in shards]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        name for shard in shards for name in (shard.name, f"{shard.name}.json")
    )


def written(file: Path) -> tuple[int, int]:
    """Changes whenever a file is written again; reading it changes nothing here."""
    status = file.stat()
    return status.st_ino, status.st_mtime_ns


@pytest.mark.parametrize("last", range(0, 20, 3))
def test_what_is_finished_is_not_written_again(tmp_path: Path, last: int) -> None:
    write(tmp_path, last)
    (tmp_path / ".half").write_bytes(b"half")  # what a kill may leave
    (tmp_path / "000000015-000000020.json").write_bytes(b"")  # and a power failure
    kept = {shard.name: written(tmp_path / shard.name) for shard in finished_shards(tmp_path)}
    assert len(kept) >= last // 6
    write(tmp_path)
    assert content(tmp_path) == WHOLE
    assert {name: written(tmp_path / name) for name in kept} == kept
    before = {path: path.stat() for path in tmp_path.iterdir()}
    write(tmp_path)
    assert {path: path.stat() for path in tmp_path.iterdir()} == before


def test_shards_are_on_the_disk_before_their_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power failure leaves a note of a shard with zeros in it."""
    synced: list[int] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        assert len(list(tmp_path.glob("*.json"))) == len(synced) - 1
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write(tmp_path)
    assert synced == [(tmp_path / shard.name).stat().st_size for shard in finished_shards(tmp_path)]


def test_blocks_that_others_write_are_found_in_any_order(tmp_path: Path) -> None:
    for start, stop in ((7, 20), (3, 4), (0, 3)):
        pairs = zip(ITEMS[start:stop], results(start, stop), strict=True)
        write_shards(tmp_path, TFRECORD, start, pairs, float("inf"))
    assert [shard.stop for shard in finished_shards(tmp_path)] == [3, 4]  # no gap
    assert is_finished(tmp_path, 7, 20) and not is_finished(tmp_path, 4, 7)
    pairs = zip(ITEMS[4:7], results(4, 7), strict=True)
    write_shards(tmp_path, TFRECORD, 4, pairs, float("inf"))
    shards = finished_shards(tmp_path)
    assert [(shard.stop, shard.records) for shard in shards] == [(3, 3), (4, 0), (7, 3), (20, 12)]
    assert not (tmp_path / shards[1].name).exists()  # nothing of it could be used


def test_flaws_are_a_table(tmp_path: Path) -> None:
    flaws = [Flaw("ü,1", "truncated", 20, 'said "no"'), Flaw("a", "skipped", 0, "empty")]
    write_flaws(flaws, tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines() == [
        "id,status,frames,reason",
        "a,skipped,0,empty",
        '"ü,1",truncated,20,"said ""no"""',
    ]
