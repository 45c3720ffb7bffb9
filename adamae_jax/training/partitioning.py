"""The device mesh, and where arrays lie on it.

The mesh has three axes. The batch is split over ``data`` and ``fsdp``; parameters and optimiser
state over ``fsdp`` (each device keeps a part and gathers a layer when it is computed) and, heads
and hidden widths, over ``tensor``. One table of rules says which dimension of which parameter is
split; `state_sharding` applies it to any tree.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from adamae_jax.errors import UserError
from adamae_jax.models.sharding import AXES, BATCH, DATA, FSDP, TENSOR, fitting

T = TypeVar("T")
Rules = Sequence[str]  # see `adamae_jax.fields.MESH_RULES`


def create_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges the devices along the axes ``data``, ``fsdp`` and ``tensor``.

    Devices of one host (or TPU slice) are neighbours along ``tensor``, then ``fsdp``, then
    ``data``.

    Args:
      sizes: of the axes; an axis that is left out has size 1, and one may be -1: it takes the
        devices that are left.
      devices: all devices of the job, if not given.

    Raises:
      UserError: where an axis is unknown or the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices()) if devices is None else list(devices)
    unknown = sorted(set(sizes) - set(AXES))
    if unknown:
        raise UserError(f"mesh.{unknown[0]} is unknown: the axes are {', '.join(AXES)}")
    shape = {axis: int(sizes.get(axis, 1)) for axis in AXES}
    free = [axis for axis, size in shape.items() if size == -1]
    known = math.prod(size for size in shape.values() if size != -1)
    if len(free) == 1 and known > 0 and len(devices) % known == 0:
        shape[free[0]] = len(devices) // known
    if min(shape.values()) < 1 or math.prod(shape.values()) != len(devices):
        raise UserError(
            f"the mesh {dict(sizes)} does not fit {len(devices)} device(s): the sizes must "
            "multiply to that number, and one of them may be -1, such as --config.mesh.data=-1"
        )
    return Mesh(_arranged(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(shape: Mapping[str, int], devices: Sequence[jax.Device]) -> np.ndarray:
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    sizes = tuple(shape.values())
    if slices == 1 or shape[DATA] % slices:
        return mesh_utils.create_device_mesh(sizes, devices)
    inside = (shape[DATA] // slices, *sizes[1:])
    return mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension over ``data`` and ``fsdp``."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def state_sharding(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """Returns where each array of a tree lies.

    Args:
      tree: arrays or `jax.ShapeDtypeStruct`, such as a train state: a rule for a parameter is also
        that for its moments, whose paths end alike.
      mesh: from `create_mesh`.
      rules: see `adamae_jax.fields.MESH_RULES`.

    Raises:
      UserError: where a rule cannot be read, or names more dimensions than an array has.
    """
    parsed = [_parse(rule) for rule in rules]

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        name = "/" + jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, axes in parsed:
            if pattern.search(name):
                return NamedSharding(mesh, _spec(name, leaf.shape, axes, mesh))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _parse(rule: str) -> tuple[re.Pattern[str], tuple[str | None, ...]]:
    pattern, *axes = rule.split()
    unknown = [axis for axis in axes if axis not in (*AXES, ".")]
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"mesh_rules has {rule!r}: {pattern!r} is no regular expression ({error})"
        ) from error
    if not axes or unknown:
        raise UserError(
            f"mesh_rules has {rule!r}: after the pattern come the axes of the last dimensions, "
            f"each one of {', '.join(AXES)} or '.', such as '/fc1/kernel$ fsdp tensor'"
        )
    return compiled, tuple(None if axis == "." else axis for axis in axes)


def _spec(name: str, shape: Sequence[int], axes: Sequence[str | None], mesh: Mesh) -> PartitionSpec:
    if len(axes) > len(shape):
        if not any(axes) or not shape:
            return PartitionSpec()
        raise UserError(
            f"mesh_rules gives {len(axes)} dimensions to {name[1:]}, which has the shape "
            f"{tuple(shape)}: name its last dimensions only"
        )
    whole = [None] * (len(shape) - len(axes))
    split = [
        fitting(size, axis, mesh.shape)
        for size, axis in zip(shape[len(whole) :], axes, strict=True)
    ]
    return PartitionSpec(*whole, *split)


def bytes_per_device(tree: Any, shardings: Any) -> int:
    """Returns how much of a tree one device holds, in bytes."""
    sizes = jax.tree.map(
        lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
        tree,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))


def on_mesh(function: Callable[..., T], mesh: Mesh) -> Callable[..., T]:
    """Wraps a function to be jitted: activations lie as `models.sharding.constrain` says."""

    @functools.wraps(function)
    def constrained(*arguments: Any) -> T:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return constrained


def check_batch(name: str, batch_size: int, mesh: Mesh, accumulation: int = 1) -> None:
    """Raises a `UserError` where a batch does not divide over devices and microbatches."""
    devices = mesh.shape[DATA] * mesh.shape[FSDP]
    if batch_size % (devices * accumulation):
        raise UserError(
            f"{name} {batch_size} does not divide over {devices} device(s) along {DATA!r} and "
            f"{FSDP!r} and {accumulation} microbatch(es): use a multiple of "
            f"{devices * accumulation}, or other devices (mesh.data, mesh.fsdp) or "
            "optimizer.accumulation, which a run that goes on may change"
        )


def batch_shard(mesh: Mesh) -> tuple[int, int]:
    """Returns which part of every global batch this process reads: ``(index, count)``.

    It follows from where the batch lies: processes whose devices differ along ``tensor`` alone read
    the same part.

    Raises:
      UserError: where the batch would not fall into equal, contiguous parts.
    """
    parts = mesh.shape[DATA] * mesh.shape[FSDP]
    indices = batch_sharding(mesh).addressable_devices_indices_map((parts,))
    own = sorted({(rows[0].start or 0) for rows in indices.values() if rows is not None})
    count, left = divmod(parts, len(own))
    index, offset = divmod(own[0], len(own))
    if left or offset or own != list(range(own[0], own[0] + len(own))):
        raise UserError(
            f"the mesh {dict(mesh.shape)} gives process {jax.process_index()} the parts {own} of "
            f"{parts} of a batch, which are no block of their own: choose sizes of "
            f"{FSDP!r} and {TENSOR!r} that divide the {jax.local_device_count()} devices of a host"
        )
    return index, count


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Hands this process's part of a global batch to its devices.

    Args:
      batch: the numbers of the part that `batch_shard` says, batch axis first; arrays of text are
        left out.
      mesh: the devices.
    """
    sharding, (_, count) = batch_sharding(mesh), batch_shard(mesh)
    return {
        name: jax.make_array_from_process_local_data(
            sharding, array, (len(array) * count, *array.shape[1:])
        )
        for name, array in batch.items()
        if array.dtype.kind in "biuf"
    }


def to_host(tree: Any) -> Any:
    """Returns whole arrays in host memory, in every process, whatever devices they lie on."""

    def whole(leaf: jax.Array) -> np.ndarray:
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(whole, tree)
