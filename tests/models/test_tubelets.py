"""Cutting clips into tubelets, and embedding them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax.errors import UserError
from adamae_jax.models.initializers import uniform_fan_in
from adamae_jax.models.tubelets import (
    ClipGeometry,
    TubeletEmbedding,
    from_tubelets,
    pool_to_tokens,
    to_tubelets,
)
from tests import helpers

GEOMETRY = helpers.GEOMETRY


def tubelets_by_hand(video: np.ndarray, geometry: ClipGeometry) -> np.ndarray:
    """Tokens in row-major (time, height, width) order, values in the order (t, p, p, C)."""
    time, height, width = geometry.grid
    t, p = geometry.tubelet_size, geometry.patch_size
    return np.stack(
        [
            video[:, i * t : (i + 1) * t, j * p : (j + 1) * p, k * p : (k + 1) * p].reshape(
                len(video), -1
            )
            for i in range(time)
            for j in range(height)
            for k in range(width)
        ],
        axis=1,
    )


def test_the_default_geometry_is_the_released_one() -> None:
    geometry = ClipGeometry()
    assert geometry.grid == (8, 14, 14)
    assert geometry.num_tokens == 1568
    assert geometry.tubelet_values == 2 * 16 * 16 * 3
    assert geometry.clip_shape == (16, 224, 224, 3)


def test_a_non_square_geometry_keeps_height_before_width() -> None:
    assert GEOMETRY.grid == (4, 2, 3)
    assert GEOMETRY.clip_shape == (8, 8, 12, 3)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"num_frames": 15}, ("num_frames 15", "tubelet_size 2")),
        ({"image_size": (220, 224)}, ("image height 220", "patch_size 16")),
        ({"image_size": (224, 230)}, ("image width 230", "patch_size 16")),
        ({"patch_size": 0}, ("image height 224", "patch_size 0")),
        ({"num_frames": 0}, ("num_frames 0", "tubelet_size 2")),
        ({"tubelet_size": -2}, ("num_frames 16", "tubelet_size -2")),
    ],
)
def test_sizes_that_do_not_divide_are_named(sizes: dict, words: tuple[str, str]) -> None:
    with pytest.raises(UserError) as caught:
        ClipGeometry(**sizes)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_tubelets_are_in_the_documented_order() -> None:
    video = helpers.clips(2)
    np.testing.assert_array_equal(
        to_tubelets(jnp.asarray(video), GEOMETRY), tubelets_by_hand(video, GEOMETRY)
    )


def test_from_tubelets_inverts_to_tubelets() -> None:
    video = jnp.asarray(helpers.clips(2))
    np.testing.assert_array_equal(from_tubelets(to_tubelets(video, GEOMETRY), GEOMETRY), video)


def test_pooling_averages_each_tubelet() -> None:
    coverage = np.random.default_rng(0).uniform(size=(2, 8, 4, 6)).astype(np.float32)
    pooled = pool_to_tokens(jnp.asarray(coverage), GEOMETRY)
    expected = [
        coverage[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, 2 * k : 2 * k + 2].mean((1, 2, 3))
        for i in range(4)
        for j in range(2)
        for k in range(3)
    ]
    np.testing.assert_allclose(pooled, np.stack(expected, axis=1), rtol=1e-5)


def test_pooling_samples_up_maps_that_do_not_divide() -> None:
    # One row and four columns, for a grid of 2 x 3: columns are first repeated to six.
    coverage = np.broadcast_to(np.asarray([0.0, 1.0, 1.0, 0.0], np.float32), (1, 8, 1, 4))
    pooled = pool_to_tokens(jnp.asarray(coverage), GEOMETRY).reshape(4, 2, 3)
    repeated = coverage[0, 0, 0, ((np.arange(6) + 0.5) * 4 / 6).astype(int)]
    expected = repeated.reshape(3, 2).mean(1)
    np.testing.assert_allclose(pooled, np.broadcast_to(expected, (4, 2, 3)), rtol=1e-6)


def test_embedding_is_a_convolution_with_kernel_equal_to_stride() -> None:
    video = np.random.default_rng(1).normal(size=(2, *GEOMETRY.clip_shape)).astype(np.float32)
    module = TubeletEmbedding(GEOMETRY, 5, uniform_fan_in())
    params = module.init(jax.random.key(0), jnp.asarray(video))["params"]["projection"]
    tokens = module.apply({"params": {"projection": params}}, jnp.asarray(video))
    kernel = params["kernel"].reshape(2, 4, 4, 3, 5)
    order = ("NTHWC", "THWIO", "NTHWC")
    convolved = jax.lax.conv_general_dilated(
        jnp.asarray(video), kernel, (2, 4, 4), "VALID", dimension_numbers=order
    )
    expected = np.asarray(convolved).reshape(2, 24, 5) + params["bias"]
    np.testing.assert_allclose(tokens, expected, rtol=1e-4, atol=1e-5)
