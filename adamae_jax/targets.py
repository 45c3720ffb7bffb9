"""What predictions are compared with: tubelets of pixels, normalised as the objective says."""

import dataclasses
from typing import Literal

import einops
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num, UInt8

from adamae_jax.models.autoencoder import Autoencoder
from adamae_jax.models.encoder import gather_tokens
from adamae_jax.models.tubelets import to_tubelets


@dataclasses.dataclass(frozen=True)
class Objective:
    """How predictions are judged.

    Attributes:
      loss: "mse" or "l1", per value.
      normalize_targets: "channel": subtract each tubelet's mean and divide by its standard
        deviation plus 1e-6, per colour channel (VideoMAE, AdaMAE); "tubelet": subtract the mean of
        all its values and divide by the root of their variance plus 1e-6 (MAE, MAE-ST); "none".
        The variance is the unbiased one.
      target_pixels: the pixels that targets are made from: "unit", those in [0, 1], or
        "normalized", the model's input.
      sampling_loss_weight: weight of the sampling loss, where the strategy has a distribution.
      pixel_mean: mean of each channel of pixels in [0, 1], subtracted from the model's input.
      pixel_std: standard deviation likewise.
    """

    loss: Literal["mse", "l1"] = "mse"
    normalize_targets: Literal["none", "channel", "tubelet"] = "channel"
    target_pixels: Literal["unit", "normalized"] = "unit"
    sampling_loss_weight: float = 1e-4
    pixel_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    pixel_std: tuple[float, ...] = (0.229, 0.224, 0.225)


def normalize_pixels(
    video: UInt8[Array, "b T H W C"], objective: Objective
) -> Float[Array, "b T H W C"]:
    """uint8 to [0, 1] to zero mean and unit variance, in float32."""
    mean, std = jnp.asarray(objective.pixel_mean), jnp.asarray(objective.pixel_std)
    return (video.astype(jnp.float32) / 255.0 - mean) / std


def target_pixels(video: UInt8[Array, "... C"], objective: Objective) -> Float[Array, "... C"]:
    """The pixels that targets are made from."""
    unit = video.astype(jnp.float32) / 255.0
    if objective.target_pixels == "unit":
        return unit
    return (unit - jnp.asarray(objective.pixel_mean)) / jnp.asarray(objective.pixel_std)


def target_statistics(
    values: Float[Array, "b n v c"], objective: Objective
) -> tuple[Float[Array, "b n 1 #c"], Float[Array, "b n 1 #c"]]:
    """What is subtracted from each tubelet's values and what they are divided by."""
    if objective.normalize_targets == "none":
        zero = jnp.zeros((*values.shape[:2], 1, 1))
        return zero, zero + 1.0
    if objective.normalize_targets == "channel":
        mean = values.mean(axis=2, keepdims=True)
        return mean, jnp.std(values, axis=2, keepdims=True, ddof=1) + 1e-6
    mean = values.mean(axis=(2, 3), keepdims=True)
    return mean, jnp.sqrt(jnp.var(values, axis=(2, 3), keepdims=True, ddof=1) + 1e-6)


def split_channels(tubelets: Num[Array, "b n p"], channels: int) -> Num[Array, "b n v c"]:
    """Separates a tubelet's values into places and colour channels."""
    return einops.rearrange(tubelets, "b n (v c) -> b n v c", c=channels)


def targets_at(
    video: UInt8[Array, "b T H W C"],
    queries: Int[Array, "b k"],
    model: Autoencoder,
    objective: Objective,
) -> Float[Array, "b k p"]:
    """The tubelets to be predicted."""
    tubelets = to_tubelets(model.pick_target_frames(video), model.target_geometry)
    chosen = split_channels(gather_tokens(tubelets, queries), model.geometry.channels)
    values = target_pixels(chosen, objective)
    mean, std = target_statistics(values, objective)
    return einops.rearrange((values - mean) / std, "b n v c -> b n (v c)")


def predicted_pixels(
    predictions: Float[Array, "b n p"],
    video: UInt8[Array, "b T H W C"],
    model: Autoencoder,
    objective: Objective,
) -> Float[Array, "b n p"]:
    """Predictions for all tokens as pixels in [0, 1], given the true tubelets' statistics."""
    tubelets = to_tubelets(model.pick_target_frames(video), model.target_geometry)
    channels = model.geometry.channels
    truth = target_pixels(split_channels(tubelets, channels), objective)
    mean, std = target_statistics(truth, objective)
    values = split_channels(predictions, channels) * std + mean
    if objective.target_pixels == "normalized":
        values = values * jnp.asarray(objective.pixel_std) + jnp.asarray(objective.pixel_mean)
    return einops.rearrange(values, "b n v c -> b n (v c)")


def token_errors(
    predictions: Float[Array, "b k p"], targets: Float[Array, "b k p"], loss: str
) -> Float[Array, "b k"]:
    """The mean error of each token over its values."""
    difference = predictions - targets
    return (jnp.abs(difference) if loss == "l1" else jnp.square(difference)).mean(-1)
