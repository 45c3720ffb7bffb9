"""Predictions for files of any kind, some of which cannot be read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamae_jax import predict, saliency
from adamae_jax.errors import UserError
from adamae_jax.loaded import Finetuned
from tests.interop.convert_cases import LABELS, written
from tests.interop.convert_cases import run as call
from tests.test_features import model
from tests.test_finetune import movie

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


@pytest.mark.parametrize("numbers", [[3], [0, 4, 5, 11]])
def test_each_frame_has_the_map_next_to_it(numbers: list[int]) -> None:
    distance = np.abs(np.arange(15)[:, None] - np.array(numbers))
    found = saliency.nearest(np.array(numbers), 15)
    np.testing.assert_array_equal(found, distance.argmin(1))
