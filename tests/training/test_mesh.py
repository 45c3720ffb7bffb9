"""The device mesh, on eight virtual devices."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from adamae_jax.errors import UserError
from adamae_jax.training.mesh import batch_sharding, check_batch, create_mesh, replicated


def test_eight_devices_are_there() -> None:
    assert len(jax.devices()) == 8


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ({"data": -1}, {"data": 8}),
        ({"data": 8}, {"data": 8}),
        ({"data": -1, "model": 2}, {"data": 4, "model": 2}),
        ({"replica": 2, "data": -1, "model": 1}, {"replica": 2, "data": 4, "model": 1}),
    ],
)
def test_devices_are_arranged_along_the_axes(axes: dict[str, int], shape: dict[str, int]) -> None:
    mesh = create_mesh(axes)
    assert dict(mesh.shape) == shape
    assert mesh.axis_types == (AxisType.Auto,) * len(shape)
    assert mesh.devices.ravel().tolist() == jax.devices()


def test_chosen_devices_are_used_alone() -> None:
    mesh = create_mesh({"data": -1}, jax.devices()[2:4])
    assert mesh.devices.tolist() == jax.devices()[2:4]


@pytest.mark.parametrize(
    "axes",
    [
        {"data": 3},
        {"data": 16},
        {"data": -1, "model": 3},
        {"data": -1, "model": -1},
        {"data": 0},
        {"data": -8},
        {"data": -1, "model": 0},
        {"data": -2, "model": -4},
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_named(axes: dict[str, int]) -> None:
    with pytest.raises(UserError, match="does not fit 8 device") as caught:
        create_mesh(axes)
    assert str(axes) in str(caught.value)


def test_the_data_axis_is_needed() -> None:
    with pytest.raises(UserError, match="has no axis 'data'"):
        create_mesh({"model": 8})


def test_batches_lie_along_the_data_axis() -> None:
    mesh = create_mesh({"data": 4, "model": 2})
    assert batch_sharding(mesh).spec == PartitionSpec("data")
    assert replicated(mesh).spec == PartitionSpec()
    batch = jax.device_put(np.arange(16).reshape(8, 2), batch_sharding(mesh))
    parts = {shard.device.id: shard.data.tolist() for shard in batch.addressable_shards}
    assert parts[0] == parts[1] == [[0, 1], [2, 3]]
    assert parts[7] == [[12, 13], [14, 15]]


def test_batches_must_divide_over_devices_and_microbatches() -> None:
    mesh = create_mesh({"data": 4, "model": 2})
    check_batch("batch_size", 8, mesh)
    check_batch("batch_size", 8, mesh, accumulation=2)
    with pytest.raises(UserError, match=r"batch_size 10 .* 4 device.* use a multiple of 4"):
        check_batch("batch_size", 10, mesh)
    with pytest.raises(UserError, match=r"eval.batch_size 8 .* 4 microbatch.* multiple of 16"):
        check_batch("eval.batch_size", 8, mesh, accumulation=4)
