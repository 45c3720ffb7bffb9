"""What a train state holds, and how parameters are shared between optimisers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamae_jax.task import MODEL, Task
from adamae_jax.training.optimizers import adamw
from adamae_jax.training.state import create_state, replace_group, select_group
from tests import helpers


def optimizer() -> dict:
    """One optimiser, for the model."""
    return {
        MODEL: adamw(
            lambda step: jnp.float32(1e-3),
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            weight_decay=0.05,
            decay=("kernel$",),
        )
    }


def test_a_new_state_is_at_step_zero_with_all_that_a_checkpoint_needs() -> None:
    task = helpers.pretraining()
    state = jax.eval_shape(lambda: create_state(task, optimizer(), seed=0))
    assert set(state.params) == {"autoencoder", "masking"}
    assert set(state.opt_state) == {MODEL}
    moments = [
        s
        for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu"))
        if hasattr(s, "mu")
    ]
    assert len(moments) == 1
    assert set(helpers.named(moments[0].mu)) == set(helpers.named(state.params))
    assert (state.model_state, state.frozen) == ({}, {})
    assert set(state.counters) == {"skipped", "replaced"}


def test_states_depend_on_the_seed_alone() -> None:
    build = jax.jit(
        lambda seed: create_state(helpers.pretraining(), optimizer(), seed), static_argnums=0
    )
    first, again, other = build(0), build(0), build(1)
    assert (int(first.step), int(first.counters["skipped"])) == (0, 0)
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    kernels = [helpers.named(state.params)["masking/head/kernel"] for state in (first, other)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01


def test_a_group_is_taken_out_and_put_back() -> None:
    class Critic(Task):
        groups = ("critic", "model")

        def group_of(self, path: str) -> str:
            return "critic" if path.startswith("masking/critic/") else "model"

    params: dict[str, Any] = {
        "autoencoder": {"a": 1},
        "empty": {},
        "masking": {"critic": {"c": 2}, "generator": {"g": 3}},
    }
    model = select_group(params, Critic(), "model")
    assert model == {"autoencoder": {"a": 1}, "masking": {"generator": {"g": 3}}}
    assert select_group(params, Critic(), "critic") == {"masking": {"critic": {"c": 2}}}
    assert replace_group(params, {"masking": {"critic": {"c": 5}}}) == {
        **params,
        "masking": {"critic": {"c": 5}, "generator": {"g": 3}},
    }
    assert params["masking"]["critic"] == {"c": 2}
