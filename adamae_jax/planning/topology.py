"""``--topology=NAME:SHAPE``: devices to compile for that are not attached."""

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from adamae_jax.errors import UserError
from adamae_jax.planning.chips import CHIPS, Chip, target_config

EXAMPLES = "v5e:4x4, v4:2x4x4, h100:1x1x8 or cpu:8"
# Two cores of a v4 chip are one device, as they are where nothing else is asked for on a real one.
_TPU_OPTIONS: dict[str, dict[str, Any]] = {"v4": {"chip_config_name": "megacore"}}
# Without a device nothing can be timed, and Triton's products have no tile sizes without that.
_COMPILER_OPTIONS = {
    "gpu": {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False},
}
# Without these libtpu asks for the machine that it is on, complains that it is none of its own, and
# lets one process at a time use it, which is for TPUs that are there.
_TPU_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      name: as it was asked for.
      chip: what each device is.
      devices: all of them.
    """

    name: str
    chip: Chip
    devices: Sequence[jax.Device]

    @property
    def hosts(self) -> int:
        """How many processes a run on it has."""
        return len({device.process_index for device in self.devices})

    @property
    def compiler_options(self) -> dict[str, Any]:
        """What XLA is to be told besides."""
        return dict(_COMPILER_OPTIONS.get(self.chip.platform, {}))


def describe(name: str) -> Topology:
    """Returns the devices of a topology.

    Args:
      name: kind of chip and shape: ``v5e:4x4``, chips along the axes of a TPU slice;
        ``h100:1x2x8``, slices x hosts x GPUs of a host; ``cpu:8``, virtual devices.

    Raises:
      UserError: for an unknown chip or shape, or where the packages for it are missing.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS or not shape:
        raise UserError(
            f"--topology={name} is none that is known: it is CHIP:SHAPE, such as {EXAMPLES}, with "
            f"one of {', '.join(CHIPS)}"
        )
    chip = CHIPS[kind]
    find = {"tpu": _tpus, "gpu": _gpus, "cpu": _cpus}[chip.platform]
    try:
        return Topology(name, chip, find(kind, shape))
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"--topology={name} cannot be described ({reason}): use a shape such as {EXAMPLES}"
        ) from error


def _tpus(kind: str, shape: str) -> Sequence[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "compiling for TPUs needs the package libtpu, though no TPU: pip install libtpu"
        )
    for variable, value in _TPU_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    options = _TPU_OPTIONS.get(kind, {})
    found = topologies.get_topology_desc(f"{kind}:{shape}", "tpu", **options)
    return found.devices


def _gpus(kind: str, shape: str) -> Sequence[jax.Device]:
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise UserError(
            f"compiling for NVIDIA GPUs needs JAX's CUDA packages (5.5 GB), though no GPU: in an "
            f'environment of its own, pip install "jax[cuda12]=={jax.__version__}"'
        )
    return topologies.get_topology_desc(
        kind, "cuda", target_config=target_config(kind), topology=shape
    ).devices


def _cpus(kind: str, shape: str) -> Sequence[jax.Device]:
    count = int(shape)
    devices = jax.devices(kind)
    if not 1 <= count <= len(devices):
        raise ValueError(f"this process has {len(devices)} of them")
    return devices[:count]


def prepare(name: str) -> None:
    """Readies a process that has not used JAX yet: no accelerator is touched, CPUs are made.

    Args:
      name: the topology; where it is wrong, `describe` says so.
    """
    jax.config.update("jax_platforms", "cpu")
    kind, _, count = name.partition(":")
    if kind == "cpu" and count.isdigit() and int(count):
        jax.config.update("jax_num_cpu_devices", int(count))
