"""Whole runs, as real processes: to the end, killed and resumed, and refused."""

import fcntl
import importlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

import adamae_jax
from adamae_jax import pretrain
from adamae_jax.config import masking_config
from adamae_jax.errors import UserError
from adamae_jax.training import rundir
from tests.configs import tiny
from tests.data import fixtures
from tests.runs import DEADLINE_S, ROOT, command, environment, lines, moving_waves, run


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Waits until something has happened, or the process or our patience has ended."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "nothing happened in time"
        assert process.poll() is None, f"the run ended by itself with {process.returncode}"
        time.sleep(0.01)


def run_killed(workdir: Path, data: Path, step: int) -> None:
    """Starts a run and kills it with SIGKILL once it has logged a step; no worker is left."""
    metrics = workdir / rundir.METRICS
    with (workdir.parent / "killed.log").open("wb") as log:
        process = subprocess.Popen(
            command(workdir, data), cwd=ROOT, env=environment(), stdout=log, stderr=log
        )

        def logged() -> bool:
            lines = metrics.read_bytes().splitlines() if metrics.exists() else []
            return any(json.loads(line)["step"] >= step for line in lines[:-1])

        wait_for(logged, process)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children, "the run reads through worker processes"
        process.send_signal(signal.SIGKILL)
        process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, f"workers outlived the run: {alive}"


def assert_same_run(one: Path, other: Path) -> None:
    """Bitwise the same metrics and the same final arrays."""
    assert lines(one) == lines(other)
    first, second = (load_file(path / "model" / "model.safetensors") for path in (one, other))
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].tobytes() == second[name].tobytes(), name


@pytest.fixture(scope="module")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 clips to train on and 8 held out."""
    return fixtures.write_dataset(
        tmp_path_factory.mktemp("data") / "waves",
        {"train": moving_waves(16), "validation": moving_waves(8)},
        shards=2,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """The workdir of a run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    done = run(workdir, tiny_dataset)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.smoke
def test_a_run_leaves_what_is_promised(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} >= {
        "config.json",
        "checkpoints",
        "metrics.jsonl",
        "pictures",
        "summary.json",
        "model",
    }
    assert list(finished.glob("events.out.tfevents.*"))
    assert len(list((finished / "pictures").glob("start*.png"))) == 4
    assert len(list((finished / "pictures").glob("end*.gif"))) == 4
    logged = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == list(range(1, 61))
    assert set(logged[0]) >= {
        "loss", "loss_reconstruction", "loss_sampling", "grad_norm", "grad_norm_masking",
        "learning_rate", "clips_per_second", "data_wait_share", "sampling_entropy",
        "sampling_max_probability", "sampling_effective_size", "foreground_lift",
    }  # fmt: skip
    assert [line["step"] for line in logged if "eval_loss_reconstruction" in line] == [20, 40, 60]
    assert 0.0 <= logged[-1]["eval_knn_accuracy"] <= 1.0
    # Full precision: a float32 written with fewer digits would not come back.
    assert all(np.float32(line["loss"]) == line["loss"] for line in logged)


@pytest.mark.smoke
def test_the_loss_falls_and_the_summary_says_so(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    logged = lines(finished)
    first = np.mean([line["loss_reconstruction"] for line in logged[:3]])
    last = np.mean([line["loss_reconstruction"] for line in logged[-3:]])
    assert summary["steps"] == 60
    assert summary["loss_reconstruction_first"] == pytest.approx(first)
    assert summary["loss_reconstruction_last"] == pytest.approx(last)
    assert last < 0.95 * first
    assert summary["foreground_lift"] == logged[-1]["eval_foreground_lift"]
    assert summary["foreground_source"] == "masks"
    assert summary["seconds"] > 0
    assert summary["clips_per_second"] > 0


def test_a_complete_run_ends_at_once(finished: Path, tiny_dataset: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    del before[finished / "config.json"]
    again = run(finished, tiny_dataset)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == json.loads((finished / "summary.json").read_text())
    # At the end, where it is seen, stands what the run has left and where.
    assert again.stderr.splitlines()[-3:] == [
        f"{name}: {finished / name}" for name in ("model", "pictures", "metrics.jsonl")
    ]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_killed_and_resumed_is_bitwise_the_same(
    finished: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "killed"
    run_killed(workdir, tiny_dataset, step=24)
    resumed = run(workdir, tiny_dataset)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed from step" in resumed.stderr
    assert resumed.stderr.index("compiling;") < resumed.stderr.index("compiled and ran step")
    assert_same_run(finished, workdir)


def test_load_gives_model_parameters_and_features(finished: Path) -> None:
    loaded = adamae_jax.load(finished)
    model, params = loaded
    video = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 24, 3), dtype=np.uint8)
    features = loaded.features(video)
    assert features.shape == (2, 48, 32)
    assert loaded.step == 60
    assert params["encoder"]["norm"]["scale"].shape == (32,)
    assert model.geometry.grid == (2, 4, 6)
    from_directory = adamae_jax.load(finished / "model")
    for one, other in zip(
        jax.tree.leaves(loaded.variables), jax.tree.leaves(from_directory.variables), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def refused(tiny_dataset: Path) -> Iterator[Callable[..., str]]:
    """Runs that must be refused in this process, before anything is compiled or written."""

    def refuse(workdir: Path, **changes: Any) -> str:
        config = tiny.get_config()
        config.data.dir = str(tiny_dataset)
        config.mesh.data = -1
        for name, value in changes.items():
            parent: Any = config
            *fields, last = name.split("__")
            for field in fields:
                parent = parent[field]
            parent[last] = value
        with pytest.raises(UserError) as caught:
            pretrain.pretrain(config, workdir)
        return str(caught.value)

    yield refuse


BAD_VALUES = [
    ({"masking__mask_ratio": 1.0}, ["mask_ratio is 1.0", "below 1"]),
    ({"masking__mask_ratio": 0.99}, ["0.99", "no visible token", "48"]),
    ({"model__patch_size": 5}, ["16", "patch_size 5"]),
    ({"data__num_frames": 5}, ["num_frames 5", "tubelet_size 2"]),
    ({"batch_size": 12}, ["batch_size 12", "8 device"]),
    ({"data__dir": ""}, ["data.dir", "prepare"]),
    ({"data__dir": "nowhere"}, ["nowhere", "prepare"]),
    ({"data__train_split": "trian"}, ["trian"]),
    ({"mesh__data": 3}, ["mesh", "8 device"]),
    ({"steps": 0}, ["steps", "epochs"]),
    ({"optimizer__warmup_steps": 60}, ["60", "warm-up"]),
    ({"seed": -1}, ["seed is -1"]),
    ({"eval__num_examples": -5}, ["eval.num_examples is -5"]),
    ({"objective__pixel_mean": (0.5,)}, ["pixel_mean is (0.5,)", "3 finite numbers"]),
    ({"optimizer__decay": ("[",)}, ["optimizer.decay", "'['"]),
    ({"optimizer__b2": 1.5}, ["optimizer.b2 is 1.5", "below 1"]),
    ({"data__validation_split": "held"}, ["'held'", "--config.eval_every=0"]),
    ({"model__attention": "cudnn"}, ["cudnn", "NVIDIA"]),
    ({"model__attention": "pallas"}, ["model.attention 'pallas'", "TPU", "'cpu'", "'auto'"]),
]


@pytest.mark.parametrize(("changes", "words"), BAD_VALUES, ids=lambda v: next(iter(v)))
def test_bad_values_are_refused_with_nothing_written(
    refused: Callable[..., str], tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    message = refused(tmp_path / "run", **changes)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("with_masks", "changes", "words"),
    [
        (False, {}, ["masking.name 'oracle'", "split 'train'", "no foreground masks"]),
        (
            True,
            {"data__rand_augment": "rand-m7-n4"},
            ["'oracle'", "data.rand_augment 'rand-m7-n4'"],
        ),
    ],
    ids=["no masks", "clips that are changed"],
)
def test_a_foreground_that_is_not_known_is_refused(
    refused: Callable[..., str],
    tmp_path: Path,
    with_masks: bool,
    changes: dict[str, Any],
    words: list[str],
) -> None:
    splits = {split: fixtures.small_records(8, with_masks) for split in ("train", "validation")}
    data = fixtures.write_dataset(tmp_path / "data", splits, with_masks=with_masks)
    masking = masking_config("oracle", mask_ratio=0.75)
    message = refused(tmp_path / "run", data__dir=str(data), masking=masking, **changes)
    assert all(word in message for word in words), message
    assert not (tmp_path / "run").exists()


def test_an_empty_dataset_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = refused(tmp_path / "run", data__dir=str(tmp_path / "empty"))
    assert str(tmp_path / "empty") in message
    assert not (tmp_path / "run").exists()


def test_a_workdir_of_another_model_is_refused(refused: Callable[..., str], finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    message = refused(finished, model__encoder__width=48)
    assert "model.encoder.width (the run: 32, asked for: 48)" in message
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


def test_other_data_is_refused(finished: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    """The fingerprint in the checkpoint is compared before anything goes on."""
    copy, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(finished, copy)
    (copy / "summary.json").unlink()
    shutil.copytree(tiny_dataset, data)
    info = data / "dataset_info.json"
    info.write_text(info.read_text().replace("{", "{ ", 1))
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    done = run(copy, data)
    assert done.returncode == 2
    assert "was trained on another dataset" in done.stderr.splitlines()[-1]
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}


def test_a_second_job_in_the_workdir_is_refused(
    refused: Callable[..., str], finished: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "summary.json").unlink()
    with (copy / rundir.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        message = refused(copy, log_every=3)
    assert "another process is at work" in message
    assert json.loads((copy / "config.json").read_text())["log_every"] == 1


@pytest.fixture(scope="module")
def damaged(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data with one record of every shard damaged."""
    data = tmp_path_factory.mktemp("damaged") / "data"
    shutil.copytree(tiny_dataset, data)
    for shard in data.glob("*.tfrecord*"):
        fixtures.flip_byte(shard, 200)
    return data


@pytest.mark.full
def test_a_run_over_damaged_records_counts_them(damaged: Path, tmp_path: Path) -> None:
    """By the way: the schedule is that of the data at hand, whatever a recipe's number is."""
    options = (
        *("--config.steps=0", "--config.epochs=4", "--config.data.num_examples=240000"),
        "--config.data.max_bad_fraction=0.5",
    )
    done = run(tmp_path / "run", damaged, *options)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["steps"], config["data"]["num_examples"]) == (8, 16)
    assert lines(tmp_path / "run")[-1]["replaced"] > 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["eval_examples"], summary["eval_unreadable"]) == (6, 2)
    assert summary["eval_loss_reconstruction"] > 0.5


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_damaged_model_directory_is_refused(finished: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "model"
    shutil.copytree(finished / "model", copy)
    fixtures.flip_byte(copy / name, 40)
    with pytest.raises(UserError, match="model"):
        adamae_jax.load(copy)


def test_a_model_directory_says_what_it_holds(finished: Path) -> None:
    described = json.loads((finished / "model" / "model.json").read_text())
    assert described["config"]["masking"]["name"] == "adaptive"
    assert described["config"]["data"]["image_size"] == [16, 24]
    assert described["config"]["objective"]["pixel_std"] == [0.229, 0.224, 0.225]
    assert described["label_names"] == ["a", "b", "c"]
    assert adamae_jax.load(finished / "model").label_names == ("a", "b", "c")
    with pytest.raises(UserError, match="without steps"):
        adamae_jax.load(finished / "model", step=7)


def test_a_model_that_was_trained_with_cudnn_loads_here(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(finished / "model", copy)
    described = (copy / "model.json").read_text()
    (copy / "model.json").write_text(described.replace('"auto"', '"cudnn"'))
    assert adamae_jax.load(copy).features(np.zeros((1, 4, 16, 24, 3), np.uint8)).shape == (
        1,
        48,
        32,
    )


def test_loading_a_broken_config_is_said(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config"):
        adamae_jax.load(tmp_path)
    with pytest.raises(UserError, match="holds neither"):
        adamae_jax.load(tmp_path / "nothing")


def test_all_jobs_can_be_imported_together() -> None:
    """Importing a job defines no flags; they would clash."""
    names = ("pretrain", "prepare", "visualize", "benchmark.step")
    for name in names:
        importlib.import_module(f"adamae_jax.{name}")


def test_a_wrong_command_line_gives_one_line(tiny_dataset: Path, tmp_path: Path) -> None:
    """In a process of its own; tests/test_cli.py has the others."""
    done = run(tmp_path / "run", tiny_dataset, "surplus")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert not (tmp_path / "run").exists()
