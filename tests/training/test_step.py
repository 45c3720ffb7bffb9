"""The train step with AdaMAE: donation, keys, skipped updates, diagnostics.

Accumulation and several devices: see test_contract.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax.diagnostics import motion_tokens
from adamae_jax.errors import UserError
from adamae_jax.masking import MaskInputs, TokenMask, adaptive, base, random
from adamae_jax.masking.base import Variables
from adamae_jax.models.transformer import ExampleKeys
from adamae_jax.pretraining import Pretraining
from adamae_jax.task import MODEL, example_keys
from adamae_jax.training.optimizers import Optimizer, adamw, warmup_cosine
from adamae_jax.training.partitioning import batch_sharding, create_mesh, replicated
from adamae_jax.training.state import TrainState, create_state
from adamae_jax.training.step import jit_train_step, make_train_step
from tests import helpers

BATCH = 16
SEED = 7
BLACK, WHITE = 0, 255
METRICS = {
    "loss",
    "loss_reconstruction",
    "loss_sampling",
    "grad_norm",
    "grad_norm_autoencoder",
    "grad_norm_masking",
    "learning_rate",
    "sampling_entropy",
    "sampling_max_probability",
    "sampling_effective_size",
    "foreground_lift",
    "skipped",
    "replaced",
}


@dataclasses.dataclass(frozen=True)
class Recorded(adaptive.Strategy):
    """AdaMAE's sampler, which sums up its masks in its state: an exact, unordered fingerprint."""

    def init(self, key: Any, inputs: MaskInputs) -> Variables:
        return {**super().init(key, inputs), "state": {"masks": jnp.zeros((), jnp.uint32)}}

    def __call__(
        self, variables: Variables, inputs: MaskInputs, keys: ExampleKeys, train: bool
    ) -> TokenMask:
        mask = super().__call__(variables, inputs, keys, train)
        # Weighted by a pixel, so that masks exchanged between clips would not go unnoticed.
        pixel = jnp.round(inputs.video[:, 0, 0, 0, 0] * 1000).astype(jnp.int32).astype(jnp.uint32)
        weights = jnp.square(2 * mask.visible.astype(jnp.uint32) + 1).sum(-1)
        return mask.replace(state={"masks": variables["state"]["masks"] + (pixel * weights).sum()})


def optimizers(warmup: int = 3, steps: int = 10) -> dict[str, Optimizer]:
    """AdamW as in the recipes."""
    return {
        MODEL: adamw(
            warmup_cosine(1e-2, 1e-3, warmup, steps),
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            weight_decay=0.05,
            decay=("kernel$", "position_table$"),
        )
    }


def new_state(task: Pretraining) -> TrainState:
    """A state at step 0 without compiling the initialisation."""
    shapes = jax.eval_shape(lambda: create_state(task, optimizers(), 0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return zeros.replace(params=helpers.variables(task)["params"])


class Run:
    """A compiled step on one device, which counts how often it is traced."""

    def __init__(self, task: Pretraining) -> None:
        self.task = task
        self.traces = 0
        self.mesh = create_mesh({"data": -1}, jax.devices()[:1])
        step = make_train_step(task, optimizers(), seed=SEED)

        def counted(state: TrainState, batch: Any) -> Any:
            self.traces += 1
            return step(state, batch)

        self.step = jit_train_step(counted, self.mesh, replicated(self.mesh))

    def state(self) -> TrainState:
        """A state at step 0."""
        return jax.device_put(new_state(self.task), replicated(self.mesh))

    def batch(self, seed: int = 0) -> Any:
        """A batch on the devices."""
        return jax.device_put(helpers.batch(BATCH, seed), batch_sharding(self.mesh))


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_compiler_is_told_of_a_fixed_order(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an option that it knows, on a machine without GPUs too: another one would be refused."""
    told, jit = list[Any](), jax.jit

    def listening(function: Any, **options: Any) -> Any:
        told.append(options.get("compiler_options"))
        return jit(function, **options)

    mesh = create_mesh({"data": -1}, jax.devices()[:1])
    monkeypatch.setattr(jax, "jit", listening)
    step = jit_train_step(
        lambda state, batch: (state, dict(batch)),
        mesh,
        replicated(mesh),
        deterministic=deterministic,
    )
    assert told == [{"xla_gpu_deterministic_ops": True} if deterministic else None]
    assert step(jnp.ones(2), {"x": jnp.zeros(2)})[0].sum() == 2


@pytest.fixture(scope="module")
def recorded() -> Pretraining:
    """The tiny AdaMAE that records its masks."""
    return helpers.pretraining(Recorded(mask_ratio=0.75))


@pytest.fixture(scope="module")
def single(recorded: Pretraining) -> Run:
    """For most tests."""
    return Run(recorded)


def first_step(run: Run) -> tuple[TrainState, dict[str, Any]]:
    """State and metrics after one step."""
    return run.step(run.state(), run.batch())


@pytest.fixture(scope="module")
def reference(single: Run) -> tuple[TrainState, dict[str, Any]]:
    """The first step."""
    return first_step(single)


def test_one_compilation_and_the_state_is_donated(single: Run) -> None:
    state = single.state()
    for seed in range(3):
        given = state
        state, metrics = single.step(given, single.batch(seed))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.params))
        assert int(state.step) == seed + 1
        assert all(np.isfinite(value) for value in metrics.values())
    assert single.traces == 1


def test_the_rate_is_the_schedule_s(single: Run) -> None:
    state, rates = single.state(), []
    for _ in range(4):
        state, metrics = single.step(state, single.batch())
        rates.append(float(metrics["learning_rate"]))
    np.testing.assert_allclose(rates[:3], [0.0, 5e-3, 1e-2], rtol=1e-5)
    assert rates[3] == pytest.approx(1e-2, rel=1e-5)


def test_the_first_step_warms_up_at_rate_zero(
    single: Run, reference: tuple[TrainState, dict[str, Any]]
) -> None:
    jax.tree.map(np.testing.assert_array_equal, reference[0].params, single.state().params)


def test_repeating_a_step_repeats_it_exactly(single: Run) -> None:
    first, second = (single.step(single.state(), single.batch(1)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_training_lowers_the_loss(single: Run) -> None:
    state, losses = single.state(), []
    for _ in range(10):
        state, metrics = single.step(state, single.batch())
        losses.append(float(metrics["loss_reconstruction"]))
    assert losses[-1] < 0.9 * losses[0]


def test_metrics_describe_the_distribution(
    recorded: Pretraining, reference: tuple[TrainState, dict[str, Any]]
) -> None:
    metrics = reference[1]
    assert set(metrics) == METRICS
    variables = helpers.variables(recorded)
    keys = example_keys(SEED, jnp.zeros((), jnp.int32), jnp.arange(BATCH))
    video = jnp.asarray(helpers.clips(BATCH))
    outcome = jax.jit(recorded.forward, static_argnums=3)(variables, video, keys, True)
    probs = np.exp(np.asarray(outcome.mask.log_probs, np.float64))
    assert metrics["loss"] == pytest.approx(float(outcome.loss.mean()), rel=1e-4)
    assert metrics["sampling_entropy"] == pytest.approx(
        -(probs * np.log(probs)).sum(1).mean(), rel=1e-4
    )
    assert metrics["sampling_max_probability"] == pytest.approx(probs.max(1).mean(), rel=1e-4)
    assert metrics["sampling_effective_size"] == pytest.approx(
        (1 / np.square(probs).sum(1)).mean(), rel=1e-4
    )
    moving = np.asarray(motion_tokens(video, helpers.GEOMETRY))
    seen = np.take_along_axis(moving, np.asarray(outcome.mask.visible), axis=1)
    assert metrics["foreground_lift"] == pytest.approx(seen.mean() / moving.mean(), rel=1e-4)
    assert 0 < metrics["grad_norm_masking"] < metrics["grad_norm"]


def test_keys_belong_to_the_place_in_the_global_batch() -> None:
    step = jnp.asarray(5)
    keys = jax.random.key_data(example_keys(1, step, jnp.arange(6)))
    part = jax.random.key_data(example_keys(1, step, jnp.asarray([4, 1])))
    np.testing.assert_array_equal(part, keys[jnp.asarray([4, 1])])
    assert len(np.unique(keys, axis=0)) == 6
    for other in (example_keys(2, step, jnp.arange(6)), example_keys(1, step + 1, jnp.arange(6))):
        assert (np.asarray(jax.random.key_data(other)) != np.asarray(keys)).any(-1).all()


def test_keys_of_repeats_differ_and_the_first_is_that_of_a_video_without_repeats() -> None:
    step, slots = jnp.asarray(5), jnp.repeat(jnp.arange(3), 4)
    repeats = jnp.tile(jnp.arange(4), 3)
    keys = np.asarray(jax.random.key_data(example_keys(1, step, slots, repeats)))
    assert len(np.unique(keys, axis=0)) == 12
    plain = np.asarray(jax.random.key_data(example_keys(1, step, jnp.arange(3))))
    np.testing.assert_array_equal(keys[::4], plain)
    # A clip's key is its own, whatever stands beside it.
    part = example_keys(1, step, slots[7:9], repeats[7:9])
    np.testing.assert_array_equal(jax.random.key_data(part), keys[7:9])
    # Slot and repeat cannot stand for each other.
    crossed = example_keys(1, step, repeats, slots)
    same = (np.asarray(jax.random.key_data(crossed)) == keys).all(1)
    assert set(np.flatnonzero(same)) == set(np.flatnonzero(np.asarray(slots == repeats)))


def masks_of(run: Run, batch: Any) -> tuple[int, dict[str, Any]]:
    """The sum over a batch's masks, and the metrics."""
    state, metrics = run.step(run.state(), jax.device_put(batch, batch_sharding(run.mesh)))
    return int(state.model_state["masks"]), metrics


def test_repeats_of_a_video_are_masked_apart(recorded: Pretraining) -> None:
    """Eight videos, each twice: the masks depend on slot and repeat, and on no place in a batch."""
    run = Run(recorded)
    clips = helpers.clips(BATCH // 2)
    batch = {
        "video": np.repeat(clips, 2, axis=0),
        "slot": np.repeat(np.arange(BATCH // 2, dtype=np.int32), 2),
        "repeat": np.tile(np.arange(2, dtype=np.int32), BATCH // 2),
    }
    found, metrics = masks_of(run, batch)
    order = np.random.default_rng(0).permutation(BATCH)
    turned, same = masks_of(run, {name: array[order] for name, array in batch.items()})
    assert turned == found
    assert same["loss"] == pytest.approx(float(metrics["loss"]), rel=1e-5)
    alike, _ = masks_of(run, {**batch, "repeat": np.zeros(BATCH, np.int32)})
    exchanged, _ = masks_of(run, {**batch, "repeat": 1 - batch["repeat"]})
    # The same clip under both keys: only which one comes first was exchanged.
    assert exchanged == found != alike
    assert run.traces == 1


@dataclasses.dataclass(frozen=True)
class Poisoned(base.MaskingStrategy):
    """Random masking whose auxiliary loss is not a number for white clips.

    For black ones only its gradient is not.
    """

    def init(self, key: Any, inputs: MaskInputs) -> Variables:
        return {"params": {"weight": jnp.ones(())}, "state": {"calls": jnp.zeros((), jnp.int32)}}

    def __call__(
        self, variables: Variables, inputs: MaskInputs, keys: ExampleKeys, train: bool
    ) -> TokenMask:
        mask = random.Strategy(mask_ratio=0.75)(variables, inputs, keys, train)
        brightness = inputs.video.mean((1, 2, 3, 4))
        not_black = jnp.where(brightness < -1.95, 0.0, 1.0)
        loss = jnp.sqrt(not_black * jnp.square(variables["params"]["weight"]))
        loss = loss + jnp.where(brightness > 2.0, jnp.nan, 0.0)
        state = {"calls": variables["state"]["calls"] + 1}
        return mask.replace(aux={"poison": loss}, state=state)


def test_updates_that_are_not_finite_are_skipped() -> None:
    run = Run(helpers.pretraining(Poisoned(mask_ratio=0.75)))

    def batch(seed: int, shade: int | None = None) -> Any:
        own = helpers.batch(BATCH, seed)
        if shade is not None:
            own["video"][3] = shade
        return jax.device_put(own, batch_sharding(run.mesh))

    state, metrics = run.step(run.state(), batch(0))
    state, metrics = run.step(state, batch(1))
    assert (int(metrics["skipped"]), int(state.step)) == (0, 2)
    kept = jax.device_get(state)
    for count, shade in ((1, WHITE), (2, BLACK)):
        state, metrics = run.step(state, batch(2, shade))
        assert np.isnan(metrics["loss"]) == (shade == WHITE)
        assert np.isnan(metrics["grad_norm"]) == (shade == BLACK)
        for part in ("params", "opt_state", "model_state"):
            jax.tree.map(np.testing.assert_array_equal, getattr(state, part), getattr(kept, part))
        assert (int(state.counters["skipped"]), int(state.step)) == (count, 2 + count)
        assert int(metrics["skipped"]) == count
    state, metrics = run.step(state, batch(0))
    assert (int(state.counters["skipped"]), int(state.step)) == (2, 5)
    # The schedule went on: this is step 4's rate and not step 2's.
    expected = warmup_cosine(1e-2, 1e-3, 3, 10)(jnp.asarray(4))
    assert metrics["learning_rate"] == pytest.approx(float(expected))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, kept.params)
    assert min(jax.tree.leaves(moved["autoencoder"])) > 0
    assert int(state.model_state["calls"]) == 3
    assert run.traces == 1


def test_an_optimizer_that_is_missing_is_named(recorded: Pretraining) -> None:
    with pytest.raises(UserError, match=r"\['other'\] are given, \['model'\] are needed"):
        make_train_step(recorded, {"other": optimizers()[MODEL]}, seed=0)
