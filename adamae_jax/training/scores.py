"""Scores of videos from the logits of their views, and how often they are right.

All on global arrays of the host, after the last batch. The merging is that of `merge` in
``engine_for_finetuning.py`` of the code released with VideoMAE (arXiv 2203.12602).
"""

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64


def merge_views(
    logits: Float[np.ndarray, "*b v k"], valid: Bool[np.ndarray, "*b v"]
) -> Float64[np.ndarray, "*b k"]:
    """Returns the mean of the views' softmax, in float64, over the views that are there.

    Args:
      logits: of each view.
      valid: which views are there; the others' logits do not matter.

    Returns:
      The scores of each class; not-a-number where a video has no view.
    """
    there = valid[..., None]
    logits = np.where(there, logits, 0).astype(np.float64)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    shares = exponentials / exponentials.sum(-1, keepdims=True)
    count = np.where(valid.any(-1), valid.sum(-1), np.nan)
    return np.where(there, shares, 0).sum(-2) / count[..., None]


def top_k(
    scores: Float[np.ndarray, "n k"], labels: Int[np.ndarray, "n"], count: int
) -> Bool[np.ndarray, "n"]:
    """Tells whether each label is among the ``count`` highest scores; of equal ones the first.

    It is not where a video has no label (-1), or scores that are not finite.
    """
    highest = np.argsort(-scores, axis=-1, kind="stable")[:, :count]
    return (highest == labels[:, None]).any(-1) & np.isfinite(scores).all(-1)


def mean_class_accuracy(correct: Bool[np.ndarray, "n"], labels: Int[np.ndarray, "n"]) -> float:
    """Returns the mean, over the classes that occur, of the share of their videos that is right.

    Videos without a label (-1) do not count. Not-a-number where none has one.
    """
    labelled = labels >= 0
    totals = np.bincount(labels[labelled])
    right = np.bincount(labels[labelled], correct[labelled], len(totals))
    occurs = totals > 0
    return float(np.mean(right[occurs] / totals[occurs])) if occurs.any() else float("nan")


def confusion_matrix(
    scores: Float[np.ndarray, "n k"], labels: Int[np.ndarray, "n"]
) -> Int64[np.ndarray, "k k"]:
    """Counts videos by label (row) and class of the highest score (column).

    Videos without a label (-1), or with scores that are not finite, do not count.
    """
    classes = scores.shape[-1]
    known = (labels >= 0) & np.isfinite(scores).all(-1)
    cells = labels[known] * classes + scores[known].argmax(-1)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)
