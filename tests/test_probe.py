"""Probes of a frozen encoder: what they train on, alone and side by side, and the whole job."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from ml_collections import ConfigDict

import adamae_jax
from adamae_jax import config as configs
from adamae_jax import experiment, initial, licenses, pretrained, probe
from adamae_jax.errors import UserError
from adamae_jax.models.encoder import Encoder
from adamae_jax.models.probes import ProbeKind
from adamae_jax.pretraining import Objective, normalize_pixels
from adamae_jax.probing import Probing, probe_name
from adamae_jax.task import MODEL
from adamae_jax.training import knn, loop, metrics, rundir
from adamae_jax.training.checkpoints import read_subtree
from adamae_jax.training.optimizers import adamw, stacked
from adamae_jax.training.state import TrainState, create_state
from adamae_jax.training.step import make_train_step
from configs import automae_imagenet_linear, mae_imagenet_linear, probe_demo
from tests import helpers
from tests.configs import tiny
from tests.data import fixtures
from tests.interop.convert_cases import config_of, loaded, written
from tests.runs import lines

CLASSES = 3
RATES = (0.01, 1.0, 3.0)
KINDS: tuple[ProbeKind, ...] = ("linear", "attentive", "change")
TASK = Probing(Encoder(helpers.GEOMETRY, helpers.ENCODER), CLASSES, Objective(), KINDS, RATES)
BATCH = {
    key: jnp.asarray(array)
    for key, array in {
        **helpers.batch(8),
        "label": np.array([0, 1, 2, 0, 1, 2, 0, -1], np.int32),
    }.items()
}


class KilledError(Exception):
    """In the place of a SIGKILL."""


def after_three_steps(task: Probing) -> tuple[TrainState, TrainState]:
    """The states before and after; gradients are clipped, which takes norms."""
    rate = adamw(
        lambda step: 0.02 * (1.0 + step),
        b1=0.9,
        b2=0.95,
        eps=1e-6,
        weight_decay=0.1,
        decay=("kernel$",),
        clip_grad_norm=0.01,
    )
    optimizers = {MODEL: stacked(rate, task.rates)}
    start = state = jax.jit(lambda: create_state(task, optimizers, 5))()
    step = jax.jit(make_train_step(task, optimizers, seed=5, accumulation=2))
    for _ in range(3):
        state, _ = step(state, BATCH)
    return start, state


def test_each_probe_is_what_it_is_alone() -> None:
    """Whatever other rates and kinds are trained beside it; the encoder stays as it is."""
    start, together = after_three_steps(TASK)
    alone_each: tuple[tuple[ProbeKind, float], ...] = (
        *(("linear", 0.01), ("linear", 3.0)),
        *(("attentive", 3.0), ("change", 1.0)),
    )
    for kind, rate in alone_each:
        _, alone = after_three_steps(dataclasses.replace(TASK, kinds=(kind,), rates=(rate,)))
        found, before = (helpers.named(s.params[kind]) for s in (together, start))
        for name, array in helpers.named(alone.params[kind]).items():
            own = np.asarray(found[name][RATES.index(rate)])
            moved = np.linalg.norm(own - before[name][0])
            assert moved > 0, name
            assert np.linalg.norm(own - array[0]) < 1e-3 * moved, name
    jax.tree.map(np.testing.assert_array_equal, start.frozen, together.frozen)
    for name in ("norm", "change_norm"):
        changed = np.asarray(together.model_state[name]["mean"])
        assert np.abs(changed).max() > 0.01


def test_figures_and_the_best_of_them() -> None:
    variables = {
        name: helpers.filled(tree)
        for name, tree in jax.eval_shape(TASK.init, jax.random.key(0)).items()
    }
    variables["state"] = jax.tree.map(jnp.abs, variables["state"])  # one is a variance
    figures = TASK.evaluate(variables, BATCH, None)
    logits, state = TASK.logits(variables, BATCH["video"], False)
    jax.tree.map(np.testing.assert_array_equal, state, variables["state"])
    label = np.asarray(BATCH["label"])
    cross_entropies = np.zeros(8)
    for kind, of_rates in logits.items():
        for rate, own in zip(RATES, np.asarray(jax.nn.log_softmax(of_rates)), strict=True):
            np.testing.assert_array_equal(
                figures[f"accuracy_{probe_name(kind, rate)}"], own.argmax(1) == label
            )
            cross_entropies[:7] -= own[np.arange(7), label[:7]]
    np.testing.assert_allclose(figures["loss"], cross_entropies, rtol=1e-5)
    names = [probe_name(kind, rate) for kind in TASK.kinds for rate in RATES]
    found = (0.1, 0.5, 0.2, 0.3, 0.3, 0.6, 0.4, 0.1, 0.2)
    means = dict(zip([f"accuracy_{name}" for name in names], found, strict=True))
    said = TASK.summarize({**means, "loss": 3.0, "labelled": 0.5})
    assert said == {
        **means,
        "loss": 6.0,
        "accuracy": 0.6,
        "accuracy_linear": 0.5,
        "accuracy_attentive": 0.6,
        "accuracy_change": 0.4,
    }
    evaluated = {f"eval_{name}": value for name, value in said.items()}
    assert TASK.best_rates(evaluated) == {
        "rate_linear": 1.0,
        "rate_attentive": 3.0,
        "rate_change": 0.01,
    }


@pytest.mark.parametrize("class_token", [False, True])
def test_what_the_probe_of_changes_sees(class_token: bool) -> None:
    """Its logits are those of a linear layer on absolute differences between time steps."""
    encoder = Encoder(helpers.GEOMETRY, helpers.ENCODER, class_token=class_token)
    task = dataclasses.replace(TASK, encoder=encoder, kinds=("change",))
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    variables = {name: helpers.filled(tree) for name, tree in shapes.items()}
    variables["state"] = jax.tree.map(jnp.abs, variables["state"])
    normal = normalize_pixels(BATCH["video"], task.objective)
    latents = encoder.apply({"params": variables["frozen"]["encoder"]}, normal)
    steps, height, width = helpers.GEOMETRY.grid
    patches = np.asarray(latents)[:, int(class_token) :]
    changes = np.zeros((len(patches), patches.shape[-1]))
    for step in range(steps - 1):
        for place in range(height * width):
            here = step * height * width + place
            changes += np.abs(patches[:, here + height * width] - patches[:, here])
    changes /= (steps - 1) * height * width
    norm = variables["state"]["change_norm"]
    seen = (changes - norm["mean"]) / np.sqrt(norm["var"] + 1e-6)
    head = variables["params"]["change"]["head"]
    logits, _ = task.logits(variables, BATCH["video"], False)
    for rate in range(len(RATES)):
        expected = seen @ head["kernel"][rate] + head["bias"][rate]
        np.testing.assert_allclose(logits["change"][rate], expected, rtol=1e-4, atol=1e-4)


def test_changes_need_two_time_steps() -> None:
    config = probe_demo.get_config()
    config.classifier.num_classes = CLASSES
    config.data.num_frames = config.model.tubelet_size
    with pytest.raises(UserError, match="probe.kinds has change, but clips have 1 time step"):
        experiment.probing(config)


@pytest.mark.parametrize(
    ("pooling", "class_token", "first"),
    [("mean", False, 0), ("mean", True, 1), ("first", True, None)],
)
def test_what_is_pooled(pooling: Any, class_token: bool, first: int | None) -> None:
    encoder = Encoder(helpers.GEOMETRY, helpers.ENCODER, class_token=class_token)
    task = dataclasses.replace(TASK, encoder=encoder, pooling=pooling, kinds=("linear",))
    frozen = helpers.filled(jax.eval_shape(task.init, jax.random.key(0))["frozen"])
    features = np.asarray(task.features({"frozen": frozen}, BATCH))
    pixels = experiment.objective(tiny.get_config())
    assert pixels.pixel_mean == task.objective.pixel_mean
    normal = (np.asarray(BATCH["video"]) / 255 - pixels.pixel_mean) / np.asarray(pixels.pixel_std)
    latents = encoder.apply({"params": frozen["encoder"]}, jnp.asarray(normal, jnp.float32))
    pooled = np.asarray(latents[:, 0] if first is None else latents[:, first:].mean(1))
    expected = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def coloured(number: int) -> bytes:
    """A noisy video of one colour, which is its class."""
    label = number % CLASSES
    frames = fixtures.video(number, 10).astype(np.float32) * 0.5
    frames[..., label] += 100
    return fixtures.serialize(frames.astype(np.uint8), str(number), label)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [coloured(number) for number in range(48)]
    splits = {"train": records[:32], "validation": records[32:]}
    return fixtures.write_dataset(tmp_path_factory.mktemp("data"), splits, with_masks=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory as a run of pretraining leaves it."""
    config = configs.resolve(tiny.get_config(), 32)
    directory = tmp_path_factory.mktemp("source") / "model"
    variables = helpers.variables(experiment.pretraining(config))
    pretrained.save(directory, variables, config, 3, license="cc-by-nc-4.0")
    return directory


@pytest.fixture(autouse=True)
def without_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_summary_writer", lambda directory: None)


def tiny_probe(data: Path, source: Path, **changes: Any) -> ConfigDict:
    config: ConfigDict = tiny.get_config()
    own: dict[str, Any] = {"data.dir": str(data), "init_from": str(source), "data.num_workers": 0}
    own |= {"steps": 16, "checkpoint_every": 6, "eval_every": 8, "eval.num_examples": 0}
    own |= {"optimizer.learning_rate": 0.3, "mesh.fsdp": 2, "probe.rates": (1e-4, 1.0)}
    config.update_from_flattened_dict({**own, **changes})
    return config


def frozen_in(workdir: Path) -> dict[str, np.ndarray]:
    return helpers.named(read_subtree(workdir / rundir.CHECKPOINTS, "frozen")[1]["encoder"])


def test_a_job_from_its_model_to_its_summary(
    data: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a mesh; killed in between, it goes on bitwise, when the model is gone."""
    said: list[str] = []
    collect, collected = knn.collect, list[knn.Labelled]()

    def counted(*arguments: Any) -> knn.Labelled:
        collected.append(collect(*arguments))
        return collected[-1]

    with monkeypatch.context() as patch:
        patch.setattr(logging, "info", lambda text, *values: said.extend(map(str, values)))
        patch.setattr(knn, "collect", counted)
        summary = probe.probe(tiny_probe(data, source), tmp_path / "run")
    assert len(collected) == 2  # the bank and what is held out, once for two validations
    (table,) = [text for text in said if text.startswith("init_from=")]
    assert "a model of pretraining after 3 steps" in table
    assert "fresh: probes of what is taken" in table
    assert summary["eval_accuracy_linear_1.0"] > 0.9 > 0.7 > summary["eval_accuracy_linear_0.0001"]
    assert summary["eval_accuracy"] >= summary["eval_accuracy_linear"] > 0.9
    assert summary["rate_linear"] == 1.0
    assert summary["eval_knn_accuracy"] > 0.9
    theirs = pretrained.load(source).variables["params"]["autoencoder"]["encoder"]
    held = frozen_in(tmp_path / "run")
    assert {name: array.tobytes() for name, array in held.items()} == {
        name: np.asarray(array).tobytes() for name, array in helpers.named(theirs).items()
    }
    assert licenses.of(tmp_path / "run") == "cc-by-nc-4.0"
    with pytest.raises(UserError, match=f"run holds probes.* are probes of, {source}$"):
        adamae_jax.load(tmp_path / "run")

    log, copy = loop.Loop._log, tmp_path / "copy"

    def killed(self: loop.Loop, step: int, figures: dict[str, float]) -> None:
        log(self, step, figures)
        if step == 9:
            raise KilledError

    shutil.copytree(source, copy)
    config = tiny_probe(data, copy)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_log", killed)
        with pytest.raises(KilledError):
            probe.probe(config, tmp_path / "other")
    shutil.rmtree(copy)
    assert probe.probe(config, tmp_path / "other")["rate_linear"] == 1.0
    assert lines(tmp_path / "other") == lines(tmp_path / "run")
    for part in ("params", "frozen"):
        ours, undisturbed = (
            helpers.named(read_subtree(tmp_path / name / rundir.CHECKPOINTS, part)[1])
            for name in ("other", "run")
        )
        for name, array in undisturbed.items():
            assert ours[name].tobytes() == array.tobytes(), name


def test_a_classifier_s_encoder_is_probed_with_its_norm(tmp_path: Path) -> None:
    config = config_of("videomae", True)
    config.init_from = str(written(tmp_path / "model", "videomae", True))
    config.classifier.num_classes = 9  # the classifier tells 3 apart
    found = initial.init_from(experiment.probing(config), config)
    params = loaded("videomae", True).params
    expected = helpers.named({**params["encoder"], "norm": params["norm"]})
    held = helpers.named(found.variables["frozen"]["encoder"])
    assert held.keys() == expected.keys()
    for name, array in expected.items():
        assert held[name].tobytes() == np.asarray(array).tobytes(), name
    assert "left in the source: head" in found.report
    assert found.variables.keys() == {"frozen"}


def test_another_encoder_is_refused(data: Path, source: Path, tmp_path: Path) -> None:
    config = tiny_probe(data, source, **{"model.encoder.depth": 1})
    with pytest.raises(UserError, match="another model than this .*model.encoder.depth=2$"):
        probe.probe(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": ""}, "init_from is empty, and probes measure a trained encoder"),
        ({"eval_every": 0}, "eval_every is 0, and probes are measured on held-out clips"),
        ({"augment.mixup": 0.8}, "augment.mixup is 0.8: it does not belong to this job, which tra"),
        ({"optimizer.layer_decay": 0.7}, "layer_decay is 0.7: .* trains probes of a frozen enc"),
    ],
)
def test_what_has_no_use_is_refused(
    data: Path, source: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        probe.probe(tiny_probe(data, source, **changes), tmp_path / "run")


def test_other_jobs_refuse_fields_of_probes() -> None:
    config: ConfigDict = tiny.get_config()
    # As a run keeps them: lists and tuples are the same.
    assert experiment.pretraining(configs.from_json(configs.to_json(config)))
    config.probe.optimizer = "lars"
    with pytest.raises(UserError, match="probe.optimizer is 'lars': .* trains no classifier"):
        experiment.pretraining(config)
    config.classifier.num_classes = 3
    with pytest.raises(UserError, match="probe.optimizer is 'lars': .* trains no probes"):
        experiment.classification(config)


def test_the_linear_recipe_is_mae_s() -> None:
    config = configs.resolve(mae_imagenet_linear.get_config(), 0)
    task = experiment.probing(config)
    assert (config.batch_size, config.steps, config.optimizer.warmup_steps) == (16384, 7020, 780)
    assert (task.kinds, task.rates, task.pooling) == (("linear",), (1.0,), "first")
    assert task.encoder.class_token and task.encoder.final_norm and task.num_classes == 1000
    optimizer = experiment.optimizers(config, task)[MODEL]
    found = [float(optimizer.learning_rate(jnp.asarray(step))) for step in (0, 779, 780, 7020)]
    np.testing.assert_allclose(found, [0.0, 6.4, 6.4, 0.0], atol=1e-5)
    assert automae_imagenet_linear.get_config() == mae_imagenet_linear.get_config()
    large = experiment.probing(configs.resolve(mae_imagenet_linear.get_config("H"), 0))
    assert (large.encoder.spec.width, large.encoder.geometry.grid) == (1280, (1, 16, 16))
    # One step of LARS without momentum behind it: a thousandth of the kernel's norm, in direction
    # of the gradient, and the gradient itself for the bias.
    params = {"linear": {"head": {"kernel": jnp.ones((1, 3, 4)), "bias": jnp.ones((1, 4))}}}
    grads = jax.tree.map(lambda leaf: 5.0 * leaf, params)
    state = optimizer.transform.init(params)
    directions, _ = optimizer.transform.update(grads, state, params)
    head = directions["linear"]["head"]
    np.testing.assert_allclose(head["kernel"], 0.001, rtol=1e-5)
    np.testing.assert_allclose(head["bias"], 5.0, rtol=1e-5)


def test_the_demo_fits_the_other_demos() -> None:
    config = probe_demo.get_config()
    config.classifier.num_classes = 8
    assert experiment.probing(config).encoder.geometry.grid == (4, 6, 6)
    assert json.loads(configs.to_json(config))["eval"]["knn"]
