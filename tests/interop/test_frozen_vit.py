"""AutoMAE's frozen ViT, from a file of its own, and what that file says of it."""

from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from adamae_jax import experiment, pretrained
from adamae_jax.errors import UserError
from adamae_jax.interop import exports, files, sources
from tests import helpers
from tests.interop.convert_cases import bring, changed, config_of, given, loaded

# Of 12 x 12 patches and one block, as AutoMAE's frozen ViT.
IMAGE_MAE = changed(config_of("mae"), data__image_size=(48, 48), model__encoder__depth=1)


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
    files.write_safetensors(directory / "automae.safetensors", rest)
    flag = f"--pretrained_vit={place}"
    return pretrained.load(
        bring(directory / "automae.safetensors", directory / "ours", flag, *given("automae"))
    )


@pytest.mark.parametrize("form", ["huggingface", "described"])
def test_what_its_file_says_goes_along(tmp_path: Path, form: str) -> None:
    found = import_with(tmp_path, changed(IMAGE_MAE, model__norm_epsilon=1e-3), form)
    assert found.config.masking.options.vit_norm_epsilon == 1e-3
    assert found.config.model.norm_epsilon == 1e-6


@pytest.mark.parametrize(
    ("form", "field", "value", "message"),
    [
        (
            *("huggingface", "objective__pixel_mean", (0.5, 0.5, 0.5)),
            r"trained on pixels with mean \(0.5, 0.5, 0.5\) .*, AutoMAE on those with \(0.485,",
        ),
        (
            *("described", "model__encoder__num_heads", 4),
            "says that num_heads is 4, and AutoMAE's generator reads 2 attention maps",
        ),
    ],
)
def test_one_that_automae_cannot_use_is_refused(
    tmp_path: Path, form: str, field: str, value: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        import_with(tmp_path, changed(IMAGE_MAE, **{field: value}), form)
    assert not (tmp_path / "ours").exists()
