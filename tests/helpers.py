"""Small models and random batches that many tests share."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, Key, UInt8

from adamae_jax.masking import MaskingStrategy, MaskInputs, adaptive
from adamae_jax.models.autoencoder import Autoencoder
from adamae_jax.models.transformer import TransformerSpec
from adamae_jax.models.tubelets import ClipGeometry
from adamae_jax.pretraining import Objective, Pretraining

# A grid of 4 x 2 x 3 = 24 tokens, with no two sizes alike.
GEOMETRY = ClipGeometry(num_frames=8, image_size=(8, 12), tubelet_size=2, patch_size=4)
ENCODER = TransformerSpec(width=16, depth=2, num_heads=2)
DECODER = TransformerSpec(width=12, depth=2, num_heads=3)


def autoencoder(**execution: Any) -> Autoencoder:
    """A tiny autoencoder; ``execution`` goes to the encoder's and the decoder's spec."""
    return Autoencoder(GEOMETRY, replace(ENCODER, **execution), replace(DECODER, **execution))


def pretraining(
    strategy: MaskingStrategy | None = None,
    objective: Objective | None = None,
    **execution: Any,
) -> Pretraining:
    """A tiny AdaMAE with 6 of 24 tokens visible, or with another strategy."""
    return Pretraining(
        autoencoder(**execution),
        strategy or adaptive.Strategy(mask_ratio=0.75),
        objective or Objective(),
    )


def clips(count: int, seed: int = 0, geometry: ClipGeometry = GEOMETRY) -> UInt8[np.ndarray, "..."]:
    """Random clips, each with a contrast of its own."""
    rng = np.random.default_rng(seed)
    contrast = rng.uniform(0.1, 1.0, (count, 1, 1, 1, 1))
    return (rng.uniform(0, 255, (count, *geometry.clip_shape)) * contrast).astype(np.uint8)


def batch(count: int, seed: int = 0, geometry: ClipGeometry = GEOMETRY) -> dict[str, np.ndarray]:
    """A global batch as the pipeline hands it over."""
    return {"video": clips(count, seed, geometry), "slot": np.arange(count, dtype=np.int32)}


def example_keys(count: int, seed: int = 0) -> Key[Array, "b"]:
    """One key per example."""
    return jax.random.split(jax.random.key(seed), count)


def mask_inputs(
    count: int, grid: tuple[int, int, int], width: int = 8, seed: int = 0
) -> MaskInputs:
    """Random tokens of a grid; the pixels are not looked at."""
    time, height, width_tokens = grid
    tokens: Float[Array, "b n d"] = jax.random.normal(
        jax.random.key(seed), (count, time * height * width_tokens, width)
    )
    return MaskInputs(jnp.zeros((count, 1, 1, 1, 1)), tokens, grid)


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a parameter tree by path."""
    return traverse_util.flatten_dict(tree, sep="/")


def filled(shapes: Any, seed: int = 0) -> Any:
    """Random values for a tree of shapes: no bias is zero, no norm is plain, no layer explodes.

    Much faster than a module's own initialisation, which has to be compiled.
    """
    rng = np.random.default_rng(seed)

    def fill(path: Any, leaf: Any) -> Array:
        name = jax.tree_util.keystr(path)
        noise = rng.normal(size=leaf.shape)
        if "kernel" in name:
            inputs = leaf.shape[1] if "blocks" in name else leaf.shape[0]
            noise *= inputs**-0.5
        else:
            noise = ("scale" in name) + 0.1 * noise
        return jnp.asarray(noise, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def variables(task: Pretraining, seed: int = 0) -> dict[str, Any]:
    """Random variables of a tiny model; a strategy's state starts as it would in training."""
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return {
        "params": filled(shapes["params"], seed),
        "state": jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes["state"]),
        "frozen": filled(shapes["frozen"], seed + 1),
    }
