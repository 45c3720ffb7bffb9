"""The type checker that the tests hang on every function of the package."""

from collections.abc import Callable
from typing import Any

import beartype

# Where a float is asked for, an integer will do, as mypy has it.
_CHECK = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def functions(function: Callable[..., Any]) -> Callable[..., Any]:
    """Checks functions and methods, but not what a dataclass is made of.

    JAX rebuilds pytrees from whatever it likes (shapes, shardings, plain objects), which is no
    mistake; where the arrays of one go into a function, they are checked there.
    """
    if getattr(function, "__name__", "") == "__init__":
        return function
    return _CHECK(function)
