"""The device mesh and where arrays lie on it, on eight virtual devices."""

import functools
import re
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from adamae_jax.errors import UserError
from adamae_jax.fields import MESH_RULES
from adamae_jax.training import partitioning
from adamae_jax.training.partitioning import (
    batch_shard,
    batch_sharding,
    bytes_per_device,
    check_batch,
    create_mesh,
    put_batch,
    replicated,
    state_sharding,
)


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({"data": -1}, (8, 1, 1)),
        ({"data": -1, "tensor": 2}, (4, 1, 2)),
        ({"data": 2, "fsdp": -1}, (2, 4, 1)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
    ],
)
def test_devices_are_arranged_along_the_axes(
    sizes: dict[str, int], shape: tuple[int, int, int]
) -> None:
    mesh = create_mesh(sizes)
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), shape, strict=True))
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert mesh.devices.ravel().tolist() == jax.devices()


def test_chosen_devices_are_used_alone() -> None:
    mesh = create_mesh({"data": -1}, jax.devices()[2:4])
    assert mesh.devices.ravel().tolist() == jax.devices()[2:4]


@pytest.mark.parametrize(
    "sizes",
    [{"data": 3}, {"data": -1, "fsdp": 3}, {"data": -1, "fsdp": -1}, {"data": 0}, {"data": -8}],
)
def test_sizes_that_do_not_fit_the_devices_are_named(sizes: dict[str, int]) -> None:
    with pytest.raises(UserError, match="does not fit 8 device") as caught:
        create_mesh(sizes)
    assert str(sizes) in str(caught.value)


def test_an_unknown_axis_is_named() -> None:
    with pytest.raises(UserError, match=r"mesh\.model is unknown: the axes are data, fsdp, tensor"):
        create_mesh({"data": 4, "model": 2})


def test_batches_lie_along_data_and_fsdp() -> None:
    mesh = create_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    assert batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))
    assert replicated(mesh).spec == PartitionSpec()
    batch = put_batch({"a": np.arange(16).reshape(8, 2), "text": np.array([b"x"] * 8)}, mesh)
    assert set(batch) == {"a"}
    parts = {shard.device.id: shard.data.tolist() for shard in batch["a"].addressable_shards}
    assert parts[0] == parts[1] == [[0, 1], [2, 3]]
    assert parts[6] == parts[7] == [[12, 13], [14, 15]]


def test_batches_must_divide_over_devices_and_microbatches() -> None:
    mesh = create_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    check_batch("batch_size", 8, mesh)
    check_batch("batch_size", 8, mesh, accumulation=2)
    with pytest.raises(UserError, match=r"batch_size 10 .* 4 device.* use a multiple of 4"):
        check_batch("batch_size", 10, mesh)
    with pytest.raises(UserError, match=r"eval.batch_size 8 .* 4 microbatch.* multiple of 16"):
        check_batch("eval.batch_size", 8, mesh, accumulation=4)


@pytest.mark.parametrize(
    ("sizes", "own", "expected"),
    [
        ({"data": 8}, (4, 5, 6, 7), (1, 2)),  # two hosts
        ({"data": 2, "fsdp": 4}, (6, 7), (3, 4)),  # four hosts
        ({"data": 2, "tensor": 4}, (2, 3), (0, 2)),  # four hosts: two of them share each part
        ({"tensor": 8}, (4, 5, 6, 7), (0, 1)),  # both hosts read everything
        ({"data": 4, "tensor": 2}, (2, 5), None),  # a host whose devices are no block
    ],
)
def test_a_process_reads_what_lies_on_its_devices(
    monkeypatch: pytest.MonkeyPatch,
    sizes: dict[str, int],
    own: tuple[int, ...],
    expected: tuple[int, int] | None,
) -> None:
    mesh = create_mesh(sizes)

    def indices(shape: Any) -> Any:
        everywhere: Any = batch_sharding(mesh).devices_indices_map(shape)
        return {device: rows for device, rows in everywhere.items() if device.id in own}

    sharding = SimpleNamespace(addressable_devices_indices_map=indices)
    monkeypatch.setattr(partitioning, "batch_sharding", lambda mesh: sharding)
    if expected is not None:
        assert batch_shard(mesh) == expected
        return
    with pytest.raises(UserError, match="no block of their own"):
        batch_shard(mesh)


STATE = {
    "params": {
        "blocks": {
            "attention": {
                "qkv_kernel": jnp.zeros((6, 16, 3, 4, 4)),
                "projection": {"kernel": jnp.zeros((6, 16, 16)), "bias": jnp.zeros((6, 16))},
            },
            "mlp": {"fc1": {"kernel": jnp.zeros((6, 16, 64)), "bias": jnp.zeros((6, 64))}},
        },
        "head": {"kernel": jnp.zeros((16, 10))},
        "odd": {"kernel": jnp.zeros((7, 10))},
        "norm": {"scale": jnp.zeros(16)},
    },
    "step": jnp.zeros((), jnp.int32),
}


def test_one_table_says_where_parameters_lie() -> None:
    mesh = create_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    tree = {**STATE, "opt_state": {"mu": STATE["params"]}}
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(sharding.spec)
        for path, sharding in jax.tree_util.tree_leaves_with_path(
            state_sharding(tree, mesh, MESH_RULES)
        )
    }
    attention, mlp = "params/blocks/attention/", "params/blocks/mlp/"
    # The stacked layers, which come first, are never split.
    assert found[f"{attention}qkv_kernel"] == (None, "fsdp", None, "tensor", None)
    assert found[f"{attention}projection/kernel"] == (None, "tensor", "fsdp")
    assert found[f"{mlp}fc1/kernel"] == (None, "fsdp", "tensor")
    assert found[f"{mlp}fc1/bias"] == (None, "tensor")
    assert found["params/head/kernel"] == ("fsdp", None)
    assert found["params/odd/kernel"] == (None, None)  # 7 rows cannot be halved
    assert found["params/norm/scale"] == found["step"] == ()
    for name, spec in found.items():
        if name.startswith("params/"):
            assert found[name.replace("params/", "opt_state/mu/")] == spec


def test_what_a_device_holds_is_measured() -> None:
    tree = {"kernel": jnp.zeros((16, 64)), "scale": jnp.zeros(16)}
    for sizes, rows in (({"data": 8}, 16), ({"fsdp": 8}, 2), ({"data": 4, "fsdp": 2}, 8)):
        mesh = create_mesh(sizes)
        shardings = state_sharding(tree, mesh, MESH_RULES)
        placed = jax.device_put(tree, shardings)
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed))
        assert bytes_per_device(tree, shardings) == held == 4 * (64 * rows + 16)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("[ fsdp", ["no regular expression"]),
        ("kernel$", ["after the pattern come the axes"]),
        ("kernel$ model .", ["after the pattern come the axes", "data, fsdp, tensor"]),
        ("scale$ . fsdp", ["2 dimensions to params/norm/scale", "(16,)"]),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rule: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        state_sharding(STATE, create_mesh({"fsdp": 8}), (rule,))
    assert all(re.search(re.escape(word), str(caught.value)) for word in (*words, "mesh_rules"))


def test_arrays_come_back_whole() -> None:
    mesh = create_mesh({"data": 2, "fsdp": 4})
    tree = {"kernel": jnp.arange(64.0).reshape(16, 4), "scale": jnp.ones(3)}
    shardings = state_sharding(tree, mesh, MESH_RULES)
    placed = jax.jit(functools.partial(jax.tree.map, jnp.copy), out_shardings=shardings)(tree)
    jax.tree.map(np.testing.assert_array_equal, partitioning.to_host(placed), tree)
