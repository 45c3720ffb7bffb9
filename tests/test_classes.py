"""Labels that are missing or of no class: training, probing and tests say so in one line."""

import json
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax import classes, evaluate, finetune, probe, results
from adamae_jax.errors import UserError
from adamae_jax.training import rundir
from tests import test_classification as classification
from tests.interop.convert_cases import LABELS, written
from tests.interop.convert_cases import run as call
from tests.test_finetune import NAMES, base, config_of, wrong_labels

PRESENT = [0, 1, 2, 0]


def test_bad_input_is_told_at_the_start(tmp_path: Path) -> None:
    data = wrong_labels(tmp_path / "right", NAMES, [0, 1, 2])
    config = config_of(data)
    config.classifier.num_classes = 5
    with pytest.raises(UserError, match=r"num_classes is 5, but the dataset at .* has 3 classes"):
        finetune.finetune(config, tmp_path / "run")
    config = config_of(wrong_labels(tmp_path / "none", (), [-1] * 8))
    with pytest.raises(UserError, match=r"does not say which classes it has"):
        finetune.finetune(config, tmp_path / "run")
    config.classifier.num_classes = 3
    with pytest.raises(
        UserError,
        match=r"none of 8 videos of split 'train' at .*, from the first .* has a label",
    ):
        finetune.finetune(config, tmp_path / "run")
    config = config_of(wrong_labels(tmp_path / "beyond", (), [0, 1, 7, 2, 0, 1, 7, 2]))
    config.classifier.num_classes = 3
    with pytest.raises(UserError, match=r"has label 7, but there are 3 classes"):
        finetune.finetune(config, tmp_path / "run")
    assert not (tmp_path / "run" / rundir.CHECKPOINTS).exists()
    config = config_of(data)
    config.eval.test_views = "5"
    with pytest.raises(UserError, match=r"views are '5'"):
        finetune.finetune(config, tmp_path / "run")


def test_a_label_of_no_class_is_met_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is none of those that are looked at first."""
    config = config_of(wrong_labels(tmp_path, (), [0, 1, 2, 7] * 4))
    config.classifier.num_classes, config.eval_every = 3, 0
    monkeypatch.setattr(classes, "LOOKED_AT", 1)
    with pytest.raises(UserError, match=r"has label 7, but there are 3 classes"):
        finetune.finetune(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("held_out", "said"),
    [
        ([0, 7, 1], r"record 1 of split 'validation' .* has label 7, but there are 3 classes"),
        ([-1, -1], r"none of 2 videos of split 'validation' at .* has a label: .*eval_every=0"),
    ],
)
@pytest.mark.parametrize("job", ["finetune", "probe"])
def test_labels_of_the_validation_split(
    tmp_path: Path, job: str, held_out: list[int], said: str
) -> None:
    config = base(wrong_labels(tmp_path, NAMES, PRESENT, held_out))
    config.init_from = "none"
    train: Any = {"finetune": finetune.finetune, "probe": probe.probe}[job]
    with pytest.raises(UserError, match=said):
        train(config, tmp_path / "run")


def test_a_label_of_no_class_in_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start or, where it is none of those that are looked at first, before it counts."""
    data = wrong_labels(tmp_path, LABELS, PRESENT, [0, 7, 1])
    model = written(tmp_path / "model", "videomae", fine_tuned=True)
    arguments = (f"--checkpoint={model}", f"--data_dir={data}", "--split=validation")
    for looked_at in (64, 1):
        monkeypatch.setattr(classes, "LOOKED_AT", looked_at)
        with pytest.raises(UserError, match="has label 7, but there are 3 classes"):
            call(evaluate, *arguments)


def test_an_evaluation_without_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Predictions, no accuracies, and JSON that everybody reads."""
    data = wrong_labels(tmp_path, LABELS, [-1, -1, -1])
    model = written(tmp_path / "model", "videomae", fine_tuned=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / results.CONFUSION).write_bytes(b"of another evaluation")
    with caplog.at_level(logging.WARNING):
        call(
            evaluate,
            *(f"--checkpoint={model}", f"--data_dir={data}", "--split=train"),
            f"--output={tmp_path / 'out'}",
        )
    assert "no video of" in caplog.text
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert found == json.loads((tmp_path / "out" / results.METRICS).read_text())
    assert (found["videos"], found["labelled"]) == (3, 0)
    assert not {"top1", "top5", "mean_class_accuracy"} & found.keys()
    assert len((tmp_path / "out" / results.PREDICTIONS).read_text().splitlines()) == 4
    assert not (tmp_path / "out" / results.CONFUSION).exists()


def test_a_label_of_no_class_is_wrong_in_a_validation() -> None:
    """As far as the task itself sees one."""
    variables = {"params": classification.parameters(), "state": {}, "frozen": {}}
    batch = classification.labelled()
    batch["label"] = jnp.full_like(batch["label"], classification.CLASSES)
    figures = classification.TASK.evaluate(variables, batch, None)
    jax.tree.map(lambda each: np.testing.assert_array_equal(each, 0), figures)
