"""How many bytes a compiled program moves between a device's memory and its chip, by one rule.

Each step of the program (an instruction that is fused into no other) reads its operands and writes
its results once, as often as it runs. Of an operand that is only sliced or gathered from, what is
taken counts; of a result that is an operand with a part replaced, that part. What lies in the
chip's own memory (a TPU's vector memory) costs nothing, and neither do steps that only name things.
A kernel that is called (a custom call, such as one of Pallas) is a step like others: what it is
given and what it gives counts, whatever it computes in between. Caches are not seen, nor what a
kernel reads more than once.
"""

from collections.abc import Iterable

from adamae_jax.planning.hlo import CONTROL_FLOW, Computation, Instruction, Module, Shape

_NAMES = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "copy-done", "slice-done"),
    *("all-reduce-done", "all-gather-done", "collective-permute-done", "async-done"),
}
_RENAMES = ("bitcast", "get-tuple-element", "reshape")
# Custom calls that move nothing.
_ALLOCATIONS = ('custom_call_target="AllocateBuffer"', 'custom_call_target="ConcatBitcast"')
_WORKSPACES = ("s8", "u8")
_SLICES = ("dynamic-slice", "slice", "gather", "slice-start")


def memory_traffic(module: Module) -> int:
    """Returns the bytes that a step of the program reads and writes on one device."""
    return sum(
        times * (read(module, computation, step) + written(module, step))
        for computation, step, times in module.steps()
        if moves(step)
    )


def moves(step: Instruction) -> bool:
    """Whether an instruction moves anything itself."""
    if step.opcode in _NAMES or step.opcode in CONTROL_FLOW:
        return False
    return not any(target in step.attributes for target in _ALLOCATIONS)


def read(module: Module, computation: Computation, step: Instruction) -> int:
    """Returns the bytes that a step reads from memory."""
    total = 0
    for index, operand in enumerate(computation.operands(step)):
        whole = _in_memory(operand.shapes)
        total += min(whole, _taken(module, step, index, whole))
    return total


def written(module: Module, step: Instruction) -> int:
    """Returns the bytes that a step writes to memory."""
    if step.opcode in ("copy-start", "slice-start", "collective-permute-start"):
        # The result, the operand and a flag, in the order of the kind: the operand is not written.
        return _in_memory(step.shapes[:1] if step.opcode == "copy-start" else step.shapes[1:2])
    if step.opcode == "fusion":
        return _written_by_fusion(module, step)
    if step.opcode == "custom-call":  # a kernel's workspace is no result
        return _in_memory(shape for shape in step.shapes if shape.dtype not in _WORKSPACES)
    return _in_memory(step.shapes)


def _in_memory(shapes: Iterable[Shape]) -> int:
    return sum(shape.bytes for shape in shapes if not shape.on_chip)


def _taken(module: Module, step: Instruction, index: int, whole: int) -> int:
    """How much of an operand a step looks at, were all of it in memory."""
    if step.opcode in _SLICES and index == 0:
        taken = step.shapes[1:2] if step.opcode == "slice-start" else step.shapes
        return sum(shape.bytes for shape in taken)
    if step.opcode == "dynamic-update-slice" and index == 0:
        return 0
    if step.opcode != "fusion":
        return whole
    fused = module.computations[dict(step.called)["calls"]]
    return _taken_of(module, fused, fused.parameter(index).name, whole)


def _taken_of(module: Module, fused: Computation, name: str, whole: int) -> int:
    """How much of a value inside a fusion its users look at."""
    total = 0
    for user in fused.users(name):
        if user.opcode in _RENAMES:
            total += _taken_of(module, fused, user.name, whole)
            continue
        total += max(
            _taken(module, user, index, whole)
            for index, operand in enumerate(user.operands)
            if operand == name
        )
    return min(total, whole)


def _written_by_fusion(module: Module, step: Instruction) -> int:
    fused = module.computations[dict(step.called)["calls"]]
    root = fused.instructions[fused.root]
    parts = fused.operands(root) if root.opcode == "tuple" else (root,)
    if len(parts) != len(step.shapes):
        return _in_memory(step.shapes)
    return sum(
        0 if shape.on_chip else min(shape.bytes, _replaced(module, fused, part))
        for part, shape in zip(parts, step.shapes, strict=True)
    )


def _replaced(module: Module, fused: Computation, part: Instruction) -> int:
    """How much of a fusion's result is new: all, or the part that is put into an operand."""
    while part.opcode in _RENAMES and part.opcode != "get-tuple-element":
        (part,) = fused.operands(part)
    if part.opcode == "fusion" and len(part.shapes) == 1:
        inner = module.computations[dict(part.called)["calls"]]
        return _replaced(module, inner, inner.instructions[inner.root])
    if part.opcode == "dynamic-update-slice":
        return sum(shape.bytes for shape in fused.operands(part)[1].shapes)
    return sum(shape.bytes for shape in part.shapes)
