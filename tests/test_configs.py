"""The authors' recipes: every number that a reader would compare with the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from adamae_jax import experiment
from adamae_jax.config import resolve
from adamae_jax.training.optimizers import decay_mask
from configs import adamae_demo, adamae_k400_vitb, adamae_ssv2_vitb
from tests.helpers import named

RECIPES = {"ssv2": (adamae_ssv2_vitb, 82, 2), "k400": (adamae_k400_vitb, 117, 4)}


@pytest.fixture(params=list(RECIPES))
def recipe(request: pytest.FixtureRequest) -> tuple[ConfigDict, int, int]:
    """A resolved config, its steps per epoch and its sampling rate."""
    module, steps_per_epoch, sampling_rate = RECIPES[request.param]
    return resolve(module.get_config(), 0), steps_per_epoch, sampling_rate


def test_length(recipe: tuple[ConfigDict, int, int]) -> None:
    config, steps_per_epoch, _ = recipe
    assert config.batch_size == 2048
    assert config.steps == 800 * steps_per_epoch
    assert config.optimizer.warmup_steps == 40 * steps_per_epoch
    clips = config.steps * config.batch_size
    assert 0.98 < clips / (800 * config.data.num_examples) <= 1


def test_learning_rate(recipe: tuple[ConfigDict, int, int]) -> None:
    config, steps_per_epoch, _ = recipe
    rate = experiment.optimizers(config)["model"].learning_rate
    warmup, steps = 40 * steps_per_epoch, 800 * steps_per_epoch
    peak, final = 1.2e-3, 8e-5
    expected = {
        0: 0.0,
        1: peak / (warmup - 1),
        warmup - 1: peak,
        warmup: peak,
        warmup + (steps - warmup) // 2: (peak + final) / 2,
        warmup + (steps - warmup) // 4: final + (peak - final) * (1 + 0.5**0.5) / 2,
        steps: final,
    }
    found = [float(rate(jnp.asarray(step))) for step in expected]
    np.testing.assert_allclose(found, list(expected.values()), rtol=2e-5)


def test_optimizer(recipe: tuple[ConfigDict, int, int]) -> None:
    optimizer = recipe[0].optimizer
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.95, 1e-8)
    assert (optimizer.weight_decay, optimizer.clip_grad_norm) == (0.05, 0.0)


def test_clip_and_masking(recipe: tuple[ConfigDict, int, int]) -> None:
    config, _, sampling_rate = recipe
    pretraining = experiment.pretraining(config)
    spec = experiment.clip_spec(config)
    assert (spec.num_frames, spec.sampling_rate, spec.image_size) == (16, sampling_rate, (224, 224))
    assert spec.crop == "multi_scale_corner"
    assert pretraining.model.geometry.num_tokens == 1568
    assert pretraining.strategy.num_visible(pretraining.model.geometry.grid) == 78
    assert pretraining.model.encoder_spec.dtype == jnp.bfloat16
    assert pretraining.objective.sampling_loss_weight == 1e-4


def test_parameters_and_decay(recipe: tuple[ConfigDict, int, int]) -> None:
    config, _, _ = recipe
    pretraining = experiment.pretraining(config)
    params = jax.eval_shape(pretraining.init, jax.random.key(0))["params"]
    sizes = {name: leaf.size for name, leaf in named(params).items()}
    encoder = sum(size for name, size in sizes.items() if name.startswith("autoencoder/encoder/"))
    width, values = 768, 2 * 16 * 16 * 3
    # Kernels of a block, its biases (none for the keys) and norms; the embedding; the last norm.
    assert encoder == 12 * (12 * width**2 + 12 * width) + (values + 1) * width + 2 * width
    assert 86e6 < encoder < 87e6
    sampler = sum(size for name, size in sizes.items() if name.startswith("masking/"))
    # Positions, one block (no bias for queries, keys and values) and the linear layer to a logit.
    assert sampler == 1568 * width + 12 * width**2 + 10 * width + width + 1

    decayed = named(decay_mask(params, tuple(config.optimizer.decay)))
    kept = {name for name, is_decayed in decayed.items() if not is_decayed}
    endings = ("bias", "scale", "mask_token")
    assert kept == {name for name in sizes if name.endswith(endings)}
    assert decayed["masking/position_table"]
    assert not decayed["autoencoder/decoder/mask_token"]
    assert decayed["autoencoder/encoder/transformer/blocks/attention/qkv_kernel"]


@pytest.mark.parametrize("masking", ["adaptive", "random", "tube", "frame"])
def test_the_demo_runs_with_any_masking(masking: str) -> None:
    config = resolve(adamae_demo.get_config(masking), 1536)
    strategy = experiment.pretraining(config).strategy
    assert type(strategy).__module__ == f"adamae_jax.masking.{masking}"
    assert 0 < strategy.num_visible((4, 6, 6)) < 144


def test_the_demo_is_adamae() -> None:
    assert adamae_demo.get_config().masking.name == "adaptive"
