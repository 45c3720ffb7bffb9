"""This project's side of `adamae_jax.benchmark.compare`."""

import jax
from ml_collections import ConfigDict

from adamae_jax import config as configs
from adamae_jax import experiment
from adamae_jax.benchmark.compare import Contender
from adamae_jax.benchmark.step import host_memory, random_batch
from adamae_jax.training.partitioning import create_mesh
from adamae_jax.training.program import program


def contender(config: ConfigDict, name: str) -> Contender:
    """Makes the real train step of an experiment, on the first device."""
    del name
    task = experiment.pretraining(config)
    config = configs.resolve(config, config.data.num_examples or config.batch_size)
    mesh = create_mesh({"data": 1}, jax.devices()[:1])
    planned = program(config, task, experiment.optimizers(config, task), mesh)
    state = jax.jit(planned.create, out_shardings=planned.shardings)()
    batch = random_batch(task.model.geometry, config.batch_size, mesh)

    def step() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(planned.step(state, batch))

    def peak_bytes() -> int:
        device = jax.devices()[0].memory_stats()
        return device["peak_bytes_in_use"] if device else host_memory()

    return Contender(step, peak_bytes, f"jax {jax.__version__}")
