"""Compiles the real train step of an experiment for a topology, and says what it needs there."""

import collections
import dataclasses
import importlib.metadata
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from adamae_jax import config as configs
from adamae_jax import experiment
from adamae_jax.benchmark.flops import matmul_flops
from adamae_jax.planning import hlo
from adamae_jax.planning.collectives import Collective, collectives
from adamae_jax.planning.topology import Topology
from adamae_jax.planning.traffic import memory_traffic
from adamae_jax.pretraining import Pretraining
from adamae_jax.training.partitioning import check_batch, create_mesh
from adamae_jax.training.program import Program, abstract_batch, program

_KERNEL = re.compile(r'custom_call_target="([^"]+)"')
# The compiler's own ways of naming things; what is left are kernels that somebody wrote.
_NO_KERNELS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "annotate_device")
# What GPU memory JAX takes at its start, if XLA_PYTHON_CLIENT_MEM_FRACTION does not say.
GPU_FRACTION = 0.75


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device, as the compiler plans them.

    Attributes:
      arguments: the state, and the device's part of a batch.
      temporaries: at the moment when they are most.
      output: the new state and the metrics.
      aliased: how much of the output lies in the place of arguments.
      code: the program itself, where it lies in the same memory.
    """

    arguments: int
    temporaries: int
    output: int
    aliased: int
    code: int

    @property
    def total(self) -> int:
        """All of it at once."""
        return self.arguments + self.temporaries + self.output - self.aliased + self.code


@dataclasses.dataclass(frozen=True)
class Plan:
    """A train step on a topology.

    Attributes:
      topology: its name.
      chips: devices.
      hosts: processes of a run.
      mesh: sizes of the axes.
      batch_size: clips in an update.
      accumulation: microbatches of an update.
      clips_at_once: clips on a device (along ``data`` and ``fsdp``) in a microbatch.
      dtype: the type of the model's products.
      attention: the config's.
      remat: the config's.
      mask_ratio: the config's, or where it changes in training that of the stage which is planned;
        None where nothing is masked.
      parameters: number of trained values.
      memory: on a device; None where the compiler gave up.
      memory_limit: bytes that a device has; None where it is not known.
      compiler_says: why it gave up; "" where it did not.
      model_flops: of a step's matrix products, forward and backward, without recomputation.
      program_flops: those of the program, recomputation included.
      compiler_flops: the compiler's count for one device, which takes the body of each loop once;
        None where it gives none.
      collectives: what is sent between devices in a step.
      traffic: bytes that a device reads and writes in a step, by the rule of `traffic`.
      kernels: calls of kernels that are not the compiler's own, such as cuDNN's attention.
      seconds: the least that a step can take because of "compute", "memory" and "links".
      compile_seconds: how long it took to compile.
      versions: of the packages that compiled it.
    """

    topology: str
    chips: int
    hosts: int
    mesh: dict[str, int]
    batch_size: int
    accumulation: int
    clips_at_once: int
    dtype: str
    attention: str
    remat: str
    mask_ratio: float | None
    parameters: int
    memory: Memory | None
    memory_limit: int | None
    compiler_says: str
    model_flops: int
    program_flops: int
    compiler_flops: float | None
    collectives: list[Collective]
    traffic: int
    kernels: dict[str, int]
    seconds: dict[str, float]
    peak: float | None
    compile_seconds: float
    versions: dict[str, str]

    @property
    def fits(self) -> bool:
        """Whether the step fits the memory of a device, where that is known."""
        if self.memory is None:
            return False
        return self.memory_limit is None or self.memory.total <= self.memory_limit

    @property
    def step_seconds(self) -> float | None:
        """The least that a step can take, were all that is done at once hidden behind the rest."""
        return max(self.seconds.values(), default=None)

    @property
    def clips_per_second(self) -> float | None:
        """No more than these."""
        return self.batch_size / self.step_seconds if self.step_seconds else None

    @property
    def utilization(self) -> float | None:
        """The most that the model's operations can be of the chips' peak (MFU)."""
        if not self.step_seconds or not self.peak:
            return None
        return self.model_flops / (self.chips * self.peak * self.step_seconds)

    def to_json(self) -> dict[str, Any]:
        """Returns all figures, those that follow from others too."""
        return {
            **dataclasses.asdict(self),
            "memory_total": self.memory.total if self.memory else None,
            "fits": self.fits,
            "step_seconds": self.step_seconds,
            "clips_per_second": self.clips_per_second,
            "utilization": self.utilization,
        }


def make(
    config: ConfigDict,
    topology: Topology,
    *,
    memory_limit: int | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> Plan:
    """Compiles a step and reads off what it needs.

    Where the mask ratio changes in training, each of its stages is compiled; the plan is that of
    the one that needs the most memory.

    Args:
      config: the experiment.
      topology: what to compile for.
      memory_limit: bytes that a device has, where they are others than its kind's.
      recipe: see `adamae_jax.config.resolve`.

    Raises:
      UserError: for what is wrong with the config, or does not fit the topology.
    """
    plans = [
        make_stage(one, topology, memory_limit=memory_limit, recipe=recipe)
        for one in stages(config)
    ]
    # One that the compiler gives up needs more than there is.
    return max(plans, key=lambda one: one.memory.total if one.memory else math.inf)


def stages(config: ConfigDict) -> list[ConfigDict]:
    """Returns the config of each stage of an experiment, as if there were no other."""
    if experiment.task_name(config) != Pretraining.name or not config.masking.mask_ratio_start:
        return [config]
    found = []
    for ratio in experiment.mask_ratios(config):
        one = config.copy_and_resolve_references()
        one.masking.update({"mask_ratio": ratio, "mask_ratio_start": 0.0})
        found.append(one)
    return found


def make_stage(
    config: ConfigDict,
    topology: Topology,
    *,
    memory_limit: int | None,
    recipe: Mapping[str, Any] | None,
) -> Plan:
    """The plan of a step whose mask ratio does not change; see `make`."""
    config, mesh = resolved(config, topology, recipe)
    task = experiment.task(experiment.task_name(config), config)
    planned = program(config, task, experiment.optimizers(config, task), mesh)
    batch = abstract_batch(experiment.geometry(config).clip_shape, config.batch_size, mesh)
    traced = planned.step.trace(planned.abstract, batch)
    model_flops = matmul_flops(plainly(config, mesh).step.trace(planned.abstract, batch).jaxpr)
    chip, begin = topology.chip, time.perf_counter()
    compiled, compiler_says = compile_or_say(traced.lower(), topology)
    elapsed = time.perf_counter() - begin
    program_flops = max(model_flops, matmul_flops(traced.jaxpr))
    module = hlo.parse(compiled.as_text()) if compiled else None
    sent = collectives(module, mesh.size) if module else []
    traffic = memory_traffic(module) if module else 0
    peak = chip.peak[config.model.dtype] if chip.peak else None
    seconds = {}
    if peak and chip.bandwidth and module:
        seconds = {
            "compute": program_flops / mesh.size / peak,
            "memory": traffic / chip.bandwidth,
            "links": seconds_on_links(sent, topology),
        }
    costs = (compiled.cost_analysis() or {}) if compiled else {}
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * config.optimizer.accumulation
    return Plan(
        topology=topology.name,
        chips=mesh.size,
        hosts=topology.hosts,
        mesh=dict(mesh.shape),
        batch_size=config.batch_size,
        accumulation=config.optimizer.accumulation,
        clips_at_once=config.batch_size // parts,
        dtype=config.model.dtype,
        attention=config.model.attention,
        remat=config.model.remat,
        mask_ratio=task.strategy.mask_ratio if isinstance(task, Pretraining) else None,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(planned.abstract.params)),
        memory=memory_of(compiled) if compiled else None,
        memory_limit=memory_limit or chip.memory,
        compiler_says=compiler_says,
        model_flops=model_flops,
        program_flops=program_flops,
        compiler_flops=costs.get("flops"),
        collectives=sent,
        traffic=traffic,
        kernels=kernels(module) if module else {},
        seconds=seconds,
        peak=peak,
        compile_seconds=elapsed,
        versions=versions(),
    )


def resolved(
    config: ConfigDict, topology: Topology, recipe: Mapping[str, Any] | None
) -> tuple[ConfigDict, Mesh]:
    """Returns the effective config and the mesh of a run on a topology.

    The number of videos is the config's; without one, a pass is one step. Only the schedule depends
    on it, which is no more than numbers in the program.
    """
    experiment.check_device(config, topology.chip.platform)
    mesh = create_mesh(dict(config.mesh), topology.devices)
    check_batch("batch_size", config.batch_size, mesh, config.optimizer.accumulation)
    return configs.resolve(config, config.data.num_examples or config.batch_size, recipe), mesh


def plainly(config: ConfigDict, mesh: Mesh) -> Program:
    """The same step with nothing computed twice and no attention hidden in a kernel."""
    config = config.copy_and_resolve_references()
    config.model.update({"attention": "xla", "remat": "none"})
    task = experiment.task(experiment.task_name(config), config)
    return program(config, task, experiment.optimizers(config, task), mesh)


def compile_or_say(lowered: Any, topology: Topology) -> tuple[Any, str]:
    """Returns the compiled program, or None and why there is none: too little memory."""
    try:
        return lowered.compile(compiler_options=topology.compiler_options), ""
    except jax.errors.JaxRuntimeError as error:
        said = " ".join(str(error).split())
        if not said.startswith("RESOURCE_EXHAUSTED"):  # the status code of such errors
            raise
        return None, said.partition(": ")[2].partition(" See http")[0]


def memory_of(compiled: Any) -> Memory:
    """The compiler's plan of a device's memory."""
    found = compiled.memory_analysis()
    return Memory(
        arguments=found.argument_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        output=found.output_size_in_bytes,
        aliased=found.alias_size_in_bytes,
        code=found.generated_code_size_in_bytes,
    )


def seconds_on_links(sent: list[Collective], topology: Topology) -> float:
    """The least time in which devices can send each other what they have to.

    Among hosts that only a network connects, each device of a host passes on its share of what the
    host's devices have brought together before.
    """
    chip, hosts = topology.chip, topology.hosts
    assert chip.links is not None  # of all chips with a bandwidth
    within = sum(one.sent for one in sent) / chip.links
    if chip.network is None or hosts == 1:
        return within
    per_host = len(topology.devices) // hosts
    across = sum(one.sent for one in sent if one.group > per_host) / per_host
    return max(within, across / chip.network)


def kernels(module: hlo.Module) -> dict[str, int]:
    """Returns how often a step calls each kernel that is not the compiler's own."""
    counts: collections.Counter[str] = collections.Counter()
    for _, step, times in module.steps():
        found = _KERNEL.search(step.attributes) if step.opcode == "custom-call" else None
        if found and found[1] not in _NO_KERNELS:
            counts[found[1]] += times
    return dict(sorted(counts.items()))


def versions() -> dict[str, str]:
    """Returns the versions of the packages that compile, those that are there."""
    names = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
