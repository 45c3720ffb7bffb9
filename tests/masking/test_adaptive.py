"""AdaMAE's sampling network, and its draws."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax.errors import UserError
from adamae_jax.masking import MaskInputs
from adamae_jax.masking.adaptive import Strategy
from adamae_jax.masking.distribution import PROBABILITY_FLOOR, clamped_log_probs
from tests import helpers
from tests.models.test_transformer import stack_by_hand

GRID = (2, 2, 3)
WIDTH = 16
STRATEGY = Strategy(mask_ratio=0.75, num_heads=4)


def network_parameters(strategy: Strategy, inputs: MaskInputs) -> Any:
    """Random parameters of the sampling network."""
    return helpers.filled(jax.eval_shape(strategy.init, jax.random.key(0), inputs)["params"])


def log_probs(
    strategy: Strategy, params: Any, inputs: MaskInputs, keys: Any, train: bool
) -> jax.Array:
    """The log-probabilities that a strategy answers with."""
    found = jax.jit(
        lambda inputs, keys: strategy({"params": params}, inputs, keys, train).log_probs
    )(inputs, keys)
    assert found.dtype == jnp.float32
    return found


@pytest.fixture(scope="module")
def inputs() -> MaskInputs:
    """Tokens of four clips."""
    return helpers.mask_inputs(4, GRID, WIDTH)


@pytest.mark.parametrize(
    "options",
    [{"width": 8, "depth": 2, "norm_epsilon": 0.1}, {"network": "mlp"}],
    ids=["narrow and deep", "mlp"],
)
def test_variants_of_ours_agree_with_blocks_written_a_second_time(
    inputs: MaskInputs, options: dict[str, Any]
) -> None:
    strategy = dataclasses.replace(STRATEGY, **options)
    params = network_parameters(strategy, inputs)
    x = inputs.tokens + params["position_table"]
    if "width" in options:
        x = x @ params["projection"]["kernel"] + params["projection"]["bias"]
    x = stack_by_hand(strategy.module(WIDTH).spec, params["transformer"], x)
    head = params["head"]
    expected = jax.nn.log_softmax((x @ head["kernel"] + head["bias"])[..., 0])
    found = log_probs(strategy, params, inputs, helpers.example_keys(4), train=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "attention", "depth", "width"),
    [
        ({}, True, 1, 16),
        ({"width": 8}, True, 1, 8),
        ({"depth": 3}, True, 3, 16),
        ({"network": "mlp", "depth": 2}, False, 2, 16),
    ],
)
def test_variants_have_the_parameters_of_their_kind(
    inputs: MaskInputs, options: dict[str, Any], attention: bool, depth: int, width: int
) -> None:
    params = network_parameters(dataclasses.replace(STRATEGY, **options), inputs)
    blocks = params["transformer"]["blocks"]
    assert params["position_table"].shape == (12, WIDTH)
    assert ("projection" in params) == (width != WIDTH)
    assert blocks["mlp"]["fc1"]["kernel"].shape == (depth, width, 4 * width)
    assert ("attention" in blocks) == attention == ("norm1" in blocks)
    if attention:
        assert set(blocks["attention"]) == {"qkv_kernel", "projection"}  # no bias on q, k, v
    assert params["head"]["kernel"].shape == (width, 1)


def test_the_mlp_sees_one_token_at_a_time(inputs: MaskInputs) -> None:
    """Logits are read off as differences of log-probabilities to an untouched token."""

    def influence(network: Any) -> np.ndarray:
        strategy = dataclasses.replace(STRATEGY, network=network)
        params = network_parameters(strategy, inputs)
        changed = inputs.replace(tokens=inputs.tokens.at[:, 0, 3].add(1.0))
        both = [
            np.asarray(log_probs(strategy, params, i, helpers.example_keys(4), train=False))
            for i in (inputs, changed)
        ]
        before, after = (logits - logits[:, 1:2] for logits in both)
        return np.abs(after - before).max(0)

    assert influence("mlp")[0] > 1e-3
    assert influence("mlp")[1:].max() < 1e-5
    assert influence("attention")[2:].min() > 1e-5


def test_dropout_is_off_outside_training(inputs: MaskInputs) -> None:
    params = network_parameters(STRATEGY, inputs)
    keys, others = helpers.example_keys(4), helpers.example_keys(4, seed=1)
    still = dataclasses.replace(STRATEGY, dropout=0.0)
    expected = log_probs(still, params, inputs, keys, train=True)
    np.testing.assert_array_equal(
        log_probs(STRATEGY, params, inputs, keys, train=False),
        log_probs(STRATEGY, params, inputs, others, train=False),
    )
    np.testing.assert_allclose(
        log_probs(STRATEGY, params, inputs, keys, train=False), expected, rtol=1e-5
    )


def test_dropout_follows_the_examples_key(inputs: MaskInputs) -> None:
    params = network_parameters(STRATEGY, inputs)
    keys, order = helpers.example_keys(4), np.asarray([3, 0, 2, 1])
    whole = log_probs(STRATEGY, params, inputs, keys, train=True)
    turned = log_probs(
        STRATEGY, params, inputs.replace(tokens=inputs.tokens[order]), keys[order], train=True
    )
    np.testing.assert_allclose(turned, whole[order], rtol=1e-5)
    twins = inputs.replace(tokens=jnp.broadcast_to(inputs.tokens[:1], inputs.tokens.shape))
    by_clip = np.asarray(log_probs(STRATEGY, params, twins, keys, train=True))
    assert len(np.unique(by_clip[:, 0])) == 4


def test_the_distribution_is_float32_whatever_the_tokens(inputs: MaskInputs) -> None:
    half = inputs.replace(tokens=inputs.tokens.astype(jnp.bfloat16))
    params = network_parameters(STRATEGY, half)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    found = log_probs(STRATEGY, params, half, helpers.example_keys(4), train=False)
    np.testing.assert_allclose(np.exp(found).sum(-1), 1.0, rtol=1e-5)
    exact = log_probs(STRATEGY, params, inputs, helpers.example_keys(4), train=False)
    assert 1e-5 < np.abs(found - exact).max() < 0.1


def test_log_probabilities_are_clamped_without_gradient() -> None:
    tiny = PROBABILITY_FLOOR
    assert tiny == pytest.approx(1.19e-7, rel=2e-3)
    probabilities = jnp.asarray([[0.0, 0.5 * tiny, 2 * tiny, 0.25, 1.0]])
    found = clamped_log_probs(probabilities)
    expected = np.log([[tiny, tiny, 2 * tiny, 0.25, 1 - tiny]])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
    gradient = jax.grad(lambda p: clamped_log_probs(p).sum())(probabilities)[0]
    assert gradient[0] == gradient[1] == gradient[4] == 0
    np.testing.assert_allclose(gradient[2:4], [1 / (2 * tiny), 4.0], rtol=1e-5)


def test_likely_tokens_are_drawn_however_unlikely_the_rest(inputs: MaskInputs) -> None:
    """A position table, read by the head, rules the draw: from P itself, not from its clamp.

    The second token has a probability of exp(-40), far below the clamp, and yet of those that are
    left it is as good as certain.
    """
    params = jax.tree.map(jnp.zeros_like, network_parameters(STRATEGY, inputs))
    table = params["position_table"].at[jnp.asarray([2, 5, 11]), 0]
    params["position_table"] = table.set(jnp.asarray([100.0, 60.0, 30.0]))
    params["head"]["kernel"] = params["head"]["kernel"].at[0].set(1.0)
    tokens = inputs.replace(tokens=jnp.zeros_like(inputs.tokens))
    mask = jax.jit(lambda params, keys: STRATEGY({"params": params}, tokens, keys, False))(
        params, helpers.example_keys(4)
    )
    assert mask.visible.tolist() == [[2, 5, 11]] * 4


def test_wrong_options_are_named() -> None:
    with pytest.raises(UserError, match=r"masking.options.network 'conv' is unknown"):
        Strategy(mask_ratio=0.9, network="conv")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"masking.options.num_heads 5 does not divide .* 16"):
        Strategy(mask_ratio=0.9, num_heads=5).module(16)
