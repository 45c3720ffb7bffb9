"""The licence of weights that a model holds goes wherever the model goes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from adamae_jax import config as configs
from adamae_jax import experiment, licenses, pretrain, pretrained
from adamae_jax.interop import exports, files
from adamae_jax.masking.adversarial import Strategy
from adamae_jax.training import rundir, trainer
from adamae_jax.training.checkpoints import RunCheckpoints
from tests import helpers
from tests.data import fixtures
from tests.interop.convert_cases import LICENSE, bring, changed, config_of, export, given, loaded
from tests.runs import moving_waves


def image_mae(directory: Path, license: str) -> Path:
    """Somebody's image MAE of 12 x 12 patches, as AutoMAE holds one frozen."""
    config = changed(config_of("mae"), data__image_size=(48, 48), model__encoder__depth=1)
    variables = helpers.variables(experiment.pretraining(config))
    pretrained.save(directory, variables, config, 0, license=license)
    return directory


def automae_config(frozen: Path) -> ConfigDict:
    """An AutoMAE that is to be trained."""
    config = config_of("automae")
    with config.unlocked():
        config.masking.options.pretrained = str(frozen)
        config.steps, config.batch_size, config.eval_every = 3, 8, 0
        config.compilation_cache_dir = ""
    return config


def test_a_run_has_the_license_of_what_it_holds_frozen(tmp_path: Path) -> None:
    frozen = image_mae(tmp_path / "mae", LICENSE)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(configs.to_json(automae_config(frozen)))
    assert licenses.of(run) == LICENSE
    # Of a run that holds this one's encoder frozen, too.
    assert licenses.inherited(Strategy(0.75, pretrained=str(run))) == LICENSE
    shutil.rmtree(frozen)
    assert licenses.of(run) == f"unknown (weights of {frozen})"
    # What was recorded at the end of a run stays.
    pretrained.save(run / rundir.MODEL, {}, automae_config(frozen), 1, license="mit")
    assert licenses.of(run) == "mit"


def test_a_run_keeps_it_from_when_it_read_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its checkpoints, of which a damaged one is passed over, and in what is made of them."""
    frozen, run = image_mae(tmp_path / "mae", LICENSE), tmp_path / "run"
    config = automae_config(frozen)
    fixtures.write_dataset(
        tmp_path / "data", {"train": moving_waves(4), "validation": moving_waves(1)}
    )
    config.data.dir = str(tmp_path / "data")

    def killed(begun: trainer.Run) -> None:
        """Two checkpoints, while another model comes to lie where the weights came from."""
        image_mae(frozen, "mit")
        (run / "config.json").write_text(configs.to_json(begun.config))
        path = run / rundir.CHECKPOINTS
        with RunCheckpoints(path, keep=3, metadata=begun.metadata) as checkpoints:
            for step in (1, 2):
                checkpoints.save(step, {"params": {"a": np.zeros(1)}})

    run.mkdir()
    monkeypatch.setattr(trainer, "train", killed)
    pretrain.pretrain(config, run)
    shutil.rmtree(frozen)
    assert licenses.of(run) == LICENSE
    (run / rundir.CHECKPOINTS / "2" / "state" / "digests.json").write_text("{}")
    assert licenses.of(run) == LICENSE
    image_mae(frozen, "mit")
    monkeypatch.setattr(
        trainer, "train", lambda gone_on: gone_on.export(helpers.variables(gone_on.task))
    )
    pretrain.pretrain(config, run)
    assert pretrained.load(run / rundir.MODEL).license == LICENSE
    file = export(run / rundir.MODEL, tmp_path / "exported.safetensors")
    assert files.read_metadata(file)["license"] == LICENSE


@pytest.mark.parametrize(
    ("license", "expected"), [("mit", f"mit and {LICENSE}"), ("", f"unknown and {LICENSE}")]
)
def test_automae_has_the_licenses_of_both_of_its_files(
    tmp_path: Path, license: str, expected: str
) -> None:
    state = exports.to_authors(loaded("automae"))
    vit = {n.removeprefix("pretrained_vit."): a for n, a in state.items() if "vit." in n}
    rest = {n: a for n, a in state.items() if "vit." not in n}
    files.write_safetensors(tmp_path / "vit.safetensors", vit, {"license": LICENSE})
    files.write_safetensors(tmp_path / "automae.safetensors", rest, {"license": license})
    flag = f"--pretrained_vit={tmp_path / 'vit.safetensors'}"
    own = given("automae")
    ours = bring(tmp_path / "automae.safetensors", tmp_path / "ours", flag, *own)
    assert pretrained.load(ours).license == expected
    said = bring(
        tmp_path / "automae.safetensors", tmp_path / "said", flag, *own, "--license=apache-2.0"
    )
    assert pretrained.load(said).license == f"apache-2.0 and {LICENSE}"  # hides no other
