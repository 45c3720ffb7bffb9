"""Whose weights a model holds, and under which licence: never assumed, never lost on the way."""

import json
from pathlib import Path

from adamae_jax import config as configs
from adamae_jax import masking
from adamae_jax.errors import UserError
from adamae_jax.masking import MaskingStrategy
from adamae_jax.training import rundir


def together(own: str, other: str) -> str:
    """The licence of a model that holds weights of two; "" where none is known."""
    if not own or not other or own == other:
        return own or other
    return f"{own} and {other}"


def inherited(strategy: MaskingStrategy) -> str:
    """The licence of what a strategy holds frozen; "" where it holds nothing, or none is known.

    A run goes on with the frozen weights in its checkpoints after the directory that they came from
    is gone or damaged: then it is said that they are somebody's.
    """
    source = strategy.frozen_source()
    return of(Path(source)) if source else ""


def of(directory: Path) -> str:
    """The licence of the weights in a run or a model directory; "" where none is known."""
    try:
        for place in (directory, directory / rundir.MODEL):
            if (place / rundir.MODEL_JSON).is_file():
                return str(json.loads((place / rundir.MODEL_JSON).read_text())["license"])
        fields = configs.from_json((directory / rundir.CONFIG).read_text()).masking
        return inherited(masking.create(fields.name, fields.mask_ratio, dict(fields.options)))
    except (OSError, ValueError, LookupError, TypeError, UserError):
        return f"unknown (weights of {directory})"
