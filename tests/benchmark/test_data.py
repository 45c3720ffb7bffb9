"""The benchmark of reading, small; and what its peers see."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from adamae_jax.benchmark import data, data_peers
from adamae_jax.benchmark.data import _numbers, _prepare, timed
from adamae_jax.benchmark.data_peers import PeerClips, read_with_pyav
from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.order import record_order
from adamae_jax.data.records import Dataset
from adamae_jax.data.stream import TrainClips, train_stream
from adamae_jax.errors import UserError
from adamae_jax.prepare.video_file import VideoFile
from tests import jobs
from tests.data.videos import make_video


def test_it_measures_codecs_and_says_what_is_not_there(tmp_path: Path) -> None:
    for number in range(3):
        make_video(tmp_path / f"{number}.mp4", codec="libx264")
    done = jobs.run(
        *("adamae_jax.benchmark", "data", f"--source={tmp_path}"),
        *("--codecs=jpeg,original", "--peers=decord", "--workers=0"),
        "--image_sizes=32", "--num_frames=4", "--batch_size=2", "--batches=2", "--step_seconds=0.5",
    )  # fmt: skip
    assert done.status == 0, done.err
    *lines, figures = done.out.splitlines()
    found = json.loads(figures)
    jpeg, original = found["codecs"]
    assert (jpeg["codec"], original["codec"]) == ("jpeg", "original")
    assert jpeg["video_mb"] > original["video_mb"] > 0
    assert original["psnr_db"] is None and 25 < jpeg["psnr_db"] < 60
    rows = found["readers"]
    ours = [row for row in rows if row["reader"].startswith("ours")]
    assert [row["reader"] for row in ours] == ["ours jpeg", "ours original"]
    for row in ours:
        assert row["clips_per_second"] > 0 and row["decode_ms"] > 0
        assert (row["image_size"], row["workers"]) == (32, 0) and 0 <= row["waiting"] < 0.5
    if data_peers.missing("decord"):
        assert any(line.startswith("decord: not measured, ") for line in lines)
    else:
        assert rows[-1]["reader"] == "decord"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--workers=1,x", "--workers=1,x must be whole numbers from 0 on, with commas between"),
        ("--codecs=jpeg,av1", "--codecs has av1, but knows jpeg, h264, original"),
        ("--source=/nowhere", "--source=/nowhere cannot be prepared: "),
    ],
)
def test_impossible_flags_are_one_line(flag: str, message: str) -> None:
    done = jobs.run("adamae_jax.benchmark", "data", flag, "--num_videos=2", "--peers=")
    assert message in done.refusal


def test_numbers_have_a_least_value() -> None:
    assert _numbers("workers", ["0", "2"], 0) == [0, 2]
    with pytest.raises(UserError, match="--image_sizes=0 must be whole numbers from 1 on"):
        _numbers("image_sizes", ["0"], 1)


def test_pyav_finds_the_frames_that_were_asked_for(tmp_path: Path) -> None:
    path = make_video(tmp_path / "video.mp4", num_frames=60, codec="libx264")
    with VideoFile(path) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.frames()]
    for numbers in ([0, 4, 8], [37, 41, 59], [5, 5, 6]):
        read = read_with_pyav(str(path), lambda available, n=numbers: np.array(n))  # type: ignore[misc]
        for number, pixels in zip(numbers, read, strict=True):
            np.testing.assert_array_equal(pixels, frames[number])
    clips = PeerClips(3 * [path], ClipSpec(4, 2, (16, 16)), "pyav")
    assert len(clips) == 3 and clips[2].shape == (4, 16, 16, 3)
    assert len({clip.tobytes() for clip in clips}) == 3  # type: ignore[attr-defined]


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_waiting_is_what_batches_take_longer_than_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    values = SimpleNamespace(batches=4, batch_size=8, step_seconds=0.5)
    monkeypatch.setattr(data, "time", clock)
    monkeypatch.setattr(data, "flags", SimpleNamespace(FLAGS=values))

    def batches(seconds: float) -> Iterator[None]:
        """Each is begun when the one before has been taken, and goes on while a step runs."""
        ready = 0.0
        while True:
            ready = max(clock.now, ready + seconds)
            clock.now = ready
            yield None

    np.testing.assert_allclose(timed(batches(2.0), 1), (8 / 2.0, 0.75))
    np.testing.assert_allclose(timed(batches(0.25), 1), (8 / 0.25, 0.0))


def test_peers_read_the_clips_that_we_do(tmp_path: Path) -> None:
    source = tmp_path / "videos"
    source.mkdir()
    for number in range(3):
        make_video(source / f"{number}.mp4", num_frames=40 + number, codec="libx264")
    dataset = Dataset(_prepare(source, tmp_path / "prepared", "original"), "train")
    spec = ClipSpec(4, 2, (16, 24))
    ours = train_stream(TrainClips(dataset, spec, seed=0, videos_per_step=2))
    order = record_order(dataset, 0)
    paths = [source / dataset[order[g]].id for g in range(6)]
    theirs = PeerClips(paths, spec, "pyav")
    for position in range(len(theirs)):
        np.testing.assert_array_equal(theirs[position], ours[position]["video"][0])
