"""Reads what the authors' own code computed, and judges how near ours comes to it."""

import json
from collections.abc import Callable
from typing import Any
from zipfile import BadZipFile

import jax
import numpy as np

from adamae_jax.errors import UserError
from tests.parity import systems
from tests.parity.parts import Comparison

OUTPUT_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
# Of the change of a parameter: float32 alone gives up to 6e-5 (Adam divides by small numbers), a
# decay that is forgotten or added 2.5e-3, a wrong layer 0.25.
UPDATE_TOLERANCE = 1e-3
# A gradient this small against the median one is zero in exact arithmetic: only its size counts.
ROUNDING_NOISE = 1e-6


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """``||a - b|| / ||b||`` in float64; infinite where the shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    error, size = np.linalg.norm(a - b), np.linalg.norm(b)
    if not np.isfinite(error):
        return float("inf")
    return float(error / size) if size else float(error)


def worst(pairs: Comparison) -> tuple[str, float]:
    """The array that disagrees most; an array of theirs that ours lack disagrees infinitely."""
    ours, theirs = pairs
    missing = sorted(set(theirs) - set(ours))
    if missing:
        return f"missing: {', '.join(missing)}", float("inf")
    errors = {name: relative_error(np.asarray(ours[name]), theirs[name]) for name in theirs}
    name = max(errors, key=lambda key: errors[key])
    return name, errors[name]


def worst_gradient(pairs: Comparison) -> tuple[str, float]:
    """Like `worst`; where theirs is rounding noise, ours must be so too, and no more is asked."""
    ours, theirs = pairs
    norms = {
        name: float(np.linalg.norm(array.astype(np.float64))) for name, array in theirs.items()
    }
    noise = ROUNDING_NOISE * float(np.median(list(norms.values())))
    loud = {name: array for name, array in theirs.items() if norms[name] >= noise}
    for name in sorted(set(theirs) & set(ours) - set(loud)):
        own = np.asarray(ours[name], np.float64)
        if own.shape != theirs[name].shape or not np.linalg.norm(own) < noise:
            return name, float("inf")
    if set(theirs) - set(ours):
        return worst(pairs)
    return worst((ours, loud))


def read(path: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file and its ``meta``.

    Raises:
      UserError: where it cannot be read, or lacks what is compared.
    """
    try:
        with np.load(path) as archive:
            file = {name: archive[name] for name in archive.files}
        meta = json.loads(str(file["meta"]))
    except (OSError, ValueError, KeyError, AttributeError, EOFError, BadZipFile) as error:
        raise UserError(f"{path} is not a readable .npz of an oracle: {error}") from error
    system = meta.get("system") if isinstance(meta, dict) else None
    if system not in systems.SYSTEMS:
        known = ", ".join(systems.SYSTEMS)
        raise UserError(f"{path} is of system {system!r}: this compares {known}")
    for wanted in ("weights/", "grads/", "output/"):
        if not any(wanted in name for name in file):
            raise UserError(f"{path} holds no array named {wanted}*: there is nothing to compare")
    return file, meta


def judge(
    system: str, outputs: Comparison, gradients: Comparison, *updates: Comparison
) -> dict[str, Any]:
    """The report: the worst array of each kind, and whether all are within tolerance.

    Every array of theirs must be there and agree; a small extract may hold a part of them. A
    relative error of None stands for an infinite one: an array missing, misshapen or not finite.
    """

    def part(is_loss: bool) -> Comparison:
        ours, theirs = (
            {name: array for name, array in side.items() if ("loss" in name) == is_loss}
            for side in outputs
        )
        return ours, theirs

    report: dict[str, Any] = {"system": system}
    passed = True
    for kind, pairs, find, tolerance in (
        ("outputs", part(False), worst, OUTPUT_TOLERANCE),
        ("losses", part(True), worst, OUTPUT_TOLERANCE),
        ("gradients", gradients, worst_gradient, GRADIENT_TOLERANCE),
        *(("updates", changes, worst, UPDATE_TOLERANCE) for changes in updates),
    ):
        report[kind], agrees = part_report(pairs, find, tolerance)
        passed = passed and agrees
    report["passed"] = passed
    return report


def part_report(
    pairs: Comparison, find: Callable[[Comparison], tuple[str, float]], tolerance: float
) -> tuple[dict[str, Any], bool]:
    """One part of a report, and whether it is within tolerance; nothing to compare is not."""
    name, error = find(pairs) if pairs[1] else ("no array to compare", float("inf"))
    part = {
        "worst": name,
        "relative_error": error if np.isfinite(error) else None,
        "arrays": len(pairs[1]),
    }
    return part, error <= tolerance


def compare(path: str) -> dict[str, Any]:
    """Compares with one file; see `judge` for the report.

    Raises:
      UserError: where the file cannot be compared with.
    """
    file, meta = read(path)
    try:
        with jax.default_matmul_precision("highest"):
            compared = systems.SYSTEMS[meta["system"]](file, meta)
    except KeyError as error:
        raise UserError(f"{path} lacks {error}, which its comparison needs") from error
    return judge(meta["system"], *compared)
