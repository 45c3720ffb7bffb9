"""AutoMAE's frozen ViT, from a file of its own, and what that file says of it."""

from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from adamae_jax import experiment, pretrained
from adamae_jax.errors import UserError
from adamae_jax.interop import exports, safetensors_files, sources
from tests import helpers
from tests.interop.convert_cases import bring, config_of, given, loaded

FORMS = pytest.mark.parametrize("form", ["huggingface", "described"])


def image_mae(**changes: Any) -> ConfigDict:
    """An image MAE of 12 x 12 patches and one block, with fields of its config set otherwise."""
    config = config_of("mae")
    with config.unlocked():
        config.data.image_size = (48, 48)
        config.model.encoder.depth = 1
    config.update_from_flattened_dict({name.replace("__", "."): v for name, v in changes.items()})
    return config


def import_with(directory: Path, config: ConfigDict, form: str) -> pretrained.Loaded:
    """AutoMAE's own networks, with the encoder of such a model beside them."""
    variables = helpers.variables(experiment.pretraining(config))
    vit = pretrained.build(variables, config, 0, (), "", "vit")
    place = directory / "vit"
    if form == "described":
        place = directory / "vit.safetensors"
        exports.write_authors(vit, place)
    else:
        exports.write_hugging_face(vit, place)
        (place / sources.DESCRIPTION_FILE).unlink()
    automae = exports.to_authors(loaded("automae"))
    rest = {name: array for name, array in automae.items() if "pretrained_vit" not in name}
    safetensors_files.write(directory / "automae.safetensors", rest)
    flag = f"--pretrained_vit={place}"
    return pretrained.load(
        bring(directory / "automae.safetensors", directory / "ours", flag, *given("automae"))
    )


@FORMS
def test_its_epsilon_goes_along(tmp_path: Path, form: str) -> None:
    found = import_with(tmp_path, image_mae(model__norm_epsilon=1e-3), form)
    assert found.config.masking.options.vit_norm_epsilon == 1e-3
    assert found.config.model.norm_epsilon == 1e-6


@FORMS
def test_it_must_see_the_same_pixels(tmp_path: Path, form: str) -> None:
    config = image_mae(objective__pixel_mean=(0.5, 0.5, 0.5))
    message = r"trained on pixels with mean \(0.5, 0.5, 0.5\) .*, AutoMAE on those with \(0.485,"
    with pytest.raises(UserError, match=message):
        import_with(tmp_path, config, form)
    assert not (tmp_path / "ours").exists()


@FORMS
def test_its_heads_must_be_those_whose_maps_are_read(tmp_path: Path, form: str) -> None:
    message = "says that num_heads is 4, and AutoMAE's generator reads 2 attention maps"
    with pytest.raises(UserError, match=message):
        import_with(tmp_path, image_mae(model__encoder__num_heads=4), form)


def test_a_damaged_description_of_it_is_one_message(tmp_path: Path) -> None:
    state = exports.to_authors(loaded("automae"))
    vit = {n.removeprefix("pretrained_vit."): a for n, a in state.items() if "vit." in n}
    rest = {n: a for n, a in state.items() if "vit." not in n}
    safetensors_files.write(tmp_path / "vit.safetensors", vit, {sources.DESCRIPTION: "{}"})
    safetensors_files.write(tmp_path / "automae.safetensors", rest)
    flag = f"--pretrained_vit={tmp_path / 'vit.safetensors'}"
    with pytest.raises(UserError, match="the file's description of the model is damaged"):
        bring(tmp_path / "automae.safetensors", tmp_path / "ours", flag, *given("automae"))
