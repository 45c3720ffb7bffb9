"""A pytree of arrays as a flat dictionary: names, shapes and types that can be stored and compared.

The names do not depend on the classes of the containers: an attribute, a dictionary key and a
position are all one part of a path, ``opt_state/autoencoder/0/mu/encoder/kernel``.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

PyTree = Any


def flatten(tree: PyTree) -> dict[str, Any]:
    """Names every leaf of a pytree by its path, ``params/encoder/kernel``, in the tree's order.

    Raises:
      TypeError: A leaf is not a plain array (nor a `jax.ShapeDtypeStruct`).
      ValueError: A dictionary key contains a slash, or the tree is a single leaf.
    """
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not path or name.count("/") != len(path) - 1:
            raise ValueError(f"cannot name the leaf {name!r}: keys must not be empty or contain /")
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
            raise TypeError(f"{name} is a {type(leaf).__name__}, expected an array")
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise TypeError(f"{name} is a {leaf.dtype}: keep jax.random.key_data of it instead")
        named[name] = leaf
    return named


def describe(array: Any) -> list[Any]:
    """The type and shape of an array, JSON-valid: ``["float32", [2, 3]]``."""
    return [str(np.dtype(array.dtype)), list(array.shape)]


def differences(there: Mapping[str, list[Any]], here: Mapping[str, list[Any]]) -> list[str]:
    """Says in which names, shapes and types two dictionaries of `describe` differ.

    Returns:
      One phrase for each array that differs, those of ``here`` first; empty where all agree.
    """
    names = [*here, *(name for name in there if name not in here)]
    return [
        f"{name} is {_readable(there.get(name))} there, {_readable(here.get(name))} here"
        for name in names
        if there.get(name) != here.get(name)
    ]


def _readable(description: list[Any] | None) -> str:
    if description is None:
        return "absent"
    dtype, shape = description
    return f"{dtype}[{','.join(map(str, shape))}]"
