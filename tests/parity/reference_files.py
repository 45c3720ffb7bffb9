"""Whole files in the form of the authors' ones, of any size, computed by `reference`."""

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import reference, reference_weights
from tests.parity.parts import Arrays, Meta, named, section

Results = tuple[dict[str, Any], Arrays]
Compute = Callable[[Arrays, Meta], dict[str, np.ndarray]]


def differentiate(
    loss: Callable[[Any], tuple[Any, dict[str, Any]]], weights: Arrays, fixed: str = "\0"
) -> Results:
    """Outputs, and the gradient of every array whose name does not end in ``fixed``."""
    held = {name: array for name, array in weights.items() if name.endswith(fixed)}
    trained = {name: jnp.asarray(a) for name, a in weights.items() if name not in held}
    whole = jax.value_and_grad(lambda trained: loss({**held, **trained}), has_aux=True)
    (_, outputs), grads = jax.jit(whole)(trained)
    return outputs, {name: np.asarray(grad) for name, grad in grads.items()}


def results(outputs: dict[str, Any], grads: Arrays, half: str = "") -> dict[str, np.ndarray]:
    """Under the names that they have in a file."""
    return {**named("output/", outputs), **named(f"{half}grads/", grads)}


def indices_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Visible and masked tokens, in order; masked ones are true."""
    count = len(mask)
    return np.nonzero(~mask)[1].reshape(count, -1), np.nonzero(mask)[1].reshape(count, -1)


def videomae(file: Arrays, meta: Meta) -> dict[str, np.ndarray]:
    """Results of the halves whose weights a file has."""
    video, pixels = (
        file["input/video_uint8"],
        reference.normalized(file["input/video_uint8"], *reference.IMAGENET),
    )
    found = {}
    weights = section(file, "pretrain/weights/")
    if weights:
        visible, masked = indices_of(file["input/mask"])
        targets = reference.videomae_targets(video, masked, meta)

        def loss(w: Any) -> tuple[Any, dict[str, Any]]:
            tokens = reference.embed(w, "encoder.patch_embed.proj", pixels)
            pred = reference.videomae_predictions(w, tokens, visible, masked, meta)
            value = ((pred - targets) ** 2).mean()
            outputs = {"pred_masked": pred, "target_masked": targets, "loss_reconstruction": value}
            return value, outputs

        outputs, grads = differentiate(loss, weights)
        found = results(outputs, grads, "pretrain/")
    return found | classifier(file, meta, pixels)


def running_cells(grid: tuple[int, int, int], phase: int, ratio: float) -> np.ndarray:
    """VideoMAE V2's decoder mask, step by step: true where a token is not decoded."""
    time, height, width = grid
    cell = np.roll(np.arange(4) < int(4 * ratio), -phase)
    steps = []
    for _ in range(time):
        cell = np.roll(cell, -1)
        steps.append(np.tile(cell.reshape(2, 2), (height // 2, width // 2)).ravel())
    return np.concatenate(steps)


def video_mae_v2(file: Arrays, meta: Meta) -> dict[str, np.ndarray]:
    """All results: decoded is what the decoder mask leaves; what is seen is in no loss."""
    video, hidden = file["input/video_uint8"], file["input/encoder_mask"]
    pixels = reference.normalized(video, *reference.IMAGENET)
    visible, masked = indices_of(hidden)
    _, decoded = indices_of(~file["input/decoder_mask"])
    counts = np.take_along_axis(hidden, decoded, axis=1)
    targets = reference.videomae_targets(video, decoded, meta)
    all_targets = reference.videomae_targets(video, masked, meta)

    def loss(w: Any) -> tuple[Any, dict[str, Any]]:
        tokens = reference.embed(w, "encoder.patch_embed.proj", pixels)
        pred = reference.videomae_predictions(w, tokens, visible, decoded, meta)
        error = ((pred - targets) ** 2).mean(-1)
        value = (error * counts).sum() / counts.sum()
        everything = reference.videomae_predictions(w, tokens, visible, masked, meta)
        return value, {
            **{"pred_decoded": pred, "target_decoded": targets, "loss_mask": counts},
            **{"token_error": error, "loss_reconstruction": value},
            "full": ((everything - all_targets) ** 2).mean(),
        }

    outputs, grads = differentiate(loss, section(file, "weights/"))
    full = outputs.pop("full")
    return {"full/output/loss_reconstruction": np.asarray(full), **results(outputs, grads)}


def classifier(file: Arrays, meta: Meta, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Results of the classifier, where a file has one."""
    weights = section(file, "classifier/weights/")
    if not weights:
        return {}

    def loss(w: Any) -> tuple[Any, dict[str, Any]]:
        logits = reference.logits(w, pixels, meta)
        rows = jnp.arange(len(pixels))
        value = -jax.nn.log_softmax(logits)[rows, jnp.asarray(file["input/label"])].mean()
        return value, {"logits": logits, "loss_classification": value}

    outputs, grads = differentiate(loss, weights)
    return results(outputs, grads, "classifier/")


def adamae(file: Arrays, meta: Meta) -> dict[str, np.ndarray]:
    """All results."""
    video = file["input/video_uint8"]
    pixels = reference.normalized(video, *reference.IMAGENET)
    mask = np.ones((len(video), int(np.prod(reference_weights.grid_of(meta)))), bool)
    np.put_along_axis(mask, file["input/visible_indices"], False, axis=1)
    visible, masked = indices_of(mask)
    targets = reference.videomae_targets(video, masked, meta)

    def loss(w: Any) -> tuple[Any, dict[str, Any]]:
        tokens = reference.embed(w, "encoder.patch_embed.proj", pixels)
        probs = reference.token_probabilities(w, tokens, meta)
        pred = reference.videomae_predictions(w, tokens, visible, masked, meta)
        error = ((pred - targets) ** 2).mean(-1)
        reward = jax.lax.stop_gradient(error)
        sampling = -(jnp.log(reference.at(probs[..., None], masked)[..., 0]) * reward).mean()
        sampling, value = meta["sampling_loss_weight"] * sampling, error.mean()
        return value + sampling, {
            **{"mask": mask, "probs": probs, "token_error": error},
            **{"pred_masked": pred, "target_masked": targets},
            **{"loss_reconstruction": value, "loss_sampling_weighted": sampling},
            "loss_total": value + sampling,
        }

    outputs, grads = differentiate(loss, section(file, "weights/"))
    return results(outputs, grads)


def shuffled(noise: np.ndarray, meta: Meta) -> tuple[np.ndarray, int, np.ndarray]:
    """The tokens in the order of their noise, how many are seen, and the mask."""
    order = np.argsort(noise, axis=1)
    visible = int(order.shape[1] * (1 - meta["mask_ratio"]))
    mask = np.ones(order.shape, np.float32)
    np.put_along_axis(mask, order[:, :visible], 0.0, axis=1)
    return order, visible, mask


def mae_st(file: Arrays, meta: Meta) -> dict[str, np.ndarray]:
    """Results of the halves whose weights a file has."""
    pixels = reference.normalized(file["input/video_uint8"], meta["pixel_mean"], meta["pixel_std"])
    found = {}
    weights = section(file, "pretrain/weights/")
    if weights:
        order, visible, mask = shuffled(file["input/noise"], meta)

        def loss(w: Any) -> tuple[Any, dict[str, Any]]:
            pred = reference.mae_predictions(w, pixels, order, visible, meta)
            value = reference.mae_loss(pred, pixels, mask, meta)
            return value, {"mask": mask, "pred": pred, "loss_reconstruction": value}

        outputs, grads = differentiate(loss, weights)
        found = results(outputs, grads, "pretrain/")
    return found | classifier(file, meta, pixels)


def complete(file: dict[str, np.ndarray], meta: Meta, compute: Compute) -> dict[str, np.ndarray]:
    """Weights and inputs with what is computed from them."""
    return {"meta": np.asarray(json.dumps(meta)), **file, **compute(file, meta)}


def inputs_of(meta: Meta, seed: int) -> dict[str, np.ndarray]:
    """A video for each of two examples, noise for their tokens, labels, and masks like tubes."""
    rng = np.random.default_rng(seed)
    time, height, width = reference_weights.grid_of(meta)
    side = meta["patch_size"]
    shape = (2, meta["num_frames"], height * side, width * side, 3)
    masked = int(meta["mask_ratio"] * height * width)
    tube = np.argsort(rng.random((2, 1, height * width)), axis=-1) < masked
    return {
        "input/video_uint8": rng.integers(0, 256, shape, np.uint8),
        "input/noise": rng.random((2, time * height * width), np.float32),
        "input/mask": np.tile(tube, (1, time, 1)).reshape(2, -1),
        "input/label": rng.integers(0, meta.get("num_classes", 1), 2),
    }


def adamae_file(meta: Meta, seed: int = 0) -> dict[str, np.ndarray]:
    """A file of AdaMAE, its visible tokens in the order in which they might be drawn."""
    inputs = inputs_of(meta, seed)
    shapes = reference_weights.videomae_shapes(meta, "qv") | reference_weights.sampler_shapes(meta)
    order, visible, _ = shuffled(inputs["input/noise"], meta)
    file = {
        "input/video_uint8": inputs["input/video_uint8"],
        "input/visible_indices": order[:, :visible].astype(np.int32),
        **named("weights/", reference_weights.fill(shapes, seed)),
    }
    return complete(file, meta, adamae)


def two_halves(
    meta: Meta, shapes: reference_weights.Shapes, inputs: tuple[str, ...], compute: Compute
) -> dict[str, np.ndarray]:
    """A file with an autoencoder and a classifier."""
    given = inputs_of(meta, seed=1)
    classifier = reference_weights.classifier_shapes(meta, shapes)
    file = {
        **{f"input/{name}": given[f"input/{name}"] for name in ("video_uint8", "label", *inputs)},
        **named("pretrain/weights/", reference_weights.fill(shapes, seed=2)),
        **named("classifier/weights/", reference_weights.fill(classifier, seed=3)),
    }
    return complete(file, meta, compute)


def videomae_file(meta: Meta) -> dict[str, np.ndarray]:
    """A file of VideoMAE, with LayerScale where ``layer_scale_init`` is not 0."""
    style = "scaled" if meta["layer_scale_init"] else "qv"
    shapes = reference_weights.videomae_shapes(meta, style)
    return two_halves(meta, shapes, ("mask",), videomae)


def video_mae_v2_file(meta: Meta, seed: int = 4) -> dict[str, np.ndarray]:
    """A file of VideoMAE V2 with its table of running cells."""
    given, grid = inputs_of(meta, seed), reference_weights.grid_of(meta)
    ratio, phases = meta["decoder_mask_ratio"], np.asarray([3, 1])
    table = np.stack([running_cells(grid, phase, ratio) for phase in range(4)])
    sizes = "x".join(map(str, grid))
    shapes = reference_weights.videomae_shapes(meta, "qv")
    file = {
        "input/video_uint8": given["input/video_uint8"],
        "input/encoder_mask": given["input/mask"],
        "input/decoder_mask": table[phases],
        "input/decoder_phase": phases,
        f"running_cell/{sizes}/ratio_{ratio}/masks": table.reshape(4, grid[0], -1),
        **named("weights/", reference_weights.fill(shapes, seed)),
    }
    return complete(file, meta, video_mae_v2)


def mae_st_file(meta: Meta) -> dict[str, np.ndarray]:
    """A file of MAE-ST."""
    return two_halves(meta, reference_weights.mae_shapes(meta), ("noise",), mae_st)
