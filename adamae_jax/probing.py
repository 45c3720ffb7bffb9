"""Probing: what small classifiers make of the latents of an encoder that stays as it is.

Probes of several kinds, each at several learning rates, are trained together on the same clips:
the encoder, which costs the most, runs once for all of them. No probe sees another: each is what
it would be alone (`adamae_jax.training.optimizers.stacked`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key, UInt8

from adamae_jax.classification import VIEWS_NDIM
from adamae_jax.models.classifier import Pooling
from adamae_jax.models.encoder import Encoder
from adamae_jax.models.probes import (
    PROBE_KINDS,
    AttentiveProbe,
    BatchNorm,
    LinearProbe,
    ProbeKind,
)
from adamae_jax.models.transformer import ExampleKeys
from adamae_jax.targets import Objective, normalize_pixels
from adamae_jax.task import Batch, Task, TaskLoss, Variables

Logits = Float[Array, "s b k"]
# Kinds that see one vector per clip, and where the statistics of that vector are kept.
NORMS: dict[ProbeKind, str] = {"linear": "norm", "change": "change_norm"}


@dataclasses.dataclass(frozen=True)
class Probing(Task):
    """The task of telling classes apart by the latents of a frozen encoder.

    Parameters are stacked, ``[rates, ...]``, under the kind of their probe. Clips without a label
    (-1) have no weight, and count as wrong where they are held out.

    Attributes:
      encoder: with the norm behind its blocks; it is in the variables' ``frozen``.
      num_classes: to be told apart.
      objective: how pixels are normalised.
      kinds: of probes.
      rates: factors on the learning rate, one probe of each kind for each.
      pooling: what a linear probe and nearest neighbours see: the "mean" of all patches' latents,
        or the "first" token's.
      skip_first_patch: see `adamae_jax.models.classifier.Classifier`.
    """

    encoder: Encoder
    num_classes: int
    objective: Objective
    kinds: tuple[ProbeKind, ...] = ("linear", "attentive")
    rates: tuple[float, ...] = (1.0,)
    pooling: Pooling = "mean"
    skip_first_patch: bool = False

    name = "probing"
    trains_features = False

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Probes of a kind start alike; an encoder at random, to be replaced."""
        clip = jnp.zeros((1, *self.encoder.geometry.clip_shape))
        frozen = self.encoder.init(jax.random.fold_in(key, len(PROBE_KINDS)), clip)["params"]
        tokens = jnp.zeros((1, 1, self.encoder.spec.width))
        params = {}
        for kind in self.kinds:
            inputs = tokens[:, 0] if kind in NORMS else tokens
            own = jax.random.fold_in(key, PROBE_KINDS.index(kind))
            one = self._probe(kind).init(own, inputs)["params"]
            params[kind] = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(self.rates)), one)
        norm = BatchNorm(use_running_average=True).init(key, tokens[:, 0])["batch_stats"]
        state = {NORMS[kind]: norm for kind in self.kinds if kind in NORMS}
        return {"params": params, "state": state, "frozen": {"encoder": frozen}}

    def loss(
        self, group: str, variables: Variables, batch: Batch, keys: ExampleKeys, train: bool
    ) -> TaskLoss:
        """The sum of all probes' cross-entropies, and the accuracy of each."""
        del group, keys
        logits, state = self.logits(variables, batch["video"], train)
        label = batch["label"]
        return TaskLoss(
            self._cross_entropies(logits, label),
            (label >= 0).astype(jnp.float32),
            self._accuracies(logits, label),
            state,
        )

    def evaluate(
        self, variables: Variables, batch: Batch, keys: ExampleKeys | None
    ) -> dict[str, Float[Array, "b"]]:
        """As `loss`, with the running statistics."""
        del keys
        logits, _ = self.logits(variables, first_view(batch["video"]), False)
        label = batch["label"]
        return {
            "loss": self._cross_entropies(logits, label),
            "labelled": ((label >= 0) & (label < self.num_classes)).astype(jnp.float32),
            **self._accuracies(logits, label),
        }

    def summarize(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Adds to a validation the best accuracy of each kind and of all; loss as in training."""
        metrics = dict(means)
        if "labelled" not in metrics:
            return metrics
        metrics["loss"] = metrics["loss"] / metrics.pop("labelled")
        for kind in self.kinds:
            found = [metrics[f"accuracy_{probe_name(kind, rate)}"] for rate in self.rates]
            metrics[f"accuracy_{kind}"] = max(found)
        metrics["accuracy"] = max(metrics[f"accuracy_{kind}"] for kind in self.kinds)
        return metrics

    def best_rates(self, evaluated: Mapping[str, Any]) -> dict[str, float]:
        """Returns for each kind the factor of its best probe in a validation."""
        return {
            f"rate_{kind}": max(
                self.rates, key=lambda rate: evaluated[f"eval_accuracy_{probe_name(kind, rate)}"]
            )
            for kind in self.kinds
            if f"eval_accuracy_{kind}" in evaluated
        }

    def features(self, variables: Variables, batch: Batch) -> Float[Array, "b d"]:
        """What a linear probe sees, of length one."""
        pooled = self._pool(self._latents(variables, first_view(batch["video"])))
        return pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)

    def logits(
        self, variables: Variables, video: UInt8[Array, "b T H W C"], train: bool
    ) -> tuple[dict[str, Logits], Any]:
        """Returns the logits of each kind's probes, in the order of the rates, and the new state.

        Args:
          variables: see `init`.
          video: the clips.
          train: whether features are normalised over these clips, and the running statistics go
            on; they are over all clips of a microbatch, whatever devices they lie on.
        """
        latents, state = self._latents(variables, video), variables["state"]
        found = dict[str, Logits]()
        for kind in self.kinds:
            inputs = latents
            if kind in NORMS:
                norm, name = BatchNorm(use_running_average=not train), NORMS[kind]
                vector = self._pool(latents) if kind == "linear" else self._change(latents)
                inputs, new = norm.apply(
                    {"batch_stats": state[name]}, vector, mutable=["batch_stats"]
                )
                state = {**state, name: new["batch_stats"]}
            apply = self._probe(kind).apply
            found[kind] = jax.vmap(lambda own, apply=apply, x=inputs: apply({"params": own}, x))(
                variables["params"][kind]
            )
        return found, state

    def _probe(self, kind: ProbeKind) -> nn.Module:
        if kind in NORMS:
            return LinearProbe(self.num_classes)
        return AttentiveProbe(self.num_classes, self.encoder.spec.num_heads)

    def _latents(self, variables: Variables, video: Any) -> Float[Array, "b n d"]:
        pixels = normalize_pixels(video, self.objective)
        params = {"params": variables["frozen"]["encoder"]}
        return self.encoder.apply(params, pixels).astype(jnp.float32)

    def _pool(self, latents: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        if self.pooling == "first":
            return latents[:, 0]
        return latents[:, int(self.encoder.class_token or self.skip_first_patch) :].mean(axis=1)

    def _change(self, latents: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        """How much latents change from one time step to the next, in the mean over all places."""
        steps, height, width = self.encoder.geometry.grid
        patches = latents[:, int(self.encoder.class_token) :]
        of_steps = patches.reshape(len(latents), steps, height * width, -1)
        return jnp.abs(of_steps[:, 1:] - of_steps[:, :-1]).mean(axis=(1, 2))

    def _cross_entropies(self, logits: Mapping[str, Logits], label: Any) -> Float[Array, "b"]:
        targets = jax.nn.one_hot(label, self.num_classes)  # nothing where there is no label
        return sum(
            (-(targets * jax.nn.log_softmax(each)).sum((0, 2)) for each in logits.values()),
            start=jnp.zeros(len(label)),
        )

    def _accuracies(self, logits: Mapping[str, Logits], label: Any) -> dict[str, Any]:
        return {
            f"accuracy_{probe_name(kind, rate)}": (each.argmax(-1) == label).astype(jnp.float32)
            for kind, of_rates in logits.items()
            for rate, each in zip(self.rates, of_rates, strict=True)
        }


def first_view(video: UInt8[Array, "..."]) -> UInt8[Array, "b T H W C"]:
    """Returns clips, of videos with an axis of views the first one."""
    return video[:, 0] if video.ndim == VIEWS_NDIM else video


def probe_name(kind: str, rate: float) -> str:
    """The name of a probe in figures, such as ``linear_0.3``, by the factor on its rate."""
    return f"{kind}_{float(rate)}"
