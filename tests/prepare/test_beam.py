"""The same records by Apache Beam's local runner; without Beam, all but the pipeline itself."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from adamae_jax.data.records import Dataset
from adamae_jax.data.schema import TFRECORD
from adamae_jax.errors import UserError
from adamae_jax.prepare import beam
from adamae_jax.prepare.sources import Item
from adamae_jax.prepare.transform import Recipe, reader, transform
from adamae_jax.prepare.verify import verify
from adamae_jax.prepare.write import finished_shards
from tests.data.videos import make_video
from tests.prepare.test_job import run

Run = Callable[[beam.Block], None]


def here(work: Run, todo: list[beam.Block], options: beam.BeamOptions) -> None:
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
    """Blocks of three items; without a process for each, but in the test that is about them."""
    monkeypatch.setattr(beam.Work, "items_per_block", lambda *arguments: 3)
    monkeypatch.setattr(beam, "_PROCESSES", 0)


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


def options(source: Path, output: Path) -> list[str]:
    return [f"--source={source}", f"--output={output}", "--max_skipped=0.2",
            "--validation_fraction=0.2"]  # fmt: skip


def test_beam_makes_the_same_records(source: Path, tmp_path: Path, runner: str) -> None:
    run(*options(source, tmp_path / "a"))
    run(*options(source, tmp_path / "b"), runner)
    assert records(tmp_path / "a") == records(tmp_path / "b")
    assert (tmp_path / "b" / "skipped.csv").read_text().count("text.mp4") == 1
    verify(tmp_path / "b", 1.0)
    assert len(list((tmp_path / "b").glob("*train*"))) >= 2
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    with pytest.raises(UserError, match="1 of 10 videos cannot be used, .*text.mp4"):
        run(f"--source={source}", f"--output={tmp_path / 'c'}", runner)
    assert (tmp_path / ".c.unfinished" / "skipped.csv").is_file()


def test_blocks_have_one_split_each_and_about_the_size_of_a_shard(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [Item(str(n), "", 0, ("test", "train")[n > 2]) for n in range(10)]
    found = list(beam.blocks(items, 0, 4))
    assert found == [(0, 3), (3, 7), (7, 10)]
    for place, (start, _) in enumerate(found):
        assert list(beam.blocks(items, start, 4)) == found[place:]
    monkeypatch.undo()
    monkeypatch.setattr(beam, "_PROCESSES", 0)
    items = [Item(path.name, str(path)) for path in sorted(source.glob("?.mp4"))]
    size = len(transform(Recipe(), items[0]).payload or b"")
    for shard_bytes, expected in ((5 * size, (4, 5, 6)), (1, (1,))):
        work = beam.Work(reader(Recipe()), TFRECORD, tmp_path, 60.0, shard_bytes)
        assert work.items_per_block(items) in expected


def test_a_video_that_hangs_does_not_hang_its_block(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beam, "_PROCESSES", 1)
    monkeypatch.setattr(beam, "_run", here)
    os.mkfifo(tmp_path / "hangs.mp4")  # opening it waits for somebody who writes
    paths = [source / "0.mp4", tmp_path / "hangs.mp4"]
    items = [Item(path.name, str(path), 0, "train") for path in paths]
    work = beam.Work(reader(Recipe()), TFRECORD, tmp_path, 1.5, 1000)
    beam.fill(work, items, 0, beam.BeamOptions(""))
    (shard,) = finished_shards(tmp_path)
    assert (shard.stop, shard.records) == (2, 1)
    assert [(flaw.id, flaw.reason) for flaw in shard.flaws] == [
        ("hangs.mp4", "takes longer than 1.5 s")
    ]


def test_a_failed_job_goes_on_with_beam_or_without(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[beam.Block] = []

    def fail(work: Run, todo: list[beam.Block], options: object) -> None:
        assert not set(done).intersection(todo)
        for block in todo[:2]:
            work(block)
            done.append(block)
        raise UserError("stopped")

    monkeypatch.setattr(beam, "_run", fail)
    for output in (tmp_path / "a", tmp_path / "b"):
        done.clear()
        with pytest.raises(UserError, match="stopped"):
            run(*options(source, output), "--beam_runner=DirectRunner")
        assert not output.exists()
    with pytest.raises(UserError, match="stopped"):
        run(*options(source, tmp_path / "b"), "--beam_runner=DirectRunner")
    run(*options(source, tmp_path / "b"))
    monkeypatch.setattr(beam, "_run", here)
    run(*options(source, tmp_path / "a"), "--beam_runner=DirectRunner")
    assert records(tmp_path / "a") == records(tmp_path / "b")
    assert len(records(tmp_path / "a")) == 9


def test_workers_that_outlive_their_job_do_not_write_into_another(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher died, and the service goes on beside a new job with other options."""
    alive: list[tuple[Run, list[beam.Block]]] = []

    def die(work: Run, todo: list[beam.Block], options: object) -> None:
        alive.append((work, todo))
        raise UserError("killed")

    def go_on_beside_it(work: Run, todo: list[beam.Block], options: beam.BeamOptions) -> None:
        here(work, todo, options)
        (old, blocks), *_ = alive
        for block in blocks:
            with pytest.raises(OSError):
                old(block)

    monkeypatch.setattr(beam, "_run", die)
    arguments = [*options(source, tmp_path / "a"), "--beam_runner=DirectRunner"]
    with pytest.raises(UserError, match="killed"):
        run(*arguments)
    monkeypatch.setattr(beam, "_run", go_on_beside_it)
    run(*arguments, "--short_side=24")
    assert {record.height for _, record in records(tmp_path / "a").values()} == {24}  # type: ignore[attr-defined]


def test_what_goes_wrong_with_beam_is_said(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = options(source, tmp_path / "a")
    with pytest.raises(UserError, match="--beam_options means nothing with no --beam_runner"):
        run(*arguments, "--beam_options=--x=1")
    with monkeypatch.context() as patch:
        patch.setattr(beam, "_run", lambda *arguments: None)
        with pytest.raises(UserError, match="do all workers see --source and --output under the"):
            run(*arguments, "--beam_runner=X")
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "apache_beam", None)
        with pytest.raises(UserError, match=r"needs Apache Beam.*pip install -e '.\[beam\]'"):
            run(*arguments, "--beam_runner=DirectRunner")
    pytest.importorskip("apache_beam")
    with pytest.raises(UserError, match="--beam_options='--dry_run' are no options of Beam"):
        run(*arguments, "--beam_runner=DirectRunner", "--beam_options=--dry_run")
