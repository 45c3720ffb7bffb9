"""The chips that a step can be planned for, and their published figures.

Sources: TPUs: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e) and "How to Scale Your Model"
(jax-ml.github.io/scaling-book) for links; their memory is what the compiler, libtpu 0.0.52, says is
available. GPUs: NVIDIA's data sheets of A100, H100 and H200 (SXM) without sparsity; what XLA has to
know of them is what a device of that kind reports.
"""

import dataclasses
from collections.abc import Mapping

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, as JAX sees it: one device.

    Attributes:
      platform: "tpu", "gpu" or "cpu".
      peak: floating-point operations a second in matrix products, by the type of the model's
        products. Both platforms round float32 by default: TPUs to bfloat16, GPUs to TF32.
      memory: bytes that a program may have.
      bandwidth: bytes a second between memory and chip.
      links: bytes a second that a chip can send to its neighbours: over all links of a TPU, over
        NVLink of a GPU.
      network: bytes a second that a chip can send to other hosts, where that is another way (GPUs:
        one network card each).
    """

    platform: str
    peak: Mapping[str, float] | None = None
    memory: int | None = None
    bandwidth: float | None = None
    links: float | None = None
    network: float | None = None


def _tpu(peak: float, memory: float, bandwidth: float, links: float) -> Chip:
    peaks = {"bfloat16": peak, "float32": peak}
    return Chip("tpu", peaks, int(memory * GIB), bandwidth, links)


def _gpu(peak: float, tf32: float, memory: int, bandwidth: float, links: float, net: float) -> Chip:
    peaks = {"bfloat16": peak, "float32": tf32}
    return Chip("gpu", peaks, memory, bandwidth, links, net)


CHIPS: dict[str, Chip] = {
    # 3 dimensions have 6 links, 2 have 4.
    "v4": _tpu(275e12, 30.75, 1.228e12, 6 * 45e9),
    "v5e": _tpu(197e12, 15.75, 0.819e12, 4 * 45e9),
    "v5p": _tpu(459e12, 95.73, 2.765e12, 6 * 90e9),
    "v6e": _tpu(918e12, 31.24, 1.638e12, 4 * 90e9),
    "a100": _gpu(312e12, 156e12, 85_100_068_864, 2.039e12, 300e9, 25e9),
    "h100": _gpu(989e12, 494e12, 84_978_434_048, 3.352e12, 450e9, 50e9),
    "h200": _gpu(989e12, 494e12, 151_397_597_184, 4.8e12, 450e9, 50e9),
    # Virtual devices of this host: what is compiled for them shows what a mesh does, no more.
    "cpu": Chip("cpu"),
}

# What XLA is told of a GPU, in the text format of its message GpuTargetConfigProto. Every GPU here
# has these; the others differ by kind.
_SHARED = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49_152,
    "threads_per_core_limit": 2048,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65_535,
    "block_dim_limit_z": 65_535,
    "registers_per_core_limit": 65_536,
    "registers_per_block_limit": 65_536,
}
_HOPPER = {
    "shared_memory_per_core": 233_472,
    "shared_memory_per_block_optin": 232_448,
    "core_count": 132,
    "fpus_per_core": 128,
    "l2_cache_size": 52_428_800,
    "clock_rate_ghz": 1.98,
}
_AMPERE = {
    "shared_memory_per_core": 167_936,
    "shared_memory_per_block_optin": 166_912,
    "core_count": 108,
    "fpus_per_core": 64,
    "l2_cache_size": 41_943_040,
    "clock_rate_ghz": 1.41,
}
_GPUS = {
    "a100": (_AMPERE, 8, "NVIDIA A100-SXM4-80GB"),
    "h100": (_HOPPER, 9, "NVIDIA H100 80GB HBM3"),
    "h200": (_HOPPER, 9, "NVIDIA H200 141GB HBM3e"),
}


def target_config(name: str) -> str:
    """Returns the description of a GPU that XLA compiles for, CUDA 12.8 and cuDNN 9.8 assumed."""
    kind, capability, title = _GPUS[name]
    chip = CHIPS[name]
    assert chip.bandwidth is not None and chip.memory is not None  # of all GPUs
    measures = {"memory_bandwidth": int(chip.bandwidth), "device_memory_size": chip.memory}
    fields = [f"  {field}: {value}" for field, value in {**_SHARED, **kind, **measures}.items()]
    return "\n".join(
        [
            "gpu_device_info {",
            *fields,
            f"  cuda_compute_capability {{ major: {capability} minor: 0 }}",
            "}",
            'platform_name: "CUDA"',
            "dnn_version_info { major: 9 minor: 8 patch: 0 }",
            "runtime_version { major: 12 minor: 8 patch: 0 }",
            f'device_description_str: "{title}"',
        ]
    )
