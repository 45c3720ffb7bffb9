"""The licence of weights that a model holds goes wherever the model goes."""

import contextlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from adamae_jax import config as configs
from adamae_jax import experiment, licenses, pretrain, pretrained
from adamae_jax.interop import exports, files
from adamae_jax.masking.adversarial import Strategy
from adamae_jax.training import rundir
from tests import helpers
from tests.data import fixtures
from tests.interop.convert_cases import LICENSE, bring, config_of, export, given, loaded
from tests.runs import moving_waves


def image_mae(directory: Path, license: str) -> Path:
    """Somebody's image MAE of 12 x 12 patches, as AutoMAE holds one frozen."""
    config = config_of("mae")
    with config.unlocked():
        config.data.image_size = (48, 48)
        config.model.encoder.depth = 1
    variables = helpers.variables(experiment.pretraining(config))
    pretrained.save(directory, variables, config, 0, license=license)
    return directory


def automae_config(frozen: Path, steps: int = 1) -> ConfigDict:
    """An AutoMAE that is to be trained."""
    config = config_of("automae")
    with config.unlocked():
        config.masking.options.pretrained = str(frozen)
        config.steps, config.batch_size, config.eval_every = steps, 8, 0
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


class Untrained:
    """In the place of `pretrain.Run`: a run whose model is that of before its first step."""

    def __init__(self, config: ConfigDict, workdir: Path, pretraining: Any, *others: Any) -> None:
        self.checkpoints: Any = others[2]
        variables = helpers.variables(pretraining)
        self.metrics = self.progress = contextlib.nullcontext()
        self.state = SimpleNamespace(
            params=variables["params"], model_state=variables["state"], frozen=variables["frozen"]
        )

    def train(self) -> Any:
        return self.state


def untrained(directory: Path, monkeypatch: pytest.MonkeyPatch, config: ConfigDict) -> Path:
    """The workdir of a run over a dataset of its own, begun or gone on with."""
    data = directory / "data"
    if not data.exists():
        fixtures.write_dataset(data, {"train": moving_waves(4), "validation": moving_waves(1)})
    config.data.dir = str(data)
    monkeypatch.setattr(pretrain, "Run", Untrained)
    monkeypatch.setattr(rundir, "summarize", lambda *_: {})
    pretrain.pretrain(config, directory / "run")
    return directory / "run"


def test_a_run_keeps_it_from_when_it_read_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its checkpoints, of which a damaged one is passed over, and in what is made of them."""
    frozen = image_mae(tmp_path / "mae", LICENSE)

    class KilledError(Exception):
        """In the place of a SIGKILL."""

    def train(self: Untrained) -> Any:
        image_mae(frozen, "mit")  # another model may lie in their place while the run goes on
        for step in (1, 2):
            self.checkpoints.save(step, {"params": {"a": np.zeros(1)}})
        raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Untrained, "train", train)
        untrained(tmp_path, patch, automae_config(frozen, steps=3))
    shutil.rmtree(frozen)
    run = tmp_path / "run"
    assert licenses.of(run) == LICENSE
    (run / rundir.CHECKPOINTS / "2" / "state" / "digests.json").write_text("{}")
    assert licenses.of(run) == LICENSE
    image_mae(frozen, "mit")
    untrained(tmp_path, monkeypatch, automae_config(frozen, steps=3))
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
