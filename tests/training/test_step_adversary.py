"""The train step with AutoMAE's two optimisers: who learns, in which order, in which state."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax.errors import UserError
from adamae_jax.masking import adversarial
from adamae_jax.models.autoencoder import Autoencoder
from adamae_jax.models.transformer import TransformerSpec
from adamae_jax.models.tubelets import ClipGeometry
from adamae_jax.pretraining import ADVERSARY, Objective, Pretraining
from adamae_jax.task import MODEL, example_keys
from adamae_jax.training.optimizers import Optimizer, Schedule, adamw
from adamae_jax.training.state import TrainState, create_state
from adamae_jax.training.step import make_train_step
from tests import helpers
from tests.masking.test_adversarial import converged

IMAGE = ClipGeometry(num_frames=1, image_size=(24, 26), tubelet_size=1, patch_size=2)
BLOCKS = TransformerSpec(8, 1, 2)
TASK = Pretraining(
    Autoencoder(IMAGE, BLOCKS, BLOCKS),
    adversarial.Strategy(mask_ratio=0.75, vit_width=8, vit_depth=1, vit_num_heads=2),
    Objective(),
)
RATE = 1e-2
SEED = 3
BATCH = 4


def active(*steps: int) -> Schedule:
    """A rate that is zero but at some steps."""
    return lambda step: RATE * jnp.isin(step, jnp.asarray(steps))


def optimizer(schedule: Schedule) -> Optimizer:
    """AdamW; everything decays, so that nothing is left alone by chance."""
    return adamw(schedule, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05, decay=("",))


OPTIMIZERS = {MODEL: optimizer(active(1, 2)), ADVERSARY: optimizer(active(0, 2))}


def parts(state: TrainState) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The parameters of the adversary, and all others."""
    named = {name: np.asarray(value) for name, value in helpers.named(state.params).items()}
    own = {name: a for name, a in named.items() if name.startswith("masking/discriminator/")}
    return own, {name: a for name, a in named.items() if name not in own}


def has_changed(old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> set[bool]:
    """For which arrays something is different."""
    assert set(old) == set(new)
    return {bool(np.any(old[name] != new[name])) for name in old}


def initial_state() -> TrainState:
    """Random parameters, singular vectors near the true ones.

    The generator looks closely: what one image attends to would not do for another.
    """
    shapes = jax.eval_shape(lambda: create_state(TASK, OPTIMIZERS, 0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    found = helpers.variables(TASK)
    masking = found["params"]["masking"]
    masking["generator"]["conv1"]["kernel"] *= 1000.0
    exact = converged(masking["discriminator"])
    state = jax.tree.map(lambda a, b: a + 0.1 * b, exact, helpers.filled(exact, seed=5))
    return zeros.replace(params=found["params"], frozen=found["frozen"], model_state=state)


@pytest.fixture(scope="module")
def run() -> list[tuple[TrainState, Any]]:
    """The states and metrics of three steps: at the first only the adversary has a rate."""
    step = jax.jit(make_train_step(TASK, OPTIMIZERS, seed=SEED))
    states: list[tuple[TrainState, Any]] = [(initial_state(), {})]
    for seed in range(3):
        states.append(step(states[-1][0], helpers.batch(BATCH, seed, IMAGE)))
    return states


def test_each_update_changes_its_own_parameters(run: list[tuple[TrainState, Any]]) -> None:
    changes = []
    for (old, _), (new, _) in itertools.pairwise(run):
        pairs = zip(parts(old), parts(new), strict=True)
        changes.append([has_changed(before, after) for before, after in pairs])
    assert changes == [[{True}, {False}], [{False}, {True}], [{True}, {True}]]


def test_each_optimizer_sees_its_own_gradients(run: list[tuple[TrainState, Any]]) -> None:
    state, metrics = run[1]
    for name in (MODEL, ADVERSARY):
        moments = [np.asarray(leaf) for leaf in jax.tree.leaves(state.opt_state[name])]
        assert all(np.isfinite(moment).all() for moment in moments)
    count = len(jax.tree.leaves(state.params["masking"]["discriminator"]))
    # Adam's counter and two moments for each array.
    assert len(jax.tree.leaves(state.opt_state[ADVERSARY])) == 1 + 2 * count
    everything = len(jax.tree.leaves(state.params))
    assert len(jax.tree.leaves(state.opt_state[MODEL])) == 1 + 2 * (everything - count)
    assert metrics["grad_norm_adversary"] > 0
    assert metrics["grad_norm_masking"] > 0
    assert {"loss_adversary", "loss_generator", "loss_reconstruction"} < set(metrics)
    total = metrics["loss_reconstruction"] + metrics["loss_generator"]
    assert metrics["loss"] == pytest.approx(float(total), rel=1e-5)


def test_the_frozen_vit_never_changes(run: list[tuple[TrainState, Any]]) -> None:
    first, last = run[0][0].frozen, run[-1][0].frozen
    assert np.any(jax.tree.leaves(first["vit"])[0])
    jax.tree.map(np.testing.assert_array_equal, last, first)


def test_singular_vectors_follow_the_kernels_pass_by_pass(
    run: list[tuple[TrainState, Any]],
) -> None:
    """Two iterations while the adversary learns, real and fake; one more with its new kernels."""
    old, new = run[0][0], run[1][0]
    for name in ("conv1", "conv2", "conv3"):
        before, after = (
            np.asarray(state.params["masking"]["discriminator"][name]["kernel"], np.float64)
            for state in (old, new)
        )
        u = np.asarray(old.model_state[name]["singular_vectors"]["u"], np.float64)
        for kernel in (before, before, after):
            matrix = kernel.reshape(-1, kernel.shape[-1])
            v = matrix @ u / np.linalg.norm(matrix @ u)
            u = v @ matrix / np.linalg.norm(v @ matrix)
        found = new.model_state[name]["singular_vectors"]
        np.testing.assert_allclose(found["u"], u, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(np.ravel(found["v"]), v, rtol=1e-3, atol=1e-5)
        if name != "conv3":  # which has one output: its u is a sign
            still = old.model_state[name]["singular_vectors"]["u"]
            assert np.abs(np.asarray(found["u"]) - np.asarray(still)).max() > 1e-5


def test_the_model_meets_the_adversary_that_has_just_learned(
    run: list[tuple[TrainState, Any]],
) -> None:
    (old, _), (new, metrics) = run[:2]
    keys = example_keys(SEED, jnp.asarray(0), jnp.arange(BATCH))
    video = jnp.asarray(helpers.batch(BATCH, 0, IMAGE)["video"])

    @jax.jit
    def generator_loss(state: TrainState) -> jax.Array:
        variables = {"params": state.params, "state": state.model_state, "frozen": state.frozen}
        return TASK.forward(variables, video, keys, True).terms["loss_generator"].mean()

    met, after, before = metrics["loss_generator"], generator_loss(new), generator_loss(old)
    assert abs(before - after) > 1e-4
    assert abs(met - after) < 0.1 * abs(before - after)


def test_without_the_adversary_s_optimizer_there_is_no_step() -> None:
    with pytest.raises(UserError, match=r"\['model'\] are given, \['adversary', 'model'\]"):
        make_train_step(TASK, {MODEL: OPTIMIZERS[MODEL]}, seed=0)
    other = dataclasses.replace(TASK, strategy=helpers.pretraining().strategy)
    make_train_step(other, {MODEL: OPTIMIZERS[MODEL]}, seed=0)
