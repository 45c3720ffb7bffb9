"""The same records by Apache Beam's local runner; without Beam, all but the pipeline itself."""

import functools
import os
from pathlib import Path

import pytest

from adamae_jax.data.records import Dataset
from adamae_jax.data.shard_files import TFRECORD
from adamae_jax.data.sources import Item
from adamae_jax.data.transform import Recipe, transform
from adamae_jax.errors import UserError
from adamae_jax.prepare import beam
from adamae_jax.prepare.verify import verify
from tests.data.videos import make_video
from tests.test_prepare import run


def here(work: functools.partial[None], todo: list[beam.Block], options: beam.BeamOptions) -> None:
    """In the place of Beam's pipeline."""
    del options
    for block in todo:
        work(block)


@pytest.fixture(params=["beam", "here"])
def runner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "here":
        monkeypatch.setattr(beam, "_run", here)
    else:
        pytest.importorskip("apache_beam")
    return "--beam_runner=DirectRunner"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beam, "_items_per_block", lambda *arguments: 3)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(9):
        make_video(folder / f"{number}.mp4", 20)
    (folder / "text.mp4").write_text("no video")
    return folder


def records(output: Path) -> dict[str, tuple[str, object]]:
    return {
        record.id: (split, record)
        for split in ("train", "validation")
        for dataset in [Dataset(output, split)]
        for record in (dataset[number] for number in range(len(dataset)))
    }


def test_beam_makes_the_same_records(source: Path, tmp_path: Path, runner: str) -> None:
    options = [f"--source={source}", "--max_skipped=0.2", "--validation_fraction=0.2"]
    run(*options, f"--output={tmp_path / 'a'}")
    run(*options, f"--output={tmp_path / 'b'}", runner)
    one, other = records(tmp_path / "a"), records(tmp_path / "b")
    assert {name: record for name, (_, record) in one.items()} == {
        name: record for name, (_, record) in other.items()
    }
    assert (tmp_path / "b" / "skipped.csv").read_text().count("text.mp4") == 1
    verify(tmp_path / "b", 1.0)
    assert len(list((tmp_path / "b").glob("*train*"))) >= 2
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_too_many_useless_videos(source: Path, tmp_path: Path, runner: str) -> None:
    with pytest.raises(UserError, match="1 of 10 videos cannot be used, .*text.mp4"):
        run(f"--source={source}", f"--output={tmp_path / 'a'}", runner)
    assert (tmp_path / ".a.unfinished" / "skipped.csv").is_file()


def test_a_block_is_about_a_shard(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    items = [Item(path.name, str(path)) for path in sorted(source.glob("?.mp4"))]
    size = len(transform(Recipe(), items[0]).payload or b"")
    assert beam._items_per_block(items, Recipe(), 5 * size) in (4, 5, 6)
    assert beam._items_per_block(items, Recipe(), 1) == 1
    assert beam._items_per_block([Item("x", "nowhere")], Recipe(), 1000) == 1000


def test_blocks() -> None:
    items = [Item(str(n), "", 0, "test" if n < 3 else None) for n in range(12)]
    found = list(beam.blocks(items, 0, 4, set_aside=5))
    assert [(block.split, [item.id for item in block.items]) for block in found] == [
        ("test", ["0", "1", "2"]),
        ("validation", ["3", "4"]),
        ("train", ["5", "6", "7", "8"]),
        ("train", ["9", "10", "11"]),
    ]
    for place, block in enumerate(found):
        assert list(beam.blocks(items, block.start, 4, set_aside=5)) == found[place:]


def test_blocks_are_written_once(source: Path, tmp_path: Path) -> None:
    items = tuple(Item(path.name, str(path)) for path in sorted(source.iterdir()))
    block = beam.Block(8, "train", items[8:])
    assert beam.finished(block, tmp_path) is None
    beam.write_block(Recipe(), TFRECORD, tmp_path, block)
    shard = beam.finished(block, tmp_path)
    assert shard is not None
    assert (shard.stop, shard.records, len(shard.flaws)) == (10, 1, 1)
    assert sorted(os.listdir(tmp_path)) == [block.name, f"{block.name}.json"]
    beam.write_block(Recipe(), TFRECORD, tmp_path, block)  # as Beam may
    assert beam.finished(block, tmp_path) == shard
    (tmp_path / block.name).write_bytes(b"half")
    assert beam.finished(block, tmp_path) is None


def test_a_failed_job_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    def fail(work: functools.partial[None], todo: list[beam.Block], options: object) -> None:
        for block in todo:
            if len(done) == 2:
                raise UserError("stopped")
            work(block)
            done.append(block.start)

    options = [f"--source={source}", f"--output={tmp_path / 'a'}", "--beam_runner=DirectRunner",
               "--max_skipped=0.2", "--validation_fraction=0.2"]  # fmt: skip
    monkeypatch.setattr(beam, "_run", fail)
    with pytest.raises(UserError, match="stopped"):
        run(*options)
    assert not (tmp_path / "a").exists()

    def note(work: functools.partial[None], todo: list[beam.Block], options: object) -> None:
        assert not {block.start for block in todo} & set(done)
        here(work, todo, beam.BeamOptions(""))

    monkeypatch.setattr(beam, "_run", note)
    run(*options)
    assert len(records(tmp_path / "a")) == 9


def test_lost_work_is_noticed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beam, "_run", lambda *arguments: None)
    with pytest.raises(UserError, match="do all workers see"):
        run(f"--source={source}", f"--output={tmp_path / 'a'}", "--beam_runner=X")


def test_without_beam(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"needs Apache Beam.*pip install 'adamae-jax\[beam\]'"):
        run(f"--source={source}", f"--output={tmp_path / 'a'}", "--beam_runner=DirectRunner")
    with pytest.raises(UserError, match="--beam_options means nothing without --beam_runner"):
        run(f"--source={source}", f"--output={tmp_path / 'a'}", "--beam_options=--x=1")
