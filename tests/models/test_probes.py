"""Probes' heads by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from adamae_jax.models.probes import AttentiveProbe, BatchNorm
from tests import helpers

WIDTH, HEADS, CLASSES = 8, 2, 3


def normalised(x: np.ndarray, own: dict[str, np.ndarray]) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5)
    return scaled * own["scale"] + own["bias"]


def test_an_attentive_probe_by_hand() -> None:
    """V-JEPA's cross-attention block: the query goes past the norm, the tokens do not."""
    tokens = np.random.default_rng(0).normal(size=(2, 5, WIDTH))
    probe = AttentiveProbe(CLASSES, HEADS)
    shapes = jax.eval_shape(probe.init, jax.random.key(0), jnp.asarray(tokens, jnp.float32))
    params = helpers.filled(shapes["params"])
    found = probe.apply({"params": params}, jnp.asarray(tokens, jnp.float32))

    own = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        return x @ own[name]["kernel"] + own[name]["bias"]

    query = dense("query_projection", own["query"])
    keys_values = dense("key_value_projection", normalised(tokens, own["norm1"]))
    mixed = np.zeros((2, WIDTH))
    for head in range(HEADS):
        part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
        keys, values = keys_values[..., :WIDTH][..., part], keys_values[..., WIDTH:][..., part]
        scores = np.exp(keys @ query[part] / math.sqrt(WIDTH / HEADS))
        shares = scores / scores.sum(1, keepdims=True)
        mixed[:, part] = np.einsum("bn,bnd->bd", shares, values)
    x = own["query"] + dense("projection", mixed)
    hidden = dense("fc1", normalised(x, own["norm2"]))
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    np.testing.assert_allclose(found, dense("head", x + dense("fc2", hidden)), rtol=1e-4, atol=1e-5)


def test_features_are_normalised_over_the_batch() -> None:
    """And the running statistics take a tenth of each batch, from 0 and 1."""
    features = np.random.default_rng(0).normal(3.0, 2.0, size=(16, WIDTH)).astype(np.float32)
    start = {"mean": jnp.zeros(WIDTH), "var": jnp.ones(WIDTH)}
    found, new = BatchNorm(use_running_average=False).apply(
        {"batch_stats": start}, jnp.asarray(features), mutable=["batch_stats"]
    )
    mean, variance = features.mean(0), features.var(0)
    np.testing.assert_allclose(found, (features - mean) / np.sqrt(variance + 1e-6), rtol=1e-4)
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.9 + 0.1 * variance, rtol=1e-5)
