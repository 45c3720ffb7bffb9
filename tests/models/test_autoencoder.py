"""The masked autoencoder: its parameters, and what masks, padding and scales do to it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax.errors import UserError
from adamae_jax.models.autoencoder import SIZES
from adamae_jax.models.encoder import scale_tokens
from adamae_jax.models.transformer import TransformerSpec
from adamae_jax.models.tubelets import ClipGeometry
from tests import helpers

MODEL = helpers.autoencoder()
VISIBLE = jnp.asarray([[1, 4, 9, 20], [0, 2, 3, 23]])
MASKED = jnp.asarray([[i for i in range(24) if i not in row] for row in VISIBLE.tolist()])


@pytest.fixture(scope="module")
def video() -> jax.Array:
    """Normalised pixels."""
    values = np.random.default_rng(3).normal(size=(2, *helpers.GEOMETRY.clip_shape))
    return jnp.asarray(values, jnp.float32)


@pytest.fixture(scope="module")
def params(video: jax.Array) -> Any:
    """Parameters with no zero bias and no plain norm."""
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), video, VISIBLE, MASKED)
    return helpers.filled(shapes["params"])


def call(params: Any, method: str, *arguments: Any, **named: Any) -> jax.Array:
    """Calls a method of the model."""
    return jax.jit(functools.partial(MODEL.apply, method=method))(
        {"params": params}, *arguments, **named
    )


def placed_tokens(params: Any, video: jax.Array) -> jax.Array:
    """Tokens with positions."""
    return call(params, "add_positions", call(params, "tokenize", video))


def test_sizes_are_those_of_the_paper() -> None:
    assert SIZES == {
        "S": ((384, 12, 6), (192, 4, 3)),
        "B": ((768, 12, 12), (384, 4, 6)),
        "L": ((1024, 24, 16), (512, 12, 8)),
        "H": ((1280, 32, 16), (640, 12, 8)),
        "g": ((1408, 40, 16), (512, 4, 8)),
    }


def test_parameters_by_name_and_shape(params: Any) -> None:
    def block(root: str, width: int, heads: int, depth: int = 2) -> dict[str, tuple[int, ...]]:
        shapes = {
            "norm1/scale": (width,),
            "norm1/bias": (width,),
            "attention/qkv_kernel": (width, 3, heads, width // heads),
            "attention/qkv_bias": (2, heads, width // heads),
            "attention/projection/kernel": (width, width),
            "attention/projection/bias": (width,),
            "norm2/scale": (width,),
            "norm2/bias": (width,),
            "mlp/fc1/kernel": (width, 4 * width),
            "mlp/fc1/bias": (4 * width,),
            "mlp/fc2/kernel": (4 * width, width),
            "mlp/fc2/bias": (width,),
        }
        return {
            f"{root}/transformer/blocks/{name}": (depth, *shape) for name, shape in shapes.items()
        }

    expected = {
        "encoder/embedding/projection/kernel": (96, 16),
        "encoder/embedding/projection/bias": (16,),
        "encoder/norm/scale": (16,),
        "encoder/norm/bias": (16,),
        "decoder/projection/kernel": (16, 12),
        "decoder/mask_token": (12,),
        "decoder/norm/scale": (12,),
        "decoder/norm/bias": (12,),
        "decoder/head/kernel": (12, 96),
        "decoder/head/bias": (96,),
        **block("encoder", 16, 2),
        **block("decoder", 12, 3),
    }
    assert {name: leaf.shape for name, leaf in helpers.named(params).items()} == expected


@pytest.mark.parametrize("heads", [3, 0])
def test_heads_that_do_not_divide_are_named(heads: int) -> None:
    with pytest.raises(UserError, match=f"width 16 .* num_heads {heads}"):
        TransformerSpec(width=16, depth=1, num_heads=heads)


def test_positions_are_added_by_token_index(params: Any) -> None:
    tokens = jnp.zeros((1, 24, 16))
    added = call(params, "add_positions", tokens)[0]
    np.testing.assert_allclose(added[5, :2], [np.sin(5.0), np.cos(5.0)], rtol=1e-6)
    np.testing.assert_allclose(added[23, 14], np.sin(23 * 10000 ** (-14 / 16)), rtol=1e-5)


def test_only_visible_tokens_are_looked_at(params: Any, video: jax.Array) -> None:
    placed = placed_tokens(params, video)
    changed = placed.at[:, 10, 3].add(100.0)  # masked in both clips
    latents = call(params, "encode", placed, VISIBLE)
    assert latents.shape == (2, 4, 16)
    np.testing.assert_array_equal(call(params, "encode", changed, VISIBLE), latents)
    seen = placed.at[0, 9, 3].add(1.0)
    difference = np.abs(call(params, "encode", seen, VISIBLE) - latents).max((1, 2))
    assert difference[0] > 1e-2
    assert difference[1] == 0


def test_the_order_of_the_indices_is_indifferent(params: Any, video: jax.Array) -> None:
    predicted = call(params, "__call__", video, VISIBLE, MASKED)
    assert predicted.shape == (2, 20, 96)
    turned = call(params, "__call__", video, VISIBLE[:, ::-1], MASKED[:, ::-1])
    np.testing.assert_allclose(turned[:, ::-1], predicted, rtol=1e-3, atol=1e-5)


def test_predictions_know_which_token_is_asked_for(params: Any, video: jax.Array) -> None:
    latents = call(params, "encode", placed_tokens(params, video), VISIBLE)
    first = call(params, "decode", latents, VISIBLE, MASKED[:, :1])
    second = call(params, "decode", latents, VISIBLE, MASKED[:, 1:2])
    assert np.abs(first - second).max() > 1e-3
    elsewhere = call(params, "decode", latents, VISIBLE.at[:, 1].set(15), MASKED[:, :1])
    assert np.abs(first - elsewhere).max() > 1e-3


def test_padding_of_the_visible_tokens_changes_nothing(params: Any, video: jax.Array) -> None:
    placed = placed_tokens(params, video)
    latents = call(params, "encode", placed, VISIBLE)
    plain = call(params, "decode", latents, VISIBLE, MASKED)
    padded = jnp.concatenate([VISIBLE, MASKED[:, 3:6]], axis=1)
    valid = jnp.arange(7)[None] < jnp.full((2, 1), 4)
    latents = call(params, "encode", placed, padded, visible_valid=valid)
    found = call(params, "decode", latents, padded, MASKED, visible_valid=valid)
    np.testing.assert_allclose(found, plain, rtol=1e-3, atol=1e-5)
    unmarked = call(params, "decode", latents, padded, MASKED)
    assert np.abs(unmarked - plain).max() > 1e-3


def test_features_are_the_latents_of_all_tokens(params: Any, video: jax.Array) -> None:
    everything = jnp.broadcast_to(jnp.arange(24), (2, 24))
    latents = call(params, "encode", placed_tokens(params, video), everything)
    features = call(params, "features", video)
    assert features.dtype == jnp.float32
    np.testing.assert_allclose(features, latents, rtol=1e-5, atol=1e-6)


def test_a_token_scale_leaves_values_and_carries_a_gradient(params: Any, video: jax.Array) -> None:
    placed = placed_tokens(params, video)
    scale = jax.random.uniform(jax.random.key(5), (2, 24))
    np.testing.assert_allclose(scale_tokens(placed, scale), placed, rtol=1e-5, atol=1e-6)

    def loss(placed: jax.Array, scale: jax.Array | None) -> jax.Array:
        return jnp.square(call(params, "encode", placed, VISIBLE, token_scale=scale)[..., :3]).sum()

    towards_tokens = jax.grad(loss)(placed, None)
    found = np.asarray(jax.grad(loss, argnums=1)(placed, scale))
    np.testing.assert_allclose(found, (towards_tokens * placed).sum(-1), rtol=1e-3, atol=1e-5)
    reached = np.zeros((2, 24), bool)
    np.put_along_axis(reached, np.asarray(VISIBLE), True, axis=1)
    assert (found[~reached] == 0).all()
    assert (found[reached] != 0).all()


def test_execution_options_keep_predictions(params: Any, video: jax.Array) -> None:
    other = helpers.autoencoder(remat="full", unroll=2)
    np.testing.assert_allclose(
        jax.jit(other.apply)({"params": params}, video, VISIBLE, MASKED),
        call(params, "__call__", video, VISIBLE, MASKED),
        rtol=1e-4,
        atol=1e-5,
    )


def test_predictions_are_float32_whatever_the_matmuls(params: Any, video: jax.Array) -> None:
    other = helpers.autoencoder(dtype=jnp.bfloat16)
    predicted = jax.eval_shape(other.apply, {"params": params}, video, VISIBLE, MASKED)
    assert predicted.dtype == jnp.float32
    tokenize = functools.partial(other.apply, method="tokenize")
    tokens = jax.eval_shape(tokenize, {"params": params}, video)
    assert tokens.dtype == jnp.bfloat16
    initial = jax.eval_shape(other.init, jax.random.key(0), video, VISIBLE, MASKED)
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("frames", "predicted", "expected", "depth"),
    [
        (16, 8, (0, 2, 4, 6, 8, 10, 12, 15), 1),  # METHODS: MAE-ST's recipe
        (16, 0, tuple(range(16)), 2),
        (16, 16, tuple(range(16)), 2),
        (4, 2, (0, 3), 1),
        (2, 1, (0,), 1),
    ],
)
def test_frames_that_are_predicted_are_spread_evenly(
    frames: int, predicted: int, expected: tuple[int, ...], depth: int
) -> None:
    geometry = ClipGeometry(frames, (8, 12), 2, 4)
    model = dataclasses.replace(MODEL, geometry=geometry, predicted_frames=predicted)
    assert model.target_frames == expected
    target = model.target_geometry
    assert (target.num_frames, target.tubelet_size) == (len(expected), depth)
    assert target.grid == geometry.grid
    video = jnp.asarray(helpers.clips(2, geometry=geometry))
    np.testing.assert_array_equal(model.pick_target_frames(video), video[:, list(expected)])


@pytest.mark.parametrize("predicted", [3, 6, 12, 32, -8])
def test_frames_that_cannot_be_shared_out_are_named(predicted: int) -> None:
    geometry = ClipGeometry(16, (8, 12), 2, 4)
    model = dataclasses.replace(MODEL, geometry=geometry, predicted_frames=predicted)
    with pytest.raises(UserError, match=f"predicted_frames {predicted} .* a multiple of 8"):
        _ = model.target_geometry


def test_fewer_predicted_frames_have_a_smaller_head_and_the_same_queries() -> None:
    model = dataclasses.replace(MODEL, predicted_frames=4)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((2, *helpers.GEOMETRY.clip_shape)), VISIBLE, MASKED
    )
    assert shapes["params"]["decoder"]["head"]["kernel"].shape == (12, 48)


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_a_class_token_stands_in_front_of_latents_and_is_no_feature(
    kind: Any, video: jax.Array
) -> None:
    model = dataclasses.replace(MODEL, class_token=kind)
    shapes = jax.eval_shape(model.init, jax.random.key(0), video, VISIBLE, MASKED)
    params = helpers.filled(shapes["params"])
    assert ("class_token" in params["decoder"]) == (kind == "separate")

    @jax.jit
    def compute(params: Any) -> Any:
        def apply(*arguments: Any, method: str) -> jax.Array:
            return model.apply({"params": params}, *arguments, method=method)

        placed = apply(apply(video, method="tokenize"), method="add_positions")
        latents = apply(placed, VISIBLE, method="encode")

        def sharpness(latents: jax.Array) -> jax.Array:
            return jnp.square(apply(latents, VISIBLE, MASKED, method="decode")).sum()

        whole = model.encoder_definition.apply({"params": params["encoder"]}, video)
        return latents, jax.grad(sharpness)(latents), whole, apply(video, method="features")

    latents, towards, whole, features = compute(params)
    assert latents.shape == (2, 5, 16)
    assert features.shape == (2, 24, 16)
    np.testing.assert_allclose(features, whole[:, 1:], rtol=1e-4, atol=1e-5)
    assert np.abs(towards[:, 1:]).max() > 1e-3
    assert (np.abs(towards[:, 0]).max() > 1e-3) == (kind == "shared")
    assert np.any(towards[:, 0]) == (kind == "shared")


def test_specs_are_hashable_so_that_modules_can_be_compared() -> None:
    assert dataclasses.replace(helpers.ENCODER) == helpers.ENCODER
    assert hash(helpers.autoencoder()) == hash(MODEL)
