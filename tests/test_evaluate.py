"""A test of a classifier counts every video, those that cannot be read among them."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamae_jax import evaluate, results
from adamae_jax.errors import UserError
from tests.data import fixtures
from tests.interop.convert_cases import LABELS, written
from tests.interop.convert_cases import run as call
from tests.test_finetune import coloured


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A classifier, and five videos, one torn and one without a label."""
    folder = tmp_path_factory.mktemp("evaluated")
    records = [coloured(number, label) for number, label in enumerate([0, 1, 2, -1, 1])]
    records[1] = b"\xff"
    data = fixtures.write_dataset(folder / "data", {"test": records}, 1, False, LABELS)
    model = written(folder / "model", "videomae", fine_tuned=True)
    return f"--checkpoint={model}", f"--data_dir={data}", "--split=test", "--batch_size=8"


def test_videos_that_cannot_be_read_count_as_wrong(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    call(evaluate, *arguments, f"--output={tmp_path}")
    found = json.loads((tmp_path / results.METRICS).read_text())
    assert (found["videos"], found["labelled"], found["unreadable"]) == (5, 3, 1)
    with open(tmp_path / results.PREDICTIONS, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["index"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert {name: text for name, text in rows[1].items() if text} == {"index": "1"}
    right = {row["index"]: row["class_1"] == row["label"] for row in rows if row["video"]}
    assert sum(right.values()) > 0  # else the shares would say nothing
    assert found["top1"] == pytest.approx(sum(right.values()) / 5)
    assert found["top5"] == pytest.approx(3 / 5)  # of three classes
    one, other = float(right["4"]), (right["0"], right["2"])
    assert found["mean_class_accuracy"] == pytest.approx(np.mean([one, *other]))


def test_a_test_that_does_not_see_all_videos_ends(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = evaluate.score

    def forgetful(*given: Any) -> Any:
        return dataclasses.replace(score(*given), unreadable=np.array([], np.int32))

    monkeypatch.setattr(evaluate, "score", forgetful)
    with pytest.raises(UserError, match="an evaluation of 5 clips has counted 4"):
        call(evaluate, *arguments, f"--output={tmp_path}")
