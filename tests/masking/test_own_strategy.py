"""A strategy outside the package: the example of docs/masking.md, and what is said of mistakes."""

import dataclasses
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax import experiment, masking
from adamae_jax.benchmark import step
from adamae_jax.config import from_json, masking_config, to_json
from adamae_jax.errors import UserError
from tests import helpers
from tests.configs import tiny

PAGE = Path(__file__).parents[2] / "docs" / "masking.md"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with a package ``mypackage``."""
    example = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "block.py").write_text(example)
    (tmp_path / "mypackage" / "empty.py").write_text("class Strategy:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("mypackage")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_the_example_trains(package: Path) -> None:
    config = tiny.get_config()
    config.masking = masking_config("mypackage.block", mask_ratio=0.75, time_weight=0.5)
    config.model.encoder.depth = 1
    config = from_json(to_json(config))  # as it is kept with a run
    assert config.masking.options.time_weight == 0.5
    report = step.measure(config, steps=1, warmup=1)
    assert 0 < report.loss < 10


def test_the_example_masks_one_block(package: Path) -> None:
    strategy = masking.create("mypackage.block", 0.15, {"time_weight": 2.0})
    assert dataclasses.asdict(strategy) == {"mask_ratio": 0.15, "time_weight": 2.0}
    mask = strategy({}, helpers.mask_inputs(3, (1, 8, 8)), helpers.example_keys(3), True)
    for visible, masked in zip(np.asarray(mask.visible), np.asarray(mask.masked), strict=True):
        assert sorted([*visible, *masked]) == list(range(64))
        assert len(masked) == 10
        height, width = np.unravel_index(masked, (8, 8))
        assert np.ptp(height) <= 4 and np.ptp(width) <= 4


def test_masks_of_other_numbers_than_it_says_are_refused(package: Path) -> None:
    example, counted = (package / "mypackage" / "block.py").read_text(), "num_visible(inputs.grid)"
    assert counted in example
    (package / "mypackage" / "wrong.py").write_text(example.replace(counted, f"{counted} + 1"))
    config = tiny.get_config()
    config.masking = masking_config("mypackage.wrong", mask_ratio=0.75)
    task = experiment.pretraining(config)
    geometry = task.model.geometry
    visible, all_tokens = task.strategy.num_visible(geometry.grid), geometry.num_tokens
    message = (
        f"gave {visible + 1} visible and {all_tokens - visible - 1} masked tokens, "
        f".* leaves {visible} and {all_tokens - visible}:"
    )
    variables = jax.eval_shape(task.init, jax.random.key(0))
    video = jnp.zeros((2, *geometry.clip_shape), jnp.uint8)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda v: task.forward(v, video, helpers.example_keys(2), True), variables)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("block", "masking.name 'block' is unknown: use one of .*, or the path of a module"),
        ("mypackage.blocks", "'mypackage.blocks' cannot be imported .*PYTHONPATH"),
        (
            "mypackage.empty",
            "'mypackage.empty' is a module without a class Strategy that is a Mask",
        ),
    ],
)
def test_what_is_no_strategy_is_one_clear_line(package: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        masking_config(name, mask_ratio=0.75)
