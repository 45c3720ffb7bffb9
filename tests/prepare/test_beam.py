"""The same records by Apache Beam's local runner; without Beam, all but the pipeline itself."""

import contextlib
import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from adamae_jax.data import storage
from adamae_jax.data.records import Dataset
from adamae_jax.data.schema import TFRECORD
from adamae_jax.errors import UserError
from adamae_jax.prepare import beam
from adamae_jax.prepare.mounts import Mount, transform_fetched
from adamae_jax.prepare.shards import Journal, Shard
from adamae_jax.prepare.sources import Item, in_order
from adamae_jax.prepare.transform import Flaw, Recipe, Result, transform
from adamae_jax.prepare.verify import verify
from tests.data.videos import make_video
from tests.prepare.test_job import run

Work = Callable[[beam.Block], None]


def here(work: Work, todo: list[beam.Block], options: beam.BeamOptions) -> None:
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
    monkeypatch.setattr(beam, "_items_per_block", lambda *arguments: 3)
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
    monkeypatch.setattr(beam, "_PROCESSES", 0)
    items = [Item(path.name, str(path)) for path in sorted(source.glob("?.mp4"))]
    size = len(transform(Recipe(), items[0]).payload or b"")
    assert beam._items_per_block(items, Recipe(), 5 * size, 60.0) in (4, 5, 6)
    assert beam._items_per_block(items, Recipe(), 1, 60.0) == 1
    assert beam._items_per_block([Item("x", "nowhere")], Recipe(), 1000, 60.0) == 1000


def test_blocks() -> None:
    items = [Item(str(n), "", 0, "test" if n < 3 else None) for n in range(12)]
    found = list(beam.blocks(items, 0, 4, set_aside=5))
    assert [(b.split, [item.id for item in items[b.start : b.stop]]) for b in found] == [
        ("test", ["0", "1", "2"]),
        ("validation", ["3", "4"]),
        ("train", ["5", "6", "7", "8"]),
        ("train", ["9", "10", "11"]),
    ]
    for place, block in enumerate(found):
        assert list(beam.blocks(items, block.start, 4, set_aside=5)) == found[place:]


def test_items_are_listed_in_a_file(tmp_path: Path) -> None:
    odd = Item("a\\xff\u2028b", "/a\udcff\u2028b\n.mp4", 3, "test")
    items = [odd, Item("x", "y"), *(Item(str(n), "s", 1, "train", (n, 7)) for n in range(7))]
    chosen = list(beam.blocks(items, 0, 3, set_aside=2))
    folder, found = beam.list_items(items, chosen, tmp_path, ["made", 1])
    path = str(folder / beam.ITEMS_NAME)
    assert os.listdir(folder) == [beam.ITEMS_NAME]
    assert [item for block in found for item in beam.read_list(path, block)] == items
    # What Beam carries does not grow with the items.
    assert len(pickle.dumps(found)) < 200 * len(found)
    many, (block,) = beam.list_items(items * 100, [beam.Block(0, 900, "train")], tmp_path, 0)
    assert len(pickle.dumps(block)) < 200
    os.truncate(many / beam.ITEMS_NAME, 1000)
    with pytest.raises(OSError, match="ends before byte"):
        beam.read_list(str(many / beam.ITEMS_NAME), block)


def test_a_list_stays_as_long_as_workers_may_read_it(tmp_path: Path) -> None:
    items = [Item(str(n), f"path{n}") for n in range(9)]
    chosen = list(beam.blocks(items, 0, 3, set_aside=0))
    folder, found = beam.list_items(items, chosen, tmp_path, 0)
    before = (folder / beam.ITEMS_NAME).stat()
    assert beam.list_items(items, chosen[1:], tmp_path, 0) == (folder, found[1:])
    assert (folder / beam.ITEMS_NAME).stat() == before
    others = [items, items[1:], [*items[:-1], Item("8", "path8", 1)], items]
    made_with = [0, 0, 0, 1]
    folders = {
        beam.list_items(other, [], tmp_path, made)[0]
        for other, made in zip(others, made_with, strict=True)
    }
    assert len(folders) == 4 and folder in folders


def test_blocks_are_written_once(source: Path, tmp_path: Path) -> None:
    items = tuple(Item(path.name, str(path)) for path in sorted(source.iterdir()))
    folder, (block,) = beam.list_items(items, [beam.Block(8, 10, "train")], tmp_path, 0)
    assert beam.finished(block, folder) is None
    beam.Blocks(Recipe(), TFRECORD, folder, 60.0).write(block)
    shard = beam.finished(block, folder)
    assert shard is not None
    assert (shard.stop, shard.records, len(shard.flaws)) == (10, 1, 1)
    assert sorted(os.listdir(folder)) == [
        block.name, f"{block.name}.json", beam.ITEMS_NAME
    ]  # fmt: skip
    beam.Blocks(Recipe(), TFRECORD, folder, 60.0).write(block)  # as Beam may
    assert beam.finished(block, folder) == shard
    (folder / block.name).write_bytes(b"half")
    assert beam.finished(block, folder) is None


def test_workers_that_outlive_their_job_do_it_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher died, and the service went on: with blocks that the next run has, too."""
    for number in range(12):
        make_video(tmp_path / "videos" / f"{number:02d}.mp4", 20)
    options = [f"--source={tmp_path / 'videos'}", "--beam_runner=DirectRunner"]
    alive: list[tuple[Work, list[beam.Block]]] = []

    def die(work: Work, todo: list[beam.Block], options: object) -> None:
        alive.append((work, todo))
        work(todo[1])
        raise UserError("killed")

    def go_on_beside_it(work: Work, todo: list[beam.Block], options: beam.BeamOptions) -> None:
        here(work, todo, options)
        (old, blocks), *_ = alive
        for block in blocks:
            with contextlib.suppress(OSError):
                old(block)

    monkeypatch.setattr(beam, "_run", die)
    with pytest.raises(UserError, match="killed"):
        run(*options, f"--output={tmp_path / 'a'}")
    monkeypatch.setattr(beam, "_run", go_on_beside_it)
    run(*options, f"--output={tmp_path / 'a'}")
    assert records(tmp_path / "a").keys() == {f"{number:02d}.mp4" for number in range(12)}
    verify(tmp_path / "a", 1.0)

    alive.clear()
    monkeypatch.setattr(beam, "_run", die)
    with pytest.raises(UserError, match="killed"):
        run(*options, f"--output={tmp_path / 'b'}")
    monkeypatch.setattr(beam, "_run", go_on_beside_it)
    shutil.rmtree(tmp_path / ".b.unfinished")
    run(*options, f"--output={tmp_path / 'b'}", "--short_side=24")  # another job
    heights = [record.height for _, record in records(tmp_path / "b").values()]  # type: ignore[attr-defined]
    assert heights == [24] * 12


def test_what_killed_workers_leave_is_removed(source: Path, tmp_path: Path) -> None:
    items = [Item("0.mp4", str(source / "0.mp4"))]
    folder, (block,) = beam.list_items(items, [beam.Block(0, 1, "train")], tmp_path, 0)
    for name, age in (("tmp-dead", 2000), ("tmp-alive", 500)):
        (folder / name).mkdir()
        (folder / name / "block").write_bytes(b"half a shard")
        then = time.time() - age
        os.utime(folder / name, (then, then))
    beam.Blocks(Recipe(), TFRECORD, folder, 60.0).write(block)
    assert sorted(os.listdir(folder)) == [
        block.name, f"{block.name}.json", beam.ITEMS_NAME, "tmp-alive"
    ]  # fmt: skip


def test_workers_that_only_skip_show_that_they_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [Item(str(number), "nowhere") for number in range(3)]
    folder, (block,) = beam.list_items(items, [beam.Block(0, 3, "train")], tmp_path, 0)
    ages: list[float] = []

    def read(work: object, items: object, *more: object) -> Iterator[Result]:
        for number in range(3):
            (private,) = folder.glob("tmp-*")
            ages.append(time.time() - private.stat().st_mtime)
            os.utime(private, (0, 0))
            yield Result(None, Flaw(str(number), "skipped", 0, "late"))

    monkeypatch.setattr(beam, "read_items", read)
    beam.Blocks(Recipe(), TFRECORD, folder, 60.0).write(block)
    assert max(ages) < 100


def test_a_video_that_hangs_does_not_hang_its_block(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beam, "_PROCESSES", 1)
    os.mkfifo(tmp_path / "hangs.mp4")  # opening it waits for somebody who writes
    paths = [source / "0.mp4", tmp_path / "hangs.mp4"]
    items = [Item(path.name, str(path)) for path in paths]
    folder, (block,) = beam.list_items(items, [beam.Block(0, 2, "train")], tmp_path, 0)
    beam.Blocks(Recipe(), TFRECORD, folder, 1.5).write(block)
    shard = beam.finished(block, folder)
    assert shard is not None and shard.records == 1
    (flaw,) = shard.flaws
    assert (flaw.id, flaw.reason) == ("hangs.mp4", "takes longer than --max_seconds_per_video=1.5")


def test_a_failed_job_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    def fail(work: Work, todo: list[beam.Block], options: object) -> None:
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

    def note(work: Work, todo: list[beam.Block], options: object) -> None:
        assert not {block.start for block in todo} & set(done)
        here(work, todo, beam.BeamOptions(""))

    monkeypatch.setattr(beam, "_run", note)
    run(*options)
    assert len(records(tmp_path / "a")) == 9


def test_a_job_that_beam_began_goes_on_without_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beam counts items for validation, this process records: the split may go on behind train."""
    videos = tmp_path / "videos"
    shutil.copytree(source, videos)
    first, *_ = in_order(Item(path.name, str(path)) for path in videos.iterdir())
    Path(first.path).write_text("no video")
    options = [f"--source={videos}", f"--output={tmp_path / 'a'}", "--max_skipped=0.2",
               "--validation_fraction=0.2"]  # fmt: skip
    monkeypatch.setattr(beam, "_run", here)
    add = Journal.add

    def stop_at_the_third(journal: Journal, shard: Shard) -> None:
        if len(journal.shards) == 2:
            raise KeyboardInterrupt
        add(journal, shard)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Journal, "add", stop_at_the_third)
        run(*options, "--beam_runner=DirectRunner")
    run(*options)
    verify(tmp_path / "a", 1.0)
    useless = {"text.mp4", first.id}
    assert records(tmp_path / "a").keys() == {path.name for path in videos.iterdir()} - useless
    assert len(Dataset(tmp_path / "a", "validation")) == 2


def test_lost_work_is_noticed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beam, "_run", lambda *arguments: None)
    with pytest.raises(UserError, match="do all workers see"):
        run(f"--source={source}", f"--output={tmp_path / 'a'}", "--beam_runner=X")


def test_without_beam(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"needs Apache Beam.*pip install -e '.\[beam\]'"):
        run(f"--source={source}", f"--output={tmp_path / 'a'}", "--beam_runner=DirectRunner")
    with pytest.raises(UserError, match="--beam_options means nothing without --beam_runner"):
        run(f"--source={source}", f"--output={tmp_path / 'a'}", "--beam_options=--x=1")


def test_workers_that_know_a_bucket_by_its_address(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While they work, nothing is mounted; what they made is found where it is."""
    bucket, mounted = tmp_path / "bucket", tmp_path / "mounted"
    shutil.copytree(source, bucket / "videos")
    mounted.symlink_to(bucket)

    def elsewhere(work: Work, todo: list[beam.Block], options: beam.BeamOptions) -> None:
        mounted.unlink()
        here(work, todo, options)
        mounted.symlink_to(bucket)

    monkeypatch.setattr(beam, "_run", elsewhere)
    options = ["--max_skipped=0.2", "--validation_fraction=0.2"]
    run(f"--source={source}", f"--output={tmp_path / 'a'}", *options)
    run(
        f"--source={mounted / 'videos'}", f"--output={mounted / 'data' / 'b'}", *options,
        "--beam_runner=DirectRunner", f"--beam_mount={mounted}=file://{bucket}",
    )  # fmt: skip
    one, other = records(tmp_path / "a"), records(bucket / "data" / "b")
    assert one.keys() == other.keys()
    for name, (_, record) in one.items():
        assert record == other[name][1]
    assert sorted(os.listdir(bucket / "data")) == ["b"]


def test_what_is_not_there_is_left_out_and_storage_that_fails_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = Mount(str(tmp_path), f"file://{tmp_path}")
    item = Item("a.mp4", str(tmp_path / "a.mp4"))
    result = transform_fetched(Recipe(), mount, tmp_path, item)
    assert result.payload is None and result.flaw is not None
    assert result.flaw.reason == f"file://{tmp_path}/a.mp4 is empty or does not exist"

    def fail(*arguments: object, **options: object) -> None:
        raise TimeoutError("the cable is loose")

    monkeypatch.setattr(LocalFileSystem, "get_file", fail)
    monkeypatch.setattr(storage, "RETRY_DELAYS_S", (0.0,))
    with pytest.raises(OSError, match="the cable is loose"):
        transform_fetched(Recipe(), mount, tmp_path, item)


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        ("gs://bucket", "--beam_mount=gs://bucket must be FOLDER=ADDRESS"),
        ("/mnt=/bucket", "must be FOLDER=ADDRESS"),
        ("SOURCE=gopher://bucket", "Protocol not known: gopher"),
        ("/nowhere=gs://bucket", "/nowhere is not a folder: mount gs://bucket there"),
        ("SOURCE=file:///bucket", "a lies outside of SOURCE, which is all that workers can reach"),
    ],
)
def test_impossible_mounts(source: Path, tmp_path: Path, mount: str, message: str) -> None:
    options = [f"--source={source}", f"--output={tmp_path / 'a'}"]
    words = f"--beam_mount={mount.replace('SOURCE', str(source))}"
    with pytest.raises(UserError) as caught:
        run(*options, "--beam_runner=DirectRunner", words)
    assert message.replace("SOURCE", str(source)) in str(caught.value)
    with pytest.raises(UserError, match="--beam_mount means nothing without --beam_runner"):
        run(*options, words)
    assert not list(tmp_path.iterdir())


def test_options_that_beam_refuses(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("apache_beam")
    with pytest.raises(UserError, match="--beam_options='--dry_run' are no options of Beam"):
        run(
            f"--source={source}", f"--output={tmp_path / 'a'}", "--beam_runner=DirectRunner",
            "--beam_options=--dry_run",
        )  # fmt: skip
