"""A config that is not the run's: what a run that goes on takes, shows and refuses."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from absl import logging
from ml_collections import ConfigDict

from adamae_jax import changes, experiment, pretrain
from adamae_jax import config as configs
from adamae_jax.errors import UserError
from adamae_jax.training import metrics, rundir
from adamae_jax.training.checkpoints import checkpoint_steps
from tests.configs import tiny
from tests.data import fixtures
from tests.runs import lines, moving_waves


def resolved(**fields: Any) -> ConfigDict:
    config: ConfigDict = tiny.get_config()
    config.update_from_flattened_dict({name.replace("__", "."): v for name, v in fields.items()})
    return configs.resolve(config, 32)


def described(run: ConfigDict, wanted: ConfigDict, step: int) -> str:
    rates = (experiment.learning_rate(run), experiment.learning_rate(wanted))
    return changes.describe(run, wanted, step, rates)


def test_what_may_change_is_shown_with_both_values() -> None:
    run = resolved()
    assert described(run, resolved(), 7) == ""
    wanted = resolved(log_every=5, data__num_workers=0, optimizer__accumulation=2, mesh__fsdp=2)
    changes.check_allowed("here", run, wanted)
    assert described(run, wanted, 7) == (
        "the run goes on with other values: data.num_workers 1 -> 0, log_every 1 -> 5, "
        "mesh.fsdp 1 -> 2, optimizer.accumulation 1 -> 2"
    )


def test_another_length_says_what_it_does_to_the_schedule() -> None:
    """Numbers by hand: 3e-2 and 1e-5 for 256 clips, 8 of them; a cosine behind 5 steps."""
    run, wanted = resolved(), resolved(steps=115)
    changes.check_allowed("here", run, wanted)
    said = described(run, wanted, 60)
    # The old schedule is at its end, and half of the new cosine is over.
    lowest, halfway = 1e-5 / 32, (3e-2 + 1e-5) / 2 / 32
    assert said.startswith("the run goes on with other values: steps 60 -> 115; from step 60 on, ")
    assert "follows the schedule of 115 steps, not of 60" in said
    found = re.search(
        r"it is (\S+) there instead of (\S+), and comes down to (\S+) at step 115", said
    )
    assert found is not None
    assert float(found[1]) == pytest.approx(halfway, rel=1e-3)
    assert float(found[2]) == pytest.approx(lowest, rel=1e-3)
    assert lowest < float(found[3]) < 3 * lowest  # a step before the end


def test_what_may_not_change_is_refused_with_the_remedy() -> None:
    run = resolved(data__image_size=(16, 24), optimizer__b1=0.9)
    wanted = resolved(data__image_size=(24, 24), optimizer__b1=0.8, log_every=9)
    with pytest.raises(UserError) as caught:
        changes.check_allowed("here", run, wanted)
    message = str(caught.value)
    assert message.startswith("here holds another run; it differs in data.image_size (the run: ")
    assert "optimizer.b1 (the run: 0.9, asked for: 0.8)" in message
    assert "log_every" not in message
    # What is offered, as a shell would read it, makes the config the run's again.
    options = shlex.split(message.split("the run's own: ")[1])
    values = dict(option.removeprefix("--config.").split("=", 1) for option in options)
    wanted.data.image_size = eval(values["data.image_size"])
    wanted.optimizer.b1 = eval(values["optimizer.b1"])
    changes.check_allowed("here", run, wanted)


def test_another_strategy_is_no_matter_of_options() -> None:
    run, wanted = resolved(), resolved()
    with wanted.unlocked():
        wanted.masking = configs.masking_config("tube", mask_ratio=0.5)
    with pytest.raises(UserError, match=r"masking.name .*go on with the config with which it was"):
        changes.check_allowed("here", run, wanted)


def test_another_recipe_is_not_told_field_by_field() -> None:
    wanted = resolved()
    configs.set_size(wanted.model, "L")
    configs.set_family(wanted.model, "mae_st")
    with pytest.raises(UserError) as caught:
        changes.check_allowed("here", resolved(), wanted)
    assert str(caught.value).count("the run:") == changes.MOST_NAMED
    assert re.search(r"; and \d more\. Give another", str(caught.value))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures.write_dataset(
        tmp_path_factory.mktemp("data") / "waves",
        {"train": moving_waves(32), "validation": moving_waves(8)},
    )


@pytest.fixture(autouse=True)
def talkative(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without pictures and TensorFlow."""
    monkeypatch.setattr(pretrain, "drawing", lambda *_: None)
    monkeypatch.setattr(metrics, "_summary_writer", lambda directory: None)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.INFO)
    yield
    logging.set_verbosity(verbosity)


def run(data: Path, workdir: Path, recipe: dict[str, Any] | None = None, **fields: Any) -> None:
    config: ConfigDict = tiny.get_config()
    with config.unlocked():
        config.masking = configs.masking_config("random", mask_ratio=0.75)
    config.model.encoder.depth = 1
    config.data.dir, config.data.num_workers, config.eval_every = str(data), 0, 0
    config.steps, config.checkpoint_every, config.pictures_every = 8, 4, 0
    config.update_from_flattened_dict({name.replace("__", "."): v for name, v in fields.items()})
    pretrain.pretrain(config, workdir, recipe)


def test_a_complete_run_is_made_longer(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By epochs, from a try of a recipe: its own rates until then, the longer schedule's after."""
    workdir = tmp_path / "run"
    run(data, workdir, {"steps": 80}, steps=8)
    short = lines(workdir)
    run(data, workdir, steps=0, epochs=3)  # 32 videos in batches of 8
    assert "steps 8 -> 12; from step 8 on, the learning rate follows" in caplog.text
    assert "epochs 0 -> 3" in caplog.text and "resumed from step 8" in caplog.text
    long = lines(workdir)
    assert [line["step"] for line in long] == list(range(1, 13)) and long[:8] == short
    assert checkpoint_steps(workdir / rundir.CHECKPOINTS)[-1] == 12
    config = configs.from_json((workdir / rundir.CONFIG).read_text())
    assert (config.steps, config.optimizer.warmup_steps) == (12, 0)  # 5 of 80 steps, in 8
    rate = experiment.learning_rate(config)
    assert [line["learning_rate"] for line in long[8:]] == pytest.approx(
        [float(rate(jnp.asarray(step))) for step in range(8, 12)], rel=1e-5
    )
    caplog.clear()
    run(data, workdir, steps=0, epochs=3)
    assert "is complete at step 12" in caplog.text and "other values" not in caplog.text


def test_a_run_does_not_end_before_where_it_is(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path)
    before = (tmp_path / rundir.CONFIG).read_bytes()
    with pytest.raises(UserError, match=r"steps is 6, but the run in .* is at step 8 already"):
        run(data, tmp_path, steps=6)
    assert (tmp_path / rundir.CONFIG).read_bytes() == before
