"""Which clips cover a video file, and when they are."""

import dataclasses
import logging
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from adamae_jax.data import schema
from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.examples import Record
from adamae_jax.data.temporal import Views, view_frames
from adamae_jax.data.video_file import StoredVideo
from adamae_jax.prepare.encode import read_video
from adamae_jax.video_files import frame_rate, frame_times, open_video, view_clips, windows
from tests.data import test_video_file
from tests.data.fixtures import encode_png
from tests.test_finetune import movie

DENSE = ClipSpec(4, 2, (16, 24))


def record_of(count: int, rate: float) -> Record:
    """Frames that nobody looks at."""
    frame = encode_png(np.zeros((1, 4, 4), np.uint8))
    return Record("a", schema.UNLABELLED, (frame,) * count, rate, 4, 4, None)


def test_a_rate_that_is_no_whole_number(tmp_path: Path) -> None:
    record = open_video(movie(tmp_path / "a.mp4", 0, 21, Fraction(25, 2)))
    assert record.rate == 12.5
    found = windows(record, DENSE)
    assert found.frames.tolist() == [[0, 2, 4, 6], [8, 10, 12, 14], [13, 15, 17, 19]]
    np.testing.assert_allclose(found.start_s, np.array([0, 8, 13]) / 12.5)
    np.testing.assert_allclose(found.end_s, np.array([8, 16, 21]) / 12.5)


def test_frames_that_come_unevenly(tmp_path: Path) -> None:
    """Each has its own time, also in a record of the file as it is."""
    ticks = [7 * n * n + 40 * n for n in range(20)]
    path = test_video_file.make(tmp_path / "a.mkv", "libx264", 20, times=ticks)
    record = open_video(path)
    found = windows(record, DENSE)
    np.testing.assert_allclose(found.start_s, np.array([ticks[k] for k in (0, 8, 12)]) / 1000)
    np.testing.assert_allclose(found.end_s[:2], np.array([ticks[k] for k in (8, 16)]) / 1000)
    assert found.end_s[2] > ticks[19] / 1000
    kept = read_video(path, schema.CODEC_ORIGINAL)
    stored = StoredVideo(kept.frames[0], kept.num_frames, kept.times, kept.keyframes)
    np.testing.assert_array_equal(
        frame_times(dataclasses.replace(record, frames=stored)), frame_times(record)
    )


def test_a_rate_that_is_not_believed(tmp_path: Path) -> None:
    """Where frames are seconds apart, their times are known all the same."""
    record = open_video(movie(tmp_path / "a.mp4", 0, 5, Fraction(2, 5)))
    assert record.rate == 0
    np.testing.assert_allclose(frame_times(record), np.arange(6) * 2.5)
    assert frame_rate(record) == pytest.approx(0.4)


def test_times_that_nobody_knows(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = windows(record_of(9, 0.0), DENSE)
    assert np.isnan([found.start_s, found.end_s]).all()
    assert "whatever is in seconds is NaN" in caplog.text
    assert frame_rate(record_of(9, 0.0)) == 0.0


@pytest.mark.parametrize("sampling", ["dense", "time_scaled", "segments"])
def test_frames_are_those_of_an_evaluation(sampling: str) -> None:
    """The first and the last window show what the first and the last of several views show."""
    spec = dataclasses.replace(DENSE, frame_sampling=sampling, target_fps=10.0)
    starts = 1 if sampling == "segments" else 2
    expected = view_frames(sampling, 40, 4, 2, starts, fps=25.0, target_fps=10.0)
    found = windows(record_of(40, 25.0), spec).frames
    np.testing.assert_array_equal(found[[0, -1]], expected[[0, -1]])


def test_a_file_is_read_where_it_lies(tmp_path: Path) -> None:
    path = movie(tmp_path / "a.mp4", 1, 20)
    record = open_video(path)
    assert isinstance(record.frames, StoredVideo)
    assert record.frames.data == str(path)
    kept = read_video(path, schema.CODEC_ORIGINAL)
    held = StoredVideo(kept.frames[0], kept.num_frames, kept.times, kept.keyframes)
    one = view_clips(record, DENSE, Views(2, 1))
    other = view_clips(dataclasses.replace(record, frames=held), DENSE, Views(2, 1))
    np.testing.assert_array_equal(one, other)
