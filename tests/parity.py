"""Compares this code with what the authors' own code computed: python -m tests.parity FILE.npz.

The file holds the weights of a small model, an input, and the outputs, losses and gradients that
the authors' PyTorch code computed from them in float32, with the sizes in ``meta``. Prints one
JSON line and exits with 0 where everything agrees, with 1 where it does not.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from zipfile import BadZipFile

import jax
import jax.numpy as jnp
import numpy as np

from adamae_jax import masking, objectives
from adamae_jax.errors import UserError
from adamae_jax.interop import authors
from adamae_jax.masking.adaptive import Strategy, clamped_log_probs
from adamae_jax.models.autoencoder import Autoencoder
from adamae_jax.models.transformer import TransformerSpec
from adamae_jax.models.tubelets import ClipGeometry

OUTPUT_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
# A gradient this small against the median one is zero in exact arithmetic: only its size counts.
ROUNDING_NOISE = 1e-6

Arrays = Mapping[str, np.ndarray]
Comparison = tuple[Arrays, Arrays]


def section(file: Arrays, prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with a prefix, without it."""
    return {name[len(prefix) :]: file[name] for name in file if name.startswith(prefix)}


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


def square(size: int | list[int]) -> tuple[int, int]:
    """An image size that may be given as one number."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def adamae(file: Arrays, meta: Mapping[str, Any]) -> tuple[Comparison, Comparison]:
    """AdaMAE's outputs and losses, and the gradient of every parameter."""

    def spec(name: str) -> TransformerSpec:
        part = meta[name]
        return TransformerSpec(
            part["dim"], part["depth"], part["heads"], norm_epsilon=meta["norm_eps"][name]
        )

    geometry = ClipGeometry(
        meta["num_frames"], square(meta["image_size"]), meta["tubelet_size"], meta["patch_size"]
    )
    model = Autoencoder(geometry, spec("encoder"), spec("decoder"))
    strategy = Strategy(
        mask_ratio=meta["mask_ratio"],
        depth=meta["sampler"].get("depth", 1),
        num_heads=meta["sampler"]["heads"],
        norm_epsilon=meta["norm_eps"]["sampler"],
        dropout=0.0,
    )
    weight = meta["sampling_loss_weight"]
    pretraining = objectives.Pretraining(
        model, strategy, objectives.Objective(sampling_loss_weight=weight)
    )
    entries = authors.adamae_entries(model, strategy)
    params = jax.tree.map(jnp.asarray, authors.from_authors(section(file, "weights/"), entries))
    video = jnp.asarray(file["input/video_uint8"])
    visible = jnp.sort(jnp.asarray(file["input/visible_indices"]), axis=-1)
    is_visible = jax.vmap(lambda row: jnp.zeros(geometry.num_tokens, bool).at[row].set(True))(
        visible
    )
    indices = masking.base.mask_from_visible(is_visible, strategy.num_visible(geometry.grid))

    def loss(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        pixels = objectives.normalize_pixels(video, pretraining.objective)
        inputs, placed = pretraining.mask_inputs(params["autoencoder"], pixels)
        probs = strategy.probabilities({"params": params["masking"]}, inputs, None)
        mask = masking.TokenMask(**indices, log_probs=clamped_log_probs(probs))
        outcome = pretraining.reconstruct(params["autoencoder"], video, placed, mask)
        total = outcome.loss.mean()
        return total, {
            "mask": jnp.logical_not(is_visible),
            "probs": probs,
            "pred_masked": outcome.predictions,
            "target_masked": outcome.targets,
            "token_error": outcome.token_error,
            "loss_reconstruction": outcome.terms["loss_reconstruction"].mean(),
            "loss_sampling_weighted": weight * outcome.terms["loss_sampling"].mean(),
            "loss_total": total,
        }

    (_, outputs), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    named = authors.to_authors(jax.tree.map(np.asarray, grads), entries)
    return (outputs, section(file, "output/")), (named, section(file, "grads/"))


SYSTEMS: dict[str, Callable[[Arrays, Mapping[str, Any]], tuple[Comparison, Comparison]]] = {
    "AdaMAE": adamae,
}


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
    if system not in SYSTEMS:
        raise UserError(f"{path} is of system {system!r}: this compares {', '.join(SYSTEMS)}")
    for wanted in ("weights/", "grads/", "output/loss"):
        if not any(name.startswith(wanted) for name in file):
            raise UserError(f"{path} holds no array named {wanted}*: there is nothing to compare")
    return file, meta


def judge(system: str, outputs: Comparison, gradients: Comparison) -> dict[str, Any]:
    """The report: the worst array of each kind, and whether all are within tolerance.

    Every array of theirs must be there and agree; a small extract may hold a part of them. A
    relative error of None stands for an infinite one: an array missing, misshapen or not finite.
    """

    def part(is_loss: bool) -> Comparison:
        ours, theirs = (
            {name: array for name, array in side.items() if name.startswith("loss") == is_loss}
            for side in outputs
        )
        return ours, theirs

    report: dict[str, Any] = {"system": system}
    passed = True
    for kind, pairs, find, tolerance in (
        ("outputs", part(False), worst, OUTPUT_TOLERANCE),
        ("losses", part(True), worst, OUTPUT_TOLERANCE),
        ("gradients", gradients, worst_gradient, GRADIENT_TOLERANCE),
    ):
        name, error = find(pairs) if pairs[1] else ("no array to compare", float("inf"))
        report[kind] = {
            "worst": name,
            "relative_error": error if np.isfinite(error) else None,
            "arrays": len(pairs[1]),
        }
        passed = passed and error <= tolerance
    report["passed"] = passed
    return report


def compare(path: str) -> dict[str, Any]:
    """Compares with one file; see `judge` for the report.

    Raises:
      UserError: where the file cannot be compared with.
    """
    file, meta = read(path)
    try:
        with jax.default_matmul_precision("highest"):
            outputs, gradients = SYSTEMS[meta["system"]](file, meta)
    except KeyError as error:
        raise UserError(f"{path} lacks {error}, which its comparison needs") from error
    return judge(meta["system"], outputs, gradients)


def main(argv: Sequence[str]) -> int:
    """Compares with the file named on the command line."""
    if len(argv) != 1:
        print("usage: python -m tests.parity FILE.npz", file=sys.stderr)
        return 2
    try:
        report = compare(argv[0])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report, allow_nan=False))
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
