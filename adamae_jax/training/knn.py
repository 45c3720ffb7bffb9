"""k-nearest-neighbour accuracy of the encoder's features: a cheap look at what they know."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from adamae_jax.objectives import Pretraining, normalize_pixels
from adamae_jax.training.mesh import batch_sharding, replicated

TEMPERATURE = 0.07  # of the votes' weights, as is usual for self-supervised features

FeatureStep = Callable[[Any, Array], Float[Array, "b d"]]


class Labelled(NamedTuple):
    """The labelled clips of one side.

    Attributes:
      features: of length one.
      labels: of the same clips.
      unreadable: how many more there are that could not be read, whose labels nobody knows.
      unlabelled: how many were read that have no label.
    """

    features: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, "n"]
    unreadable: int = 0
    unlabelled: int = 0

    @property
    def clips(self) -> int:
        """All that were looked at."""
        return len(self.labels) + self.unreadable + self.unlabelled


def compile_features(pretraining: Pretraining, mesh: Mesh) -> FeatureStep:
    """The jitted ``(autoencoder parameters, uint8 clips) -> features``, of length one.

    A clip's feature is the mean of the latents of all its tokens.
    """

    def features(params: Any, video: Array) -> Float[Array, "b d"]:
        pixels = normalize_pixels(video, pretraining.objective)
        latents = pretraining.model.apply({"params": params}, pixels, method="features").mean(1)
        return latents / jnp.linalg.norm(latents, axis=-1, keepdims=True)

    return jax.jit(
        features,
        in_shardings=(replicated(mesh), batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )


def collect(
    features: FeatureStep,
    params: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
    put: Callable[[Mapping[str, np.ndarray]], Mapping[str, Array]],
) -> Labelled:
    """Features and labels of all valid, labelled clips, on every host.

    Args:
      features: from `compile_features`.
      params: the autoencoder's.
      batches: this process's batches with ``video``, ``label``, ``valid`` and ``unreadable``.
      put: hands a host's batch to the devices.
    """
    found, labels = [], []
    unreadable = unlabelled = 0
    for batch in batches:
        on_device = put(batch)
        rows = np.asarray(features(params, on_device["video"]))
        label, valid, torn = (
            _everywhere(on_device[name]) for name in ("label", "valid", "unreadable")
        )
        kept = valid & (label >= 0)
        found.append(rows[kept])
        labels.append(label[kept])
        unreadable += int(torn.sum())
        unlabelled += int((valid & ~kept).sum())
    return Labelled(np.concatenate(found), np.concatenate(labels), unreadable, unlabelled)


def _everywhere(array: Array) -> np.ndarray:
    """A sharded array on the host, also where other hosts hold a part of it."""
    if array.is_fully_addressable:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def accuracy(bank: Labelled, held_out: Labelled, neighbours: int) -> float:
    """The share of held-out clips whose neighbours in the bank vote for their label.

    Each of the nearest ``neighbours`` votes with weight ``exp(cosine / TEMPERATURE)``. A held-out
    clip that could not be read counts as wrong; of the bank, it is missing. NaN where either side
    has no labelled clip.
    """
    bank_features, bank_labels = bank.features, bank.labels
    features, labels = held_out.features, held_out.labels
    if not len(bank_labels) or not len(labels):
        return float("nan")
    similarity = features @ bank_features.T
    count = min(neighbours, len(bank_labels))
    nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
    weights = np.exp(np.take_along_axis(similarity, nearest, axis=1) / TEMPERATURE)
    votes = np.zeros((len(labels), int(max(bank_labels.max(), labels.max())) + 1))
    for column in range(count):
        np.add.at(
            votes, (np.arange(len(labels)), bank_labels[nearest[:, column]]), weights[:, column]
        )
    return float((votes.argmax(1) == labels).sum() / (len(labels) + held_out.unreadable))
