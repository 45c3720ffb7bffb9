"""Compares this code with what the authors' own code computed: python -m tests.parity FILE.npz.

The file holds the weights of a small model, an input, and the outputs, losses and gradients that
the authors' PyTorch code computed from them in float32, with the sizes in ``meta``. Prints one
JSON line and exits with 0 where everything agrees, with 1 where it does not.
"""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamae_jax import masking, objectives
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
    """The array that disagrees most."""
    ours, theirs = pairs
    if set(ours) != set(theirs):
        return f"names differ: {sorted(set(ours) ^ set(theirs))}", float("inf")
    errors = {name: relative_error(np.asarray(ours[name]), theirs[name]) for name in theirs}
    name = max(errors, key=lambda key: errors[key])
    return name, errors[name]


def worst_gradient(pairs: Comparison) -> tuple[str, float]:
    """Like `worst`; where theirs is rounding noise, ours must be so too, and no more is asked."""
    ours, theirs = pairs
    norms = {name: float(np.linalg.norm(array.astype(np.float64))) for name, array in theirs.items()}
    noise = ROUNDING_NOISE * float(np.median(list(norms.values())))
    for name in theirs:
        if norms[name] < noise and name in ours:
            own = float(np.linalg.norm(np.asarray(ours[name], np.float64)))
            if not own < noise:
                return name, float("inf")
    tested = {name for name in theirs if norms[name] >= noise}
    silent = set(theirs) - tested
    return worst(
        (
            {name: ours[name] for name in ours if name not in silent},
            {name: theirs[name] for name in tested},
        )
    )


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


def compare(path: str) -> dict[str, Any]:
    """Compares with one file; the report names the worst array of each kind."""
    with np.load(path) as archive:
        file = {name: archive[name] for name in archive.files}
    meta = json.loads(str(file["meta"]))
    if meta["system"] not in SYSTEMS:
        raise SystemExit(
            f"{path} is of system {meta['system']!r}: this compares {', '.join(SYSTEMS)}"
        )
    with jax.default_matmul_precision("highest"):
        outputs, gradients = SYSTEMS[meta["system"]](file, meta)
    losses = [
        {name: array for name, array in side.items() if name.startswith("loss")} for side in outputs
    ]
    others = [
        {name: array for name, array in side.items() if not name.startswith("loss")}
        for side in outputs
    ]
    kinds = {
        "outputs": (worst((others[0], others[1])), OUTPUT_TOLERANCE),
        "losses": (worst((losses[0], losses[1])), OUTPUT_TOLERANCE),
        "gradients": (worst_gradient(gradients), GRADIENT_TOLERANCE),
    }
    report: dict[str, Any] = {"system": meta["system"]}
    for kind, ((name, error), _) in kinds.items():
        report[kind] = {"worst": name, "relative_error": error}
    report["passed"] = all(error <= tolerance for (_, error), tolerance in kinds.values())
    return report


def main(argv: list[str]) -> int:
    """Compares with the file named on the command line."""
    if len(argv) != 1:
        print("usage: python -m tests.parity FILE.npz", file=sys.stderr)
        return 2
    report = compare(argv[0])
    print(json.dumps(report))
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
