"""Whose weights a model holds, and under which licence: never assumed, never lost on the way."""

import contextlib
import functools
from typing import Any, Protocol

from adamae_jax import config as configs
from adamae_jax import masking, plain_json
from adamae_jax.errors import UserError
from adamae_jax.masking import MaskingStrategy
from adamae_jax.training import files, rundir
from adamae_jax.training.files import AnyPath

UNKNOWN = "unknown"
RECORD = "license"  # in the metadata of a run's checkpoints


def together(one: str, other: str) -> str:
    """The licence of a model that holds other people's weights of two; "" where none is known.

    What is known of one says nothing of the other: that stays unknown.
    """
    if one == other:
        return one
    return f"{one or UNKNOWN} and {other or UNKNOWN}"


class Weights(Protocol):
    """Weights that come from elsewhere, with their licence; none where ``variables`` is empty."""

    @property
    def variables(self) -> Any:
        """The arrays."""

    @property
    def license(self) -> str:
        """Of the arrays; "" where none is known."""


def of_parts(*parts: Weights) -> str:
    """The licence of a model that begins with these; those that hold nothing do not count."""
    known = [part.license for part in parts if part.variables]
    return functools.reduce(together, known) if known else ""


def inherited(strategy: MaskingStrategy) -> str:
    """The licence of what a strategy holds frozen; "" where it holds nothing, or none is known.

    Where the directory that it came from is gone or damaged, it is said that it is somebody's.
    """
    source = strategy.frozen_source()
    return of(files.at(source)) if source else ""


def of(directory: AnyPath) -> str:
    """The licence of the weights in a run or a model directory; "" where none is known.

    A run keeps it from when it read the weights, for its checkpoints have them however the
    directory that they came from changes. Before the first checkpoint that directory is asked.
    """
    try:
        for place in (directory, directory / rundir.MODEL):
            if (place / rundir.MODEL_JSON).is_file():
                return _text(plain_json.parse(files.read(place / rundir.MODEL_JSON))["license"])
        recorded = _recorded(directory / rundir.CHECKPOINTS)
        if recorded is not None:
            return recorded
        config = configs.from_json(files.read(directory / rundir.CONFIG).decode())
        if config.init_from:
            return f"{UNKNOWN} (weights of {config.init_from})"
        fields = config.masking
        return inherited(masking.create(fields.name, fields.mask_ratio, dict(fields.options)))
    except (OSError, ValueError, LookupError, TypeError, UserError):
        return f"{UNKNOWN} (weights of {directory})"


def _recorded(checkpoints: AnyPath) -> str | None:
    """What the newest readable checkpoint of a run says; None where none says anything."""
    from adamae_jax.training import checkpoint_files  # orbax is slow to import

    for step in reversed(checkpoint_files.checkpoint_steps(checkpoints)):
        # One that is damaged is passed over, as when the arrays are restored.
        with contextlib.suppress(UserError):
            metadata = checkpoint_files.read_metadata(checkpoints, step)
            if RECORD in metadata:
                return _text(metadata[RECORD])
    return None


def _text(license: object) -> str:
    if not isinstance(license, str):
        raise TypeError(f"the license is {license!r}")
    return license
