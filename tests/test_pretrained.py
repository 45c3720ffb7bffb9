"""Model directories: built and loaded, or refused with one line where they are damaged."""

import functools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamae_jax import pretrained
from adamae_jax.errors import UserError
from tests.interop.convert_cases import LABELS, config_of, loaded, written

CLASSIFIER = ("mae_st", True)
PRETRAINING = ("mae_st", False)
Json = Any


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A masked autoencoder and a classifier, for tests that change ``model.json`` alone."""
    root = tmp_path_factory.mktemp("models")
    return {
        tuned: written(root / str(tuned), name, tuned) for name, tuned in (PRETRAINING, CLASSIFIER)
    }


@pytest.fixture
def model(directories: dict[bool, Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of one of them with a field of ``model.json`` changed, by its path."""

    def change(fine_tuned: bool, field: str, value: Json) -> Path:
        copy = tmp_path / "copy"
        shutil.copytree(directories[fine_tuned], copy)
        description = json.loads((copy / "model.json").read_text())
        set_at(description, tuple(field.split(".")), value)
        (copy / "model.json").write_text(json.dumps(description))
        return copy

    return change


def set_at(tree: Json, path: tuple[str, ...], value: Json) -> None:
    """Sets a value in nested objects."""
    *parents, last = path
    functools.reduce(lambda node, name: node[name], parents, tree)[last] = value


BOTH = (False, True)
DAMAGE: list[tuple[tuple[bool, ...], str, Json, str]] = [
    (BOTH, "config", None, "a stored config does not fit this version"),
    (BOTH, "config.model", [], "a stored config does not fit this version"),
    (BOTH, "config.model.dtype", "float9", "model.dtype is 'float9': it must be one of"),
    (BOTH, "config.model.norm_epsilon", None, "model.norm_epsilon is null"),
    (BOTH, "config.model.norm_epsilon", math.inf, "model.norm_epsilon is inf: it must be a finite"),
    (BOTH, "config.data.image_size", ["a", "b"], "data.image_size is .*: it must be 1 or 2 whole"),
    (BOTH, "license", None, "license is None: it should be text"),
    (BOTH, "step", "7", "step is '7': it should be a whole number"),
    (BOTH, "label_names", "walking", "label_names is 'walking': it should be a list of texts"),
    (BOTH, "label_names", [1, 2, 3], r"label_names is \[1, 2, 3\]: it should be a list of texts"),
    ((True,), "label_names", ["walking"], "there are 1 label names for 3 classes"),
    ((True,), "config.classifier.num_classes", 4, "does not fit its own config: 2 array"),
]


@pytest.mark.parametrize(
    ("fine_tuned", "field", "value", "message"),
    [(tuned, *rest) for kinds, *rest in DAMAGE for tuned in kinds],
)
def test_a_damaged_description_is_one_clear_line(
    model: Callable[..., Path], fine_tuned: bool, field: str, value: Json, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        pretrained.load(model(fine_tuned, field, value))
    assert "\n" not in str(caught.value)


def test_a_model_without_names_of_its_classes_loads(model: Callable[..., Path]) -> None:
    assert pretrained.load(model(True, "label_names", [])).label_names == ()


def test_building_leaves_the_callers_config_alone() -> None:
    config = config_of("mae", fine_tuned=True)
    config.model.attention = "cudnn"
    model = loaded("mae", fine_tuned=True)
    built = pretrained.build(model.variables, config, 0, LABELS, "", "x")
    assert built.config.model.attention == "auto"
    assert config.model.attention == "cudnn"
