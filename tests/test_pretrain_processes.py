"""A pretraining in two real processes: damaged records on either side, and one that is killed."""

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from ml_collections import ConfigDict

import adamae_jax
from adamae_jax import experiment, pretrain
from adamae_jax.data.damage import Damage, DamageWatch, described
from adamae_jax.data.order import record_order
from adamae_jax.data.records import Dataset
from adamae_jax.data.stream import Element
from adamae_jax.errors import UserError
from adamae_jax.training import metrics, rundir
from tests.configs import tiny
from tests.data import fixtures
from tests.data.fixtures import evaluation, training
from tests.processes import Job, stop_line
from tests.runs import lines, moving_waves

PROCESSES = 2
RECORDS, HELD_OUT, CLIPS, STEPS = 32, 8, 8, 8  # two epochs
# Without what takes long to compile.
CONFIG = f"""
from adamae_jax.config import masking_config
from tests.configs import tiny

def get_config():
    config = tiny.get_config()
    with config.unlocked():
        config.masking = masking_config("random", mask_ratio=0.75)
    config.model.encoder.depth = config.eval.random_draws = 1
    config.eval.knn = False
    config.steps, config.optimizer.warmup_steps = {STEPS}, 2
    config.eval_every, config.checkpoint_every, config.pictures_every = 4, 4, 0
    config.data.max_bad_fraction, config.data.num_workers = 0.25, 0
    return config
"""
ENDING_S = 30.0
KILLED_S = 60.0


def config_of(data: Path) -> ConfigDict:
    config: ConfigDict = tiny.get_config()
    config.data.dir = str(data)
    return config


def read_training(data: Path, host: int = 0, hosts: int = 1) -> list[Element]:
    """The batches of a whole run that a process gets."""
    config = config_of(data)
    with training(
        Dataset(data, "train"), experiment.clip_spec(config), 0, STEPS, seed=config.seed,
        videos_per_step=CLIPS, host=host, num_hosts=hosts,
    ) as batches:  # fmt: skip
        return list(batches)


def read_validation(data: Path, host: int) -> list[Element]:
    """The batches of an evaluation that a process gets."""
    with evaluation(
        Dataset(data, "validation"), experiment.clip_spec(config_of(data)), batch_size=CLIPS,
        host=host, num_hosts=PROCESSES,
    ) as batches:  # fmt: skip
        return list(batches)


def damage_met(data: Path, host: int) -> set[str]:
    """What a process should list."""
    met: set[str] = set()
    for split, index, batches in (
        ("train", "bad_record", read_training(data, host, PROCESSES)),
        ("validation", "example_index", read_validation(data, host)),
    ):
        dataset = Dataset(data, split)
        for batch in batches:
            for record, damage in zip(batch[index], batch["damage"], strict=True):
                if damage:
                    met.add(described(dataset, int(record), Damage(damage)))
    return met


def write_data(directory: Path, *, train: Mapping[int, Iterable[int]], held_out: set[int]) -> Path:
    """Waves, some of them damaged.

    Args:
      directory: of the dataset.
      train: for each process, places in what it reads of the first epoch.
      held_out: numbers of records.
    """
    waves, held = moving_waves(RECORDS), moving_waves(HELD_OUT)
    clean = fixtures.write_dataset(directory.with_suffix(".clean"), {"train": waves})
    order = record_order(Dataset(clean, "train"), config_of(clean).seed)
    share = CLIPS // PROCESSES
    for process, places in train.items():
        for place in places:
            step, slot = divmod(place, share)
            waves[order[step * CLIPS + process * share + slot]] = b"\xff"
    for number in held_out:
        held[number] = b"\xff"
    return fixtures.write_dataset(directory, {"train": waves, "validation": held})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where datasets lie, and what has been compiled."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def data(root: Path) -> Path:
    """Three damaged records to train on, two of them for the first process, and two held out."""
    return write_data(root / "few", train={0: (2, 9), 1: (5,)}, held_out={1, 6})


class Runs(NamedTuple):
    """The workdirs of one run in two processes and in one, and the two."""

    two: Path
    one: Path
    job: Job


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Both to their ends, side by side."""
    two, one = (tmp_path_factory.mktemp(name) / "run" for name in ("two", "one"))
    with Job(two, data, config=CONFIG) as job:
        run_here(one, data)
        assert job.wait() == [0, 0], job.errors(0) + job.errors(1)
    return Runs(two, one, job)


def run_here(workdir: Path, data: Path) -> None:
    """The run in this process: metrics.jsonl, summary.json and no more, to save time."""
    names: dict[str, Any] = {}
    exec(CONFIG, names)
    config: ConfigDict = names["get_config"]()
    config.data.dir = str(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "drawing", lambda *_: None)
        patch.setattr(metrics, "_summary_writer", lambda directory: None)  # TensorFlow
        pretrain.pretrain(config, workdir)


def test_each_process_lists_the_damaged_records_that_it_met(runs: Runs, data: Path) -> None:
    workdir = runs.two
    listed = [
        (workdir / f"damaged_records_{process}.txt").read_text().splitlines()
        for process in range(PROCESSES)
    ]
    for process, found in enumerate(listed):
        assert sorted(found) == sorted(damage_met(data, process))
    assert len(set(listed[0] + listed[1])) == 5
    # Each record to train on comes to either process, in one epoch or the other.
    assert [sum("'validation'" in line for line in found) for found in listed] == [1, 1]
    assert not (workdir / "damaged_records.txt").exists()


def test_two_processes_read_what_one_reads(data: Path) -> None:
    hosts = [read_training(data, host, PROCESSES) for host in range(PROCESSES)]
    for whole, *parts in zip(read_training(data), *hosts, strict=True):
        for name in ("example_index", "slot", "replaced", "bad_record", "video"):
            joined = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(joined, whole[name])


def test_two_processes_train_as_one_does(runs: Runs, data: Path) -> None:
    ours, theirs = lines(runs.two), lines(runs.one)
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    assert [line["replaced"] for line in ours] == [line["replaced"] for line in theirs]
    replaced = sum(int(batch["replaced"].sum()) for batch in read_training(data))
    assert ours[-1]["replaced"] == replaced >= 6
    # Two processes sum in another order than the eight devices of this one: 1e-7 of a float32, and
    # a little more after a few updates.
    for line, other in zip(ours, theirs, strict=True):
        for name in ("loss", "loss_reconstruction", "grad_norm"):
            assert line[name] == pytest.approx(other[name], rel=1e-5), (line["step"], name)


def test_an_evaluation_counts_over_both_processes(runs: Runs) -> None:
    ours, theirs = (json.loads((path / rundir.SUMMARY).read_text()) for path in runs[:2])
    assert (ours["eval_examples"], ours["eval_unreadable"]) == (HELD_OUT - 2, 2)
    for name in ("eval_examples", "eval_unreadable"):
        assert ours[name] == theirs[name]
    loss = "eval_loss_reconstruction"
    assert ours[loss] == pytest.approx(theirs[loss], rel=1e-5)


def test_the_first_process_writes_what_there_is_once(runs: Runs) -> None:
    workdir, job = runs.two, runs.job
    moved = [
        [Path(line.removeprefix("moved ")) for line in job.out(index).splitlines()
         if line.startswith(f"moved {workdir}")]
        for index in range(PROCESSES)
    ]  # fmt: skip
    assert not moved[1]
    names = [path.relative_to(workdir).as_posix() for path in moved[0]]
    for name in (
        "config.json",
        "checkpoints/4",
        "checkpoints/8",
        "model/model.json",
        "summary.json",
    ):
        assert names.count(name) == 1, names
    assert (workdir / rundir.SUMMARY).read_text() in job.out(0)
    assert "eval_examples" not in job.out(1)
    assert adamae_jax.load(workdir).step == STEPS
    assert adamae_jax.load(workdir / rundir.MODEL).step == STEPS


def test_processes_with_other_configs_and_data_end_at_once(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "data"
    shutil.copytree(data, other)
    info = other / "dataset_info.json"
    info.write_text(info.read_text().replace("{", "{ ", 1))
    second = (f"--config.data.dir={other}", "--config.optimizer.b1=0.8")
    with Job(tmp_path / "run", data, second=second, config=CONFIG) as job:
        assert job.wait() == [2, 2], job.errors(0) + job.errors(1)
        for index in range(PROCESSES):
            line = stop_line(job, index)
            assert line.startswith(
                f"error: process {index} of 2: the processes of this job differ in the data's "
            )
            assert "config.optimizer.b1 (0.9 in process 0; 0.8 in process 1)" in line
            assert "Traceback" not in job.errors(index) and "compiled" not in job.errors(index)
    # What is left is the word for the other process, and no run.
    assert {path.name[:6] for path in (tmp_path / "run").iterdir()} == {".ended"}


def test_processes_with_workdirs_of_their_own_end_at_once(data: Path, tmp_path: Path) -> None:
    """As on disks of the hosts: the first one would write alone, the others never find it."""
    second = [f"--workdir={tmp_path / 'second'}"]
    with Job(tmp_path / "first", data, second=second, config=CONFIG) as job:
        assert job.wait() == [2, 2], job.errors(0) + job.errors(1)
        lines = [stop_line(job, index) for index in range(PROCESSES)]
    for line in lines:
        assert "process 1 cannot see in --workdir what process 0 has written in its own" in line
        assert str(tmp_path / "first") in line
    assert not list(tmp_path.glob("*/.shared*"))


@pytest.mark.full
@pytest.mark.parametrize("culprit", range(PROCESSES))
def test_too_much_damage_on_one_side_ends_both(root: Path, tmp_path: Path, culprit: int) -> None:
    """It comes in the third step, behind two checkpoints."""
    data = write_data(root / f"many{culprit}", train={culprit: (8, 9, 10)}, held_out=set())
    workdir, other = tmp_path / "run", 1 - culprit
    options = (
        "data.max_bad_fraction=0.01",
        "eval_every=0",
        "checkpoint_every=1",
        "data.num_workers=1",
    )
    with Job(workdir, data, *(f"--config.{option}" for option in options), config=CONFIG) as job:
        job.wait_for(lambda: "error: " in job.errors(culprit))
        statuses = job.wait(ENDING_S)
        assert (statuses[culprit], statuses[other]) == (2, 1), job.errors(other)
        assert not job.left_over()
        message, word = stop_line(job, culprit), stop_line(job, other)
        assert not any("Traceback" in job.errors(index) for index in range(PROCESSES))
    assert message.startswith(f"error: process {culprit} of 2: 3 damaged records of 32 are")
    listed = (workdir / f"damaged_records_{culprit}.txt").read_text().splitlines()
    assert len(listed) == 3 and all(line in message for line in listed)
    assert word == f"error: process {other} of 2 ends, since another one did: " + message[7:]
    assert not (workdir / f"damaged_records_{other}.txt").exists()


def test_a_process_counts_what_others_could_not_read(data: Path, tmp_path: Path) -> None:
    (batch,) = read_validation(data, 1)
    damage = DamageWatch(Dataset(data, "validation"), 0.1, tmp_path / "list.txt")
    with pytest.raises(UserError, match="allows: 2 that other processes read and list: copy the"):
        damage.check(2, HELD_OUT)
    damage.see(batch)
    with pytest.raises(UserError, match="record 6 .* listed in .*list.txt.; 1 that other process"):
        damage.check(2, HELD_OUT)


LONG = ("--config.steps=60", "--config.checkpoint_every=7", "--config.eval_every=20")


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The metrics of a longer run."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    with Job(workdir, data, *LONG, config=CONFIG) as job:
        assert job.wait() == [0, 0], job.errors(0) + job.errors(1)
    return lines(workdir)


@pytest.mark.full
@pytest.mark.parametrize("killed", range(PROCESSES))
def test_a_run_goes_on_when_one_process_was_killed(
    data: Path, undisturbed: list[dict[str, Any]], tmp_path: Path, killed: int
) -> None:
    workdir, other = tmp_path / "run", 1 - killed
    with Job(workdir, data, *LONG, "--config.data.num_workers=1", config=CONFIG) as job:
        job.wait_for(lambda: (workdir / rundir.CHECKPOINTS / "21").is_dir())
        job.processes[killed].kill()
        assert job.wait(KILLED_S)[other] != 0
        assert not job.left_over()
    assert not (workdir / rundir.SUMMARY).exists()
    with Job(workdir, data, *LONG, config=CONFIG) as job:
        assert job.wait() == [0, 0], job.errors(0) + job.errors(1)
        said = [job.errors(index) for index in range(PROCESSES)]
    steps = [int(step) for text in said for step in re.findall(r"resumed from step (\d+)", text)]
    assert len(steps) == 2 and steps[0] == steps[1] >= 21
    assert lines(workdir) == undisturbed
    for process in range(PROCESSES):
        listed = (workdir / f"damaged_records_{process}.txt").read_text().splitlines()
        assert len(listed) == len(set(listed)) == 4  # what it met before and after
