"""The classifier: what it pools, its norm, and its start."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax.models.classifier import Classifier
from adamae_jax.models.encoder import Encoder
from adamae_jax.models.transformer import TransformerSpec
from tests import helpers
from tests.models.test_encoder import pixels
from tests.parity import reference

SPEC = TransformerSpec(width=16, depth=1, num_heads=2, initialization="classifier")


def classifier(**choices: Any) -> Classifier:
    """A tiny one of five classes."""
    return Classifier(helpers.GEOMETRY, SPEC, 5, **choices)


def parameters(model: Classifier) -> Any:
    """Random ones."""
    return helpers.filled(jax.eval_shape(model.init, jax.random.key(0), pixels())["params"])


@pytest.mark.parametrize(
    ("choices", "first"),
    [
        ({}, 0),
        ({"class_token": True}, 1),
        ({"skip_first_patch": True}, 1),
        ({"class_token": True, "skip_first_patch": True}, 1),
        ({"norm_epsilon": 0.5}, 0),
        ({"positions": "separable", "class_token": True, "norm_epsilon": 1e-5}, 1),
    ],
)
def test_logits_are_those_of_the_mean_over_patches(choices: dict[str, Any], first: int) -> None:
    check_logits(choices, lambda latents: latents[:, first:].mean(1))


@pytest.mark.parametrize("class_token", [False, True])
def test_logits_are_those_of_the_first_token(class_token: bool) -> None:
    """The class token's where there is one, otherwise the first patch's."""
    choices: dict[str, Any] = {"pooling": "first", "norm_epsilon": 0.5}
    choices |= {"class_token": True} if class_token else {}
    check_logits(choices, lambda latents: latents[:, 0])


def check_logits(choices: dict[str, Any], pool: Callable[[np.ndarray], np.ndarray]) -> None:
    """Against norm and head, by hand, of what is pooled of an encoder's latents."""
    model = classifier(**choices)
    params = parameters(model)
    positions, class_token = choices.get("positions", "sincos_1d"), "class_token" in choices
    encoder = Encoder(helpers.GEOMETRY, SPEC, positions, class_token, final_norm=False)
    logits, latents = jax.jit(
        lambda params: (
            model.apply({"params": params}, pixels()),
            encoder.apply({"params": params["encoder"]}, pixels()),
        )
    )(params)
    assert latents.shape == (2, 24 + class_token, 16)
    pooled = pool(np.asarray(latents, np.float64))
    norm, head = jax.tree.map(np.asarray, (params["norm"], params["head"]))
    weights = {"norm.weight": norm["scale"], "norm.bias": norm["bias"]}
    y = reference.layer_norm(weights, "norm", pooled, choices.get("norm_epsilon", 1e-6))
    expected = y @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert logits.dtype == jnp.float32


def test_matmuls_in_bfloat16_leave_logits_in_float32() -> None:
    model = Classifier(helpers.GEOMETRY, TransformerSpec(16, 1, 2, dtype=jnp.bfloat16), 5)
    logits, given = jax.eval_shape(model.init_with_output, jax.random.key(0), pixels())
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(given)} == {jnp.dtype("float32")}


def test_only_the_norm_after_the_mean_is_there() -> None:
    params = parameters(classifier())
    assert set(params) == {"encoder", "norm", "head"}
    assert set(params["encoder"]) == {"embedding", "transformer"}


@pytest.mark.parametrize(("scale", "spread"), [(1e-3, 2e-5), (1.0, 0.02)])
def test_the_head_starts_small(scale: float, spread: float) -> None:
    wide = TransformerSpec(width=64, depth=1, num_heads=2, initialization="classifier")
    model = Classifier(helpers.GEOMETRY, wide, 50, head_scale=scale)
    head = jax.jit(model.init)(jax.random.key(0), pixels())["params"]["head"]
    assert np.asarray(head["kernel"]).std() == pytest.approx(spread, rel=0.06)
    assert not np.asarray(head["bias"]).any()
