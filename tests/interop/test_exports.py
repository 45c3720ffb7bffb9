"""Under the authors' names there is one of their models, or none; the rest goes beside it."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from adamae_jax import experiment, pretrained
from adamae_jax.errors import UserError
from adamae_jax.interop import exports, imports, sources
from tests import helpers
from tests.interop.convert_cases import assert_same_arrays, changed, config_of, loaded

# A model and a field whose value its authors' code does not have.
FOREIGN: list[tuple[str, bool, str, Any]] = [
    ("videomae", False, "model.class_token", "separate"),
    ("videomae", False, "model.attention_bias", "qkv"),
    ("videomae", False, "model.projection_bias", True),
    ("videomae", False, "model.predicted_frames", 2),
    ("mae", False, "model.layer_scale", 0.1),
    ("mae", False, "data.num_frames", 4),
    ("mae", False, "model.positions", "learned"),
    ("mae", False, "masking.name", "adaptive"),
    ("videomae", False, "masking.name", "adversarial"),
    ("mae_st_joint", True, "classifier.pooling", "first"),
    ("mae_st_joint", True, "classifier.skip_first_patch", False),
]


@pytest.mark.parametrize(("name", "fine_tuned", "field", "value"), FOREIGN)
def test_what_no_author_has_is_refused_by_name(
    name: str, fine_tuned: bool, field: str, value: Any
) -> None:
    weights = loaded({"adaptive": "adamae", "adversarial": "automae"}.get(value, name), fine_tuned)
    config = changed(config_of(name, fine_tuned), **{field.replace(".", "__"): value})
    family = name.removesuffix("_joint")
    message = (
        f"code of {family}'s authors, .*, has no model with .*{field}={value!r}.*: there are no "
        "names to export it under; `adamae_jax.load` reads it as it is"
    )
    with pytest.raises(UserError, match=message):
        exports.to_authors(dataclasses.replace(weights, config=config))


def two_masks() -> ConfigDict:
    """VideoMAE V2: its names are VideoMAE's."""
    config = changed(config_of("videomae"), masking__name="dual", data__image_size=(8, 16))
    fields = {"mask_ratio": 0.5, "decode_ratio": 0.75, "options__decoder_mask_ratio": 0.25}
    return changed(config, **{f"masking__{name}": value for name, value in fields.items()})


def another_training() -> ConfigDict:
    """AdaMAE by another loss, whose sampler remembers a mean of rewards."""
    fields: dict[str, Any] = {"objective__loss": "l1", "model__decoder_norm_epsilon": 1e-5}
    options = {"baseline": "running", "temperature": 0.5}
    fields |= {f"masking__options__{name}": value for name, value in options.items()}
    return changed(config_of("adamae"), **fields)


@pytest.mark.parametrize("config", [two_masks(), another_training()], ids=["v2", "adamae"])
def test_what_no_weights_say_comes_back_by_the_description(
    config: ConfigDict, tmp_path: Path
) -> None:
    task = experiment.pretraining(config)
    variables = helpers.variables(task)
    before = jax.tree.map(lambda leaf: leaf + 1, variables["state"])
    model = pretrained.build({**variables, "state": before}, config, 3, (), "", "x")
    (remark,) = exports.write_authors(model, tmp_path / "ours.safetensors")
    assert remark.startswith("ours.safetensors holds the model's description, by which an import")
    found = imports.convert(sources.read(tmp_path / "ours.safetensors"))
    for part in ("model", "masking", "objective"):
        assert found.config[part].to_dict() == config[part].to_dict()
    # What a strategy remembers of its training starts fresh.
    expected = {name: np.asarray(array) for name, array in helpers.named(variables).items()}
    assert_same_arrays(helpers.named(found.variables), expected)
