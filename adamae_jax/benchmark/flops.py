"""Floating-point operations of a program, counted in its matrix products."""

import math
from collections.abc import Iterator
from typing import Any


def matmul_flops(jaxpr: Any) -> int:
    """Counts ``2 * M * N * K`` for every matrix product of a traced program.

    XLA's own ``cost_analysis`` counts the body of a loop once, however often it runs, which
    misses most of a model whose layers are scanned. Here a scan counts as often as its length.
    Products inside custom kernels are not seen; of a conditional, the dearest branch counts, of a
    while loop, whose length is not known, one turn.

    Args:
      jaxpr: as `jax.make_jaxpr` or ``jax.jit(...).trace(...).jaxpr`` gives it.
    """
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "dot_general":
            total += _product_flops(equation)
            continue
        inner = [matmul_flops(part) for part in _inner_programs(equation.params)]
        if equation.primitive.name == "cond":
            total += max(inner, default=0)
        else:
            total += equation.params.get("length", 1) * sum(inner)
    return total


def _product_flops(equation: Any) -> int:
    """Two operations for each value of the result and each index summed over."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, result = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2 * math.prod(result) * math.prod(left[axis] for axis in contracted)


def _inner_programs(parameters: dict[str, Any]) -> Iterator[Any]:
    """The programs among a primitive's parameters, whatever their names."""
    for value in parameters.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if hasattr(getattr(part, "jaxpr", part), "eqns"):
                yield part
