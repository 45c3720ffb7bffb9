"""The adaptive strategy's options in the train step: rewards over the whole batch, and state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax.masking import adaptive
from adamae_jax.task import example_keys
from adamae_jax.training.state import TrainState
from tests import helpers
from tests.training.test_contract import BATCH, SEED, batch, new_state, run

DECAY = 0.8
TASK = helpers.pretraining(
    adaptive.Strategy(
        mask_ratio=0.75,
        dropout=0.0,
        temperature=0.7,
        entropy_weight=0.1,
        entropy_target=0.9,
        credit="draw",
        reward="visible",
        baseline="running",
        baseline_decay=DECAY,
    )
)


@pytest.fixture(scope="module")
def start() -> TrainState:
    """The state before the first step, on the host."""
    return jax.device_get(new_state(TASK))


def test_the_running_reward_is_a_mean_over_all_devices(start: TrainState) -> None:
    keys = example_keys(SEED, 0, jnp.arange(BATCH))
    video = jnp.asarray(batch(0)["video"])
    found = jax.jit(lambda variables: TASK.forward(variables, video, keys, True))(start.variables)
    assert found.mask.queries.shape == (BATCH, 24)
    seen = np.take_along_axis(np.asarray(found.token_error), np.asarray(found.mask.visible), axis=1)
    after, metrics = run(TASK, start, devices=4, accumulation=1)[0]
    kept = after.model_state
    assert kept["reward_weight"] == pytest.approx(1 - DECAY)
    assert kept["reward_mean"] == pytest.approx((1 - DECAY) * seen.mean(), rel=1e-5)
    assert {"loss_entropy", "loss_sampling"} < set(metrics)
    assert int(after.counters["skipped"]) == 0
    table = after.params["masking"]["position_table"] - start.params["masking"]["position_table"]
    assert np.abs(table).max() > 0


def test_the_running_reward_moves_with_every_microbatch(start: TrainState) -> None:
    after, _ = run(TASK, start, devices=4, accumulation=2)[0]
    assert after.model_state["reward_weight"] == pytest.approx(1 - DECAY**2)
