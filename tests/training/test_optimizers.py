"""Decay groups by name, the schedule at fixed steps, and AdamW against NumPy and PyTorch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax import config as config_lib
from adamae_jax import experiment, masking
from adamae_jax.training.optimizers import (
    adamw,
    decay_mask,
    lars,
    layer_scales,
    parameter_path,
    stacked,
    warmup_cosine,
)
from tests import helpers

DECAY = tuple(config_lib.default_config().optimizer.decay)
BLOCK_DECAYED = (
    "attention/qkv_kernel",
    "attention/projection/kernel",
    "mlp/fc1/kernel",
    "mlp/fc2/kernel",
)
BLOCK_NOT_DECAYED = (
    "norm1/scale",
    "norm1/bias",
    "attention/projection/bias",
    "norm2/scale",
    "norm2/bias",
    "mlp/fc1/bias",
    "mlp/fc2/bias",
)


def test_decay_groups_are_the_authors() -> None:
    """No decay for one-dimensional arrays, biases, the mask token; decay for the sampler's table.

    The fused bias of the attention and everything stacked over depth have two dimensions and more
    here, but are one-dimensional in the authors' code.
    """
    params = jax.eval_shape(helpers.pretraining().init, jax.random.key(0))["params"]
    found = helpers.named(decay_mask(params, DECAY))
    stacks = tuple(f"{part}/transformer" for part in ("autoencoder/encoder", "autoencoder/decoder"))
    stacks += ("masking/transformer",)
    decayed = {
        "autoencoder/encoder/embedding/projection/kernel",
        "autoencoder/decoder/projection/kernel",
        "autoencoder/decoder/head/kernel",
        "masking/position_table",
        "masking/head/kernel",
        *(f"{stack}/blocks/{name}" for stack in stacks for name in BLOCK_DECAYED),
    }
    not_decayed = {
        "autoencoder/decoder/mask_token",
        "autoencoder/encoder/embedding/projection/bias",
        "autoencoder/encoder/norm/scale",
        "autoencoder/encoder/norm/bias",
        "autoencoder/decoder/norm/scale",
        "autoencoder/decoder/norm/bias",
        "autoencoder/decoder/head/bias",
        "masking/head/bias",
        *(f"{stack}/blocks/{name}" for stack in stacks for name in BLOCK_NOT_DECAYED),
        *(f"{stack}/blocks/attention/qkv_bias" for stack in stacks[:2]),
    }
    assert {name for name, marked in found.items() if marked} == decayed
    assert {name for name, marked in found.items() if not marked} == not_decayed


def test_a_narrow_sampler_s_projection_is_decayed() -> None:
    task = helpers.pretraining(masking.create("adaptive", 0.75, {"width": 8}))
    params = jax.eval_shape(task.init, jax.random.key(0))["params"]
    assert helpers.named(decay_mask(params, DECAY))["masking/projection/kernel"] is True


def test_paths_are_joined_keys() -> None:
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path({"a": {"b": [1, {"c": 2}]}})]
    assert [parameter_path(path) for path in paths] == ["a/b/0", "a/b/1/c"]


def schedule_by_hand(peak: float, final: float, warmup: int, steps: int) -> np.ndarray:
    """The authors' formula: a table with one rate for each step."""
    rising = np.linspace(0, peak, warmup)
    left = steps - warmup
    falling = [final + 0.5 * (peak - final) * (1 + np.cos(np.pi * i / left)) for i in range(left)]
    return np.concatenate([rising, falling])


@pytest.mark.parametrize(
    ("peak", "final", "warmup", "steps"),
    [(1.2e-3, 8e-5, 40, 800), (1e-3, 0.0, 0, 10), (1e-3, 1e-4, 1, 10), (1e-3, 1e-4, 2, 3)],
)
def test_the_schedule_is_the_authors_table(
    peak: float, final: float, warmup: int, steps: int
) -> None:
    rate = jax.jit(jax.vmap(warmup_cosine(peak, final, warmup, steps)))
    expected = schedule_by_hand(peak, final, warmup, steps)
    np.testing.assert_allclose(rate(jnp.arange(steps)), expected, rtol=1e-4, atol=1e-9)


def test_the_released_schedule_at_fixed_steps() -> None:
    """168,913 videos of SSv2 in batches of 2048: 82 steps an epoch, 40 of 800 epochs to warm up."""
    rate = warmup_cosine(1.2e-3, 8e-5, 40 * 82, 800 * 82)
    values = {step: float(rate(jnp.asarray(step))) for step in (0, 1, 3279, 3280, 34440, 65599)}
    assert values[0] == 0.0
    assert values[1] == pytest.approx(1.2e-3 / 3279, rel=1e-5)
    assert values[3279] == values[3280] == pytest.approx(1.2e-3, rel=1e-6)
    assert values[34440] == pytest.approx((1.2e-3 + 8e-5) / 2, rel=1e-4)
    assert values[65599] == pytest.approx(8e-5, rel=1e-4)


def tree(seed: int) -> dict[str, Any]:
    """Two parameters, of which the first is decayed, or their gradients."""
    rng = np.random.default_rng(seed)
    return {
        "dense": {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)},
        "norm": {"scale": jnp.asarray(rng.normal(size=4), jnp.float32)},
    }


def adamw_by_hand(steps: int, rates: Any, decay: float, clip: float = 0.0) -> dict[str, np.ndarray]:
    """AdamW as PyTorch documents it, in float64, with decay for the kernel alone."""
    b1, b2, eps = 0.9, 0.95, 1e-8
    params = {k: np.asarray(v, np.float64) for k, v in helpers.named(tree(0)).items()}
    first = {name: np.zeros_like(p) for name, p in params.items()}
    second = {name: np.zeros_like(p) for name, p in params.items()}
    for step in range(1, steps + 1):
        grads = {k: np.asarray(v, np.float64) for k, v in helpers.named(tree(step)).items()}
        norm = np.sqrt(sum(np.square(g).sum() for g in grads.values()))
        if clip and norm > clip:
            grads = {name: g * clip / norm for name, g in grads.items()}
        rate = float(rates(step - 1))
        for name, g in grads.items():
            if name.endswith("kernel"):
                params[name] *= 1 - rate * decay
            first[name] = b1 * first[name] + (1 - b1) * g
            second[name] = b2 * second[name] + (1 - b2) * g**2
            step_size = rate / (1 - b1**step)
            root = np.sqrt(second[name] / (1 - b2**step)) + eps
            params[name] -= step_size * first[name] / root
    return params


def run_ours(steps: int, rates: Any, decay: float, clip: float = 0.0) -> dict[str, np.ndarray]:
    """The same with our optimiser."""
    optimizer = adamw(
        rates, b1=0.9, b2=0.95, eps=1e-8, weight_decay=decay, decay=DECAY, clip_grad_norm=clip
    )
    params = tree(0)
    state = optimizer.transform.init(params)
    update = jax.jit(optimizer.update)
    for step in range(steps):
        params, state = update(tree(step + 1), state, params, jnp.asarray(step))
    return {name: np.asarray(value) for name, value in helpers.named(params).items()}


def rates(step: Any) -> Any:
    """A learning rate that is different at every step."""
    return 0.01 * (1.0 + jnp.asarray(step, jnp.float32))


@pytest.mark.parametrize("clip", [0.0, 1.5, 100.0])
def test_adamw_agrees_with_numpy(clip: float) -> None:
    expected = adamw_by_hand(4, rates, decay=0.3, clip=clip)
    for name, value in run_ours(4, rates, decay=0.3, clip=clip).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_clipping_is_by_the_norm_of_all_gradients() -> None:
    norm = float(np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(tree(1)))))
    assert norm > 1.5
    # Adam forgets a common factor on its first step: eps has to be large to see the clipping.
    optimizer = adamw(
        rates, b1=0.0, b2=0.0, eps=1e3, weight_decay=0.0, decay=(), clip_grad_norm=1.5
    )
    directions, _ = optimizer.transform.update(tree(1), optimizer.transform.init(tree(0)), tree(0))
    for name, grad in helpers.named(tree(1)).items():
        clipped = np.asarray(grad) * 1.5 / norm
        expected = clipped / (np.abs(clipped) + 1e3)
        np.testing.assert_allclose(helpers.named(directions)[name], expected, rtol=1e-4)


def test_adamw_agrees_with_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    named = helpers.named(tree(0))
    params = {name: torch.tensor(np.asarray(value)) for name, value in named.items()}
    groups = [
        {"params": [params["dense/kernel"]], "weight_decay": 0.3},
        {"params": [params["norm/scale"]], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8)
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = float(rates(step))
        for name, grad in helpers.named(tree(step + 1)).items():
            params[name].grad = torch.tensor(np.asarray(grad))
        optimizer.step()
    for name, value in run_ours(4, rates, decay=0.3).items():
        np.testing.assert_allclose(value, params[name].numpy(), rtol=1e-5, atol=1e-6)


def test_the_rate_follows_the_step_and_not_the_number_of_updates() -> None:
    optimizer = adamw(rates, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0, decay=())
    params, grads = tree(0), tree(1)
    state = optimizer.transform.init(params)
    early, _ = optimizer.update(grads, state, params, jnp.asarray(0))
    late, _ = optimizer.update(grads, state, params, jnp.asarray(9))
    moved = [jax.tree.map(lambda a, b: a - b, new, params) for new in (early, late)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(10 * a, b, rtol=1e-3), *moved)


def test_rates_of_layers_by_the_formula() -> None:
    """Layer 0 is the embedding, i + 1 block i, depth + 1 norm and head; 0.75^(depth + 1 - id)."""
    config = config_lib.default_config()
    config.classifier.num_classes = 3
    config.model.class_token, config.model.positions = "separate", "separable"
    config.model.encoder.update({"width": 16, "depth": 3, "num_heads": 2})
    params = jax.eval_shape(experiment.classification(config).init, jax.random.key(0))["params"]
    scales = helpers.named(layer_scales(params, 0.75))
    blocks = np.array([0.75**3, 0.75**2, 0.75])
    for name, scale in scales.items():
        if name.startswith("encoder/transformer"):
            np.testing.assert_allclose(np.ravel(scale), blocks, rtol=1e-6)
            assert scale.ndim == helpers.named(params)[name].ndim
        else:
            expected = 1.0 if name.startswith(("norm/", "head/")) else 0.75**4
            assert float(scale) == pytest.approx(expected), name
    assert {"encoder/class_token", "encoder/positions/temporal", "head/bias"} <= set(scales)


def lars_by_hand(steps: int, factor: float, clip: float) -> dict[str, np.ndarray]:
    """As MAE's util/lars.py: a trust ratio and decay for what has several dimensions."""
    params = {k: np.asarray(v, np.float64) for k, v in helpers.named(tree(0)).items()}
    momentum = {name: np.zeros_like(p) for name, p in params.items()}
    for step in range(steps):
        grads = {k: np.asarray(v, np.float64) for k, v in helpers.named(tree(step + 1)).items()}
        norm = np.sqrt(sum(np.square(g).sum() for g in grads.values()))
        for name, grad in grads.items():
            direction = grad * min(1.0, clip / norm)
            if name.endswith("kernel"):
                direction = direction + 0.3 * params[name]
                direction *= 0.001 * np.linalg.norm(params[name]) / np.linalg.norm(direction)
            momentum[name] = 0.9 * momentum[name] + direction
            params[name] = params[name] - factor * 100 * float(rates(step)) * momentum[name]
    return params


def test_models_side_by_side_are_each_as_if_alone() -> None:
    """LARS and clipping take norms: of one model, not of the stack."""
    factors, clip = (0.1, 1.0, 3.0), 1.5
    one = lars(
        lambda step: 100 * rates(step),
        momentum=0.9,
        weight_decay=0.3,
        decay=DECAY,
        clip_grad_norm=clip,
    )
    optimizer = stacked(one, factors)
    params = {"some": jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), tree(0))}
    state = optimizer.transform.init(params)
    for step in range(3):
        grads = {"some": jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), tree(step + 1))}
        params, state = optimizer.update(grads, state, params, jnp.asarray(step))
    for index, factor in enumerate(factors):
        expected = lars_by_hand(3, factor, clip)
        for name, value in helpers.named(params["some"]).items():
            np.testing.assert_allclose(value[index], expected[name], rtol=1e-4, err_msg=name)
