"""Floating-point operations of a program, counted in its matrix products."""

import math
from collections.abc import Iterator
from typing import Any


def matmul_flops(jaxpr: Any) -> int:
    """Counts ``2 * M * N * K`` for every matrix product of a traced program.

    XLA's own ``cost_analysis`` counts the body of a loop once, however often it runs, which
    misses most of a model whose layers are scanned. Here a scan counts as often as its length, a
    Pallas kernel as often as its grid has steps, and what each device does for itself
    (`jax.shard_map`) on all of them. Products inside other custom kernels are not seen; of a
    conditional, the dearest branch counts, of a while loop, whose length is not known, one turn.
    What nobody uses does not count: compilers leave it out, such as the forward kernel that
    rematerialisation would compute again for results that are kept.

    Args:
      jaxpr: as `jax.make_jaxpr` or ``jax.jit(...).trace(...).jaxpr`` gives it.
    """
    total = 0
    for equation in used(getattr(jaxpr, "jaxpr", jaxpr)):
        if equation.primitive.name == "dot_general":
            total += _product_flops(equation)
            continue
        inner = [matmul_flops(part) for part in _inner_programs(equation.params)]
        if equation.primitive.name == "cond":
            total += max(inner, default=0)
        else:
            total += _times(equation) * sum(inner)
    return total


def used(jaxpr: Any) -> Iterator[Any]:
    """The equations of a program that its results or effects need, last first."""
    needed = {id(value) for value in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(id(value) in needed for value in equation.outvars):
            needed.update(id(value) for value in equation.invars)
            yield equation


def _times(equation: Any) -> int:
    """How often what is inside an equation is computed."""
    if equation.primitive.name == "pallas_call":
        return math.prod(equation.params["grid_mapping"].grid)
    if equation.primitive.name == "shard_map":
        return int(equation.params["mesh"].size)
    return int(equation.params.get("length", 1))


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
