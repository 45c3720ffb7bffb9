"""What our code computes from the weights and inputs of the authors' files, system by system.

Each function takes a file's arrays and its ``meta`` and gives two pairs of named arrays, ours and
theirs: outputs with losses, and gradients. A half that the file lacks is left out.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamae_jax import pretraining
from adamae_jax.interop import authors
from adamae_jax.masking import adaptive, distribution, dual, random, tube
from adamae_jax.models.classifier import Classifier
from adamae_jax.pretraining import Objective, Pretraining
from tests.parity.automae import automae
from tests.parity.finetune import finetuning
from tests.parity.parts import (
    Arrays,
    Comparison,
    Meta,
    autoencoder_of,
    classification,
    combined,
    gradients_of,
    load,
    mae_objective,
    marked,
    mask_of,
    masked_parts,
    named,
    random_masking,
    reconstruction,
    section,
)


def adamae(file: Arrays, meta: Meta) -> tuple[Comparison, Comparison]:
    """AdaMAE's outputs and losses, and the gradient of every parameter."""
    strategy = adaptive.Strategy(
        mask_ratio=meta["mask_ratio"],
        depth=meta["sampler"].get("depth", 1),
        num_heads=meta["sampler"]["heads"],
        norm_epsilon=meta["norm_eps"]["sampler"],
        dropout=0.0,
    )
    weight = meta["sampling_loss_weight"]
    model = autoencoder_of(meta, "videomae")
    task = Pretraining(model, strategy, Objective(sampling_loss_weight=weight))
    table = authors.pretraining_table(task)
    tree = load(table, section(file, "weights/"))
    video = jnp.asarray(file["input/video_uint8"])
    is_visible = marked(jnp.asarray(file["input/visible_indices"]), model.geometry.num_tokens)
    mask = mask_of(is_visible)

    def loss(tree: Any) -> tuple[jax.Array, dict[str, Any]]:
        params = tree["params"]
        pixels = pretraining.normalize_pixels(video, task.objective)
        inputs, placed = task.mask_inputs(params["autoencoder"], pixels)
        probs = strategy.probabilities({"params": params["masking"]}, inputs, None)
        own = mask.replace(log_probs=distribution.clamped_log_probs(probs))
        outcome = task.reconstruct(params["autoencoder"], video, placed, own)
        total = outcome.loss.mean()
        return total, {
            "mask": jnp.logical_not(is_visible),
            "probs": probs,
            "token_error": outcome.token_error,
            "loss_sampling_weighted": weight * outcome.terms["loss_sampling"].mean(),
            "loss_total": total,
            **masked_parts(outcome),
        }

    outputs, grads = gradients_of(loss, tree, table)
    return (outputs, section(file, "output/")), (grads, section(file, "grads/"))


def videomae(file: Arrays, meta: Meta) -> tuple[Comparison, Comparison]:
    """VideoMAE's reconstruction under a given tube mask, and its classifier."""
    # The weights are given: any start but 0 stands for LayerScale.
    scaled = any(name.endswith("gamma_1") for name in file)
    model = autoencoder_of(meta, "videomae", layer_scale=float(scaled))
    task = Pretraining(model, tube.Strategy(meta["mask_ratio"]), Objective())

    def pretrain() -> tuple[dict[str, Any], Arrays]:
        table = authors.autoencoder_table(model)
        params = load(table, section(file, "pretrain/weights/"))
        mask = mask_of(jnp.logical_not(jnp.asarray(file["input/mask"])))
        outcome = reconstruction(task, jnp.asarray(file["input/video_uint8"]), mask)

        def loss(params: Any) -> tuple[jax.Array, dict[str, Any]]:
            result = outcome(params)[0]
            return result.loss.mean(), masked_parts(result)

        outputs, grads = gradients_of(loss, params, table)
        return outputs, named("pretrain/", grads)

    def classify() -> tuple[dict[str, Any], Arrays]:
        epsilon = model.encoder_spec.norm_epsilon
        classifier = Classifier(
            model.geometry, model.encoder_spec, meta["num_classes"], norm_epsilon=epsilon
        )
        return classification(file, meta, classifier, task.objective)

    return combined(file, {"pretrain": pretrain, "classifier": classify})


def videomae_v2(file: Arrays, meta: Meta) -> tuple[Comparison, Comparison]:
    """VideoMAE V2's reconstruction under two given masks, and the masks that its code makes."""
    model = autoencoder_of(meta, "videomae")
    strategy = dual.Strategy(meta["mask_ratio"], meta["decoder_mask_ratio"])
    task = Pretraining(model, strategy, Objective())
    table = authors.autoencoder_table(model)
    params = load(table, section(file, "weights/"))
    video = jnp.asarray(file["input/video_uint8"])
    full = mask_of(jnp.logical_not(jnp.asarray(file["input/encoder_mask"])))
    phase = jnp.asarray(file["input/decoder_phase"])
    both = strategy.with_decoded(full, phase, model.geometry.grid)

    def loss(params: Any) -> tuple[jax.Array, dict[str, Any]]:
        placed = task.mask_inputs(params, pretraining.normalize_pixels(video, task.objective))[1]
        outcome = task.reconstruct(params, video, placed, both)
        value = (outcome.loss * outcome.weight).sum() / outcome.weight.sum()
        everything = task.reconstruct(params, video, placed, full)
        return value, {
            "output/pred_decoded": outcome.predictions,
            "output/target_decoded": outcome.targets,
            "output/loss_mask": both.decode_weight,
            "output/token_error": outcome.token_error,
            "output/loss_reconstruction": value,
            "full/output/loss_reconstruction": everything.loss.mean(),
        }

    outputs, grads = gradients_of(loss, params, table)
    decoded = strategy.decoded(phase, model.geometry.grid)
    outputs["input/decoder_mask"] = jnp.logical_not(decoded)
    results = ("output/", "full/output/", "input/decoder_mask")
    theirs = {name: file[name] for name in file if name.startswith(results)}
    for name in file:
        if name.startswith("running_cell/") and name.endswith("/masks"):
            outputs[name], theirs[name] = running_cells(name, file[name].shape), file[name]
    if "tube/grids" in file:
        outputs |= tubes(file["tube/grids"], file["tube/ratios"])
        theirs |= {name: file[name] for name in ("tube/masked_per_step", "tube/visible_tokens")}
    return (outputs, theirs), (grads, section(file, "grads/"))


def running_cells(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The decoder masks of all phases, by a name such as ``running_cell/6x4x4/ratio_0.5/masks``."""
    _, sizes, ratio, _ = name.split("/")
    time, height, width = (int(size) for size in sizes.split("x"))
    strategy = dual.Strategy(0.9, float(ratio.removeprefix("ratio_")))
    decoded = strategy.decoded(jnp.arange(4), (time, height, width))
    return np.logical_not(decoded).reshape(shape)


def tubes(grids: np.ndarray, ratios: np.ndarray) -> dict[str, np.ndarray]:
    """How many tokens of a tube are masked in a time step, and visible in all."""
    visible = [
        dual.Strategy(float(ratio)).num_visible((int(time), int(height), int(width)))
        for (time, height, width), ratio in zip(grids, ratios, strict=True)
    ]
    time, places = grids[:, 0], grids[:, 1] * grids[:, 2]
    return {
        "tube/masked_per_step": places - np.asarray(visible) // time,
        "tube/visible_tokens": np.asarray(visible),
    }


def mae_st(file: Arrays, meta: Meta) -> tuple[Comparison, Comparison]:
    """MAE-ST's reconstruction under given noise, and its classifier."""
    has_class = meta["cls_token"]
    frames = meta["num_frames"]
    predicted = meta.get("predicted_frames", frames)
    model = autoencoder_of(
        meta,
        "mae_st",
        positions="separable" if meta["separable_pos_embed"] else "learned",
        class_token="separate" if has_class else "none",
        predicted_frames=0 if predicted == frames else predicted,
    )
    objective = mae_objective(meta, (meta["pixel_mean"],) * 3, (meta["pixel_std"],) * 3)
    task = Pretraining(model, random.Strategy(meta["mask_ratio"]), objective)

    def pretrain() -> tuple[dict[str, Any], Arrays]:
        table = authors.autoencoder_table(model)
        params = load(table, section(file, "pretrain/weights/"))
        outputs, grads = random_masking(task, table, params, file["input/video_uint8"], file)
        return outputs, named("pretrain/", grads)

    def classify() -> tuple[dict[str, Any], Arrays]:
        classifier = Classifier(
            model.geometry,
            model.encoder_spec,
            meta["num_classes"],
            positions=model.positions,
            class_token=has_class,
            norm_epsilon=model.encoder_spec.norm_epsilon,
            skip_first_patch=not has_class,
        )
        return classification(file, meta, classifier, objective)

    return combined(file, {"pretrain": pretrain, "classifier": classify})


SYSTEMS: dict[str, Callable[[Arrays, Meta], tuple[Comparison, ...]]] = {
    "AdaMAE": adamae,
    "VideoMAE": videomae,
    "VideoMAE V2": videomae_v2,
    "MAE-ST": mae_st,
    "AutoMAE": automae,
    "VideoMAE fine-tuning": finetuning,
}
