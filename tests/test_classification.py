"""The task of classifying: what it trains on, and what an update makes of it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax import experiment
from adamae_jax.classification import Classification
from adamae_jax.errors import UserError
from adamae_jax.mixing import Mixing
from adamae_jax.models.classifier import Classifier
from adamae_jax.pretraining import Objective
from adamae_jax.task import MODEL, example_keys
from adamae_jax.training.optimizers import Optimizer, adamw
from adamae_jax.training.state import TrainState, create_state
from adamae_jax.training.step import make_train_step
from tests import helpers
from tests.configs import tiny

CLASSES = 5
SPEC = dataclasses.replace(helpers.ENCODER, drop_path=0.4)
MODEL_DEFINITION = Classifier(helpers.GEOMETRY, SPEC, CLASSES, head_dropout=0.3)
TASK = Classification(
    MODEL_DEFINITION, Objective(), Mixing(0.8, 1.0, group=4), erasing=0.5, label_smoothing=0.1
)
BATCH = 8


def optimizer() -> Optimizer:
    return adamw(
        lambda step: jnp.asarray(1e-2),
        b1=0.9,
        b2=0.95,
        eps=1e-6,  # against rounding: gradients are tiny in places
        weight_decay=0.05,
        decay=("kernel$",),
        layer_decay=0.7,
    )


def labelled(unknown: tuple[int, ...] = ()) -> dict[str, jax.Array]:
    labels = np.random.default_rng(1).integers(CLASSES, size=BATCH).astype(np.int32)
    labels[list(unknown)] = -1
    return jax.tree.map(jnp.asarray, {**helpers.batch(BATCH), "label": labels})


def parameters(task: Classification = TASK) -> Any:
    return helpers.filled(jax.eval_shape(task.init, jax.random.key(0))["params"])


def state_of(task: Classification, *, averaged: bool = False) -> TrainState:
    optimizers = {MODEL: optimizer()}
    shapes = jax.eval_shape(lambda: create_state(task, optimizers, 0, averaged=averaged))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    params = parameters(task)
    return zeros.replace(params=params, average=params if averaged else {})


def test_accumulation_changes_nothing() -> None:
    """Partners, draws, erasing and dropout belong to clips, whichever microbatch they are in."""
    found = []
    for accumulation in (1, 4):
        step = make_train_step(TASK, {MODEL: optimizer()}, seed=3, accumulation=accumulation)
        found.append(jax.jit(step)(state_of(TASK), labelled()))
    (one, metrics), (four, others) = found
    assert float(metrics["loss"]) == pytest.approx(float(others["loss"]), rel=1e-5)
    first, second = (helpers.named(state.params) for state in (one, four))
    start = helpers.named(parameters())
    for name, array in first.items():
        change = np.asarray(array) - start[name]
        other = np.asarray(second[name]) - start[name]
        assert np.linalg.norm(change - other) < 1e-3 * np.linalg.norm(change), name


def test_an_average_follows_the_parameters() -> None:
    task = Classification(MODEL_DEFINITION, Objective())
    step = make_train_step(task, {MODEL: optimizer()}, seed=0, average_decay=0.9)
    before = state_of(task, averaged=True)
    after, _ = jax.jit(step)(before, labelled())
    for name, average in helpers.named(after.average).items():
        old, new = (np.asarray(helpers.named(s.params)[name]) for s in (before, after))
        np.testing.assert_allclose(average, 0.9 * old + 0.1 * new, rtol=1e-5, atol=1e-7)
    assert after.result["params"] is after.average


def test_a_skipped_update_leaves_the_average() -> None:
    task = Classification(MODEL_DEFINITION, Objective(pixel_std=(float("nan"),) * 3))
    step = make_train_step(task, {MODEL: optimizer()}, seed=0, average_decay=0.9)
    before = state_of(task, averaged=True)
    after, _ = jax.jit(step)(before, labelled())
    assert int(after.counters["skipped"]) == 1
    jax.tree.map(np.testing.assert_array_equal, after.average, before.average)


def test_clips_without_a_label_do_not_count() -> None:
    """Nor do those that are mixed with one."""
    batch = labelled(unknown=(0,))
    keys = example_keys(0, 0, jnp.arange(BATCH))
    variables = {"params": parameters(), "state": {}, "frozen": {}}
    prepared = TASK.prepare(variables, batch, keys, 1)
    weights = TASK.loss(MODEL, variables, prepared, keys, True).weight
    assert weights.tolist() == [0, 1, 1, 0, 1, 1, 1, 1]


def test_weights_of_classes_by_hand() -> None:
    task = dataclasses.replace(TASK, class_weights=(1.0, 2.0, 0.5, 0.0, 3.0))
    logits = np.random.default_rng(0).normal(size=(2, CLASSES))
    targets = np.array([[0.1, 0.6, 0.1, 0.1, 0.1], [0, 0, 0, 1, 0]])
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -(targets * log_probs * np.array(task.class_weights)).sum(-1)
    found = task.cross_entropy(jnp.asarray(logits), jnp.asarray(targets))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_nothing_is_random_in_an_evaluation() -> None:
    variables = {"params": parameters(), "state": {}, "frozen": {}}
    batch = labelled()
    figures = TASK.evaluate(variables, batch, None)
    logits = np.asarray(TASK.logits(variables, batch["video"]))
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    own = log_probs[np.arange(BATCH), batch["label"]]
    np.testing.assert_allclose(figures["loss"], -own, rtol=1e-5)
    rank = (logits > logits[np.arange(BATCH), batch["label"]][:, None]).sum(-1)
    np.testing.assert_array_equal(figures["accuracy"], rank == 0)
    np.testing.assert_array_equal(figures["accuracy_top5"], np.ones(BATCH))


def test_weights_of_classes_from_a_file(tmp_path: Any) -> None:
    path = tmp_path / "weights.txt"
    path.write_text("1\n0.5\n2e0\n")
    assert experiment.class_weights(str(path), 3) == (1.0, 0.5, 2.0)
    assert experiment.class_weights("1,2", 2) == (1.0, 2.0)
    assert experiment.class_weights("", 2) == ()
    for given, reason in (
        ("1,x", "could not convert"),
        ("1,2,3", "for 2 classes"),
        ("1,-1", "below 0"),
    ):
        with pytest.raises(UserError, match=reason):
            experiment.class_weights(given, 2)
    with pytest.raises(UserError, match=r"class_weights=/no/where cannot be read"):
        experiment.class_weights("/no/where", 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [("optimizer.layer_decay", 0.75), ("augment.mixup", 0.8), ("model.drop_path", 0.1)],
)
def test_pretraining_refuses_what_is_of_classifiers(field: str, value: float) -> None:
    config = tiny.get_config()
    group, name = field.split(".")
    config[group][name] = value
    with pytest.raises(UserError, match=f"{field} is {value}: it does not belong to this job"):
        experiment.pretraining(config)


def test_a_group_divides_the_batch() -> None:
    config = tiny.get_config()
    config.classifier.num_classes = 3
    config.augment.mixup, config.augment.mix_group = 0.8, 3
    with pytest.raises(UserError, match="mix_group 3 does not divide batch_size 8"):
        experiment.classification(config)
