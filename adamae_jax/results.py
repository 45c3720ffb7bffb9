"""The files that a test of a classifier leaves: accuracies, a table of all videos, a picture."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adamae_jax import confusion
from adamae_jax.errors import UserError
from adamae_jax.scoring import Scores
from adamae_jax.training import files
from adamae_jax.training import scores as measures
from adamae_jax.training.files import AnyPath

METRICS, PREDICTIONS, CONFUSION = "metrics.json", "predictions.csv", "confusion.png"
TOP = 5  # classes that are listed of each video


def writable(output: AnyPath) -> None:
    """Makes the folder for the results; raises a `UserError` where that cannot be done."""
    try:
        files.make_directory(output)
    except OSError as error:
        raise UserError(f"--output={output} cannot be written: {files.reason(error)}") from error


def write(
    output: AnyPath, figures: Mapping[str, Any], found: Scores, label_names: Sequence[str]
) -> None:
    """Writes accuracies and predictions and, of videos with labels, the confusion."""
    files.write(output / METRICS, (json.dumps(figures, indent=2) + "\n").encode())
    files.write(output / PREDICTIONS, predictions(found, label_names).encode())
    if not found.is_labelled:
        files.remove(output / CONFUSION)  # of another evaluation
        return
    known = found.label >= 0
    counts = measures.confusion_matrix(found.scores[known], found.label[known])
    picture = io.BytesIO()
    confusion.draw(counts, label_names).save(picture, "PNG")
    files.write(output / CONFUSION, picture.getvalue())


def predictions(found: Scores, label_names: Sequence[str]) -> str:
    """Returns a table of all videos, in the dataset's order.

    Of each its label, and the best classes with their scores; all of it empty but the index where a
    video could not be read.
    """

    def name(label: int) -> str:
        return label_names[label] if 0 <= label < len(label_names) else ""

    text = io.StringIO()
    table = csv.writer(text)
    top = min(TOP, found.scores.shape[1])
    header = [f"{what}_{rank}" for rank in range(1, top + 1) for what in ("class", "name", "score")]
    table.writerow(["video", "index", "label", "label_name", *header])
    rows: dict[int, list[Any]] = {
        # Not even its name could be read.
        int(index): ["", index, "", "", *[""] * len(header)]
        for index in found.unreadable
    }
    for video, index, label, of_video in zip(
        found.ids, found.index, found.label, found.scores, strict=True
    ):
        best = np.argsort(-of_video, kind="stable")[:top].tolist()
        listed = [value for k in best for value in (k, name(k), f"{of_video[k]:.6f}")]
        rows[int(index)] = [video, index, label, name(int(label)), *listed]
    table.writerows(rows[index] for index in sorted(rows))
    return text.getvalue()
