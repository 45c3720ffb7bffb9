"""The authors' weight names and layouts, against what PyTorch computes with such arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax.errors import UserError
from adamae_jax.interop import authors, systems, tables
from adamae_jax.masking.adaptive import Strategy
from adamae_jax.models.autoencoder import Autoencoder
from adamae_jax.models.initializers import uniform_fan_in
from adamae_jax.models.tubelets import ClipGeometry, TubeletEmbedding
from adamae_jax.pretraining import Objective, Pretraining
from tests import helpers

MODEL = Autoencoder(helpers.GEOMETRY, helpers.ENCODER, helpers.DECODER)
STRATEGY = Strategy(mask_ratio=0.75, depth=2)
TASK = Pretraining(MODEL, STRATEGY, Objective())
TABLE = authors.pretraining_table(TASK)


@pytest.fixture(scope="module")
def params() -> Any:
    """Random parameters."""
    return helpers.variables(TASK)["params"]


@pytest.fixture(scope="module")
def state(params: Any) -> dict[str, np.ndarray]:
    """The same under the authors' names."""
    return TABLE.to_authors({"params": params})


def test_there_and_back_is_exact(params: Any, state: dict[str, np.ndarray]) -> None:
    back = helpers.named(TABLE.from_authors(state)["params"])
    assert set(back) == set(helpers.named(params))
    for name, value in helpers.named(params).items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
        assert back[name].flags.c_contiguous


def test_names_and_shapes_are_the_authors(state: dict[str, np.ndarray]) -> None:
    def block(prefix: str, width: int, bias: bool) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (4 * width, width),
            "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width),
            "mlp.fc2.bias": (width,),
        }
        if bias:
            shapes |= {"attn.q_bias": (width,), "attn.v_bias": (width,)}
        return {f"{prefix}.{name}": shape for name, shape in shapes.items()}

    expected = {
        "mask_token": (1, 1, 12),
        "encoder.pos_embed_probs": (1, 24, 16),
        "encoder.patch_embed.proj.weight": (16, 3, 2, 4, 4),
        "encoder.patch_embed.proj.bias": (16,),
        **block("encoder.blocks.0", 16, True),
        **block("encoder.blocks.1", 16, True),
        "encoder.norm.weight": (16,),
        "encoder.norm.bias": (16,),
        **block("encoder.get_token_probs.0", 16, False),
        **block("encoder.get_token_probs.1", 16, False),
        "encoder.get_token_probs.2.weight": (1, 16),
        "encoder.get_token_probs.2.bias": (1,),
        "encoder_to_decoder.weight": (12, 16),
        **block("decoder.blocks.0", 12, True),
        **block("decoder.blocks.1", 12, True),
        "decoder.norm.weight": (12,),
        "decoder.norm.bias": (12,),
        "decoder.head.weight": (96, 12),
        "decoder.head.bias": (96,),
    }
    assert {name: array.shape for name, array in state.items()} == expected


def test_a_fused_layer_gives_the_same_queries_keys_and_values() -> None:
    """The authors reshape the outputs of one linear layer to [3, heads, head width]."""
    weight = np.random.default_rng(0).normal(size=(3 * 12, 12))
    x = np.random.default_rng(1).normal(size=12)
    expected = (weight @ x).reshape(3, 4, 3)
    found = np.einsum("d,dchk->chk", x, tables.qkv(4).to_ours(weight))
    np.testing.assert_allclose(found, expected)
    bias = np.arange(24.0)
    found = tables.head_bias(2, 4).to_ours(bias)
    np.testing.assert_array_equal(found, bias.reshape(2, 4, 3))


def test_a_tubelet_convolution_gives_the_same_tokens() -> None:
    """Channels first, as PyTorch lays out both video and weight."""
    geometry = helpers.GEOMETRY
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(5, 3, 2, 4, 4)).astype(np.float32)
    video = rng.normal(size=(2, *geometry.clip_shape)).astype(np.float32)
    by_authors = jax.lax.conv_general_dilated(
        jnp.asarray(np.moveaxis(video, -1, 1)),
        jnp.asarray(weight),
        window_strides=(2, 4, 4),
        padding="VALID",
    )
    expected = np.asarray(by_authors).reshape(2, 5, -1).swapaxes(1, 2)
    kernel = tables.tubelet_convolution(geometry).to_ours(weight)
    found = TubeletEmbedding(geometry, 5, uniform_fan_in()).apply(
        {"params": {"projection": {"kernel": kernel, "bias": np.zeros(5, np.float32)}}},
        jnp.asarray(video),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_sampler_that_the_authors_do_not_have_is_named() -> None:
    for strategy in (
        Strategy(mask_ratio=0.75, width=8),
        Strategy(mask_ratio=0.75, network="mlp"),
    ):
        with pytest.raises(UserError, match="as wide as the tokens"):
            authors.sampler_table(strategy, 16)


@pytest.mark.parametrize(
    ("positions", "geometry", "dialect"),
    [
        ("sincos_1d", ClipGeometry(4, (8, 8), 2, 4), "videomae"),
        ("sincos_1d", ClipGeometry(1, (8, 8), 1, 4), "videomae"),
        ("sincos_2d", ClipGeometry(1, (8, 8), 1, 4), "mae"),
        ("learned", ClipGeometry(1, (8, 8), 1, 4), "mae"),
        ("learned", ClipGeometry(4, (8, 8), 2, 4), "mae_st"),
        ("separable", ClipGeometry(4, (8, 8), 2, 4), "mae_st"),
    ],
)
def test_positions_tell_whose_names_a_model_has(
    positions: str, geometry: ClipGeometry, dialect: str
) -> None:
    assert systems.dialect_of(positions, geometry).family == dialect
