"""A run that begins with weights: its own kind's, a model directory's, or other people's."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from absl import logging
from ml_collections import ConfigDict
from safetensors.numpy import load_file

import adamae_jax
from adamae_jax import config as configs
from adamae_jax import experiment, initial, licenses, pretrain, pretrained
from adamae_jax.config import masking_config
from adamae_jax.errors import UserError
from adamae_jax.frozen import Frozen
from adamae_jax.initial import Initial
from adamae_jax.interop import exports, files, systems
from adamae_jax.pretrained import Loaded, PretrainedEncoder
from adamae_jax.pretraining import Pretraining
from adamae_jax.training import metrics, rundir
from adamae_jax.training.checkpoints import RunCheckpoints
from tests import helpers
from tests.configs import tiny
from tests.data import fixtures
from tests.helpers import named
from tests.interop.convert_cases import LABELS, LICENSE, config_of, loaded, written
from tests.runs import moving_waves

pytestmark = pytest.mark.usefixtures("traced_once")
STILL = {"optimizer.learning_rate": 0.0, "optimizer.min_learning_rate": 0.0}


def begin(source: Path, config: ConfigDict, **changes: Any) -> Initial:
    """What a run with this config begins with."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({"init_from": str(source), **changes})
    return initial.init_from(experiment.task(experiment.task_name(config), config), config)


def tiny_config(data: Path, masking: str, **changes: Any) -> ConfigDict:
    """Of two steps; changes are fields of the config by their paths."""
    config: ConfigDict = tiny.get_config()
    with config.unlocked():
        config.masking = masking_config(masking, mask_ratio=0.75)
    few = {"steps": 2, "optimizer.warmup_steps": 1, "checkpoint_every": 1, "eval_every": 0}
    cut = {"pictures_every": 0, "data.num_workers": 0, "model.encoder.depth": 1}
    config.update_from_flattened_dict({**few, **cut, "data.dir": str(data), **changes})
    return config


def stored_run(workdir: Path, config: ConfigDict) -> dict[str, Any]:
    """Writes what a run leaves after two steps, and returns its parameters by path."""
    params = helpers.variables(experiment.pretraining(config))["params"]
    workdir.mkdir()
    (workdir / rundir.CONFIG).write_text(configs.to_json(config))
    place = workdir / rundir.CHECKPOINTS
    with RunCheckpoints(place, keep=1, metadata={"task": Pretraining.name}) as checkpoints:
        checkpoints.save(2, {"params": params})
    return named({"params": params})


def test_a_run_begins_with_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a mesh, with other data and masks; without a rate, what it took is what it leaves."""
    monkeypatch.setattr(metrics, "_summary_writer", lambda directory: None)
    monkeypatch.setattr(pretrain, "drawing", lambda *_: None)
    data = fixtures.write_dataset(tmp_path / "data", {"train": moving_waves(16)})
    source, workdir = tmp_path / "source", tmp_path / "run"
    theirs = stored_run(source, tiny_config(tmp_path / "other", "random"))
    begun = {"init_from": str(source), "seed": 5, "mesh.fsdp": 2, **STILL}
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(logging, "info", lambda text, *values: said.extend(map(str, values)))
        pretrain.pretrain(tiny_config(data, "adaptive", **begun), workdir)
    (table,) = [text for text in said if text.startswith("init_from=")]
    assert "a model of pretraining after 2 steps" in table
    assert " taken" in table and "fresh: the source's masking is 'random'" in table
    ours = load_file(workdir / rundir.MODEL / "model.safetensors")
    assert all(ours[n].tobytes() == np.asarray(array).tobytes() for n, array in theirs.items())
    assert ours.keys() - theirs.keys() == {name for name in ours if "masking/" in name} != set()
    # It goes on when the source is gone, but not with another one.
    shutil.rmtree(source)
    (workdir / rundir.SUMMARY).unlink()
    pretrain.pretrain(tiny_config(data, "adaptive", **begun), workdir)
    with pytest.raises(UserError, match="another run; it differs in init_from"):
        pretrain.pretrain(tiny_config(data, "adaptive", **{**begun, "init_from": ""}), workdir)
    assert adamae_jax.load(workdir).step == 2


def model_directory(directory: Path, name: str) -> Path:
    return written(directory / "model", name)


def authors_file(directory: Path, name: str) -> Path:
    exports.write_authors(loaded(name), directory / "theirs.safetensors")
    return directory / "theirs.safetensors"


def hugging_face(directory: Path, name: str) -> Path:
    (directory / "hub").mkdir()
    exports.write_hugging_face(loaded(name), directory / "hub")
    return directory / "hub"


def taken_from(found: Initial, model: Loaded, parts: dict[str, str]) -> None:
    """Bitwise what the model has; ``parts`` are beginnings of paths here and there."""
    ours, theirs = named(found.variables["params"]), named(model.variables["params"])
    expected = {
        here + path.removeprefix(there): array
        for here, there in parts.items()
        for path, array in theirs.items()
        if path.startswith(there)
    }
    assert ours.keys() == expected.keys()
    for path, array in expected.items():
        assert ours[path].tobytes() == np.asarray(array).tobytes(), path


@pytest.mark.parametrize("form", [model_directory, authors_file, hugging_face])
@pytest.mark.parametrize("name", ["adamae", "automae"])
def test_every_form_of_a_model_is_taken_whole(tmp_path: Path, form: Any, name: str) -> None:
    """With its masking network, and the state of one; licence and all."""
    model = loaded(name)
    found = begin(form(tmp_path, name), config_of(name))
    taken_from(found, model, {"": ""})
    ours, theirs = (
        named(each) for each in (found.variables.get("state", {}), model.variables["state"])
    )
    assert ours.keys() == theirs.keys()
    assert all(ours[path].tobytes() == np.asarray(theirs[path]).tobytes() for path in theirs)
    assert found.license == LICENSE
    assert "frozen" not in found.variables and "fresh: " not in found.report.split("optimiser")[0]


def test_published_weights_of_an_encoder_leave_the_rest_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a description beside them, and with options that have to be given."""
    state = {
        name: array
        for name, array in exports.to_authors(loaded("mae")).items()
        if not name.startswith(("decoder_", "mask_token"))
    }
    file = tmp_path / "mae.safetensors"
    files.write_safetensors(file, state)
    with pytest.raises(UserError, match="--num_heads .*convert import`: give init_from the model"):
        begin(file, config_of("mae"))
    monkeypatch.setitem(systems.ENCODER_HEADS, (16, 2), 2)
    found = begin(file, config_of("mae"))
    taken_from(
        found, loaded("mae"), dict.fromkeys(["autoencoder/encoder/"], "autoencoder/encoder/")
    )
    assert "fresh: the source is an encoder alone" in found.report
    encoder, whole = adamae_jax.load(file), loaded("mae")
    assert type(encoder) is PretrainedEncoder
    clips = np.random.default_rng(0).integers(0, 256, (2, *whole.model.geometry.clip_shape))
    video = clips.astype(np.uint8)
    np.testing.assert_array_equal(encoder.features(video), whole.features(video))
    with pytest.raises(UserError, match=r"predict\(\) needs a classifier"):
        encoder.predict(video)
    with pytest.raises(AttributeError, match="no attribute 'predcit'"):
        encoder.predcit(video)


@pytest.mark.parametrize(
    ("name", "changes", "norm", "said"),
    [
        ("adamae", {}, False, "left in the source: autoencoder/decoder, autoencoder/encoder, mask"),
        ("adamae", {"classifier.pooling": "first"}, True, "fresh: the source is no classifier"),
        ("mae_st", {}, True, "head                        2 arrays"),
        ("mae_st_joint", {}, True, "fresh: the source is no classifier"),
    ],
)
def test_a_classifier_takes_the_encoder(
    tmp_path: Path, name: str, changes: dict[str, Any], norm: bool, said: str
) -> None:
    """And the encoder's last norm where the authors' names have it do so."""
    config = config_of(name)
    config.classifier.num_classes = 5
    found = begin(written(tmp_path / "model", name), config, **changes)
    there = "params/autoencoder/encoder/".removeprefix("params/")
    parts = {
        f"encoder/{part}": f"{there}{part}" for part in ("embedding", "transformer", "pos", "class")
    }
    taken_from(found, loaded(name), parts | ({"norm/": f"{there}norm/"} if norm else {}))
    assert said in found.report
    assert found.license == LICENSE


def test_a_table_that_was_fixed_is_trained_from_there(tmp_path: Path) -> None:
    """As MAE's classifiers do; for clips of another size, interpolated."""
    source, config = written(tmp_path / "model", "mae"), config_of("mae", True)
    found = begin(source, config)
    table = found.variables["params"]["encoder"]["positions"]["table"]
    assert table.shape == (5, 16) and not table[0].any() and table[1:].all(axis=0).any()
    larger = begin(source, config, **{"data.image_size": (16, 16)})
    grown = larger.variables["params"]["encoder"]["positions"]["table"]
    assert grown.shape == (17, 16)
    assert "interpolated from a grid of (1, 2, 2) to (1, 4, 4): params/encoder/pos" in larger.report


def test_learned_tables_are_interpolated(tmp_path: Path) -> None:
    source = written(tmp_path / "model", "mae_st")
    changes = {"data.num_frames": 16, "model.predicted_frames": 8}
    found = begin(source, config_of("mae_st"), **changes)
    place = found.variables["params"]["autoencoder"]["encoder"]["positions"]
    theirs = loaded("mae_st").params["encoder"]["positions"]
    assert place["temporal"].shape == (8, 16) and theirs["temporal"].shape == (4, 16)
    np.testing.assert_array_equal(place["spatial"], theirs["spatial"])
    assert "to (8, 4, 6): params/autoencoder/decoder/positions/temporal" in found.report


def test_a_classifier_goes_on_with_its_head_or_a_fresh_one(tmp_path: Path) -> None:
    source = tmp_path / "model"
    written(source, "videomae", True)
    config = config_of("videomae", True)
    taken_from(begin(source, config), loaded("videomae", True), {"": ""})
    config.classifier.num_classes = len(LABELS) + 1
    with pytest.raises(UserError, match="tells 3 classes apart.*is 4.*classifier.fresh_head=True"):
        begin(source, config)
    found = begin(source, config, **{"classifier.fresh_head": True})
    parts = {"encoder/": "encoder/", "norm/": "norm/"}
    taken_from(found, loaded("videomae", True), parts)
    with pytest.raises(UserError, match="is a classifier, and pretraining goes on from"):
        begin(source, config_of("videomae"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.encoder.width": 20},
            r"arrays differ, first params/autoencoder/decoder/projection/kernel: \(16, 12\) there, "
            r"\(20, 12\) here\): set --config.model.encoder.width=16$",
        ),
        ({"model.layer_scale": 0.1}, "none there, .*set --config.model.layer_scale=0.0$"),
        ({"model.decoder.num_heads": 4}, "set --config.model.decoder.num_heads=3$"),
        ({"masking.options.num_heads": 2}, "set --config.masking.options.num_heads=4$"),
        ({"masking.options.depth": 1}, "params/masking/.*set --config.masking.options.depth=2$"),
    ],
)
def test_another_model_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        begin(written(tmp_path / "model", "adamae"), config_of("adamae"), **changes)


def test_what_computes_otherwise_with_the_same_arrays_is_said(tmp_path: Path) -> None:
    source, config = written(tmp_path / "model", "adamae"), config_of("adamae")
    changes = {"objective.pixel_mean": (0.45,) * 3, "masking.options.dropout": 0.5}
    report = begin(source, config, **changes).report
    assert "objective.pixel_mean is (0.45, 0.45, 0.45) here, and was (0.485, 0.456" in report
    assert "masking.options.dropout is 0.5 here" in report
    assert "here" not in begin(source, config).report


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = loaded("videomae")
    broken = jax.tree.map(lambda leaf: np.asarray(leaf) * np.nan, dict(model.variables))
    pretrained.save(tmp_path / "model", broken, model.config, 3)
    with pytest.raises(UserError, match="model: .* arrays hold values that are NaN .*: params/"):
        begin(tmp_path / "model", config_of("videomae"))
    with pytest.raises(UserError, match="init_from=.*nowhere does not exist: give a run's workdir"):
        begin(tmp_path / "nowhere", config_of("videomae"))


def test_licences_of_all_that_is_read_are_kept() -> None:
    held, begun = Frozen({"vit": 1}, "cc-by-nc-4.0"), Initial({"params": 1}, "mit")
    assert licenses.of_parts(Frozen(), Initial()) == ""
    assert licenses.of_parts(Frozen(), begun) == "mit"
    assert licenses.of_parts(held, Initial()) == "cc-by-nc-4.0"
    assert licenses.of_parts(held, begun) == "cc-by-nc-4.0 and mit"
