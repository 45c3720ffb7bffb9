"""What a train state holds, and how parameters are shared between optimisers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamae_jax.training.optimizers import adamw
from adamae_jax.training.state import (
    MODEL,
    create_state,
    merge_params,
    split_params,
)
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
    assert (state.model_state, state.frozen, state.ema) == ({}, {}, None)
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


def test_an_adversary_is_taken_out_and_put_back() -> None:
    params: dict[str, Any] = {
        "autoencoder": {"a": 1},
        "masking": {"critic": {"c": 2}, "generator": {"g": 3}},
    }
    model, adversary = split_params(params, "critic")
    assert model == {"autoencoder": {"a": 1}, "masking": {"generator": {"g": 3}}}
    assert adversary == {"c": 2}
    assert merge_params(model, "critic", {"c": 5}) == {
        "autoencoder": {"a": 1},
        "masking": {"critic": {"c": 5}, "generator": {"g": 3}},
    }
    assert params["masking"]["critic"] == {"c": 2}
    assert split_params(params, None) == (params, None)
    assert merge_params(params, None, None) == params
