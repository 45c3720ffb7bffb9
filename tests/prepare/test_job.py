import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from absl import flags

from adamae_jax.data import schema
from adamae_jax.errors import UserError
from adamae_jax.prepare import build, job, progress, transform
from tests.data.videos import blot, make_audio, make_video

JOB = [sys.executable, "-m", "adamae_jax.prepare"]


def interrupt(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def run(*arguments: str, num_workers: int = 0) -> None:
    values = flags.FlagValues()
    job.define_flags(values)
    values(["prepare", f"--num_workers={num_workers}", *arguments])
    job.main(["prepare"], values)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven good videos, a damaged one, five that are of no use, and what is no video."""
    folder = tmp_path_factory.mktemp("videos")
    for index in range(7):
        make_video(folder / f"class {index % 2}" / f"good{index}.mp4", 16 + index)
    blot(make_video(folder / "damaged.mkv", 60, codec="libx264"), 0.65, 150)
    blot(make_video(folder / "torn.mp4"), 0, 600)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video\n" * 50)
    make_audio(folder / "sound.mp4")
    make_video(folder / "still.mp4", 1)
    (folder / "README.md").write_text("read me")
    (folder / ".hidden.mp4").write_bytes(b"")
    return folder


USELESS = ["empty.mp4", "sound.mp4", "still.mp4", "text.mp4", "torn.mp4"]
GOOD = ["damaged.mkv", *(f"class {index % 2}/good{index}.mp4" for index in range(7))]


def ids(output: Path, split: str) -> list[str]:
    builder = tfds.builder_from_directory(output)
    dataset = builder.as_dataset(split=split, decoders=tfds.decode.PartialDecoding([schema.ID]))
    return sorted(example[schema.ID].decode() for example in tfds.as_numpy(dataset))


MADE = ["--max_skipped=0.4", "--short_side=24", "--validation_fraction=0.3"]


def test_a_folder_of_videos(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    run(f"--source={source}", f"--output={output}", *MADE)
    train, validation = ids(output, "train"), ids(output, "validation")
    assert sorted(train + validation) == sorted(GOOD)
    record = json.loads((output / "prepare.json").read_text())
    assert record["clips"] == {"validation": len(validation), "train": len(train)}
    assert record["arguments"]["short_side"] == 24
    with open(output / "skipped.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows if row["status"] == "skipped"] == USELESS
    (truncated,) = [row for row in rows if row["status"] == "truncated"]
    assert truncated["id"] == "damaged.mkv"
    assert truncated["reason"].startswith(f"after {truncated['frames']} frames")
    assert {row["id"]: row["reason"] for row in rows}["still.mp4"] == "1 frame, fewer than 16"
    printed, told = capsys.readouterr()
    assert told.startswith("4 of 13 items set aside for validation, which is too few for metrics ")
    for word in [
        "13 videos",
        "5 items",
        "torn.mp4 (cannot be ",
        "1 item: damaged.mkv (after ",
        f"{len(train)} videos for train",
    ]:
        assert word in printed
    example = next(iter(tfds.as_numpy(tfds.builder_from_directory(output).as_dataset("train"))))
    assert example[schema.FRAMES].shape[1:] == (24, 32, 3)
    assert example[schema.LABEL] == schema.UNLABELLED

    # Once more: nothing to do, and nothing is done.
    before = snapshot(output)
    run(f"--source={source}", f"--output={output}", *MADE)
    assert "nothing to do" in capsys.readouterr().out
    assert snapshot(output) == before
    with pytest.raises(UserError, match="short_side is 24 there, 256 was asked for"):
        run(f"--source={source}", f"--output={output}", MADE[0], MADE[2])
    make_video(source / "z.mp4", 16)
    try:
        with pytest.raises(UserError, match="other arguments"):
            run(f"--source={source}", f"--output={output}", *MADE)
    finally:
        (source / "z.mp4").unlink()
    assert snapshot(output) == before


def test_the_dataset_does_not_depend_on_the_number_of_workers(source: Path, tmp_path: Path) -> None:
    results = []
    for num_workers in (0, 2):
        output = tmp_path / str(num_workers)
        run(
            f"--source={source}", f"--output={output}", "--max_skipped=0.4",
            "--validation_fraction=0.3", num_workers=num_workers,
        )  # fmt: skip
        results.append(snapshot(output))
    assert results[0] == results[1]


def test_too_many_useless_videos(source: Path, tmp_path: Path) -> None:
    command = [f"--source={source}", f"--output={tmp_path / 'output'}", MADE[2]]
    with pytest.raises(UserError) as caught:
        run(*command, "--max_skipped=0.38")
    message = str(caught.value)
    assert message.startswith("5 of 13 videos cannot be used")
    assert ", more than the 4 that --max_skipped=0.38 allows; " in message
    assert all(name in message for name in USELESS)
    assert "damaged.mkv" not in message
    assert "\n" not in message
    assert os.listdir(tmp_path) == [".output.unfinished"]
    with open(tmp_path / ".output.unfinished" / "skipped.csv", newline="") as file:
        assert {row["id"] for row in csv.DictReader(file)} >= set(USELESS)
    # With more patience the same command goes on.
    run(*command, "--max_skipped=0.4")
    assert os.listdir(tmp_path) == ["output"]


def test_a_video_that_hangs_is_left_out(tmp_path: Path) -> None:
    source, output = tmp_path / "videos", tmp_path / "a"
    for index in range(2):
        make_video(source / f"{index}.mp4")
    os.mkfifo(source / "hangs.mp4")  # opening it waits for somebody who writes
    (tmp_path / "list.txt").write_text("0.mp4\nhangs.mp4\n1.mp4\n")
    run(
        f"--source={source}", f"--output={output}", f"--list=train={tmp_path / 'list.txt'}",
        "--max_skipped=0.4", "--max_seconds_per_video=1.5", num_workers=2,
    )  # fmt: skip
    assert ids(output, "train") == ["0.mp4", "1.mp4"]
    assert (output / "skipped.csv").read_text().splitlines()[1:] == [
        "hangs.mp4,skipped,0,takes longer than 1.5 s"
    ]


def test_damage_that_asks_for_absurd_memory_is_left_out(tmp_path: Path) -> None:
    path = make_video(tmp_path / "videos" / "a.mp4")
    make_video(tmp_path / "videos" / "b.mp4")
    data = bytearray(path.read_bytes())
    data[data.index(b"stts") + 8] = 0x80  # over two thousand million entries of a table
    path.write_bytes(data)
    run(
        f"--source={tmp_path / 'videos'}", f"--output={tmp_path / 'data'}", "--max_skipped=0.5",
        "--validation_fraction=0",
    )  # fmt: skip
    _, row = (tmp_path / "data" / "skipped.csv").read_text(encoding="utf-8").splitlines()
    assert row.startswith("a.mp4,skipped,0,") and "Cannot allocate memory" in row


def test_only_useless_videos(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 1 item can be used: a.mp4 \(cannot be open"):
        run(f"--source={tmp_path / 'videos'}", f"--output={tmp_path / 'a'}", "--max_skipped=1")
    assert sorted(os.listdir(tmp_path)) == [".a.unfinished", "videos"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--source=FOLDER, --tfds=FOLDER and --embedded=demo"),
        (["--embedded=demo", "--output="], "--output=DIR is missing"),
        (["--source=gs://bucket/videos"], "--source=gs://bucket/videos is an address, but folders"),
        (["--embedded=demo", "--output=s3://bucket/a"], "mount the bucket and give its folder"),
        (["--embedded=demo", "--min_frames=4"], "--min_frames means nothing with --embedded"),
        (
            ["--source=VIDEOS", "--max_seconds_per_video=9"],
            "--max_seconds_per_video means nothing with --num_workers=0",
        ),
        (["--source=VIDEOS", "--seed=1"], "--seed means nothing with --source"),
        (["--source=VIDEOS", "--max_skipped=1.5"], "--max_skipped=1.5 must be a fraction"),
        (["--source=NOWHERE"], "NOWHERE is not a folder"),
        (["--source=EMPTY"], "EMPTY holds no videos"),
        (["--source=VIDEOS", "--output=VIDEOS/a"], "lies inside --source"),
        (["--source=VIDEOS", "--output=MINE"], "MINE exists and is no dataset made by this job"),
    ],
)
def test_bad_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("VIDEOS/a.mp4", "MINE/file"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / "EMPTY").mkdir()
    before = snapshot(tmp_path)
    with pytest.raises(UserError) as caught:
        run("--output=output", *arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "output").exists()


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    result = subprocess.run(
        [*JOB, "--embedded=huge", f"--output={tmp_path / 'a'}"], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr == "error: --embedded=huge is unknown: choose demo, medium, large\n"


def test_a_killed_job_goes_on_where_it_was(tmp_path: Path) -> None:
    source, output = tmp_path / "videos", tmp_path / "a"
    first = make_video(source / "0.mp4", 60, 240, 320)
    for index in range(1, 8):
        shutil.copy(first, source / f"{index}.mp4")
    arguments = [f"--source={source}", f"--output={output}", "--shard_mb=1", "--num_workers=1"]
    unfinished = tmp_path / ".a.unfinished"
    job = [*JOB, *arguments]
    with subprocess.Popen(job, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while len(list(unfinished.glob("shards-*/*.json"))) < 2:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        # Its worker holds the same pipe open: this returns when that has ended too.
        process.communicate(timeout=30)
    assert sorted(os.listdir(tmp_path)) == [".a.unfinished", "videos"]
    assert not list(tmp_path.rglob("dataset_info.json"))
    notes = list(unfinished.glob("shards-*/*.json"))
    finished = [note.with_suffix("").stat().st_mtime_ns for note in notes]
    run(*arguments)
    made = {path.stat().st_mtime_ns for path in output.glob("*tfrecord*")}
    assert set(finished) <= made  # they were moved, not written again
    run(f"--source={source}", f"--output={tmp_path / 'b'}", "--shard_mb=1")
    assert snapshot(output) == snapshot(tmp_path / "b")
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "videos"]


@pytest.mark.parametrize("step", ["write_metadata", "write_flaws", "publish"])
def test_a_job_that_is_killed_while_it_names_its_shards(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = tmp_path / "videos", tmp_path / "a"
    for index in range(3):
        make_video(source / f"{index}.mp4", 20)
    arguments = [f"--source={source}", f"--output={output}"]
    places = {"write_metadata": build.examples, "publish": build.folders, "write_flaws": build}
    with monkeypatch.context() as patch:
        patch.setattr(places[step], step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(*arguments)
    assert not output.exists()
    with pytest.raises(UserError, match=r"short_side is 256 there, 24 was asked for.*: rm -r "):
        run(*arguments, "--short_side=24")
    with monkeypatch.context() as patch:
        patch.setattr(transform, "read_video", interrupt)  # nothing is read again
        run(*arguments)
    run(f"--source={source}", f"--output={tmp_path / 'b'}")
    assert snapshot(output) == snapshot(tmp_path / "b")


FULL = """
import resource, sys
from adamae_jax.cli import run
from adamae_jax.prepare import job
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
job.define_flags()
run(job.main)
"""


def test_a_full_disk_is_said_and_harms_nothing(tmp_path: Path) -> None:
    source, output, earlier = tmp_path / "videos", tmp_path / "a", tmp_path / "b"
    for index in range(3):
        make_video(source / f"{index}.mp4", 30, 240, 320)
    run(f"--source={source}", f"--output={earlier}")
    before = snapshot(earlier)
    command = [sys.executable, "-c", FULL, f"--source={source}", f"--output={output}"]
    done = subprocess.run([*command, "--num_workers=0"], capture_output=True, text=True)
    assert done.returncode == 2
    *_, error = done.stderr.splitlines()
    assert error.startswith(f"error: --output={output} cannot be written, since the disk")
    assert not output.exists()
    assert snapshot(earlier) == before
    run(f"--source={source}", f"--output={output}")  # there is room now
    assert snapshot(output).keys() == before.keys()


def test_fractions_are_taken_as_they_are_written() -> None:
    shares = [build.Output(Path(), max_skipped=number / 100) for number in range(101)]
    assert [share.most_skipped(100) for share in shares] == list(range(101))


def test_a_log_tells_how_it_goes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 10.0)
    clock = iter(range(0, 100, 5))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    assert list(progress.progress("abcd", done=6, total=10)) == list("abcd")
    assert capsys.readouterr().err.splitlines() == [
        "8 of 10 clips read, 0.2/s, 00:10 left",
        "10 of 10 clips read, 0.2/s, 00:00 left",
    ]
