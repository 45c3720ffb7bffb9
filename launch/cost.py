"""Says what a step of configs costs: python -m launch.cost configs/adamae_demo.py:random ...

Prints one JSON object: for each config the floating-point operations of the matrix products of one
training step, forward and backward, as `adamae_jax.benchmark step` counts them. Nothing is
compiled.
"""

import json
import runpy
import sys
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from adamae_jax import experiment
from adamae_jax.benchmark.flops import matmul_flops
from adamae_jax.config import resolve
from adamae_jax.planning.plan import plainly
from adamae_jax.training.partitioning import batch_sharding, create_mesh
from adamae_jax.training.program import abstract_batch


def read(word: str) -> ConfigDict:
    """Returns the config of FILE or FILE:ARGUMENT."""
    path, _, argument = word.partition(":")
    get_config = runpy.run_path(path)["get_config"]
    config: ConfigDict = get_config(argument) if argument else get_config()
    return config


def flops(config: ConfigDict) -> int:
    """Counts the operations of a step."""
    mesh = create_mesh({}, jax.devices()[:1])
    config = resolve(config, config.batch_size)
    clip_shape = experiment.geometry(config).clip_shape
    batch = abstract_batch(clip_shape, config.batch_size, mesh)
    # For masks that want to know it. How fine it is matters to no product.
    masks = (config.batch_size, *clip_shape[:3])
    batch["foreground"] = jax.ShapeDtypeStruct(masks, np.uint8, sharding=batch_sharding(mesh))
    planned = plainly(config, mesh)
    return matmul_flops(planned.step.trace(planned.abstract, batch).jaxpr)


def main(words: Sequence[str]) -> None:
    """Prints what the configs cost."""
    print(json.dumps({word: flops(read(word)) for word in words}))


if __name__ == "__main__":
    main(sys.argv[1:])
