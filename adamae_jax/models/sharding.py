"""Where activations lie on a device mesh: the batch over ``data`` and ``fsdp``, widths over
``tensor``.

The models say it with `constrain`, which acts only while a mesh is set: in functions that
`adamae_jax.training.partitioning.on_mesh` wraps. Where parameters lie is decided there, too.
"""

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Shaped

DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
AXES = (DATA, FSDP, TENSOR)
BATCH = (DATA, FSDP)  # the axes that split the batch

Axis = str | tuple[str, ...] | None


def constrain(x: Shaped[Array, "..."], *axes: Axis) -> Shaped[Array, "..."]:
    """Returns ``x``, split over mesh axes.

    Args:
      x: an array, batch first.
      axes: for each dimension, the mesh axes that split it; those that are left out are not split.
        Axes whose sizes do not divide a dimension leave it whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = [fitting(size, axis, mesh.shape) for size, axis in zip(x.shape, axes, strict=False)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def platform() -> str:
    """Returns what is computed on: "cpu", "gpu" or "tpu".

    That of the mesh, whose devices need not be attached; without one, JAX's default.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def fitting(size: int, axis: Axis, mesh_shape: dict[str, int]) -> Axis:
    """Returns the axes for a dimension of ``size``; None where they do not divide it."""
    names = (axis,) if isinstance(axis, str) else axis or ()
    parts = 1
    for name in names:
        parts *= mesh_shape[name]
    return axis if parts > 1 and size % parts == 0 else None
