"""Compares frames, crops and merged scores with those of VideoMAE's loaders for fine-tuning.

The file, ``frame_cases.json``, has what the authors' loaders chose for many videos: frames in
training for given draws, of each view in testing, crops, and what `merge` made of views' logits.
VideoMAE V2's tables are compared where this code follows them: the clip for validation, and views
on Something-Something. Its training on videos of Something-Something that are shorter than a clip
is not followed (VideoMAE's is), nor are VideoMAE's views where they are longer than a clip.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from adamae_jax.data.crops import Box, view_boxes
from adamae_jax.data.temporal import segment_frames, stretched_frames, view_frames
from adamae_jax.errors import UserError
from adamae_jax.training.scores import merge_views, top_k
from tests.parity.comparison import part_report, worst
from tests.parity.parts import Comparison

SCORE_TOLERANCE = 1e-12
Cases = Mapping[str, Any]
Sizes = tuple[int, ...]  # frames in the video, frames in the clip and, on Kinetics, the stride
Pairs = Iterator[tuple[str, Any, Any]]  # a name, what this code gives, what theirs gave


class Scripted:
    """Instead of a generator: one draw of whole numbers that is given, and its range."""

    def __init__(self, drawn: Any):
        self.drawn = drawn
        self.choices = 0

    def integers(self, choices: int, size: int | None = None) -> Any:
        self.choices = choices
        return self.drawn if size is None else np.reshape(self.drawn, size)


def read(path: str) -> Cases:
    """The file.

    Raises:
      UserError: where it is not one.
    """
    try:
        with open(path, encoding="utf-8") as file:
            cases = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no readable .json of frame cases: {error}") from error
    parts = ("kinetics", "ssv2", "crops", "merge", "videomae_v2")
    if not isinstance(cases, dict) or not all(part in cases for part in parts):
        raise UserError(f"{path} has no frame cases: it needs {', '.join(parts)}")
    return cases


def kinetics(cases: Cases) -> Pairs:
    """Clips in training and views in testing, and V2's clip for validation."""
    sizes: Sizes
    for table in cases["kinetics"]["train"]:
        sizes = table["frames_in_video"], table["clip"], table["stride"]
        yield from _drawn("kinetics/train", table, "start", stretched_frames, sizes)
    for table in cases["kinetics"]["test"]:
        sizes = table["frames_in_video"], table["clip"], table["stride"]
        name = f"kinetics/test/{_words(sizes)}/{table['starts']}"
        yield name, _views("stretched", *sizes, table["starts"]), table["views"]
    for table in cases["videomae_v2"]["kinetics_validation"]:
        sizes = table["frames_in_video"], table["clip"], table["stride"]
        yield (
            f"kinetics/validation/{_words(sizes)}",
            stretched_frames(*sizes, None),
            table["frames"],
        )


def something(cases: Cases) -> Pairs:
    """Clips in training and views in testing, V2's too, and V2's clip for validation."""
    sizes: Sizes
    for table in cases["ssv2"]["train"]:
        sizes = table["frames_in_video"], table["clip"]
        yield from _drawn("ssv2/train", table, "offsets", segment_frames, sizes)
    for kind, tables in (
        ("test", cases["ssv2"]["test"]),
        ("test_v2", cases["videomae_v2"]["ssv2_test"]),
    ):
        for table in tables:
            sizes = table["frames_in_video"], table["clip"]
            if all(len(view) == table["clip"] for view in table["views"]):
                name = f"ssv2/{kind}/{_words(sizes)}/{table['starts']}"
                yield name, _views("segments", *sizes, 1, table["starts"]), table["views"]
    for table in cases["videomae_v2"]["ssv2_validation"]:
        sizes = table["frames_in_video"], table["clip"]
        yield f"ssv2/validation/{_words(sizes)}", segment_frames(*sizes, None), table["frames"]


def crops(cases: Cases) -> Pairs:
    """Sizes of resized frames, and boxes in them."""
    for table in cases["crops"]["test"]:
        boxes = table["crops"]
        size, found = _boxes(table, len(boxes))
        name = f"crops/test/{table['width']}x{table['height']}/{len(boxes)}"
        yield f"{name}/size", size, (table["resized_height"], table["resized_width"])
        yield name, found, [_box(box) for box in boxes]
    for table in cases["crops"]["validation"]:
        name = f"crops/validation/{table['width']}x{table['height']}"
        yield name, _boxes(table, 1)[1], [_box(table["crop"])]


def merged(cases: Cases) -> Pairs:
    """Scores of videos, and how often they are right."""
    for number, table in enumerate(cases["merge"]):
        views: dict[str, dict[tuple[int, int], Sequence[float]]] = {}
        labels: dict[str, int] = {}
        for view in itertools.chain.from_iterable(table["files"]):
            place = (view["chunk"], view["split"])
            seen = views.setdefault(view["name"], {})
            if place not in seen:  # each once, first come first served
                seen[place] = view["logits"]
                labels[view["name"]] = view["label"]
        places = sorted({place for seen in views.values() for place in seen})
        missing = [np.nan] * table["classes"]
        logits = np.array(
            [[seen.get(place, missing) for place in places] for seen in views.values()]
        )
        valid = np.array([[place in seen for place in places] for seen in views.values()])
        scores = merge_views(logits, valid)
        label = np.array([labels[name] for name in views])
        hits = {k: top_k(scores, label, k) for k in (1, 5)}
        theirs = table["merged"]
        for k in hits:
            yield f"merge/{number}/top{k}", 100 * hits[k].mean(), theirs[f"top{k}"]
        for row, name in enumerate(views):
            video = next(v for v in theirs["videos"] if v["name"] == name)
            yield f"merge/{number}/{name}/scores", scores[row], video["scores"]
            found = [valid[row].sum(), label[row], scores[row].argmax()]
            found += [hits[k][row] for k in hits]
            keys = ("views", "label", "predicted", "in_top1", "in_top5")
            yield f"merge/{number}/{name}", found, [video[key] for key in keys]


PARTS = {
    "frames": (lambda cases: itertools.chain(kinetics(cases), something(cases)), 0.0),
    "crops": (crops, 0.0),
    "scores": (merged, SCORE_TOLERANCE),
}


def compare(path: str) -> dict[str, Any]:
    """Compares with one file; the report is that of `tests.parity.comparison.judge`.

    Frames and boxes must be equal, scores to `SCORE_TOLERANCE`.

    Raises:
      UserError: where the file cannot be compared with.
    """
    cases = read(path)
    report: dict[str, Any] = {"system": "VideoMAE's loaders"}
    passed = True
    for kind, (pairs_of, tolerance) in PARTS.items():
        try:
            found = list(pairs_of(cases))
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} lacks {error}, which its comparison needs") from error
        pairs: Comparison = (
            {name: np.asarray(ours) for name, ours, _ in found},
            {name: np.asarray(theirs) for name, _, theirs in found},
        )
        part, agrees = part_report(pairs, worst, tolerance)
        report[kind] = part
        passed = passed and agrees
    report["passed"] = passed
    return report


def _drawn(kind: str, table: Cases, key: str, choose: Any, sizes: Sizes) -> Pairs:
    """One table of training: the range of the draw, and the frames for some draws."""
    draw = table["draw"]
    for number, case in enumerate(table["cases"]):
        name = f"{kind}/{_words(sizes)}/{number}"
        rng = Scripted(case[key] if draw else None)
        yield name, choose(*sizes, rng), case["frames"]
        if draw is None:
            choices = 0
        elif key == "start":
            choices = draw["end_below"] - draw["end_at_least"]
        else:
            choices = draw["offsets_below"]
        yield f"{name}/choices", rng.choices, choices


def _views(sampling: str, available: int, clip: int, stride: int, starts: int) -> np.ndarray:
    return view_frames(sampling, available, clip, stride, starts, fps=30.0, target_fps=30.0)


def _boxes(table: Cases, count: int) -> tuple[tuple[int, int], list[Box]]:
    side = table["short_side"]
    return view_boxes((table["height"], table["width"]), (side, side), count)


def _box(box: Cases) -> Box:
    return Box(box["left"], box["top"], box["width"], box["height"])


def _words(sizes: Sizes) -> str:
    return "x".join(map(str, sizes))
