"""The authors' initial distributions, by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike

from adamae_jax.models import initializers
from adamae_jax.models.autoencoder import Autoencoder
from adamae_jax.models.initializers import INITIALIZATIONS
from adamae_jax.models.transformer import TransformerSpec
from adamae_jax.models.tubelets import ClipGeometry
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


def test_xavier_uniform_of_separate_kernels_counts_each_on_its_own() -> None:
    kernel = initializers.xavier_uniform_qkv_separate()(jax.random.key(0), (64, 3, 4, 16))
    uniform_within(kernel, (6 / (64 + 64)) ** 0.5)


def test_uniform_fan_in_takes_a_kernel_s_first_axis() -> None:
    uniform_within(initializers.uniform_fan_in()(jax.random.key(0), (50, 60)), 50**-0.5)


@pytest.mark.parametrize(
    ("family", "qkv", "embedding", "projection"),
    [
        ("videomae", (6 / 256) ** 0.5, 96**-0.5, 64**-0.5),
        ("mae", (6 / 256) ** 0.5, (6 / 160) ** 0.5, (6 / 96) ** 0.5),
        ("mae_st", (6 / 128) ** 0.5, (6 / 160) ** 0.5, (6 / 96) ** 0.5),
    ],
)
def test_kernels_of_the_families(
    family: str, qkv: float, embedding: float, projection: float
) -> None:
    """Of 64 channels: patches of 96 values, a decoder of 32 channels, an MLP of 256."""
    init, key = INITIALIZATIONS[family], jax.random.key(1)
    uniform_within(init.qkv(key, (64, 3, 4, 16)), qkv)
    uniform_within(init.embedding(key, (96, 64)), embedding)
    uniform_within(init.projection(key, (64, 32)), projection)
    uniform_within(init.dense(key, (64, 256)), (6 / 320) ** 0.5)


@pytest.mark.parametrize("family", ["mae", "mae_st", "classifier"])
def test_tokens_and_tables_of_the_families_are_normal(family: str) -> None:
    values = np.asarray(INITIALIZATIONS[family].token(jax.random.key(0), (100, 200)))
    normal_with(values, 0.02)


def test_videomae_s_tokens_are_clipped() -> None:
    values = np.asarray(INITIALIZATIONS["videomae"].token(jax.random.key(0), (20000,)))
    assert 0.0199 < np.abs(values).max() <= 0.02


def normal_with(values: np.ndarray, stddev: float) -> None:
    """Checks spread and tails: neither clipped nor uniform."""
    assert values.std() == pytest.approx(stddev, rel=0.02)
    assert abs(values.mean()) < 5 * stddev / values.size**0.5
    assert np.abs(values).max() > 3 * stddev


def test_classifiers_that_start_from_nothing_are_normal_but_for_the_embedding() -> None:
    init, key = INITIALIZATIONS["classifier"], jax.random.key(0)
    normal_with(np.asarray(init.qkv(key, (64, 3, 4, 16))), 0.02)
    normal_with(np.asarray(init.dense(key, (64, 256))), 0.02)
    uniform_within(init.embedding(key, (96, 64)), 96**-0.5)


def test_learned_tokens_and_tables_of_a_whole_model_start_at_002() -> None:
    spec = TransformerSpec(64, 1, 2, initialization="mae_st")
    geometry = ClipGeometry(16, (16, 16), 2, 4)
    model = Autoencoder(geometry, spec, spec, "separable", "separate")
    order = jnp.arange(128)[None]
    shape = (1, *geometry.clip_shape)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros(shape), order[:, :8], order[:, 8:])
    tokens = {
        name: np.asarray(value)
        for name, value in helpers.named(params["params"]).items()
        if "positions" in name or "_token" in name
    }
    assert len(tokens) == 2 * 3 + 2 + 1
    for name, value in tokens.items():
        assert value.std() == pytest.approx(0.02, rel=0.35), name


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
