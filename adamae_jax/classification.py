"""Fine-tuning: clips, labels and logits to losses."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from adamae_jax.errors import UserError
from adamae_jax.mixing import MixDraw, Mixing, erase, mix, soft_targets
from adamae_jax.models.classifier import Classifier
from adamae_jax.models.transformer import ExampleKeys
from adamae_jax.targets import Objective, normalize_pixels
from adamae_jax.task import Batch, Task, TaskLoss, Variables, fold

# What random keys are for.
MIX, ERASE, DROP = 1, 2, 3
# What `prepare` adds to a batch.
PARTNER, PARTNER_LABEL, PARTNER_KEYS = "partner", "partner_label", "partner_keys"
DRAW = ("mix_share", "mix_box", "mix_is_cutmix")  # the fields of a `MixDraw`

NOT_MIXED = Mixing()
VIEWS_NDIM = 6  # of videos with an axis of views


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """The task of telling the classes of clips apart, by the cross-entropy of their labels.

    Clips without a label (-1) have no weight, and count as wrong where they are held out.

    Attributes:
      model: the classifier.
      objective: how pixels are normalised.
      mixing: of training clips with one another.
      erasing: probability of random erasing.
      label_smoothing: share of a target that is spread over all classes.
      class_weights: factor on the loss of each class; none for 1 everywhere.
    """

    model: Classifier
    objective: Objective
    mixing: Mixing = NOT_MIXED
    erasing: float = 0.0
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()

    name = "classification"

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """The classifier's parameters; there is nothing else."""
        clip = jnp.zeros((1, *self.model.geometry.clip_shape))
        return {"params": self.model.init(key, clip)["params"], "state": {}, "frozen": {}}

    def logits(self, variables: Variables, video: UInt8[Array, "b T H W C"]) -> Float[Array, "b k"]:
        """The classes' logits, as of a trained model."""
        pixels = normalize_pixels(video, self.objective)
        return self.model.apply({"params": variables["params"]}, pixels)

    def view_logits(
        self, variables: Variables, video: UInt8[Array, "b v T H W C"]
    ) -> Float[Array, "b v k"]:
        """The logits of several views of each video, one view after the other."""
        of_view = functools.partial(self.logits, variables)
        return jnp.moveaxis(jax.lax.map(of_view, jnp.moveaxis(video, 1, 0)), 0, 1)

    def prepare(
        self, variables: Variables, batch: Batch, keys: ExampleKeys, microbatches: int
    ) -> Batch:
        """Draws how clips are mixed, and brings their partners into their microbatches."""
        del variables, microbatches
        if not self.mixing.is_on:
            return batch
        partners = self.mixing.partners
        draw = self.mixing.draw(fold(keys, MIX), batch["video"].shape[2:4])
        return {
            **batch,
            PARTNER: partners(batch["video"]),
            PARTNER_LABEL: partners(batch["label"]),
            PARTNER_KEYS: partners(keys),
            **dict(zip(DRAW, (draw.share, draw.box, draw.is_cutmix), strict=True)),
        }

    def inputs(
        self, batch: Batch, keys: ExampleKeys
    ) -> tuple[Float[Array, "b T H W C"], Float[Array, "b k"]]:
        """Returns the clips as the model is trained on them, and their targets."""
        pixels = self._erased(batch["video"], keys)
        targets = self._targets(batch["label"])
        if PARTNER not in batch:
            return pixels, targets
        draw = MixDraw(*(batch[name] for name in DRAW))
        share = draw.share[:, None]
        targets = share * targets + (1.0 - share) * self._targets(batch[PARTNER_LABEL])
        return mix(pixels, self._erased(batch[PARTNER], batch[PARTNER_KEYS]), draw), targets

    def loss(
        self, group: str, variables: Variables, batch: Batch, keys: ExampleKeys, train: bool
    ) -> TaskLoss:
        """Cross-entropy with soft targets; the accuracy beside it, where nothing is mixed."""
        del group
        pixels, targets = self.inputs(batch, keys)
        logits = self.model.apply(
            {"params": variables["params"]}, pixels, fold(keys, DROP) if train else None
        )
        label = batch["label"]
        labelled = label >= 0
        figures = {}
        if PARTNER in batch:
            labelled &= batch[PARTNER_LABEL] >= 0
        else:
            figures["accuracy"] = (logits.argmax(-1) == label).astype(jnp.float32)
        loss = self.cross_entropy(logits, targets)
        return TaskLoss(loss, labelled.astype(jnp.float32), figures, variables["state"])

    def cross_entropy(
        self, logits: Float[Array, "b k"], targets: Float[Array, "b k"]
    ) -> Float[Array, "b"]:
        """The cross-entropy of soft targets, each class with its weight."""
        terms = targets * jax.nn.log_softmax(logits)
        if self.class_weights:
            terms = terms * jnp.asarray(self.class_weights)
        return -terms.sum(-1)

    def evaluate(
        self, variables: Variables, batch: Batch, keys: ExampleKeys | None
    ) -> dict[str, Float[Array, "b"]]:
        """The loss of labelled clips without smoothing, and whether the label is among the best.

        Of videos with several views, by the mean of the views' softmax.
        """
        del keys
        label, video = batch["label"], batch["video"]
        if video.ndim == VIEWS_NDIM:
            shares = jax.nn.log_softmax(self.view_logits(variables, video))
            logits = jax.nn.logsumexp(shares, axis=1) - math.log(video.shape[1])
        else:
            logits = self.logits(variables, video)
        count = self.model.num_classes
        targets = jax.nn.one_hot(label, count)  # nothing where there is no label
        own = jnp.take_along_axis(logits, jnp.clip(label, 0, count - 1)[:, None], axis=1)
        ahead = (logits > own).sum(-1)
        labelled = (label >= 0) & (label < count)
        return {
            "loss": self.cross_entropy(logits, targets),
            "accuracy": ((ahead < 1) & labelled).astype(jnp.float32),
            "accuracy_top5": ((ahead < 5) & labelled).astype(jnp.float32),
            "labelled": labelled.astype(jnp.float32),
        }

    def summarize(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """The loss is a mean over labelled clips alone."""
        metrics = dict(means)
        if "labelled" in metrics:
            metrics["loss"] = metrics["loss"] / metrics.pop("labelled")
        return metrics

    def features(self, variables: Variables, batch: Batch) -> Float[Array, "b d"]:
        """The mean of the latents of all tokens, of length one; of the first view of several."""
        video = batch["video"]
        video = video[:, 0] if video.ndim == VIEWS_NDIM else video
        pixels = normalize_pixels(video, self.objective)
        params = {"params": variables["params"]}
        latents = self.model.apply(params, pixels, method="features").mean(1)
        return latents / jnp.linalg.norm(latents, axis=-1, keepdims=True)

    def _targets(self, label: Any) -> Float[Array, "b k"]:
        return soft_targets(label, self.model.num_classes, self.label_smoothing)

    def _erased(self, video: Any, keys: ExampleKeys) -> Float[Array, "b T H W C"]:
        pixels = normalize_pixels(video, self.objective)
        return erase(pixels, fold(keys, ERASE), self.erasing) if self.erasing else pixels


def class_weights(given: str, num_classes: int) -> tuple[float, ...]:
    """Returns the weights that a field or the file that it names gives; none where it is empty.

    Raises:
      UserError: where they are no numbers, or not one for each class.
    """
    if not given:
        return ()
    source, texts = "classifier.class_weights", given.split(",")
    if len(texts) == 1:
        source = f"classifier.class_weights={given}"
        try:
            texts = Path(given).read_text().split()
        except (OSError, ValueError) as error:
            raise UserError(f"{source} cannot be read ({error}): give a text file") from error
    try:
        weights = tuple(float(text) for text in texts)
    except ValueError as error:
        raise UserError(f"{source}: {error}; give one number for each class") from error
    if len(weights) != num_classes or not all(0 <= w < math.inf for w in weights):
        raise UserError(
            f"{source} has {len(weights)} number(s) for {num_classes} classes: give as many, "
            "finite and none below 0"
        )
    return weights
