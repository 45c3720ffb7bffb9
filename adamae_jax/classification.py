"""Fine-tuning: logits and labels to losses."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, UInt8

from adamae_jax.models.classifier import Classifier
from adamae_jax.models.transformer import ExampleKeys
from adamae_jax.objectives import Objective, normalize_pixels
from adamae_jax.task import Batch, Task, TaskLoss, Variables


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """The task of telling the classes of clips apart, by the cross-entropy of their labels.

    Clips without a label (-1) have no weight, and count as wrong where they are held out.

    Attributes:
      model: the classifier.
      objective: how pixels are normalised.
    """

    model: Classifier
    objective: Objective

    name = "classification"

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """The classifier's parameters; there is nothing else."""
        clip = jnp.zeros((1, *self.model.geometry.clip_shape))
        return {"params": self.model.init(key, clip)["params"], "state": {}, "frozen": {}}

    def logits(self, variables: Variables, video: UInt8[Array, "b T H W C"]) -> Float[Array, "b k"]:
        """The classes' logits."""
        pixels = normalize_pixels(video, self.objective)
        return self.model.apply({"params": variables["params"]}, pixels)

    def loss(
        self, group: str, variables: Variables, batch: Batch, keys: ExampleKeys, train: bool
    ) -> TaskLoss:
        """Cross-entropy, and the accuracy beside it."""
        del group, keys, train
        figures = self.evaluate(variables, batch, None)
        loss = figures.pop("loss")
        weight = (batch["label"] >= 0).astype(jnp.float32)
        return TaskLoss(loss, weight, figures, variables["state"])

    def evaluate(
        self, variables: Variables, batch: Batch, keys: ExampleKeys | None
    ) -> dict[str, Float[Array, "b"]]:
        """The loss of labelled clips, and whether the largest logit is the label's."""
        del keys
        label = batch["label"]
        logits = self.logits(variables, batch["video"])
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(label, 0))
        accuracy = (logits.argmax(-1) == label).astype(jnp.float32)
        labelled = (label >= 0).astype(jnp.float32)
        return {"loss": loss * labelled, "accuracy": accuracy, "labelled": labelled}

    def summarize(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """The loss is a mean over labelled clips alone."""
        metrics = dict(means)
        metrics["loss"] = metrics["loss"] / metrics.pop("labelled")
        return metrics

    def features(self, variables: Variables, batch: Batch) -> Float[Array, "b d"]:
        """The mean of the latents of all tokens, of length one."""
        pixels = normalize_pixels(batch["video"], self.objective)
        params = {"params": variables["params"]}
        latents = self.model.apply(params, pixels, method="features").mean(1)
        return latents / jnp.linalg.norm(latents, axis=-1, keepdims=True)
