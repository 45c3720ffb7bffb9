"""k-nearest-neighbour accuracy of the encoder's features: a cheap look at what they know."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from adamae_jax.task import Batch, Task, Variables
from adamae_jax.training.evaluation import HostBatch
from adamae_jax.training.partitioning import on_mesh, put_batch, replicated, to_host

TEMPERATURE = 0.07  # of the votes' weights, as is usual for self-supervised features

FeatureStep = Callable[[Variables, Batch], Float[Array, "b d"]]


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


def compile_features(task: Task, mesh: Mesh) -> FeatureStep:
    """Returns the jitted features of a task: one vector of length one per clip."""
    return jax.jit(on_mesh(task.features, mesh), out_shardings=replicated(mesh))


def collect(
    features: FeatureStep, variables: Variables, batches: Iterable[HostBatch], mesh: Mesh
) -> Labelled:
    """Returns features and labels of all valid, labelled clips, on every host.

    Args:
      features: from `compile_features`.
      variables: the task's.
      batches: this process's batches with ``video``, ``label``, ``valid`` and ``unreadable``.
      mesh: the devices.
    """
    found, labels = [], []
    unreadable = unlabelled = 0
    for batch in batches:
        on_devices = put_batch(batch, mesh)
        rows = np.asarray(features(variables, on_devices))
        label, valid, torn = (
            to_host(on_devices[name]) for name in ("label", "valid", "unreadable")
        )
        kept = valid & (label >= 0)
        found.append(rows[kept])
        labels.append(label[kept])
        unreadable += int(torn.sum())
        unlabelled += int((valid & ~kept).sum())
    return Labelled(np.concatenate(found), np.concatenate(labels), unreadable, unlabelled)


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
