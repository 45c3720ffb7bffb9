"""Whether the labels of a dataset are those of a classifier: in training and wherever it is tested.

Some labels are looked at before anything begins, from the first to the last; all others as they
come in batches.
"""

from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from adamae_jax.classification import class_weights
from adamae_jax.data.damage import BadRecordError
from adamae_jax.data.mixture import MixedDataset, parts_of
from adamae_jax.data.records import Dataset
from adamae_jax.errors import UserError
from adamae_jax.loaded import Finetuned

LOOKED_AT = 64  # videos, for their labels


def for_classes(config: ConfigDict, dataset: Dataset | MixedDataset) -> ConfigDict:
    """Returns the config with the number of classes, and their weights as numbers.

    Raises:
      UserError: where the dataset has no labels, or labels of another number of classes.
    """
    config = config.copy_and_resolve_references()
    names, options = dataset.label_names, config.classifier
    if not options.num_classes and not names:
        raise UserError(
            f"the dataset at {config.data.dir} does not say which classes it has: give "
            "--config.classifier.num_classes=N, or prepare it from a list with labels"
        )
    options.num_classes = options.num_classes or len(names)
    if names and len(names) != options.num_classes:
        raise UserError(
            f"classifier.num_classes is {options.num_classes}, but the dataset at "
            f"{config.data.dir} has {len(names)} classes: leave it 0"
        )
    check_labels(dataset, options.num_classes)
    weights = class_weights(options.class_weights, options.num_classes)
    options.class_weights = ",".join(map(repr, weights))  # the file may change, or go
    return config


def check_classes(loaded: Finetuned, dataset: Dataset) -> None:
    """Raises a `UserError` where the classes of a dataset are not those of a classifier."""
    ours, theirs = loaded.label_names, dataset.label_names
    count = loaded.model.num_classes
    if theirs and len(theirs) != count:
        raise UserError(
            f"the classifier has {count} classes, the dataset at {dataset.directory} has "
            f"{len(theirs)}: give one with the same classes"
        )
    for label, (own, other) in enumerate(zip(ours, theirs, strict=False)):
        if own != other:
            raise UserError(
                f"class {label} is {own!r} for the classifier and {other!r} in the dataset at "
                f"{dataset.directory}: prepare the dataset with the classifier's --labels"
            )
    check_labels(dataset, count, required=False)


def check_labels(
    dataset: Dataset | MixedDataset, num_classes: int, *, required: bool = True
) -> None:
    """Looks at the labels of some videos, from the first to the last.

    Args:
      dataset: the videos.
      num_classes: labels are to be below.
      required: whether one of the videos at least has to have a label.

    Raises:
      UserError: where one is of no class, or none is there and one has to be.
    """
    looked_at = np.unique(np.linspace(0, len(dataset) - 1, LOOKED_AT).astype(int)).tolist()
    labels = {}
    for index in looked_at:
        try:
            labels[index] = dataset[index].label
        except (BadRecordError, OSError):  # those who read it for a batch tell of it
            continue
    for index, label in labels.items():
        _check_label(dataset, index, label, num_classes)
    if required and labels and max(labels.values()) < 0:
        parts = parts_of(dataset)[0]
        places = " and ".join(part.directory for part in parts)
        raise UserError(
            f"none of {len(labels)} videos of split {parts[0].split!r} at {places}, from the first "
            "to the last, has a label: prepare the dataset from a list with labels, or with "
            "--class_folders"
        )


def check_batch(
    dataset: Dataset | MixedDataset, num_classes: int, batch: Mapping[str, np.ndarray]
) -> None:
    """Raises a `UserError` where a label of a batch is of no class.

    In training it would count as none, in a test as a class that is never found.

    Args:
      dataset: whose records they are.
      num_classes: labels are to be below; 0 where nothing is classified.
      batch: with ``label`` and ``example_index``.
    """
    if not num_classes:
        return
    for place in np.flatnonzero(batch["label"] >= num_classes)[:1]:
        _check_label(
            dataset, int(batch["example_index"][place]), int(batch["label"][place]), num_classes
        )


def _check_label(dataset: Dataset | MixedDataset, index: int, label: int, num_classes: int) -> None:
    if label >= num_classes:
        raise UserError(
            f"{dataset.where(index)} has label {label}, but there are {num_classes} classes, from "
            "0 on: prepare the dataset anew with their labels, or train a classifier with as many "
            "classes as there are (classifier.num_classes)"
        )
