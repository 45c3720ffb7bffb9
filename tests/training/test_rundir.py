"""The workdir: whose it is, and its summary."""

import json
from pathlib import Path

import pytest

from adamae_jax.config import default_config
from adamae_jax.errors import UserError
from adamae_jax.training import rundir


def test_claiming_twice_with_other_execution_is_fine(tmp_path: Path) -> None:
    config = default_config()
    rundir.claim(tmp_path / "run", config, write=True)
    config.log_every = 7
    config.data.num_workers = 3
    config.model.remat = True
    config.eval.num_examples = 5
    rundir.claim(tmp_path / "run", config, write=True)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["log_every"] == 7


@pytest.mark.parametrize("name", ["seed", "steps", "batch_size"])
def test_another_run_is_refused_and_nothing_changes(tmp_path: Path, name: str) -> None:
    config = default_config()
    rundir.claim(tmp_path, config, write=True)
    before = (tmp_path / "config.json").read_bytes()
    config[name] = 4096
    with pytest.raises(UserError, match=f"{name} .*4096"):
        rundir.claim(tmp_path, config, write=True)
    assert (tmp_path / "config.json").read_bytes() == before


def test_checkpoints_without_a_config_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no config.json"):
        rundir.claim(tmp_path, default_config(), write=True)


def test_a_torn_config_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(UserError, match="not readable"):
        rundir.claim(tmp_path, default_config(), write=True)


def test_a_workdir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        rundir.claim(tmp_path / "file", default_config(), write=True)


def test_the_summary_takes_the_edges_of_the_run(tmp_path: Path) -> None:
    lines = [
        {"step": step, "loss_reconstruction": 100.0 - step, "seconds": step / 2}
        for step in [1, *range(5, 101, 5)]
    ]
    lines[-1] |= {"eval_foreground_lift": 1.5, "eval_foreground_lift_random": 1.01}
    lines[4] |= {"eval_foreground_lift": 1.2, "eval_loss_reconstruction": 3.0}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 105, "loss_rec')
    summary = rundir.summarize(tmp_path, 100, "masks")
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert summary["loss_reconstruction_first"] == (99 + 95) / 2  # steps 1 to 5
    assert summary["loss_reconstruction_last"] == 0  # steps 96 to 100
    assert summary["foreground_lift"] == 1.5
    assert summary["foreground_lift_random"] == 1.01
    assert summary["seconds"] == 50


def test_seconds_so_far_are_those_of_the_restored_step(tmp_path: Path) -> None:
    lines = [{"step": step, "seconds": 2.0 * step} for step in range(1, 11)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert rundir.seconds_so_far(tmp_path, 7) == 14.0
    assert rundir.seconds_so_far(tmp_path / "nothing", 7) == 0.0
