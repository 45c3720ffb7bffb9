"""Tables of weight names and layouts: our arrays beside the authors', exact both ways.

A `Table` is a list of `Entry`: one of our arrays, and one of theirs or, for the stacked blocks, one
for each layer. Every array is accounted for in both directions.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import einops
import numpy as np
from flax import traverse_util

from adamae_jax.errors import UserError
from adamae_jax.models.tubelets import ClipGeometry

Rearrange = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A pair of exact, inverse rearrangements of one array.

    Attributes:
      to_ours: from the PyTorch array to ours.
      to_theirs: the inverse.
    """

    to_ours: Rearrange
    to_theirs: Rearrange


SAME = Layout(lambda a: a, lambda a: a)
LINEAR = Layout(lambda a: a.T, lambda a: a.T)


def leading_ones(count: int) -> Layout:
    """``[1, ..., 1, *]`` against ``[*]``."""
    ones = (1,) * count

    def strip(array: np.ndarray) -> np.ndarray:
        return array.reshape(array.shape[count:])

    return Layout(strip, lambda a: a.reshape(ones + a.shape))


def qkv(num_heads: int) -> Layout:
    """A fused linear layer ``[3 d, d]`` against ``[d, 3, heads, head_dim]``."""
    return Layout(
        lambda a: einops.rearrange(a, "(c h k) d -> d c h k", c=3, h=num_heads),
        lambda a: einops.rearrange(a, "d c h k -> (c h k) d"),
    )


def head_bias(count: int, num_heads: int) -> Layout:
    """Biases of so many projections ``[count d]`` against ``[count, heads, head_dim]``."""
    return Layout(
        lambda a: einops.rearrange(a, "(c h k) -> c h k", c=count, h=num_heads),
        lambda a: einops.rearrange(a, "c h k -> (c h k)"),
    )


def tubelet_convolution(geometry: ClipGeometry, flat: bool = False) -> Layout:
    """A 3-D convolution ``[d, C, t, p, p]`` against a dense kernel ``[t p p C, d]``.

    Args:
      geometry: gives the sizes.
      flat: theirs is the 2-D convolution ``[d, C, p, p]`` of images.
    """
    sizes = {"t": geometry.tubelet_size, "p": geometry.patch_size, "q": geometry.patch_size}
    theirs = "d c p q" if flat else "d c t p q"
    if flat:
        del sizes["t"]
    ours = "(p q c) d" if flat else "(t p q c) d"
    return Layout(
        lambda a: einops.rearrange(a, f"{theirs} -> {ours}", **sizes),
        lambda a: einops.rearrange(a, f"{ours} -> {theirs}", **sizes, c=geometry.channels),
    )


CONVOLUTION = Layout(  # [outputs, inputs, height, width] against [height, width, inputs, outputs]
    lambda a: einops.rearrange(a, "o i h w -> h w i o"),
    lambda a: einops.rearrange(a, "h w i o -> o i h w"),
)


def flat_convolution_input(size: int) -> Layout:
    """A vector over a kernel's inputs, ``[i h w]`` against ``[h, w, i]``."""
    return Layout(
        lambda a: einops.rearrange(a, "(i h w) -> h w i", h=size, w=size),
        lambda a: einops.rearrange(a, "h w i -> (i h w)"),
    )


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of our arrays, and theirs.

    Attributes:
      ours: path of our array, joined with "/".
      theirs: name of theirs, in which ``{}`` stands for the layer where ours is stacked; several
        names where ours, rearranged, is their concatenation along the first axis.
      layout: how the two are rearranged, without the layer axis.
      depth: number of layers; 0 where ours is not stacked.
    """

    ours: str
    theirs: str | tuple[str, ...]
    layout: Layout = SAME
    depth: int = 0

    @property
    def parts(self) -> tuple[str, ...]:
        """Their names for one layer, with the ``{}``."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    @property
    def names(self) -> list[str]:
        """All of their names."""
        layers = range(self.depth) if self.depth else range(1)
        return [part.format(layer) for layer in layers for part in self.parts]

    def to_ours(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns our array, made of theirs.

        Raises:
          ValueError: where an array does not have the shape that it should have.
        """
        whole = isinstance(self.theirs, str)
        layers = []
        for layer in range(self.depth or 1):
            parts = [np.asarray(state[part.format(layer)]) for part in self.parts]
            if any(part.shape != parts[0].shape for part in parts):
                raise ValueError("the parts of one array have different shapes")
            array = parts[0] if whole else np.concatenate(parts)
            layers.append(np.ascontiguousarray(self.layout.to_ours(array)))
        return np.stack(layers) if self.depth else layers[0]

    def to_theirs(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """Returns their arrays, made of ours."""
        state = {}
        for layer, single in enumerate(array if self.depth else [array]):
            theirs = self.layout.to_theirs(single)
            pieces = np.split(theirs, len(self.parts)) if len(self.parts) > 1 else [theirs]
            for part, piece in zip(self.parts, pieces, strict=True):
                state[part.format(layer)] = np.ascontiguousarray(piece)
        return state


@dataclasses.dataclass(frozen=True)
class Constant:
    """An array of theirs that is no parameter: the same in every model of its size.

    Attributes:
      theirs: its name.
      value: what it must be.
    """

    theirs: str
    value: np.ndarray

    def complaints(self, state: Mapping[str, np.ndarray]) -> list[str]:
        """Returns what is wrong with it in a state dict that has it."""
        if self.theirs not in state:
            return []  # the table lists all that is missing
        found = np.shape(state[self.theirs])
        if found != self.value.shape:
            return [f"misshapen {self.theirs} {found}, expected {self.value.shape}"]
        # Equal up to the rounding of another library's sine.
        if not np.allclose(state[self.theirs], self.value, atol=1e-5):
            return [f"{self.theirs} is not the fixed table that it should be"]
        return []


@dataclasses.dataclass(frozen=True)
class Table:
    """All arrays of a model.

    Attributes:
      entries: parameters.
      constants: arrays of theirs that are no parameters.
    """

    entries: Sequence[Entry]
    constants: Sequence[Constant] = ()

    def __add__(self, other: "Table") -> "Table":
        return Table([*self.entries, *other.entries], [*self.constants, *other.constants])

    def under(self, ours: str, theirs: str = "") -> "Table":
        """Returns the table with a path in front of our names and a prefix in front of theirs."""

        def moved(entry: Entry) -> Entry:
            names = tuple(theirs + part for part in entry.parts)
            renamed = names[0] if isinstance(entry.theirs, str) else names
            return dataclasses.replace(entry, ours=f"{ours}/{entry.ours}", theirs=renamed)

        return Table(
            [moved(entry) for entry in self.entries],
            [Constant(theirs + row.theirs, row.value) for row in self.constants],
        )

    @property
    def names(self) -> list[str]:
        """All of their names."""
        rows = [name for entry in self.entries for name in entry.names]
        return rows + [row.theirs for row in self.constants]

    def from_authors(
        self, state: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]] | None = None
    ) -> dict[str, Any]:
        """Returns our tree of arrays, made of the authors' state dict.

        Args:
          state: their arrays.
          shapes: expected shapes of our arrays by path; None: they are not compared.

        Raises:
          UserError: listing the arrays that are missing, left over or misshapen.
        """
        complaints = self._missing_and_unused(state)
        flat: dict[str, np.ndarray] = {}
        for entry in self.entries:
            if not set(entry.names) <= set(state):
                continue
            try:
                flat[entry.ours] = entry.to_ours(state)
            except (ValueError, einops.EinopsError):
                sizes = ", ".join(f"{name} {np.shape(state[name])}" for name in entry.names[:3])
                complaints.append(f"misshapen {sizes}")
                continue
            if shapes is not None and flat[entry.ours].shape != tuple(shapes[entry.ours]):
                complaints.append(
                    f"misshapen {', '.join(entry.names[:3])} (as {entry.ours}: "
                    f"{flat[entry.ours].shape}, expected {tuple(shapes[entry.ours])})"
                )
        complaints += [complaint for row in self.constants for complaint in row.complaints(state)]
        if complaints:
            raise UserError("the weights do not fit the model: " + "; ".join(complaints))
        return traverse_util.unflatten_dict(flat, sep="/")

    def _missing_and_unused(self, state: Mapping[str, np.ndarray]) -> list[str]:
        expected = set(self.names)
        missing, unused = sorted(expected - set(state)), sorted(set(state) - expected)
        if not missing and not unused:
            return []
        return [f"missing {', '.join(missing) or 'none'}; not used {', '.join(unused) or 'none'}"]

    def to_authors(self, tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Returns the authors' state dict, made of our tree of arrays.

        Raises:
          UserError: listing the arrays that are missing or left over.
        """
        state = self.gradients_to_authors(tree)
        return state | {row.theirs: row.value.copy() for row in self.constants}

    def gradients_to_authors(self, tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Returns the same as `to_authors`, without the arrays that are no parameters."""
        flat = traverse_util.flatten_dict(tree, sep="/")
        expected = {entry.ours for entry in self.entries}
        if expected != set(flat):
            raise UserError(
                "the parameters do not fit their names: "
                f"missing {', '.join(sorted(expected - set(flat))) or 'none'}; "
                f"not used {', '.join(sorted(set(flat) - expected)) or 'none'}"
            )
        state: dict[str, np.ndarray] = {}
        for entry in self.entries:
            state |= entry.to_theirs(np.asarray(flat[entry.ours]))
        return state
