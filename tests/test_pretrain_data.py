"""What becomes of a run when its data is several datasets, or its storage has bad moments."""

import contextlib
import errno
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict
from PIL import Image

from adamae_jax import pretrain, run_data
from adamae_jax.config import masking_config
from adamae_jax.data import storage
from adamae_jax.data.batches import Reading
from adamae_jax.data.mixture import open_dataset
from adamae_jax.data.records import Dataset
from adamae_jax.data.stream import EvalClips, id_text
from adamae_jax.data.temporal import Views
from adamae_jax.errors import UserError
from adamae_jax.experiment import clip_spec
from adamae_jax.run_data import (
    RunData,
    evaluation_batches,
    open_training,
    open_validation,
    videos_per_batch,
)
from adamae_jax.training import loop, rundir
from adamae_jax.training.partitioning import create_mesh
from tests.configs import tiny
from tests.data import fixtures
from tests.prepare.test_job import run as prepare
from tests.runs import lines, moving_waves


class KilledError(Exception):
    """In the place of a SIGKILL."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """16 clips and 8 held out; 4 clips of other classes, without masks, and none held out."""
    root = tmp_path_factory.mktemp("parts")
    waves = moving_waves(24)
    others = [fixtures.serialize(fixtures.video(number, 10)) for number in range(4)]
    names = ("x", "y", "z")
    return [
        fixtures.write_dataset(root / "a", {"train": waves[:16], "validation": waves[16:]}),
        fixtures.write_dataset(root / "b", {"train": others}, with_masks=False, label_names=names),
    ]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Compiled programs, from one run to the next."""
    return str(tmp_path_factory.mktemp("compiled"))


def tiny_run(workdir: Path, data: object, compiled: str, **changes: Any) -> dict[str, Any]:
    """A run of 6 steps in this process; changes are fields of the config by their paths."""
    config: ConfigDict = tiny.get_config()
    with config.unlocked():
        config.masking = masking_config("random", mask_ratio=0.75)  # compiles sooner
    config.update_from_flattened_dict(
        {
            "data.dir": str(data),
            "data.num_workers": 0,
            "steps": 6,
            "optimizer.warmup_steps": 2,
            "checkpoint_every": 2,
            "eval_every": 3,
            "pictures_every": 0,
            "compilation_cache_dir": compiled,
            "model.encoder.depth": 1,
            "eval.random_draws": 1,
        }
        | changes
    )
    return pretrain.pretrain(config, workdir)


@pytest.fixture(scope="module")
def mixed(
    parts: list[Path], compiled: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], int]:
    """Workdir and summary of a run over both, three clips of the first to one, and of its trouble.

    It is killed behind its first checkpoint and goes on with the weights in other words; and every
    fifth time that it reads, the storage fails.
    """
    workdir = tmp_path_factory.mktemp("mixed") / "run"
    failures = 0
    with pytest.MonkeyPatch.context() as patch:
        read, log = os.pread, loop.Loop._log
        calls = itertools.count()

        def failing(descriptor: int, count: int, offset: int) -> bytes:
            nonlocal failures
            if next(calls) % 5 == 4:
                failures += 1
                raise OSError(errno.EIO, "the cable is loose")
            return read(descriptor, count, offset)

        def killed(self: loop.Loop, step: int, figures: dict[str, float]) -> None:
            if step == 4:
                raise KilledError
            log(self, step, figures)

        patch.setattr(os, "pread", failing)
        patch.setattr(storage, "RETRY_DELAYS_S", (0.0, 0.0))
        patch.setattr(pretrain, "drawing", lambda *_: None)
        with patch.context() as death:
            death.setattr(loop.Loop, "_log", killed)
            with pytest.raises(KilledError):
                tiny_run(workdir, f"{parts[0]}:3,{parts[1]}:1", compiled)
        summary = tiny_run(workdir, f"{parts[0]}:0.75,{parts[1]}:0.25", compiled)
    return workdir, summary, failures


def test_a_mixture_is_trained_on_and_its_first_part_held_out(
    mixed: tuple[Path, dict[str, Any], int],
) -> None:
    workdir, summary, failures = mixed
    assert failures > 3
    logged = lines(workdir)
    assert [line["step"] for line in logged] == [1, 2, 3, 4, 5, 6]
    assert all(line["clips_part_0"] + line["clips_part_1"] == 8 for line in logged)
    assert sum(line["clips_part_1"] for line in logged) == 12
    assert not any(line["replaced"] for line in logged)
    assert logged[4]["epoch"] == 40 / 20
    assert (summary["eval_examples"], summary["foreground_source"]) == (8, "masks")
    assert 0 <= summary["eval_knn_accuracy"] <= 1
    config = json.loads((workdir / rundir.CONFIG).read_text())
    assert config["data"]["num_examples"] == 20
    assert json.loads((workdir / "model" / "model.json").read_text())["label_names"] == []


@pytest.mark.full
def test_neither_kill_nor_storage_changes_the_run_over_a_mixture(
    mixed: tuple[Path, dict[str, Any], int], parts: list[Path], compiled: str, tmp_path: Path
) -> None:
    tiny_run(tmp_path / "run", f"{parts[0]}:3,{parts[1]}:1", compiled)
    assert lines(tmp_path / "run") == lines(mixed[0])


def test_other_weights_are_other_data(
    mixed: tuple[Path, dict[str, Any], int], parts: list[Path], compiled: str
) -> None:
    with pytest.raises(UserError, match="was trained on another dataset than .*:3,.*:2 "):
        tiny_run(mixed[0], f"{parts[0]}:3,{parts[1]}:2", compiled)


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        ("A:1,nowhere:1", {}, "no dataset at nowhere, which is no directory"),
        ("A:1,B:0", {}, "B:0' in the mixture"),
        ("A,B", {}, "a single dataset needs no weight"),
        ("A:1,B:1", {"data.train_split": "validation"}, "B has no split 'validation'"),
        ("B:1,A:1", {}, "B has no split 'validation'; it has: train; or train without validation"),
    ],
)
def test_impossible_mixtures_are_refused_with_nothing_written(
    parts: list[Path], tmp_path: Path, data: str, changes: dict[str, Any], message: str
) -> None:
    words = data.replace("A", str(parts[0])).replace("B", str(parts[1]))
    with pytest.raises(UserError) as caught:
        tiny_run(tmp_path / "run", words, "", **changes)
    assert message.replace("B", str(parts[1])) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_images_and_videos_are_no_mixture_of_clips(parts: list[Path], tmp_path: Path) -> None:
    for number in range(4):
        path = tmp_path / "pictures" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 24), (60 * number, 0, 0)).save(path)
    images = tmp_path / "images"
    prepare(f"--source={tmp_path / 'pictures'}", "--images", f"--output={images}")
    with pytest.raises(UserError, match=rf"num_frames is 4, .* 1 for the dataset at {images}"):
        tiny_run(tmp_path / "run", f"{parts[0]}:1,{images}:1", "")


def test_storage_that_keeps_failing_ends_the_run(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_batches = RunData.training_from

    def failing(descriptor: int, count: int, offset: int) -> bytes:
        raise OSError(errno.EIO, "the cable is out")

    def break_and_open(self: RunData, first_step: int) -> Any:
        monkeypatch.setattr(os, "pread", failing)
        return open_batches(self, first_step)

    monkeypatch.setattr(RunData, "training_from", break_and_open)
    monkeypatch.setattr(storage, "RETRY_DELAYS_S", (0.0, 0.0))
    with pytest.raises(UserError, match="cannot be read any more: .*cable is out.*small-train"):
        tiny_run(tmp_path / "run", parts[0], "", eval_every=0)


LEAVING = """
import atexit, sys, threading
import jax
from absl import flags
from adamae_jax import cli, links, peers, pretrain
cli.recipe_values = dict  # the flag below is no config
links.watch = lambda lost: lambda: None  # there is nobody at the other end
from adamae_jax.errors import UserError
atexit.register(threading.Event().wait)  # as JAX does, for the other processes
jax.process_count, jax.process_index = (lambda: 2), (lambda: 1)
peers.multihost_utils.broadcast_one_to_all = lambda number: number
def fail(config, workdir, recipe):
    raise {"user": UserError("too much is damaged"), "ours": ValueError("a bug")}[sys.argv[1]]
pretrain.pretrain = fail
flags.DEFINE_string("workdir", "", "")
flags.DEFINE_string("config", "", "")
cli.run(pretrain.main, ["pretrain", "--config=tests/configs/tiny.py", f"--workdir={sys.argv[2]}"])
"""


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        ("user", 2, "error: process 1 of 2: too much is damaged\n"),
        ("ours", 1, "ValueError: a bug\nerror: process 1 of 2 ends: if it lost another one"),
    ],
)
def test_one_of_several_processes_waits_for_nobody_with_an_error(
    error: str, status: int, message: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEAVING, error, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=60,
        check=False,
    )
    assert (done.returncode, message in done.stderr) == (status, True), done.stderr
    (word,) = (tmp_path / "run").iterdir()
    assert word.read_text() in done.stderr


@pytest.mark.parametrize(("workers", "expected"), [(0, 0), (3, 2)])
def test_evaluations_have_workers_where_there_is_enough_to_read(
    parts: list[Path], monkeypatch: pytest.MonkeyPatch, workers: int, expected: int
) -> None:
    config: ConfigDict = tiny.get_config()
    config.update_from_flattened_dict({"data.dir": str(parts[0]), "data.num_workers": workers})
    mesh, train = create_mesh({"data": -1}), open_training(config)
    started: list[int] = []

    def record(_: EvalClips, reading: Reading) -> Any:
        started.append(reading.num_workers)
        return contextlib.nullcontext()

    monkeypatch.setattr(run_data, "eval_batches", record)
    monkeypatch.setattr(run_data, "VIDEOS_PER_WORKER", 8)
    for count in (0, 7):  # 0: all 16
        config.eval.knn_examples = count
        data = RunData(config, mesh, Path(), train, open_validation(config))
        with data.neighbours():
            pass
    assert started == [expected, 0]


def test_a_dataset_can_be_evaluated_in_views_by_itself(parts: list[Path], tmp_path: Path) -> None:
    """Without a run: any split, every video once, batches of about as many clips as asked for."""
    config: ConfigDict = tiny.get_config()
    config.update_from_flattened_dict({"data.dir": "", "eval.batch_size": 40})
    mesh = create_mesh({"data": -1})
    dataset = open_dataset(str(parts[0]), "train")
    assert isinstance(dataset, Dataset)
    views = Views(2, 3)
    with evaluation_batches(config, mesh, tmp_path, dataset, views=views) as held_out:
        batches = list(held_out)
        held_out.check(unreadable=0)
    size = videos_per_batch(40, mesh, views)
    assert size % mesh.size == 0 and size <= max(mesh.size, 40 // 6)
    assert held_out.num_examples == 16 == sum(batch["valid"].sum() for batch in batches)
    assert len(batches) == -(-16 // size)
    spec = clip_spec(config)
    for batch in batches:
        assert batch["video"].shape == (size, 6, *spec.video_shape)
    named = [id_text(row) for b in batches for row in b["video_id"][b["valid"]]]
    assert named == [dataset[index].id for index in range(16)]
    with evaluation_batches(config, mesh, tmp_path, dataset, most=3, views=Views()) as held_out:
        assert sum(batch["valid"].sum() for batch in held_out) == 3
    assert (videos_per_batch(6, mesh, views), videos_per_batch(1, mesh, views)) == (mesh.size,) * 2


def test_a_wrong_rand_augment_is_told_at_the_start(parts: list[Path]) -> None:
    config: ConfigDict = tiny.get_config()
    config.update_from_flattened_dict({"data.dir": str(parts[0]), "data.rand_augment": "rand-m70"})
    with pytest.raises(UserError, match="rand_augment is 'rand-m70', but must be empty or timm's"):
        open_training(config)


def test_a_damaged_record_ends_a_run_that_asks_for_it(tmp_path: Path) -> None:
    records = [b"\xff", *moving_waves(3)] * 4
    data = fixtures.write_dataset(tmp_path / "data", {"train": records})
    with pytest.raises(UserError, match=r"record \d+ of split 'train' .* no tf.train.Example"):
        tiny_run(tmp_path / "run", data, "", eval_every=0, **{"data.on_error": "raise"})


def test_videos_shorter_than_the_clips_are_told_at_the_start(
    parts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(
        run_data.logging, "warning", lambda text, *values: told.append(text % values)
    )
    config: ConfigDict = tiny.get_config()
    config.update_from_flattened_dict({"data.dir": f"{parts[0]}:1,{parts[1]}:1"})
    open_training(config)
    assert not told
    config.data.sampling_rate = 3
    open_training(config)
    for part, warning in zip(parts, told, strict=True):
        assert f"{part} have 10 frames at most, a clip needs 12" in warning
