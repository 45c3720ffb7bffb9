"""Programs whose communication, traffic and loops are known, read from their compiled text."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from adamae_jax.planning import hlo
from adamae_jax.planning.collectives import Collective, collectives, group_size
from adamae_jax.planning.traffic import memory_traffic

MESH = Mesh(
    np.asarray(jax.devices()[:8]).reshape(4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2
)


def compiled(function: Any, *arguments: tuple[tuple[int, ...], PartitionSpec]) -> hlo.Module:
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(MESH, spec))
        for shape, spec in arguments
    ]
    out = NamedSharding(MESH, PartitionSpec())
    text = jax.jit(function, out_shardings=out).lower(*shapes).compile().as_text()
    assert text is not None
    return hlo.parse(text)


def test_a_sum_over_devices_in_a_loop_counts_as_often_as_the_loop_turns() -> None:
    def sums(x: jax.Array) -> jax.Array:
        def body(total: jax.Array, part: jax.Array) -> tuple[jax.Array, None]:
            # What is summed depends on the turn before, so that no compiler can take it out.
            return jnp.tanh(total + jnp.einsum("bk,bm->km", part * total[0, 0], part)), None

        return jax.lax.scan(body, jnp.ones((6, 6)), x)[0]

    module = compiled(sums, ((5, 16, 6), PartitionSpec(None, ("data", "fsdp"))))
    (found,) = collectives(module, 8)
    assert (found.kind, found.dtype, found.group) == ("all-reduce", "f32", 8)
    assert (found.count, found.bytes) == (5, 5 * 6 * 6 * 4)
    assert found.sent == pytest.approx(2 * found.bytes * 7 / 8)


def test_a_gather_over_one_axis() -> None:
    module = compiled(lambda x: x, ((24, 10), PartitionSpec("fsdp")))
    (found,) = collectives(module, 8)
    assert (found.kind, found.group, found.count) == ("all-gather", 2, 1)
    assert found.bytes == 24 * 10 * 4
    assert found.sent == 24 * 10 * 4 / 2


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true", 4),
        ("[2,4]<=[8], to_apply=%add", 4),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, channel_id=1", 2),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", 8),
        ("mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_0'}, dimensions={0}", 2),
        ("something new", 8),
    ],
)
def test_groups_as_compilers_write_them(groups: str, size: int) -> None:
    line = f"  %a = f32[2]{{0}} all-reduce(%b), replica_groups={groups}"
    text = f"ENTRY %main (b: f32[2]) -> f32[2] {{\n  %b = f32[2]{{0}} parameter(0)\n{line}\n}}\n"
    module = hlo.parse(text)
    assert group_size(module.computations["main"].instructions["a"], 8) == size


# As TPUs write it: arrays in the chip's own memory, transfers in two halves, tuples of layouts; a
# loop that reads one slice of a stack in each of three turns.
TPU = """
HloModule jit_step, is_scheduled=true

%sliced (p0: f32[3,8,128], p1: s32[]) -> f32[8,128] {
  %p0 = f32[3,8,128]{2,1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%p0, %p1, %zero, %zero)
  ROOT %flat = f32[8,128]{1,0:T(8,128)} bitcast(%slice)
}

%body (arg: (s32[], f32[3,8,128], f32[8,128])) -> (s32[], f32[3,8,128], f32[8,128]) {
  %arg = (s32[], f32[3,8,128]{2,1,0}, /*index=2*/f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %stack = f32[3,8,128]{2,1,0:T(8,128)} get-tuple-element(%arg), index=1
  %one = s32[]{:T(128)S(1)} constant(1)
  %next = s32[]{:T(128)S(1)} add(%i, %one)
  %part = f32[8,128]{1,0:T(8,128)S(1)} fusion(%stack, %i), kind=kLoop, calls=%sliced
  %sum = f32[8,128]{1,0:T(8,128)S(1)} all-reduce(%part), replica_groups=mesh['a'=4] {'a'}
  ROOT %result = (s32[], f32[3,8,128]{2,1,0}, f32[8,128]{1,0:S(1)}) tuple(%next, %stack, %sum)
}

%condition (arg.1: (s32[], f32[3,8,128], f32[8,128])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, f32[3,8,128]{2,1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %three = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%j, %three), direction=LT
}

ENTRY %main.1_spmd (x: (s32[], f32[3,8,128], f32[8,128])) -> f32[8,128] {
  %x = (s32[], f32[3,8,128]{2,1,0}, f32[8,128]{1,0:S(1)}) parameter(0)
  %loop = (s32[], f32[3,8,128], f32[8,128]{1,0:S(1)}) while(%x), condition=%condition, body=%body
  %last = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%loop), index=2
  %begin = (f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) copy-start(%last)
  ROOT %end = f32[8,128]{1,0:T(8,128)} copy-done(%begin)
}
"""


def test_a_tpu_program() -> None:
    module = hlo.parse(TPU)
    assert module.entry == "main.1_spmd"
    array = 8 * 128 * 4
    assert collectives(module, 4) == [
        Collective("all-reduce", "f32", 3, 3 * array, 2 * 3 * array * 3 / 4, 4)
    ]
    # In each turn a slice and the counter, twice: the fusion's and the addition's; then the result.
    assert memory_traffic(module) == 3 * (array + 4 + 4) + array


KERNEL = """
ENTRY %main (q: bf16[2,3,640,64], k: bf16[2,3,640,64]) -> bf16[2,3,640,64] {
  %q = bf16[2,3,640,64]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %k = bf16[2,3,640,64]{3,2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %both = (f32[2,640,128]{2,1,0}, bf16[2,3,640,64]{3,2,1,0}, u8[4096]{0}) custom-call(%q, %k), \
custom_call_target="tpu_custom_call"
  ROOT %out = bf16[2,3,640,64]{3,2,1,0} get-tuple-element(%both), index=1
}
"""


def test_a_kernel_moves_what_it_is_given_and_gives() -> None:
    """Its queries and two results; not keys that lie on the chip, its workspace, or scores."""
    array = 2 * 3 * 640 * 64 * 2
    assert memory_traffic(hlo.parse(KERNEL)) == array + 2 * 640 * 128 * 4 + array


def test_a_slice_of_a_stack_does_not_count_as_the_whole() -> None:
    def layers(x: jax.Array, stack: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

    def traffic(depth: int) -> int:
        replicated = PartitionSpec()
        return memory_traffic(
            compiled(layers, ((2, 64), replicated), ((depth, 64, 64), replicated))
        )

    # Each layer reads its own kernel, some times in a row, whatever the depth of the stack.
    assert traffic(32) == pytest.approx(2 * traffic(16), rel=0.1)
    assert 1 <= traffic(32) / (32 * 64 * 64 * 4) <= 4
