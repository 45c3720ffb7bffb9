"""What a classifier says of every video of a dataset, in one or several views of each."""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float64, Int32

from adamae_jax.classification import Classification
from adamae_jax.data.stream import id_text
from adamae_jax.errors import UserError
from adamae_jax.task import Batch, Variables
from adamae_jax.training import scores
from adamae_jax.training.evaluation import HostBatch
from adamae_jax.training.partitioning import on_mesh, put_batch, replicated


@dataclasses.dataclass(frozen=True)
class Scores:
    """The classes' scores of videos, the same in every process.

    Attributes:
      ids: the videos' names.
      index: of the records in their split.
      label: -1 where it is unknown.
      scores: of the classes: softmax of each view, averaged over a video's views.
      unreadable: records that could not be read, by their index; they have no row.
    """

    ids: tuple[str, ...]
    index: Int32[np.ndarray, "n"]
    label: Int32[np.ndarray, "n"]
    scores: Float64[np.ndarray, "n k"]
    unreadable: Int32[np.ndarray, "m"]

    @property
    def is_labelled(self) -> bool:
        """Whether there is a video with a label."""
        return bool((self.label >= 0).any())

    def figures(self) -> dict[str, float]:
        """The numbers of videos and, where some have labels, the accuracies.

        Top-1 and top-5 are shares of all videos: those that could not be read, or have no label,
        count as wrong. The mean over classes is over the videos whose label is known.
        """
        videos = len(self.label) + len(self.unreadable)
        counts = {
            "videos": float(videos),
            "labelled": float((self.label >= 0).sum()),
            "unreadable": float(len(self.unreadable)),
        }
        if not self.is_labelled:
            return counts
        right = {k: scores.top_k(self.scores, self.label, k) for k in (1, 5)}
        return {
            **counts,
            **{f"top{k}": float(of_k.sum() / videos) for k, of_k in right.items()},
            "mean_class_accuracy": scores.mean_class_accuracy(right[1], self.label),
        }


def compile_logits(
    task: Classification, mesh: Mesh
) -> Callable[[Variables, Batch], dict[str, Array]]:
    """Returns the jitted logits of a batch of videos with their views.

    The result is whole on every device, with whatever else of the batch is needed to name it.
    """

    def logits(variables: Variables, batch: Batch) -> dict[str, Array]:
        kept = ("label", "example_index", "valid", "unreadable", "video_id")
        views = task.view_logits(variables, batch["video"])
        return {"logits": views, **{name: batch[name] for name in kept}}

    return jax.jit(on_mesh(logits, mesh), out_shardings=replicated(mesh))


def score(
    task: Classification, variables: Variables, batches: Iterable[HostBatch], mesh: Mesh
) -> Scores:
    """Scores every video once, whatever the number of processes.

    Args:
      task: the classifier.
      variables: its parameters.
      batches: this process's part of each batch; see `adamae_jax.data.batches.eval_batches`.
      mesh: the devices.

    Raises:
      UserError: where not one video can be read.
    """
    logits_of = compile_logits(task, mesh)
    found: dict[str, list[np.ndarray]] = {}
    unreadable: list[np.ndarray] = []
    for batch in batches:
        row = {
            name: np.asarray(value)
            for name, value in logits_of(variables, put_batch(batch, mesh)).items()
        }
        unreadable.append(row["example_index"][row.pop("unreadable")])
        valid = row.pop("valid")
        logits = row.pop("logits")
        row["scores"] = scores.merge_views(logits, np.ones(logits.shape[:2], bool))
        for name, values in row.items():
            found.setdefault(name, []).append(values[valid])
    if not sum(map(len, found.get("label", []))):
        raise UserError(
            "none of the videos can be read: look at the warnings above, and make the dataset "
            "anew with `python -m adamae_jax.prepare`"
        )
    whole = {name: np.concatenate(values) for name, values in found.items()}
    return Scores(
        tuple(map(id_text, whole["video_id"])),
        whole["example_index"],
        whole["label"],
        whole["scores"],
        np.concatenate(unreadable),
    )
