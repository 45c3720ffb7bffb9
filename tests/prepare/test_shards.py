import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from adamae_jax.data.damage import BadRecordError
from adamae_jax.data.schema import ARRAY_RECORD, FILE_FORMATS, TFRECORD
from adamae_jax.prepare.shard_files import WRITERS, TFRecordWriter, payloads
from adamae_jax.prepare.shards import (
    JOURNAL_NAME,
    Journal,
    Limits,
    TooManySkippedError,
    write_shards,
)
from adamae_jax.prepare.sources import Item
from adamae_jax.prepare.transform import Flaw, Result
from tests.data.fixtures import flip_byte

BAD = {3: "skipped", 7: "truncated", 19: "skipped"}  # the last item is one of them


def items(count: int = 20, split: str | None = None) -> list[Item]:
    return [Item(f"v{number}", "", 0, split) for number in range(count)]


def results(first: int, last: int = 20) -> Iterator[Result]:
    """Payloads of 100 bytes; some items have flaws."""
    for number in range(first, last):
        flaw = Flaw(f"v{number}", BAD[number], 0, "why") if number in BAD else None
        skipped = flaw is not None and flaw.status == "skipped"
        yield Result(None if skipped else b"%03d" % number + bytes(97), flaw)


def write(
    folder: Path, last: int = 20, max_skipped: int = 5, file_format: str = TFRECORD
) -> Journal:
    """All items, or the first ones until the process is killed."""
    journal = Journal(folder, file_format)
    limits = Limits(shard_bytes=350, set_aside=6, max_skipped=max_skipped)
    try:
        write_shards(journal, items(), results(journal.done, last), limits)
    except ValueError:  # zip: the results ended before the items did
        assert last < 20
    return journal


def content(folder: Path, file_format: str = TFRECORD) -> dict[str, list[int]]:
    return {
        path.name: [int(payload[:3]) for payload in payloads(path, file_format)]
        for path in sorted(folder.iterdir())
        if path.name != JOURNAL_NAME
    }


WHOLE = {
    "train-00000": [7, 8, 9, 10],
    "train-00001": [11, 12, 13, 14],
    "train-00002": [15, 16, 17, 18],
    "validation-00000": [0, 1, 2, 4],
    "validation-00001": [5, 6],
}


@pytest.mark.parametrize("file_format", FILE_FORMATS)
def test_shards(tmp_path: Path, file_format: str) -> None:
    if file_format == ARRAY_RECORD:
        pytest.importorskip("array_record")
    journal = write(tmp_path, file_format=file_format)
    assert content(tmp_path, file_format) == WHOLE
    assert [(flaw.id, flaw.status) for flaw in journal.flaws] == [
        (f"v{number}", status) for number, status in BAD.items()
    ]
    assert [shard.name for shard in journal.files] == [
        "validation-00000", "validation-00001", "train-00000", "train-00001", "train-00002"
    ]  # fmt: skip
    assert {shard.records * 100 for shard in journal.files} == {400, 200}
    assert journal.done == 20


@pytest.mark.parametrize("last", range(20))
def test_a_killed_job_goes_on(tmp_path: Path, last: int) -> None:
    write(tmp_path, last)
    # What a kill may leave beside whole shards: half a file and half a line.
    (tmp_path / "train-00009").write_bytes(b"half")
    with open(tmp_path / JOURNAL_NAME, "a") as file:
        file.write('{"name": "train-00')
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*-0000?")}
    kept = {shard.name for shard in Journal(tmp_path, TFRECORD).files}
    assert len(kept) >= last // 6
    journal = write(tmp_path)
    assert content(tmp_path) == WHOLE
    assert [flaw.id for flaw in journal.flaws] == ["v3", "v7", "v19"]
    assert all((tmp_path / name).stat().st_mtime_ns == before[name] for name in kept)


@pytest.mark.parametrize("file_format", FILE_FORMATS)
def test_shards_are_on_the_disk_before_the_journal_names_them(
    tmp_path: Path, file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power failure leaves a journal of shards that have their size, and zeros in them."""
    if file_format == ARRAY_RECORD:
        pytest.importorskip("array_record")
    synced: list[tuple[str, int]] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        path, journal = Path(os.readlink(f"/proc/self/fd/{descriptor}")), tmp_path / JOURNAL_NAME
        named = journal.exists() and path.name in journal.read_text()
        assert not named, f"{path.name} is named before it is on the disk"
        synced.append((path.name, path.stat().st_size))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    journal = write(tmp_path, file_format=file_format)
    assert synced.pop(0)[0] == f"{JOURNAL_NAME}.new"  # before it takes the place of another
    assert synced[::2] == [(shard.name, shard.file_bytes) for shard in journal.files]  # whole
    assert [name for name, _ in synced[1::2]] == [JOURNAL_NAME] * 5


class NotedWriter(TFRecordWriter):
    """Says in which way each file was left."""

    ends: list[str] = []  # noqa: RUF012 (cleared by the test)

    def close(self) -> None:
        self.ends.append("closed")
        super().close()

    def abandon(self) -> None:
        self.ends.append("abandoned")
        super().abandon()


def test_finished_shards_are_closed_and_others_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WRITERS, TFRECORD, NotedWriter)
    NotedWriter.ends.clear()
    write(tmp_path, 12)  # killed in the second shard of "train"
    assert NotedWriter.ends == ["closed"] * 3 + ["abandoned"]
    NotedWriter.ends.clear()
    write(tmp_path)
    assert NotedWriter.ends == ["closed"] * 2


def test_finished_work_is_not_done_again(tmp_path: Path) -> None:
    write(tmp_path)
    assert Journal(tmp_path, TFRECORD).done == 20
    journal = write(tmp_path)  # no results are asked for
    assert content(tmp_path) == WHOLE
    assert len(journal.flaws) == 3


def test_damaged_shards_are_written_again(tmp_path: Path) -> None:
    write(tmp_path, 16)  # the journal ends with train-00001
    flip_byte(tmp_path / "train-00001", 200)  # neither size nor time tell
    assert [shard.name for shard in Journal(tmp_path, TFRECORD).files][-1] == "train-00000"
    assert content(write(tmp_path).folder) == WHOLE
    (tmp_path / "validation-00001").write_bytes(b"")
    assert [shard.name for shard in Journal(tmp_path, TFRECORD).files] == ["validation-00000"]
    assert content(write(tmp_path).folder) == WHOLE


def test_too_many_flaws_end_the_work(tmp_path: Path) -> None:
    with pytest.raises(TooManySkippedError) as caught:
        write(tmp_path, max_skipped=0)
    assert [flaw.id for flaw in caught.value.flaws] == ["v3"]
    assert caught.value.done == 4
    with pytest.raises(TooManySkippedError) as caught:
        write(tmp_path, max_skipped=1)
    assert [flaw.id for flaw in caught.value.flaws] == ["v3", "v7", "v19"]
    write(tmp_path, max_skipped=2)
    assert content(tmp_path) == WHOLE


def test_splits_of_the_items_are_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path, TFRECORD)
    mine = [*items(3, "test"), *items(3, "train")]
    write_shards(journal, mine, results(10, 16), Limits(1000, set_aside=2, max_skipped=0))
    assert content(tmp_path) == {"test-00000": [10, 11, 12], "train-00000": [13, 14, 15]}


def test_a_journal_that_makes_no_sense_starts_clean(tmp_path: Path) -> None:
    write(tmp_path, 12)
    (tmp_path / JOURNAL_NAME).write_text(json.dumps({"name": "train-00000"}) + "\n")
    assert Journal(tmp_path, TFRECORD).shards == []
    assert [path.name for path in tmp_path.iterdir()] == [JOURNAL_NAME]


@pytest.mark.parametrize(
    ("change", "message", "sound"),
    [
        (lambda data: data[:-3], "the shard ends inside it", 2),
        (lambda data: data[:-20], "the shard ends inside it", 2),
        (lambda data: data + b"123", "its length is damaged", 3),
        (lambda data: b"\xff" + data[1:], "its length is damaged", 0),
        (lambda data: data[:30] + b"x" + data[31:], "checksum does not match", 0),
    ],
)
def test_payloads_are_checked(tmp_path: Path, change: object, message: str, sound: int) -> None:
    path = tmp_path / "shard"
    writer = WRITERS[TFRECORD](path)
    for number in range(3):
        writer.write(b"%d" % number * 50)
    writer.close()
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    read = []
    with pytest.raises(BadRecordError, match=message):
        for payload in payloads(path, TFRECORD):
            read.append(payload)
    assert read == [b"%d" % number * 50 for number in range(sound)]
