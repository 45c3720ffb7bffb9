"""One field of the config: its default, its meaning, and the values that it may have."""

import dataclasses
import math
from typing import Any

from adamae_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of the config.

    The type of a value is that of the default. Whole numbers stay whole, and all numbers are
    finite. A tuple of numbers has as many as its default, unless it is open.

    Attributes:
      default: the value in `adamae_jax.config.default_config`.
      meaning: what it does, with its unit.
      choices: the only values, or parts of a tuple, where there are few.
      lowest: the least value, or the least of each number in a tuple.
      highest: the greatest value, likewise.
      above: like ``lowest``, without the bound itself.
      below: like ``highest``, without the bound itself.
      single: whether one number may stand for all of a tuple.
      open: whether a tuple has any number of parts, at least one, no two alike.
      mutable: whether a resumed run may change it: it says how a run is carried out, not what the
        run computes, or how long it goes on.
      model: whether ``model.json`` keeps it: it says what the model is or which clips it was
        trained on.
      classifier: whether it says something of classifiers alone; pretraining refuses it.
      probe: whether it says something of probes alone; pretraining and fine-tuning refuse it.
    """

    default: Any
    meaning: str
    _: dataclasses.KW_ONLY
    choices: tuple[str, ...] = ()
    lowest: float = -math.inf
    highest: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    single: bool = False
    open: bool = False
    mutable: bool = False
    model: bool = False
    classifier: bool = False
    probe: bool = False

    @property
    def expected(self) -> str:
        """The values that it may have, in words."""
        if self.choices:
            amount = "one or more" if self.open else "one"
            return f"{amount} of {', '.join(map(repr, self.choices))}"
        default, amount = self.default, ""
        if isinstance(default, tuple):
            amount = "different " if self.open else f"{'1 or ' * self.single}{len(default)} "
            default = default[0]
        if isinstance(default, bool):
            return "True or False"
        if isinstance(default, str):
            return "a list of texts" if amount else "a text"
        kind = "whole number" if isinstance(default, int) else "finite number"
        bounds = (
            ("at least", self.lowest),
            ("above", self.above),
            ("at most", self.highest),
            ("below", self.below),
        )
        listed = " and ".join(f"{word} {bound}" for word, bound in bounds if math.isfinite(bound))
        return f"{amount or 'a '}{kind}{'s' * bool(amount)}{', ' * bool(listed)}{listed}"

    def check(self, name: str, value: Any) -> None:
        """Raises a `UserError` where the field, called ``name``, may not have this value."""
        if not self._accepts(value):
            raise UserError(f"{name} is {value!r}: it must be {self.expected}")

    def _accepts(self, value: Any) -> bool:
        if self.open:
            return (
                isinstance(value, tuple | list)
                and all(self._accepts_one(part, self.default[0]) for part in value)
                and 0 < len(value) == len(set(value))
            )
        if self.choices:
            return value in self.choices
        if not isinstance(self.default, tuple):
            return self._accepts_one(value, self.default)
        if not isinstance(value, tuple | list):
            return False
        is_text = isinstance(self.default[0], str)
        fits = is_text or len(value) == len(self.default) or (self.single and len(value) == 1)
        return fits and all(self._accepts_one(part, self.default[0]) for part in value)

    def _accepts_one(self, value: Any, like: Any) -> bool:
        if isinstance(like, bool | str):
            return isinstance(value, type(like)) and (not self.choices or value in self.choices)
        return (
            isinstance(value, int if isinstance(like, int) else int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and self.lowest <= value <= self.highest
            and self.above < value < self.below
        )
