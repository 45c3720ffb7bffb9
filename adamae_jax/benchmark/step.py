"""Times the real train step on random data: no dataset, no data libraries.

    python -m adamae_jax.benchmark step --config=configs/adamae_ssv2.py --batch_size=2

Prints a line for people and one JSON object. It includes neither input nor transfers: the batch
stays on the devices.
"""

import dataclasses
import json
import resource
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from adamae_jax import cli, experiment
from adamae_jax import config as configs
from adamae_jax.benchmark.flops import matmul_flops
from adamae_jax.models.tubelets import ClipGeometry
from adamae_jax.planning.plan import plainly
from adamae_jax.training import partitioning
from adamae_jax.training.partitioning import check_batch, create_mesh
from adamae_jax.training.program import program


def define_flags() -> None:
    """Defines this benchmark's options; importing the module does not."""
    cli.define_config()
    flags.DEFINE_integer(
        "batch_size", None, "Clips in a step, over all devices; the config's, if not given.", 1
    )
    flags.DEFINE_integer("steps", 10, "Steps to time.", 1)
    flags.DEFINE_integer("warmup", 2, "Steps to run before that.", 0)


@dataclasses.dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes:
      compile_seconds: XLA's compilation of the step, without tracing.
      step_seconds: median over the timed steps.
      step_seconds_min: the fastest of them.
      step_seconds_max: the slowest of them.
      clips_per_second: batch_size over step_seconds.
      peak_bytes: the most memory in use on one device: as the device reports it or, where it does
        not, as the compiler plans it.
      peak_bytes_source: "device" or "compiler".
      host_bytes_max: largest resident size of this process, compilation included.
      flops_per_clip: of all matrix products that a step needs, forward and backward, over the batch
        size; what is computed a second time to save memory does not count.
      flops_per_second: the same, over the time of the median step.
      batch_size: clips in a step, over all devices.
      devices: number of devices.
      device_kind: their kind.
      dtype: the type of the matmuls.
      jax_version: of JAX.
      parameters: number of trained values.
      loss: of the last step; random data, but it must be a number.
    """

    compile_seconds: float
    step_seconds: float
    step_seconds_min: float
    step_seconds_max: float
    clips_per_second: float
    peak_bytes: int
    peak_bytes_source: str
    host_bytes_max: int
    flops_per_clip: float
    flops_per_second: float
    batch_size: int
    devices: int
    device_kind: str
    dtype: str
    jax_version: str
    parameters: int
    loss: float


def main(argv: Sequence[str]) -> None:
    """Measures as the flags say."""
    del argv
    values = flags.FLAGS
    config = values.config
    if values.batch_size is not None:
        config.batch_size = values.batch_size
    experiment.check_device(config)
    report = measure(config, values.steps, values.warmup, cli.recipe_values())
    print(describe(report))
    print(json.dumps(dataclasses.asdict(report)))


def measure(
    config: ConfigDict, steps: int, warmup: int, recipe: Mapping[str, Any] | None = None
) -> Report:
    """Compiles and times the train step of an experiment.

    Args:
      config: the experiment, batch size included.
      steps: how many are timed, each to its end.
      warmup: how many run before.
      recipe: see `adamae_jax.config.resolve`.

    Raises:
      UserError: for what is wrong with the config or does not fit the devices.
    """
    pretraining = experiment.pretraining(config)
    mesh = create_mesh(dict(config.mesh))
    check_batch("batch_size", config.batch_size, mesh, config.optimizer.accumulation)
    # Only the schedule depends on the number of videos.
    config = configs.resolve(config, config.data.num_examples or config.batch_size, recipe)
    optimizers = experiment.optimizers(config, pretraining)
    # A program from the cache would make compilation look free.
    jax.config.update("jax_enable_compilation_cache", False)

    planned = program(config, pretraining, optimizers, mesh)
    state = jax.jit(planned.create, out_shardings=planned.shardings)()
    batch = random_batch(pretraining.model.geometry, config.batch_size, mesh)
    traced = planned.step.trace(state, batch)
    lowered = traced.lower()
    begin = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - begin

    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    durations = []
    for _ in range(warmup + steps):
        begin = time.perf_counter()
        state, metrics = jax.block_until_ready(compiled(state, batch))
        durations.append(time.perf_counter() - begin)
    durations = durations[warmup:]
    median = statistics.median(durations)
    # What the model needs: neither scores nor blocks that are computed a second time.
    flops = matmul_flops(plainly(config, mesh).step.trace(planned.abstract, batch).jaxpr)
    peak, source = peak_memory(compiled, mesh)
    return Report(
        compile_seconds=compile_seconds,
        step_seconds=median,
        step_seconds_min=min(durations),
        step_seconds_max=max(durations),
        clips_per_second=config.batch_size / median,
        peak_bytes=peak,
        peak_bytes_source=source,
        host_bytes_max=host_memory(),
        flops_per_clip=flops / config.batch_size,
        flops_per_second=flops / median,
        batch_size=config.batch_size,
        devices=mesh.size,
        device_kind=mesh.devices.flat[0].device_kind,
        dtype=config.model.dtype,
        jax_version=jax.__version__,
        parameters=parameters,
        loss=float(metrics["loss"]),
    )


def random_batch(geometry: ClipGeometry, batch_size: int, mesh: Mesh) -> Mapping[str, jax.Array]:
    """A batch of uint8 noise, on the devices."""
    generator = np.random.default_rng(0)
    shape = (batch_size, *geometry.clip_shape)
    batch = {
        "video": generator.integers(0, 256, shape, np.uint8),
        "slot": np.arange(batch_size, dtype=np.int32),
    }
    return partitioning.put_batch(batch, mesh)


def peak_memory(compiled: Any, mesh: Mesh) -> tuple[int, str]:
    """The most bytes in use on one device, and who says so.

    Args:
      compiled: the compiled step.
      mesh: its devices.
    """
    statistics_of_devices = [device.memory_stats() for device in mesh.local_devices]
    peaks = [stats["peak_bytes_in_use"] for stats in statistics_of_devices if stats]
    if peaks:
        return max(peaks), "device"
    plan = compiled.memory_analysis()
    arguments_and_results = plan.argument_size_in_bytes + plan.output_size_in_bytes
    return arguments_and_results - plan.alias_size_in_bytes + plan.temp_size_in_bytes, "compiler"


def host_memory() -> int:
    """The largest resident size that this process has had, in bytes."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def describe(report: Report) -> str:
    """A line for people."""
    return (
        f"{report.devices} x {report.device_kind}, {report.dtype}, batch {report.batch_size}, "
        f"{report.parameters / 1e6:.1f} M parameters: {report.step_seconds:.3f} s per step "
        f"({report.step_seconds_min:.3f} to {report.step_seconds_max:.3f}), "
        f"{report.clips_per_second:.2f} clips/s, {report.flops_per_second / 1e12:.2f} TFLOP/s, "
        f"{report.peak_bytes / 2**30:.2f} GiB ({report.peak_bytes_source}), "
        f"compiled in {report.compile_seconds:.1f} s"
    )
