"""What the comparisons of all systems share: sizes from ``meta``, masks, losses with gradients."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamae_jax import masking, pretraining
from adamae_jax.config import FAMILIES
from adamae_jax.interop import authors
from adamae_jax.interop.tables import Table
from adamae_jax.models.autoencoder import Autoencoder
from adamae_jax.models.classifier import Classifier
from adamae_jax.models.transformer import TransformerSpec
from adamae_jax.models.tubelets import ClipGeometry
from adamae_jax.pretraining import ForwardOutput, Objective, Pretraining

Arrays = Mapping[str, np.ndarray]
Comparison = tuple[Arrays, Arrays]
Meta = Mapping[str, Any]


def section(file: Arrays, prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with a prefix, without it."""
    return {name[len(prefix) :]: file[name] for name in file if name.startswith(prefix)}


def named(prefix: str, arrays: Arrays) -> dict[str, np.ndarray]:
    """Arrays with a prefix in front of their names."""
    return {f"{prefix}{name}": np.asarray(array) for name, array in arrays.items()}


def geometry_of(meta: Meta) -> ClipGeometry:
    """The sizes of clips, or of images as clips of one frame."""
    size = meta["image_size"]
    square = (size, size) if isinstance(size, int) else (size[0], size[1])
    return ClipGeometry(
        meta.get("num_frames", 1), square, meta.get("tubelet_size", 1), meta["patch_size"]
    )


def spec_of(meta: Meta, name: str, **choices: Any) -> TransformerSpec:
    """The blocks of the encoder or the decoder."""
    part, epsilon = meta[name], meta["norm_eps"]
    if isinstance(epsilon, dict):
        epsilon = epsilon[name]
    return TransformerSpec(
        part["dim"], part["depth"], part["heads"], norm_epsilon=epsilon, **choices
    )


def autoencoder_of(
    meta: Meta, family: str, layer_scale: float = 0.0, **changes: Any
) -> Autoencoder:
    """The model of a family, with some choices changed."""
    choices: dict[str, Any] = {**FAMILIES[family], **changes}
    of_blocks = {name: choices.pop(name) for name in ("attention_bias", "initialization")}
    return Autoencoder(
        geometry_of(meta),
        spec_of(meta, "encoder", layer_scale=layer_scale, **of_blocks),
        spec_of(meta, "decoder", layer_scale=layer_scale, **of_blocks),
        **choices,
    )


def load(table: Table, weights: Arrays) -> Any:
    """Our tree from the authors' arrays, on the device."""
    return jax.tree.map(jnp.asarray, table.from_authors(weights))


def gradients_of(
    loss: Callable[[Any], tuple[jax.Array, dict[str, Any]]], params: Any, table: Table
) -> tuple[dict[str, Any], Arrays]:
    """Outputs, and gradients under the authors' names."""
    (_, outputs), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return outputs, table.gradients_to_authors(jax.tree.map(np.asarray, grads))


def smallest_visible(noise: jax.Array, count: int) -> jax.Array:
    """The tokens that stay visible where the smallest noises do."""
    chosen = jnp.argsort(noise, axis=-1)[:, :count]
    return marked(chosen, noise.shape[-1])


def marked(indices: jax.Array, size: int) -> jax.Array:
    """Marks the tokens at some indices."""
    return jax.vmap(lambda row: jnp.zeros(size, bool).at[row].set(True))(indices)


def mask_of(is_visible: jax.Array, **fields: Any) -> masking.TokenMask:
    """A mask from the tokens that stay visible, the same number in each example."""
    count = int(is_visible[0].sum())
    return masking.TokenMask(**masking.base.mask_from_visible(is_visible, count), **fields)


def everywhere(task: Pretraining, params: Any, placed: jax.Array, mask: masking.TokenMask) -> Any:
    """Predictions for all tokens, visible ones too, in their places."""

    def apply(*arguments: Any, **options: Any) -> Any:
        return task.model.apply({"params": params}, *arguments, **options)

    latents = apply(placed, mask.visible, token_scale=mask.token_scale, method="encode")
    indices = jnp.concatenate([mask.visible, mask.masked], axis=1)
    predicted = apply(latents, mask.visible, mask.masked, predict_visible=True, method="decode")
    back = jnp.argsort(indices, axis=1)
    return jnp.take_along_axis(predicted, back[..., None], axis=1)


def masked_parts(outcome: ForwardOutput) -> dict[str, jax.Array]:
    """What VideoMAE's code and AdaMAE's give for the masked tokens."""
    return {
        "pred_masked": outcome.predictions,
        "target_masked": outcome.targets,
        "loss_reconstruction": outcome.terms["loss_reconstruction"].mean(),
    }


def classification(
    file: Arrays, meta: Meta, model: Classifier, objective: Objective
) -> tuple[dict[str, Any], Arrays]:
    """Logits, the cross-entropy, and its gradients."""
    table = authors.classifier_table(model)
    params = load(table, section(file, "classifier/weights/"))
    pixels = pretraining.normalize_pixels(jnp.asarray(file["input/video_uint8"]), objective)
    labels = jnp.asarray(file["input/label"])

    def loss(params: Any) -> tuple[jax.Array, dict[str, Any]]:
        logits = model.apply({"params": params}, pixels)
        value = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return value, {"logits": logits, "loss_classification": value}

    outputs, grads = gradients_of(loss, params, table)
    return outputs, named("classifier/", grads)


def combined(
    file: Arrays, halves: Mapping[str, Callable[[], tuple[dict[str, Any], Arrays]]]
) -> tuple[Comparison, Comparison]:
    """The comparison of all halves that the file has; each half is named as its arrays are."""
    outputs: dict[str, Any] = {}
    grads: dict[str, np.ndarray] = {}
    theirs: dict[str, np.ndarray] = {}
    for half, compute in halves.items():
        if not section(file, f"{half}/"):
            continue
        computed, named_grads = compute()
        outputs |= computed
        grads |= named_grads
        theirs |= named(f"{half}/", section(file, f"{half}/grads/"))
    return (outputs, section(file, "output/")), (grads, theirs)


def reconstruction(
    task: Pretraining, video: jax.Array, mask: masking.TokenMask
) -> Callable[[Any], tuple[ForwardOutput, jax.Array]]:
    """A function of the autoencoder's parameters: the outcome, and predictions everywhere."""

    def compute(params: Any) -> tuple[ForwardOutput, jax.Array]:
        pixels = pretraining.normalize_pixels(video, task.objective)
        placed = task.mask_inputs(params, pixels)[1]
        outcome = task.reconstruct(params, video, placed, mask)
        return outcome, everywhere(task, params, placed, mask)

    return compute


def mae_objective(meta: Meta, mean: tuple[float, ...], std: tuple[float, ...]) -> Objective:
    """MAE's targets and MAE-ST's, from normalised pixels."""
    return Objective(
        normalize_targets="tubelet" if meta.get("norm_pix", True) else "none",
        target_pixels="normalized",
        pixel_mean=mean,
        pixel_std=std,
    )


def random_masking(
    task: Pretraining, table: Table, params: Any, video: np.ndarray, file: Arrays
) -> tuple[dict[str, Any], Arrays]:
    """Mask, predictions, loss and gradients where the smallest of the given noises stay visible."""
    count = task.strategy.num_visible(task.model.geometry.grid)
    is_visible = smallest_visible(jnp.asarray(file["input/noise"]), count)
    compute = reconstruction(task, jnp.asarray(video), mask_of(is_visible))

    def loss(params: Any) -> tuple[jax.Array, dict[str, Any]]:
        outcome, pred = compute(params)
        value = outcome.loss.mean()
        mask = jnp.logical_not(is_visible)
        return value, {"mask": mask, "pred": pred, "loss_reconstruction": value}

    return gradients_of(loss, params, table)
