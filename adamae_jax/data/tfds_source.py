"""Datasets that TFDS prepared, as a source: their encoded frames are read, and nothing else.

Without TensorFlow: the shards are read as our own are.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from adamae_jax.data import schema
from adamae_jax.data.sources import Item, Source, in_order
from adamae_jax.data.tfrecord import (
    CHECKSUM_BYTES,
    BadRecordError,
    load_index,
    masked_checksum,
)
from adamae_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class StoredFeatures:
    """Where the records of a dataset have what is wanted.

    Attributes:
        frames: the feature with the frames of a video, or with an image.
        label: the feature with the class; None where there is none.
        images: whether records are images.
    """

    frames: str
    label: str | None
    images: bool


def tfds_source(directory: Path) -> tuple[Source, StoredFeatures]:
    """All records of a directory that ``tfds.builder_from_directory`` opens.

    Their labels stand in the records and are read with them (`read_stored`).

    Raises:
        UserError: it is no such dataset, or has not exactly one feature with videos or images.
    """
    import tensorflow_datasets as tfds

    try:
        info = tfds.builder_from_directory(directory).info
    except Exception as error:  # TFDS raises many kinds here
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise UserError(
            f"--tfds={directory} is no dataset that TFDS opens ({reason}): give the folder that "
            "holds its dataset_info.json"
        ) from error
    if info.file_format.value != "tfrecord":
        raise UserError(
            f"--tfds={directory} is stored as {info.file_format.value}: prepare it with TFDS as "
            "file_format='tfrecord'"
        )
    features = _find_features(info.features or {}, directory)
    items = []
    for name, split in info.splits.items():
        paths = [Path(path) for path in split.filepaths]
        index = load_index(paths, split.shard_lengths, directory / f".index-{name}.npy")
        for number in range(len(index)):
            span = (int(index.offsets[number]), int(index.lengths[number]))
            path = index.paths[index.shard_of(number)]
            items.append(Item(f"{name}/{number}", path, split=name, span=span))
    if not items:
        raise UserError(f"--tfds={directory} is empty: prepare it again with TFDS")
    names = info.features[features.label].names if features.label else ()
    return Source(in_order(items), tuple(names)), features


def _find_features(features: Any, directory: Path) -> StoredFeatures:
    from tensorflow_datasets.core.features import ClassLabel, Image, Sequence, Video

    described = sorted(features.items())
    videos = [
        name
        for name, feature in described
        if isinstance(feature, Video)
        or (isinstance(feature, Sequence) and isinstance(feature.feature, Image))
    ]
    images = [name for name, feature in described if isinstance(feature, Image)]
    labels = [name for name, feature in described if isinstance(feature, ClassLabel)]
    # A dataset of videos may have an image beside them (a mask), but not the other way round.
    found = videos or images
    if len(found) != 1 or len(labels) > 1:
        raise UserError(
            f"--tfds={directory} has the videos {videos}, images {images} and labels {labels}: "
            "one feature with videos or images, and at most one label, can be taken over"
        )
    return StoredFeatures(found[0], labels[0] if labels else None, images=not videos)


def read_stored(item: Item, features: StoredFeatures) -> tuple[list[bytes], int]:
    """The encoded frames (JPEG or PNG) and the label of one record.

    Raises:
        BadRecordError: it is damaged, or its frames are missing.
        OSError: the shard cannot be read.
    """
    assert item.span is not None
    offset, length = item.span
    with open(item.path, "rb") as file:
        data = os.pread(file.fileno(), length + CHECKSUM_BYTES, offset)
    payload = data[:length]
    if int.from_bytes(data[length:], "little") != masked_checksum(payload):
        raise BadRecordError("its checksum does not match its content")
    try:
        stored = tf_example_pb2.Example.FromString(payload).features.feature
    except DecodeError as error:
        raise BadRecordError("it is no tf.train.Example") from error
    frames = list(stored[features.frames].bytes_list.value)
    if not frames:
        raise BadRecordError(f"its {features.frames!r} holds no frames")
    label = list(stored[features.label].int64_list.value) if features.label else []
    return frames, int(label[0]) if label else schema.UNLABELLED
