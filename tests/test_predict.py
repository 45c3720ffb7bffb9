"""Predictions for files of any kind, some of which cannot be read."""

import functools
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from adamae_jax import features, load, predict, saliency
from adamae_jax.errors import UserError
from adamae_jax.loaded import Finetuned
from adamae_jax.video_files import open_video
from tests.data import fixtures
from tests.data.videos import turn_clockwise
from tests.interop.convert_cases import LABELS, written
from tests.interop.convert_cases import run as call
from tests.test_features import model
from tests.test_finetune import movie, movie_of

__all__ = ["model"]  # a fixture


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two that can be read, and between them one that cannot."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "bad.mp4").write_bytes(b"no video")
    good = [movie(folder / name, 0, frames=8) for name in ("a.mp4", "b.mp4")]
    return [str(good[0]), str(folder / "bad.mp4"), str(good[1])]


def test_a_bad_file_costs_no_other_its_predictions(
    model: Path, videos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (f"--checkpoint={model}", "--views=1x1", "--top=2")
    said = r"^1 of 3 videos are left out: .*bad.mp4: .*give a video that FFmpeg can read$"
    with pytest.raises(UserError, match=said):
        call(predict, *options, "--json", f"--output={tmp_path}", *videos)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["video"] for line in lines] == [videos[0], videos[2]]
    for line in lines:
        assert [each.keys() for each in line["classes"]] == [{"label", "name", "score"}] * 2
        assert line["classes"][0]["name"] in LABELS
    stored = json.loads((tmp_path / predict.PREDICTIONS).read_text())
    assert stored == {line["video"]: line["classes"] for line in lines}


def test_each_video_is_printed_when_it_is_done(
    model: Path,
    videos: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = Finetuned.predict

    def interrupted(self: Finetuned, video: str, **options: Any) -> Any:
        if video == videos[2]:
            raise KeyboardInterrupt
        return found(self, video, **options)

    monkeypatch.setattr(Finetuned, "predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call(predict, f"--checkpoint={model}", "--views=1x1", *videos)
    assert capsys.readouterr().out.startswith(videos[0])


def test_a_bad_file_costs_no_other_its_movie(
    videos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = written(tmp_path / "model", "adamae")
    monkeypatch.setattr(saliency, "of_video", lambda *_: (np.zeros(1, int), np.ones((1, 4, 6))))
    with pytest.raises(UserError, match=r"^1 of 3 videos are left out: .*bad.mp4"):
        call(predict, f"--checkpoint={network}", f"--output={tmp_path}", *videos)
    assert sorted(path.name for path in tmp_path.glob("*.mp4")) == [
        "a_saliency.mp4",
        "b_saliency.mp4",
    ]


@pytest.mark.parametrize("rate", [Fraction(25, 2), Fraction(30000, 1001), Fraction(2, 5)])
def test_a_movie_has_the_rate_of_its_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: Fraction
) -> None:
    network = written(tmp_path / "model", "adamae")
    monkeypatch.setattr(saliency, "check", lambda _: None)
    monkeypatch.setattr(saliency, "of_video", lambda *_: (np.zeros(1, int), np.ones((1, 4, 6))))
    video = movie(tmp_path / "a.mp4", 0, frames=5, rate=rate)
    call(predict, f"--checkpoint={network}", f"--output={tmp_path}", str(video))
    with av.open(str(tmp_path / "a_saliency.mp4")) as container:
        assert container.streams.video[0].average_rate == rate


def test_a_turned_video_is_what_it_shows(model: Path, tmp_path: Path) -> None:
    """Predictions, features and clips are those of a file that was written upright."""
    pixels = fixtures.video(3, 8, 24, 32)
    lossless = functools.partial(movie_of, pix_fmt="yuv444p", qp="0")
    upright = lossless(tmp_path / "upright.mp4", np.rot90(pixels, -1, (1, 2)))
    turned = turn_clockwise(lossless(tmp_path / "turned.mp4", pixels))
    loaded = load(model)
    assert isinstance(loaded, Finetuned)
    one, other = (loaded.clip(path, "1x1").astype(int) for path in (upright, turned))
    np.testing.assert_allclose(one, other, atol=2)
    first, second = (loaded.predict(path, "1x1") for path in (upright, turned))
    assert [each.label for each in first] == [each.label for each in second]
    one, other = (np.array([each.score for each in found]) for found in (first, second))
    np.testing.assert_allclose(one, other, atol=0.01)
    one, other = (
        features.of_video(loaded, open_video(path), 0, 1, "mean")["features"]
        for path in (upright, turned)
    )
    np.testing.assert_allclose(one, other, atol=0.05)


@pytest.mark.parametrize("numbers", [[3], [0, 4, 5, 11]])
def test_each_frame_has_the_map_next_to_it(numbers: list[int]) -> None:
    distance = np.abs(np.arange(15)[:, None] - np.array(numbers))
    found = saliency.nearest(np.array(numbers), 15)
    np.testing.assert_array_equal(found, distance.argmin(1))
