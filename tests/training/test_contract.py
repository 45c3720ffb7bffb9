"""The unmodified step drives a strategy that it has never heard of.

The strategy has all that the contract allows: an adversary with an optimiser of its own, a token
scale, log-probabilities, auxiliary losses, state, a frozen network, padded visible tokens, a subset
to decode, and weights of what is decoded, which make the loss one quotient of the update's batch.
Two steps are computed a second time by hand, in the order that the contract promises.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adamae_jax.errors import UserError
from adamae_jax.masking import MaskInputs, TokenMask, base
from adamae_jax.masking.base import Variables
from adamae_jax.models.transformer import ExampleKeys
from adamae_jax.pretraining import ADVERSARY, Objective, Pretraining
from adamae_jax.task import MODEL, example_keys
from adamae_jax.training.optimizers import Optimizer
from adamae_jax.training.partitioning import batch_sharding, create_mesh, replicated
from adamae_jax.training.state import TrainState, create_state
from adamae_jax.training.step import jit_train_step, make_train_step
from tests import helpers

BATCH, SEED, PADDING, STEPS = 8, 3, 2, 4


@dataclasses.dataclass(frozen=True)
class Fake(base.MaskingStrategy):
    """A generator that a critic plays against.

    Attributes:
      aux_weight: weight of the auxiliary loss, without which only the token scale moves the
        generator.
    """

    aux_weight: float = 0.5
    sees_positions: ClassVar[bool] = True
    adversary: ClassVar[str | None] = "critic"

    def init(self, key: Any, inputs: MaskInputs) -> Variables:
        count, width = inputs.tokens.shape[1:]
        zero = jnp.zeros((), jnp.float32)
        return {
            "params": {
                "critic": {"weight": jnp.linspace(-1.0, 1.0, count)},
                "generator": {"weight": jax.random.normal(key, (width,))},
            },
            "state": {
                "critic_calls": zero,
                "generator_calls": zero,
                "critic_noise": zero,
                "generator_noise": zero,
                "critic_seen": jnp.zeros(count),
                "progress": zero,
            },
            "frozen": {"offset": jnp.linspace(0.0, 1.0, count)},
        }

    def soft_mask(self, variables: Variables, inputs: MaskInputs, keys: ExampleKeys) -> Any:
        """A soft mask and the noise that it was drawn with."""
        noise = jax.vmap(lambda key: jax.random.gumbel(key, inputs.tokens.shape[1:2]))(keys)
        weight = variables["params"]["generator"]["weight"]
        logits = inputs.tokens @ weight + variables["frozen"]["offset"]
        return jax.nn.softmax(logits + noise), noise

    def __call__(
        self, variables: Variables, inputs: MaskInputs, keys: ExampleKeys, train: bool
    ) -> TokenMask:
        soft, noise = self.soft_mask(variables, inputs, keys)
        critic, state = variables["params"]["critic"]["weight"], variables["state"]
        count = self.num_visible(inputs.grid)
        _, chosen = jax.lax.top_k(noise, count)
        marks = jax.vmap(lambda row: jnp.zeros(noise.shape[1], bool).at[row].set(True))(chosen)
        fields = base.mask_from_visible(marks, count)
        visible, masked = fields["visible"], fields["masked"]
        valid = jnp.arange(count + PADDING) < count
        # A third of the tokens weigh nothing, nor does a black clip; nothing flows through weights.
        weight = jnp.take_along_axis(soft, masked[:, ::2], axis=1)
        weight = weight.at[:, ::3].set(0.0) * (inputs.video.mean((1, 2, 3, 4)) > -1.9)[:, None]
        return TokenMask(
            visible=jnp.pad(visible, ((0, 0), (0, PADDING))),
            masked=masked,
            visible_valid=jnp.broadcast_to(valid, (len(visible), count + PADDING)),
            decode=masked[:, ::2],
            decode_weight=weight,
            log_probs=jnp.log(soft),
            token_scale=0.5 + soft,
            aux={
                "fooling": self.aux_weight * jnp.square(soft @ critic - 1.0),
                "constant": jnp.full(len(visible), 0.25),
            },
            state={
                **state,
                "generator_calls": state["generator_calls"] + 1,
                "generator_noise": noise[0, 0],
                "critic_seen": critic,
                "progress": jnp.asarray(inputs.progress, jnp.float32).mean(),
            },
        )

    def adversary_loss(
        self, variables: Variables, inputs: MaskInputs, keys: ExampleKeys, train: bool
    ) -> tuple[jax.Array, Any]:
        soft, noise = self.soft_mask(variables, inputs, keys)
        critic, state = variables["params"]["critic"]["weight"], variables["state"]
        calls = state["critic_calls"] + 1
        loss = jnp.square(soft @ critic) + jnp.square(critic.mean() - 1.0)
        return loss, {**state, "critic_calls": calls, "critic_noise": noise[0, 0]}


def plain_descent(rate: float) -> Optimizer:
    """Gradient descent, under which differences stay in proportion."""
    return Optimizer(optax.identity(), lambda step: jnp.float32(rate) * (1.0 + step))


OPTIMIZERS = {MODEL: plain_descent(0.1), ADVERSARY: plain_descent(0.3)}


def new_state(task: Pretraining) -> TrainState:
    """A state at step 0, with the strategy's own initial values."""
    own = jax.jit(lambda: create_state(task, OPTIMIZERS, 0))()
    autoencoder = helpers.variables(task)["params"]["autoencoder"]
    return own.replace(params={**own.params, "autoencoder": autoencoder})


@pytest.fixture(scope="module")
def task() -> Pretraining:
    """The tiny autoencoder with the fake strategy."""
    return helpers.pretraining(Fake(mask_ratio=0.75), Objective(sampling_loss_weight=1.0))


@pytest.fixture(scope="module")
def initial(task: Pretraining) -> TrainState:
    """The state before the first step, on the host."""
    return jax.device_get(new_state(task))


def batch(step: int) -> dict[str, np.ndarray]:
    """The batch of a step; its first clip is black."""
    made = helpers.batch(BATCH, seed=step)
    made["video"][0] = 0
    return made


History = list[tuple[TrainState, dict[str, Any]]]


def run(task: Pretraining, initial: TrainState, devices: int, accumulation: int) -> History:
    """Two steps of the real train step; states and metrics after each, on the host."""
    mesh = create_mesh({"data": -1}, jax.devices()[:devices])
    step = jit_train_step(
        make_train_step(task, OPTIMIZERS, seed=SEED, steps=STEPS, accumulation=accumulation),
        mesh,
        replicated(mesh),
    )
    state, history = jax.device_put(initial, replicated(mesh)), []
    for number in range(2):
        state, metrics = step(state, jax.device_put(batch(number), batch_sharding(mesh)))
        history.append(jax.device_get((state, metrics)))
    return history


@pytest.fixture(scope="module")
def history(task: Pretraining, initial: TrainState) -> History:
    """Two steps on one device."""
    return run(task, initial, devices=1, accumulation=1)


def descend(params: Any, grads: Any, rate: float) -> Any:
    """One step of gradient descent."""
    return jax.tree.map(lambda p, g: p - rate * g, params, grads)


@pytest.fixture(scope="module")
def by_hand(task: Pretraining, initial: TrainState) -> History:
    """The same, written out: first the critic, then everything else under the new critic."""

    def critic_loss(critic: Any, params: Any, rest: Any, data: Any, keys: Any) -> Any:
        masking = {**params["masking"], "critic": critic}
        variables = {"params": {**params, "masking": masking}, **rest}
        loss, state = task.adversary_loss(variables, data["video"], keys, True)
        return loss.mean(), state

    def model_loss(params: Any, rest: Any, data: Any, keys: Any, progress: Any) -> Any:
        variables = {"params": params, **rest}
        outcome = task.forward(variables, data["video"], keys, True, progress=progress)
        mask, error = outcome.mask, outcome.token_error
        assert mask.decode_weight is not None and mask.log_probs is not None
        weight = jax.lax.stop_gradient(mask.decode_weight)
        reward = jnp.take_along_axis(mask.log_probs, mask.queries, 1) * jax.lax.stop_gradient(error)
        clip = weight.sum(1)
        terms = {
            "loss_reconstruction": (error * weight).sum() / weight.sum(),
            "loss_sampling": -(reward * weight).sum() / weight.sum(),
            **{f"loss_{k}": (aux * clip).sum() / clip.sum() for k, aux in mask.aux.items()},
        }
        loss = sum(terms.values())
        return loss, ({"loss": loss, **terms}, mask.state, clip)

    critic_gradient = jax.jit(jax.value_and_grad(critic_loss, has_aux=True))
    model_gradient = jax.jit(jax.value_and_grad(model_loss, has_aux=True))
    params, state, frozen = initial.params, initial.model_state, initial.frozen
    found: History = []
    for number in range(2):
        data = jax.tree.map(jnp.asarray, batch(number))
        keys = example_keys(SEED, jnp.asarray(number), data["slot"])
        critic = params["masking"]["critic"]
        rest = {"state": state, "frozen": frozen}
        (adversary, state), grads = critic_gradient(critic, params, rest, data, keys)
        critic = descend(critic, grads, 0.3 * (1.0 + number))
        params = {**params, "masking": {**params["masking"], "critic": critic}}
        rest = {"state": state, "frozen": frozen}
        progress = jnp.full(BATCH, number / STEPS)
        (_, (terms, state, weight)), grads = model_gradient(params, rest, data, keys, progress)
        # A mean of the clips' means would be something else.
        assert weight[0] == 0 and weight.max() > 1.3 * weight[1:].min()
        params = descend(params, grads, 0.1 * (1.0 + number))
        params = {**params, "masking": {**params["masking"], "critic": critic}}
        metrics = {"loss_adversary": adversary, **terms}
        found.append((initial.replace(params=params, model_state=state), metrics))
    return found


def assert_close(found: Any, expected: Any) -> None:
    """Compares trees, each array by the norm of the difference."""
    jax.tree.map(
        lambda a, b: np.testing.assert_array_less(
            np.linalg.norm(np.asarray(a) - np.asarray(b)), 1e-4 * np.linalg.norm(b) + 1e-6
        ),
        found,
        expected,
    )


def test_two_steps_are_those_written_out(history: History, by_hand: History) -> None:
    for number in range(2):
        (state, metrics), (expected, terms) = history[number], by_hand[number]
        assert_close(state.params, expected.params)
        assert_close(state.model_state, expected.model_state)
        for name, value in terms.items():
            assert metrics[name] == pytest.approx(float(value), rel=1e-4), name
        assert (int(state.step), int(state.counters["skipped"])) == (number + 1, 0)


def test_the_model_sees_the_critic_of_its_own_step(history: History, initial: TrainState) -> None:
    before = initial.params["masking"]["critic"]["weight"]
    for state, _ in history:
        after = state.params["masking"]["critic"]["weight"]
        np.testing.assert_array_equal(state.model_state["critic_seen"], after)
        assert np.abs(after - before).max() > 1e-3
        before = after


def test_draws_are_fresh_for_every_purpose_and_step(history: History) -> None:
    noises = [
        float(state.model_state[name])
        for state, _ in history
        for name in ("critic_noise", "generator_noise")
    ]
    assert len(set(noises)) == 4
    assert 0.0 not in noises


def test_the_state_is_handed_on(history: History) -> None:
    for number, (state, _) in enumerate(history, start=1):
        assert state.model_state["critic_calls"] == number
        assert state.model_state["generator_calls"] == number


def test_everything_that_should_move_moves_and_nothing_else(
    history: History, initial: TrainState
) -> None:
    state = history[1][0]
    for name, value in helpers.named(state.params).items():
        assert np.abs(value - helpers.named(initial.params)[name]).max() > 0, name
    jax.tree.map(np.testing.assert_array_equal, state.frozen, initial.frozen)
    assert set(state.opt_state) == {MODEL, ADVERSARY}


def test_auxiliary_losses_add_up_and_are_reported(history: History) -> None:
    for _, metrics in history:
        parts = [f"loss_{name}" for name in ("reconstruction", "sampling", "fooling", "constant")]
        assert metrics["loss_constant"] == pytest.approx(0.25)
        assert metrics["loss_fooling"] > 0
        assert metrics["loss"] == pytest.approx(sum(float(metrics[p]) for p in parts), rel=1e-5)
        assert metrics["grad_norm_adversary"] > 0


def test_microbatches_on_several_devices_take_the_same_step(
    task: Pretraining, initial: TrainState, history: History
) -> None:
    """State is handed from one microbatch to the next; all else is a mean over them."""
    state, metrics = run(task, initial, devices=4, accumulation=2)[0]
    assert_close(state.params, history[0][0].params)
    assert state.model_state["critic_calls"] == state.model_state["generator_calls"] == 2
    for name, value in history[0][1].items():
        assert metrics[name] == pytest.approx(float(value), rel=1e-3), name


def test_the_token_scale_alone_moves_the_generator(initial: TrainState) -> None:
    class Unscaled(Fake):
        def __call__(self, *arguments: Any) -> TokenMask:
            return super().__call__(*arguments).replace(token_scale=None)

    def generator_gradient(strategy: Fake) -> np.ndarray:
        task = helpers.pretraining(strategy, Objective(sampling_loss_weight=0.0))

        def loss(weight: Any) -> jax.Array:
            masking = {**initial.params["masking"], "generator": {"weight": weight}}
            variables = {
                "params": {**initial.params, "masking": masking},
                "state": initial.model_state,
                "frozen": initial.frozen,
            }
            video = jnp.asarray(batch(0)["video"])
            return task.forward(variables, video, helpers.example_keys(BATCH), True).loss.mean()

        return np.asarray(jax.jit(jax.grad(loss))(initial.params["masking"]["generator"]["weight"]))

    assert np.abs(generator_gradient(Fake(mask_ratio=0.75, aux_weight=0.0))).max() > 1e-6
    assert not generator_gradient(Unscaled(mask_ratio=0.75, aux_weight=0.0)).any()


def test_positions_are_in_the_tokens_where_a_strategy_asks_for_them(task: Pretraining) -> None:
    params = helpers.variables(task)["params"]["autoencoder"]
    video = jnp.zeros((1, *helpers.GEOMETRY.clip_shape))
    inputs, placed = task.mask_inputs(params, video)
    np.testing.assert_array_equal(inputs.tokens, placed)
    plain, placed = helpers.pretraining().mask_inputs(params, video)
    assert np.abs(plain.tokens - placed).max() == pytest.approx(1.0, abs=1e-3)
    assert inputs.grid == (4, 2, 3)


def test_an_adversary_needs_its_optimizer(task: Pretraining) -> None:
    with pytest.raises(UserError, match=r"\['model'\] are given, \['adversary', 'model'\]"):
        make_train_step(task, {MODEL: OPTIMIZERS[MODEL]}, seed=0)
