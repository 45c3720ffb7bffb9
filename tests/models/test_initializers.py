"""The authors' initial distributions, by name."""

import jax
import numpy as np
import pytest
from jax.typing import ArrayLike

from adamae_jax.models import initializers
from tests import helpers


def uniform_within(values: ArrayLike, bound: float) -> None:
    """Checks bounds, mean and spread of a uniform sample; fails for another bound or shape."""
    values = np.asarray(values).ravel()
    assert np.abs(values).max() <= bound
    assert np.abs(values).max() > bound * (1 - 20 / values.size)
    spread = bound / 3**0.5
    assert abs(values.mean()) < 5 * spread / values.size**0.5
    # The variance of a uniform sample's variance is 4/45 of bound^4 over the sample size.
    assert abs(values.var() / spread**2 - 1) < 5 * (4 / 5 / values.size) ** 0.5


def test_xavier_uniform() -> None:
    kernel = initializers.xavier_uniform()(jax.random.key(0), (60, 140))
    uniform_within(kernel, (6 / 200) ** 0.5)


def test_xavier_uniform_of_the_fused_kernel_counts_all_three_as_outputs() -> None:
    kernel = initializers.xavier_uniform_qkv()(jax.random.key(0), (64, 3, 4, 16))
    uniform_within(kernel, (6 / (64 + 3 * 64)) ** 0.5)


def test_uniform_fan_in() -> None:
    uniform_within(initializers.uniform_fan_in(96)(jax.random.key(0), (96, 64)), 96**-0.5)


def test_clipped_normal() -> None:
    values = np.asarray(initializers.clipped_normal(0.02)(jax.random.key(0), (20000,)))
    assert np.abs(values).max() <= 0.02
    assert np.abs(values).max() > 0.0199
    # A normal truncated at one standard deviation keeps 0.53956 of its standard deviation.
    assert values.std() == pytest.approx(0.02 * 0.53956, rel=0.02)
    assert abs(values.mean()) < 3e-4


@pytest.fixture(scope="module")
def initial() -> dict[str, np.ndarray]:
    """The initial parameters of a tiny AdaMAE, by path."""
    params = jax.jit(helpers.pretraining().init)(jax.random.key(0))["params"]
    return {name: np.asarray(value) for name, value in helpers.named(params).items()}


def test_biases_are_zero_and_norms_plain(initial: dict[str, np.ndarray]) -> None:
    for name, value in initial.items():
        if name.endswith("bias") and name != "autoencoder/encoder/embedding/projection/bias":
            assert not value.any(), name
        if name.endswith("scale"):
            assert (value == 1).all(), name
    assert not initial["masking/position_table"].any()


def test_every_kernel_has_its_distribution(initial: dict[str, np.ndarray]) -> None:
    fan_in = {
        "autoencoder/encoder/embedding/projection/kernel": 96,
        "autoencoder/encoder/embedding/projection/bias": 96,
        "autoencoder/decoder/projection/kernel": 16,
    }
    kernels = {name for name in initial if name.endswith("kernel")} | set(fan_in)
    assert len(kernels) == 3 + 3 * 4 + 2
    for name in kernels:
        value = initial[name]
        if name in fan_in:
            bound = fan_in[name] ** -0.5
        elif "blocks" in name:
            inputs = value.shape[1]
            bound = (6 / (inputs + value[0, 0].size)) ** 0.5
        else:
            bound = (6 / sum(value.shape)) ** 0.5
        assert 0.8 * bound < np.abs(value).max() <= bound, name


def test_the_layers_of_a_stack_differ(initial: dict[str, np.ndarray]) -> None:
    for name, value in initial.items():
        if "blocks" in name and name.endswith("kernel") and len(value) > 1:
            assert np.abs(value[0] - value[1]).max() > 0.01, name


def test_the_mask_token_stays_within_its_bounds(initial: dict[str, np.ndarray]) -> None:
    token = initial["autoencoder/decoder/mask_token"]
    assert token.shape == (12,)
    assert 0.005 < np.abs(token).max() <= 0.02
