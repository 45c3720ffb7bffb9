"""Pretraining and fine-tuning in several real processes, compared with one."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from adamae_jax import finetune, pretrain, results
from adamae_jax.best import BEST_JSON
from adamae_jax.training import loop, metrics, rundir
from tests.data import fixtures
from tests.processes import Job
from tests.runs import lines

RECORDS, HELD_OUT, STEPS, CLASSES = 32, 11, 6, 3
COMMON = f"""
from adamae_jax.config import masking_config
from tests.configs import tiny

def get_config():
    config = tiny.get_config()
    with config.unlocked():
        config.masking = masking_config("random", mask_ratio=0.75)
    config.model.encoder.depth = config.eval.random_draws = 1
    config.eval.knn = False
    config.steps, config.optimizer.warmup_steps = {STEPS}, 2
    config.eval_every, config.checkpoint_every, config.pictures_every = 3, 3, 0
    config.eval.num_examples = 0
    config.data.num_workers = 0
"""
PRETRAIN = COMMON + "    return config\n"
# What differs between clips of a video, and mixing them: groups lie within a process's part.
FINETUNE = (
    COMMON
    + """
    config.eval.test_views, config.data.repeats = "2x2", 2
    config.optimizer.average_decay, config.model.drop_path = 0.5, 0.1
    config.classifier.head_dropout = config.classifier.label_smoothing = 0.1
    config.augment.mixup, config.augment.mix_group = 0.2, 4
    return config
"""
)


def coloured(number: int) -> bytes:
    frames = fixtures.video(number, 10) // 2
    frames[..., number % CLASSES] += 100
    return fixtures.serialize(frames, f"video-{number}", number % CLASSES)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled videos; those held out are no multiple of anything."""
    records = [coloured(number) for number in range(RECORDS + HELD_OUT)]
    return fixtures.write_dataset(
        tmp_path_factory.mktemp("data") / "videos",
        {"train": records[:RECORDS], "validation": records[RECORDS:]},
        with_masks=False,
        label_names=("red", "green", "blue"),
    )


def run_here(text: str, data: Path, workdir: Path, job: Any) -> list[list[int]]:
    """The run in this process; returns the examples of each step."""
    names: dict[str, Any] = {}
    exec(text, names)
    config: ConfigDict = names["get_config"]()
    config.data.dir = str(data)
    seen, put_batch = [], loop.put_batch

    def put(batch: Any, mesh: Any) -> Any:
        seen.append(batch["example_index"].tolist())
        return put_batch(batch, mesh)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_summary_writer", lambda directory: None)  # TensorFlow
        patch.setattr(loop, "put_batch", put)
        job(config, workdir)
    return seen


def check_alike(ours: Path, theirs: Path, names: tuple[str, ...]) -> None:
    """Figures of each step and of the evaluations, but for the order in which sums are made."""
    logged = lines(ours)
    assert [line["step"] for line in logged] == list(range(1, STEPS + 1))
    for line, other in zip(logged, lines(theirs), strict=True):
        assert line.keys() == other.keys()
        for name in line.keys() & set(names):
            assert line[name] == pytest.approx(other[name], rel=3e-4), (line["step"], name)
        if "eval_examples" in line:
            assert line["eval_examples"] == HELD_OUT


def test_four_processes_pretrain_as_one_does(data: Path, tmp_path: Path) -> None:
    """The tensor axis spans processes: two of them read the same part of a batch."""
    (tmp_path / "four").mkdir()
    options = ("--config.mesh.data=2", "--config.mesh.tensor=2")
    with Job(tmp_path / "four/run", data, *options, config=PRETRAIN, count=4) as job:
        whole = run_here(PRETRAIN, data, tmp_path / "one", pretrain.pretrain)
        assert job.wait() == [0] * 4, job.said()
    check_alike(
        tmp_path / "four/run", tmp_path / "one", ("loss", "grad_norm", "eval_loss_reconstruction")
    )
    parts = [job.examples(index) for index in range(4)]
    assert parts[0] == parts[1] and parts[2] == parts[3]
    assert [a + b for a, b in zip(parts[0], parts[2], strict=True)] == whole


def test_two_processes_fine_tune_and_test_as_one_does(data: Path, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    with Job(tmp_path / "two/run", data, config=FINETUNE, job="finetune") as job:
        whole = run_here(FINETUNE, data, tmp_path / "one", finetune.finetune)
        assert job.wait() == [0, 0], job.said()
    check_alike(tmp_path / "two/run", tmp_path / "one", ("loss", "grad_norm", "eval_loss"))
    parts = [job.examples(index) for index in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole
    # The test counts every video once, and finds the same of it.
    tables, figures = [], []
    for workdir in (tmp_path / "two/run", tmp_path / "one"):
        with open(workdir / finetune.TEST / results.PREDICTIONS, newline="") as file:
            tables.append(list(csv.DictReader(file)))
        figures.append(json.loads((workdir / finetune.TEST / results.METRICS).read_text()))
    assert [row["video"] for row in tables[0]] == [
        f"video-{number}" for number in range(RECORDS, RECORDS + HELD_OUT)
    ]
    for row, other in zip(*tables, strict=True):
        for name in ("score_1", "score_2", "score_3"):
            assert float(row[name]) == pytest.approx(float(other[name]), abs=2e-5)
    assert figures[0]["videos"] == HELD_OUT
    assert figures[0]["top1"] == figures[1]["top1"]
    assert (tmp_path / "two/run" / rundir.BEST / BEST_JSON).is_file()
