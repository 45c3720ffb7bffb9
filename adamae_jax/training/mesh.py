"""The device mesh, and where arrays lie on it."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from adamae_jax.errors import UserError

DATA = "data"  # the axis that batches are sharded over


def create_mesh(axes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges the devices along named axes.

    Args:
      axes: size of each axis; at most one may be -1 and takes the devices that are left.
      devices: all devices of the job, if not given.

    Raises:
      UserError: where the sizes do not use all devices, or the data axis is missing.
    """
    devices = list(jax.devices()) if devices is None else list(devices)
    sizes = dict(axes)
    if DATA not in sizes:
        raise UserError(f"mesh {sizes} has no axis {DATA!r}: add it, such as --config.mesh.data=-1")
    free = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(free) == 1 and known > 0 and len(devices) % known == 0:
        sizes[free[0]] = len(devices) // known
    if math.prod(sizes.values()) != len(devices) or min(sizes.values()) < 1:
        raise UserError(
            f"mesh {dict(axes)} does not fit {len(devices)} device(s): the sizes must multiply to "
            "that number, and one may be -1"
        )
    return Mesh(
        np.asarray(devices).reshape(tuple(sizes.values())),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over the mesh's data axis."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def check_batch(name: str, batch_size: int, mesh: Mesh, accumulation: int = 1) -> None:
    """Raises a `UserError` where a batch does not divide over devices and microbatches."""
    parts = mesh.shape[DATA] * accumulation
    if batch_size % parts:
        raise UserError(
            f"{name} {batch_size} does not divide over {mesh.shape[DATA]} device(s) along "
            f"{DATA!r} and {accumulation} microbatch(es): use a multiple of {parts}"
        )
