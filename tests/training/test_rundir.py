"""The workdir: whose it is, and its summary."""

import json
import re
import time
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from adamae_jax.config import default_config
from adamae_jax.errors import UserError
from adamae_jax.training import rundir


def claim(workdir: Path, config: ConfigDict) -> None:
    """What a job does at its start."""
    rundir.check(workdir, config)
    with rundir.claimed(workdir, config, write=True):
        pass


def test_claiming_twice_with_other_execution_is_fine(tmp_path: Path) -> None:
    config = default_config()
    claim(tmp_path / "run", config)
    config.log_every = 7
    config.data.num_workers = 3
    config.model.remat = "full"
    config.eval.num_examples = 5
    config.mesh.fsdp = 2
    claim(tmp_path / "run", config)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["log_every"] == 7


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 4096), ("data.image_size", (8, 8)), ("masking.options.depth", 2)]
)
def test_another_run_is_refused_and_nothing_changes(
    tmp_path: Path, name: str, value: object
) -> None:
    config = default_config()
    claim(tmp_path, config)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    before = (tmp_path / "config.json").read_bytes()
    config.update_from_flattened_dict({name: value})
    with pytest.raises(
        UserError, match=rf"{name} \(the run: .*, asked for: {re.escape(str(value))}"
    ):
        claim(tmp_path, config)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_run_that_never_made_a_step_takes_the_corrected_config(tmp_path: Path) -> None:
    config = default_config()
    claim(tmp_path, config)
    config.optimizer.learning_rate = 1e-3
    claim(tmp_path, config)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["optimizer"]["learning_rate"] == 1e-3


def test_steps_without_checkpoints_are_not_made_again(tmp_path: Path) -> None:
    """A link to a place that is not mounted, or a folder that was deleted."""
    config = default_config()
    config.checkpoint_every = 10
    claim(tmp_path, config)
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 11)))
    claim(tmp_path, config)  # killed before its first checkpoint, perhaps
    log.write_text(log.read_text() + '{"step": 11}\n')
    with pytest.raises(UserError, match=r"steps up to 11, but .*checkpoints holds no checkpoint"):
        claim(tmp_path, config)
    # One that was told to end, or is complete, has saved its state before it was due.
    log.write_text('{"step": 3}\n')
    claim(tmp_path, config)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UserError, match=r"steps up to 3, but .*checkpoints holds no checkpoint"):
        claim(tmp_path, config)
    (tmp_path / "summary.json").unlink()
    (tmp_path / "checkpoints").rmdir()
    with pytest.raises(UserError, match=r"steps up to 3, but .*checkpoints holds no checkpoint"):
        claim(tmp_path, config)
    (tmp_path / "checkpoints").symlink_to(tmp_path / "not mounted")
    with pytest.raises(UserError, match=r"checkpoints is not what a run keeps there"):
        claim(tmp_path, config)
    (tmp_path / "checkpoints").unlink()
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    claim(tmp_path, config)


@pytest.mark.parametrize(
    "name", ["summary.json", "model", "best", "model.json", "events.out.tfevents.1.host"]
)
def test_files_of_a_run_without_its_config_are_refused(tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    place.mkdir() if name in ("model", "best") else place.write_bytes(b"precious")
    with pytest.raises(UserError, match=r"but no config.json"):
        claim(tmp_path, default_config())
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b'{"seed": ', b"[" * 99_999])
def test_a_damaged_config_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        claim(tmp_path, default_config())


@pytest.mark.parametrize("name", ["checkpoints", "model", "pictures"])
def test_files_where_folders_go_are_found_at_the_start(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=f"{name} is not what a run keeps there"):
        claim(tmp_path, default_config())


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "summary.json"])
def test_folders_where_files_go_are_found_at_the_start(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is not what a run keeps there"):
        claim(tmp_path, default_config())


def test_a_workdir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        claim(tmp_path / "file", default_config())


def test_the_summary_takes_the_edges_of_the_run(tmp_path: Path) -> None:
    lines = [
        {"step": step, "loss_reconstruction": 100.0 - step, "seconds": step / 2}
        for step in [1, *range(5, 101, 5)]
    ]
    lines[-1] |= {"eval_foreground_lift": 1.5, "eval_foreground_lift_random": 1.01}
    lines[4] |= {"eval_foreground_lift": 1.2, "eval_loss_reconstruction": 3.0}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 105, "loss_rec')
    summary = rundir.summarize(
        tmp_path,
        100,
        "loss_reconstruction",
        lambda evaluated: {"foreground_lift": evaluated["eval_foreground_lift"]},
    )
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert summary["loss_reconstruction_first"] == (99 + 95) / 2  # steps 1 to 5
    assert summary["loss_reconstruction_last"] == 0  # steps 96 to 100
    assert summary["foreground_lift"] == 1.5
    assert summary["eval_foreground_lift_random"] == 1.01
    assert summary["seconds"] == 50


def test_seconds_so_far_are_those_of_the_restored_step(tmp_path: Path) -> None:
    """Lines that are none, as a kill may leave them, are passed over."""
    lines = [
        json.dumps({"step": step, "seconds": 2.0 * step, "computed_seconds": 1.0 * step})
        for step in range(1, 11)
    ]
    rubbish = ["null", '{"step": null}', '{"step": 7, "seconds": "14"}', "[" * 99_999, "text"]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines[:9], *rubbish, lines[9], '{"st']))
    assert rundir.clock_so_far(tmp_path, 9) == {"seconds": 18.0, "computed": 9.0}
    summary = rundir.summarize(tmp_path, 9, "loss", lambda evaluated: {})
    assert (summary["seconds"], summary["loss_first"]) == (18.0, None)
    nothing = rundir.clock_so_far(tmp_path / "nothing", 7)
    assert nothing == {"seconds": 0.0, "computed": 0.0}


def test_goodput_counts_from_the_first_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three starts, of which one died while it wrote its line; and a run of an older version."""
    assert rundir.goodput(tmp_path, 30.0) == {"starts": 0, "wall_seconds": None, "goodput": None}
    for now, step in ((1000.0, 0), (1070.0, 20)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        rundir.note_start(tmp_path, step)
    with open(tmp_path / rundir.STARTS, "a") as file:
        file.write('{"step": 4')
    monkeypatch.setattr(time, "time", lambda: 1120.0)
    found = rundir.goodput(tmp_path, 30.0)
    assert found == {"starts": 2, "wall_seconds": 120.0, "goodput": 0.25}


def test_one_job_at_a_time(tmp_path: Path) -> None:
    """The lock is the kernel's: a second handle in the same process meets it too."""
    config = default_config()
    with rundir.claimed(tmp_path, config, write=True):
        config.log_every = 7
        other = rundir.claimed(tmp_path, config, write=True)
        with pytest.raises(UserError, match="another process is at work"), other:
            pass
    assert json.loads((tmp_path / "config.json").read_text())["log_every"] == 50
    claim(tmp_path, config)  # the lock is free again


def test_a_field_that_is_newer_than_the_run_has_its_default(tmp_path: Path) -> None:
    config = default_config()
    claim(tmp_path, config)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}')
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["optimizer"]["clip_grad_norm"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    rundir.check(tmp_path, config)
    config.optimizer.clip_grad_norm = 1.0
    with pytest.raises(UserError, match="clip_grad_norm"):
        rundir.check(tmp_path, config)
