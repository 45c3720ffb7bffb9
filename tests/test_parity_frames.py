"""The comparison of frames, crops and merged scores with those of the authors' loaders."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.parity import __main__ as command
from tests.parity import frames

GOLDEN = Path(__file__).parent / "golden" / "frame_cases.json"


def cases() -> dict[str, Any]:
    """What the authors' loaders chose."""
    loaded: dict[str, Any] = json.loads(GOLDEN.read_text())
    return loaded


def test_agrees_with_what_the_authors_loaders_chose(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(GOLDEN)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is True
    assert [report[kind]["arrays"] for kind in frames.PARTS] == [166, 12, 16]
    assert report["frames"]["relative_error"] == report["crops"]["relative_error"] == 0
    assert report["scores"]["relative_error"] < frames.SCORE_TOLERANCE


# Where something is changed, in which part of the report, and what is told of it.
CHANGES: list[tuple[list[Any], str, str]] = [
    (["kinetics", "train", 12, "cases", 0, "frames", 4], "frames", "kinetics/train/65x16x4/0"),
    (["kinetics", "train", 14, "draw", "end_below"], "frames", "kinetics/train/100x16x4/0/choices"),
    (["kinetics", "test", 14, "views", 1, 0], "frames", "kinetics/test/100x16x4/5"),
    (["ssv2", "train", 7, "cases", 2, "frames", 3], "frames", "ssv2/train/100x16/2"),
    (["ssv2", "train", 8, "draw", "offsets_below"], "frames", "ssv2/train/300x16/0/choices"),
    (["ssv2", "test", 7, "views", 1, 9], "frames", "ssv2/test/100x16/2"),
    (["videomae_v2", "kinetics_validation", 14, "frames", 0], "frames", "kinetics/validation/1"),
    (["videomae_v2", "ssv2_validation", 1, "frames", 15], "frames", "ssv2/validation/5x16"),
    (["videomae_v2", "ssv2_test", 15, "views", 2, 9], "frames", "ssv2/test_v2/100x16/3"),
    (["crops", "test", 1, "crops", 1, "top"], "crops", "crops/test/256x340/3"),
    (["crops", "test", 0, "resized_width"], "crops", "crops/test/340x256/3/size"),
    (["crops", "validation", 0, "crop", "left"], "crops", "crops/validation/340x256"),
    (["merge", 0, "merged", "videos", 2, "scores", 3], "scores", "merge/0/clip_01/scores"),
    (["merge", 0, "merged", "videos", 0, "predicted"], "scores", "merge/0/clip_03"),
    (["merge", 0, "merged", "top5"], "scores", "merge/0/top5"),
    (["merge", 0, "files", 0, 0, "logits", 0], "scores", "merge/0/clip_03/scores"),
]


@pytest.mark.parametrize(("path", "part", "worst"), CHANGES, ids=lambda value: str(value)[-40:])
def test_whatever_differs_is_told(path: list[Any], part: str, worst: str, tmp_path: Path) -> None:
    changed = cases()
    *parents, last = path
    place: Any = changed
    for key in parents:
        place = place[key]
    place[last] += 1
    (tmp_path / "cases.json").write_text(json.dumps(changed))
    report = frames.compare(str(tmp_path / "cases.json"))
    assert report["passed"] is False
    assert report[part]["worst"].startswith(worst)
    assert all(report[kind]["relative_error"] < 1e-12 for kind in frames.PARTS if kind != part)


def test_works_with_other_sizes(tmp_path: Path) -> None:
    """Worked out by hand: 4 frames at stride 3, 4 starts; squares of 10 pixels, 2 crops."""
    other = cases()
    other["kinetics"] = {
        "train": [
            {
                **{"frames_in_video": 20, "clip": 4, "stride": 3},
                "draw": {"end_at_least": 12, "end_below": 20},
                "cases": [{"end": 15, "start": 3, "frames": [3, 7, 11, 14]}],
            }
        ],
        "test": [
            {
                **{"frames_in_video": 20, "clip": 4, "stride": 3, "starts": 4, "crops": 2},
                "views": [[0, 3, 6, 9], [3, 6, 9, 12], [6, 9, 12, 15], [9, 12, 15, 18]],
            }
        ],
    }
    other["crops"]["test"] = [
        {
            **{"width": 33, "height": 20, "short_side": 10},
            **{"resized_width": 16, "resized_height": 10},
            "crops": [{"left": x, "top": 0, "width": 10, "height": 10} for x in (0, 6)],
        }
    ]
    # VideoMAE's views are longer than a clip where they are more than two: V2's are compared.
    other["ssv2"]["test"][0] |= {"starts": 3, "views": [[0] * 24] * 3}
    (tmp_path / "cases.json").write_text(json.dumps(other))
    report = frames.compare(str(tmp_path / "cases.json"))
    assert report["passed"], report


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("{", "no readable .json"),
        ("{}", "needs kinetics, ssv2, crops, merge, videomae_v2"),
        ('{"kinetics": {}, "ssv2": 0, "crops": 0, "merge": 0, "videomae_v2": 0}', "lacks 'train'"),
    ],
)
def test_files_that_cannot_be_compared_with_are_one_line_and_status_2(
    content: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cases.json"
    if content is not None:
        path.write_text(content)
    assert command.main([str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert str(path) in captured.err and words in captured.err
