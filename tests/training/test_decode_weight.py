"""Weights of decoded tokens make one quotient of the update's batch; strategies see progress."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adamae_jax.masking import MaskInputs, TokenMask, adaptive, base
from adamae_jax.masking.base import Variables
from adamae_jax.models.transformer import ExampleKeys
from adamae_jax.objectives import Pretraining
from adamae_jax.task import MODEL, example_keys
from adamae_jax.training.evaluation import compile_sums
from adamae_jax.training.optimizers import Optimizer
from adamae_jax.training.partitioning import batch_sharding, create_mesh, replicated
from adamae_jax.training.state import TrainState, create_state
from adamae_jax.training.step import jit_train_step, make_train_step
from tests import helpers

BATCH, SEED, STEPS = 8, 3, 4
DECODED = [0, 1, 2, 5, 8, 13, 21, 23]


@dataclasses.dataclass(frozen=True)
class Weighted(adaptive.Strategy):
    """Decodes the same tokens of every clip, seen or not, with weights of the clip's own.

    The weights look at the parameters, through which nothing may flow. The first clip's are 0.
    """

    dropout: float = 0.0

    def init(self, key: Any, inputs: MaskInputs) -> Variables:
        return {**super().init(key, inputs), "state": {"progress": jnp.zeros((), jnp.float32)}}

    def __call__(
        self, variables: Variables, inputs: MaskInputs, rng: ExampleKeys, train: bool
    ) -> TokenMask:
        mask = super().__call__(variables, inputs, rng, train)
        draw = jax.vmap(lambda key: jax.random.uniform(key, (len(DECODED),)))(rng)
        assert mask.log_probs is not None
        weight = jnp.where(draw < 0.3, 0.0, draw) * mask.log_probs[:, DECODED] ** 2
        first = inputs.video.mean((1, 2, 3, 4)) < -1.9  # black: see `batch`
        decode = jnp.broadcast_to(jnp.asarray(DECODED), weight.shape)
        return mask.replace(
            decode=decode,
            decode_weight=jnp.where(first[:, None], 0.0, weight),
            state={"progress": jnp.asarray(inputs.progress, jnp.float32).mean()},
        )


@dataclasses.dataclass(frozen=True)
class Late(base.MaskingStrategy):
    """Its auxiliary loss is how far training has come."""

    def __call__(
        self, variables: Variables, inputs: MaskInputs, rng: ExampleKeys, train: bool
    ) -> TokenMask:
        marks = base.random_subset(rng, inputs.tokens.shape[1], 6)
        progress = jnp.broadcast_to(jnp.asarray(inputs.progress), len(rng))
        return TokenMask(**base.mask_from_visible(marks, 6), aux={"progress": progress})


OPTIMIZERS = {MODEL: Optimizer(optax.identity(), lambda step: jnp.float32(0.1))}


def batch() -> dict[str, np.ndarray]:
    """Clips of which the first is black."""
    made = helpers.batch(BATCH)
    made["video"][0] = 0
    return made


def initial(task: Pretraining) -> TrainState:
    """The state before the first step."""
    shapes = jax.eval_shape(lambda: create_state(task, OPTIMIZERS, 0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return zeros.replace(params=helpers.variables(task)["params"])


def run(task: Pretraining, devices: int, accumulation: int, steps: int = 1) -> list[Any]:
    """Some steps of the real train step: states and metrics after each, on the host."""
    mesh = create_mesh({"data": -1}, jax.devices()[:devices])
    step = jit_train_step(
        make_train_step(task, OPTIMIZERS, seed=SEED, steps=STEPS, accumulation=accumulation),
        mesh,
        replicated(mesh),
    )
    state, found = jax.device_put(initial(task), replicated(mesh)), []
    for _ in range(steps):
        state, metrics = step(state, jax.device_put(batch(), batch_sharding(mesh)))
        found.append(jax.device_get((state, metrics)))
    return found


@pytest.fixture(scope="module")
def task() -> Pretraining:
    """The tiny AdaMAE with weights."""
    return helpers.pretraining(Weighted(mask_ratio=0.75))


@pytest.fixture(scope="module")
def by_hand(task: Pretraining) -> tuple[Any, dict[str, float]]:
    """Parameters after one step of the quotient over the batch, and its parts."""
    params = initial(task).params
    keys = example_keys(SEED, 0, jnp.arange(BATCH))
    video = jnp.asarray(batch()["video"])

    def loss(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        outcome = task.forward({"params": params}, video, keys, True)
        assert outcome.mask.decode_weight is not None and outcome.mask.log_probs is not None
        weight = jax.lax.stop_gradient(outcome.mask.decode_weight)
        reward = jax.lax.stop_gradient(outcome.token_error)
        terms = {
            "loss_reconstruction": (outcome.token_error * weight).sum() / weight.sum(),
            "loss_sampling": -(outcome.mask.log_probs[:, DECODED] * reward * weight).sum()
            / weight.sum(),
        }
        spread = weight.sum(1)
        total = terms["loss_reconstruction"] + 1e-4 * terms["loss_sampling"]
        return total, {"loss": total, **terms, "least": spread[1:].min(), "most": spread.max()}

    grads, parts = jax.jit(jax.grad(loss, has_aux=True))(params)
    after = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    found = {name: float(value) for name, value in parts.items()}
    assert 1.3 * found["least"] < found["most"]  # a mean of the clips' means is something else
    return after, found


@pytest.mark.parametrize(("devices", "accumulation"), [(1, 1), (4, 2)])
def test_the_loss_is_one_quotient_over_the_update(
    task: Pretraining, by_hand: Any, devices: int, accumulation: int
) -> None:
    ((state, metrics),) = run(task, devices, accumulation)
    after, parts = by_hand
    for name in ("loss", "loss_reconstruction", "loss_sampling"):
        assert metrics[name] == pytest.approx(parts[name], rel=1e-5), name
    before, expected = (helpers.named(tree) for tree in (initial(task).params, after))
    for name, value in helpers.named(state.params).items():
        moved, wanted = value - before[name], np.asarray(expected[name] - before[name])
        assert np.linalg.norm(moved - wanted) <= 2e-4 * np.linalg.norm(wanted) + 1e-7, name


def test_a_batch_without_weight_moves_nothing(task: Pretraining) -> None:
    keys, black = helpers.example_keys(1), jnp.zeros((1, *helpers.GEOMETRY.clip_shape), jnp.uint8)
    found = task.loss(MODEL, {**helpers.variables(task)}, {"video": black}, keys, True)
    assert (float(found.weight[0]), float(found.loss[0])) == (0.0, 0.0)


def test_progress_is_steps_over_steps_in_training(task: Pretraining) -> None:
    found = run(task, devices=4, accumulation=2, steps=3)
    assert [float(state.model_state["progress"]) for state, _ in found] == [0.0, 0.25, 0.5]


def test_progress_is_one_where_nothing_is_trained() -> None:
    late = helpers.pretraining(Late(mask_ratio=0.75))
    mesh = create_mesh({"data": -1}, jax.devices()[:1])
    clips: dict[str, Any] = {
        **batch(),
        "example_index": np.arange(BATCH, dtype=np.int32),
        "valid": np.ones(BATCH, bool),
        "unreadable": np.zeros(BATCH, bool),
    }
    sums = compile_sums(late, mesh, seed=0)(helpers.variables(late), clips)
    assert float(sums["loss_progress"]) == BATCH
