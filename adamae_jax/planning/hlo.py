"""Reads a compiled program's text: its computations, and how often each of them runs.

The text is that of XLA's HLO after optimisation, ``compiled.as_text()``: the program of one device.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

# Computations whose instructions are steps of the program; what a fusion calls is inside one step.
CONTROL_FLOW = ("while", "conditional", "call", "async-start")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^ +(ROOT )?%?([\w.\-]+) = ")
_LEAF = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(condition|body|calls|to_apply|branch_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"^(\d+)$")


class Shape(NamedTuple):
    """An array in the program.

    Attributes:
      dtype: as HLO names it, such as ``bf16``.
      dimensions: its sizes.
      on_chip: whether it lies in the chip's own memory rather than in the large one.
    """

    dtype: str
    dimensions: tuple[int, ...]
    on_chip: bool

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.dimensions)

    @property
    def bytes(self) -> int:
        """Without what a layout's tiles fill up."""
        return self.size * bits(self.dtype) // 8


def bits(dtype: str) -> int:
    """Returns how many bits a value of an HLO type has; 0 for tokens."""
    if dtype == "pred":
        return 8
    found = re.match(r"[a-z]+(\d+)", dtype)
    return int(found[1]) if found else 0


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name: of its result.
      shapes: the arrays of the result: several of a tuple, in order.
      opcode: what it does.
      operands: names.
      literal: what stands between the parentheses where there are no operands.
      attributes: the rest of the line.
      called: computations that it calls, each with the role that it has.
    """

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    literal: str
    attributes: str
    called: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of the program.

    Attributes:
      name: of it.
      instructions: by name, in order.
      root: the name of the instruction whose result it returns.
    """

    name: str
    instructions: Mapping[str, Instruction]
    root: str

    def operands(self, instruction: Instruction) -> tuple[Instruction, ...]:
        """The instructions that give an instruction's operands."""
        return tuple(self.instructions[name] for name in instruction.operands)

    def users(self, name: str) -> Iterator[Instruction]:
        """The instructions that an instruction's result goes into."""
        return (user for user in self.instructions.values() if name in user.operands)

    def parameter(self, index: int) -> Instruction:
        """The instruction that stands for an argument."""
        return next(
            found
            for found in self.instructions.values()
            if found.opcode == "parameter" and found.literal == str(index)
        )


@dataclasses.dataclass(frozen=True)
class Module:
    """A whole program.

    Attributes:
      computations: by name.
      entry: the name of the one that is run.
    """

    computations: Mapping[str, Computation]
    entry: str

    def steps(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """Yields each instruction that is a step of its own, and how often it is run.

        A loop whose length the program does not tell counts as one turn, and of a conditional all
        branches are counted.
        """
        yield from self._run(self.entry, 1)

    def _run(self, name: str, times: int) -> Iterator[tuple[Computation, Instruction, int]]:
        computation = self.computations[name]
        for instruction in computation.instructions.values():
            yield computation, instruction, times
            if instruction.opcode not in CONTROL_FLOW:
                continue
            turns = times * self.turns(instruction)
            for role, called in instruction.called:
                if role != "condition":
                    yield from self._run(called, turns)

    def turns(self, instruction: Instruction) -> int:
        """Returns how often a loop's body runs; 1 for what is no loop."""
        if instruction.opcode != "while":
            return 1
        known = _TRIPS.search(instruction.attributes)
        if known:
            return int(known[1])
        # A scan's counter goes from 0 to a constant: the only one of its condition.
        condition = self.computations[dict(instruction.called)["condition"]]
        limits = {
            int(found.literal)
            for found in self._inside(condition)
            if found.opcode == "constant" and _CONSTANT.match(found.literal)
        }
        return limits.pop() if len(limits) == 1 else 1

    def _inside(self, computation: Computation) -> Iterator[Instruction]:
        for instruction in computation.instructions.values():
            yield instruction
            for _, called in instruction.called:
                yield from self._inside(self.computations[called])

    def inner(self, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
        """Yields what is fused into an instruction, at any depth."""
        for role, called in instruction.called:
            if role != "calls":
                continue
            computation = self.computations[called]
            for part in computation.instructions.values():
                yield computation, part
                yield from self.inner(part)


def parse(text: str) -> Module:
    """Reads the text of a compiled program."""
    computations: dict[str, Computation] = {}
    entry = name = root = ""
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        if heading := _COMPUTATION.match(line):
            name, root, instructions = heading[2], "", {}
            entry = name if heading[1] else entry
        elif line == "}":
            computations[name] = Computation(name, instructions, root)
        elif begin := _INSTRUCTION.match(line):
            found = _instruction(begin[2], line[begin.end() :])
            instructions[found.name] = found
            root = found.name if begin[1] else root
    return Module(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
    """Reads what stands behind the equals sign: shape, opcode, operands, attributes."""
    end = _closing(text) if text.startswith("(") else text.index(" ")
    shapes, rest = text[:end], text[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    rest = rest[len(opcode) :]
    end = _closing(rest)
    arguments, attributes = rest[1 : end - 1], rest[end:]
    called = tuple(
        (role, part) for role, names in _CALLED.findall(attributes) for part in _NAME.findall(names)
    )
    operands = tuple(_NAME.findall(arguments)) if opcode not in ("constant", "parameter") else ()
    return Instruction(name, shapes_in(shapes), opcode, operands, arguments, attributes, called)


def shapes_in(text: str) -> tuple[Shape, ...]:
    """Returns the arrays that a type's text names."""
    return tuple(
        Shape(
            dtype,
            tuple(int(size) for size in sizes.split(",") if size),
            (space := _SPACE.search(layout)) is not None and space[1] == "1",
        )
        for dtype, sizes, layout in _LEAF.findall(text)
    )


def _closing(text: str) -> int:
    """Returns the position behind the parenthesis that closes the first one."""
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == ")" and depth == 0:
            return position + 1
    raise ValueError(f"no closing parenthesis in {text[:200]!r}")
