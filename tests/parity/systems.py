"""What our code computes from the weights and inputs of the authors' files, system by system.

Each function takes a file's arrays and its ``meta`` and gives two pairs of named arrays, ours and
theirs: outputs with losses, and gradients. A half that the file lacks is left out.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adamae_jax import objectives
from adamae_jax.interop import authors
from adamae_jax.masking import adaptive, random, tube
from adamae_jax.models.classifier import Classifier
from adamae_jax.objectives import Objective, Pretraining
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
        pixels = objectives.normalize_pixels(video, task.objective)
        inputs, placed = task.mask_inputs(params["autoencoder"], pixels)
        probs = strategy.probabilities({"params": params["masking"]}, inputs, None)
        own = mask.replace(log_probs=adaptive.clamped_log_probs(probs))
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
    "MAE-ST": mae_st,
    "AutoMAE": automae,
    "VideoMAE fine-tuning": finetuning,
}
