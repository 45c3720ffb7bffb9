"""What the devices of a compiled program send to each other."""

import dataclasses
import math
import re
from collections.abc import Iterator

from adamae_jax.planning.hlo import Instruction, Module

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

# replica_groups=mesh['x'=4,'y'=2] {'x'}, and before the axes there may be an order of devices.
_MESH = re.compile(r"mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_LISTED = re.compile(r"\{\{([\d,]*)\}")  # replica_groups={{0,1},{2,3}}
_IOTA = re.compile(r"\[(\d+),(\d+)\]<=")  # replica_groups=[groups,size]<=[devices]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation between devices, or several of a kind.

    Attributes:
      kind: one of `KINDS`.
      dtype: of the values, as HLO names it.
      count: how often it happens in a step.
      bytes: of each device's arrays in a step: what is summed, or what a gather makes.
      sent: bytes that each device has to send for it, at least, in a step.
      group: devices that take part.
    """

    kind: str
    dtype: str
    count: int
    bytes: int
    sent: float
    group: int


def collectives(module: Module, devices: int) -> list[Collective]:
    """Returns what a step sends, one entry for each kind, type and group of devices.

    An operation inside a loop counts as often as the loop turns. One whose groups cannot be read is
    taken to be between all devices.

    Args:
      module: the compiled program.
      devices: how many run it.
    """
    found: dict[tuple[str, str, int], list[Collective]] = {}
    for collective in _each(module, devices):
        key = (collective.kind, collective.dtype, collective.group)
        found.setdefault(key, []).append(collective)
    return [
        Collective(
            *(kind, dtype),
            count=sum(one.count for one in ones),
            bytes=sum(one.bytes for one in ones),
            sent=sum(one.sent for one in ones),
            group=group,
        )
        for (kind, dtype, group), ones in sorted(found.items())
    ]


def _each(module: Module, devices: int) -> Iterator[Collective]:
    for computation, step, times in module.steps():
        # TPUs fuse a sum with taking one's part of it.
        for place, instruction in ((computation, step), *module.inner(step)):
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            group = group_size(instruction, devices)
            if group == 1:
                continue
            shapes = [shape for part in place.operands(instruction) for shape in part.shapes]
            for dtype in sorted({shape.dtype for shape in shapes}):
                own = sum(shape.bytes for shape in shapes if shape.dtype == dtype)
                whole = own * group if kind == "all-gather" else own
                sent = times * _sent(kind, whole, group)
                yield Collective(kind, dtype, times, times * whole, sent, group)


def _sent(kind: str, size: int, group: int) -> float:
    """Bytes that each device sends, by the best algorithms: rings, and neighbours for permutes."""
    if kind == "collective-permute":
        return size
    once = size * (group - 1) / group
    return 2 * once if kind == "all-reduce" else once


def group_size(instruction: Instruction, devices: int) -> int:
    """Returns how many devices take part in one group of an operation."""
    _, _, text = instruction.attributes.partition("replica_groups=")
    if found := _MESH.match(text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        axes = re.findall(r"'(\w+)'", found[2])
        if all(axis in sizes for axis in axes) and ":" not in found[2]:
            return math.prod(int(sizes[axis]) for axis in axes)
    elif found := _LISTED.match(text):
        return len(found[1].split(","))
    elif found := _IOTA.match(text):
        return int(found[2])
    return devices
