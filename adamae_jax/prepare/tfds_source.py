"""Datasets that TFDS prepared, as a source: their encoded frames are read, and nothing else.

Without TensorFlow: the shards are read as our own are.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from adamae_jax.data import schema
from adamae_jax.data.damage import BadRecordError
from adamae_jax.data.records import NoDatasetError, read_info
from adamae_jax.data.tfrecord import load_index, stored_payload
from adamae_jax.errors import UserError
from adamae_jax.prepare.sources import Item, Source, in_order
from adamae_jax.prepare.video_file import is_believed

# What features are called that say which video it is and how fast; the better name first.
ID_FEATURES = (schema.ID, "video_id", schema.FILE_NAME, "filename", "video_name")
RATE_FEATURES = (schema.RATE, "fps", "frame_rate", "framerate")


@dataclasses.dataclass(frozen=True)
class StoredFeatures:
    """Where the records of a dataset have what is wanted.

    Attributes:
        frames: the feature with the frames of a video, or with an image.
        label: the feature with the class; None where there is none.
        images: whether records are images.
        id: the feature that names the record; None where there is none.
        rate: the feature with the frames per second; None where there is none.
        default_rate: of records that do not say their rate; 0 where it is not known.
    """

    frames: str
    label: str | None
    images: bool
    id: str | None = None
    rate: str | None = None
    default_rate: float = 0.0


class StoredRecord(NamedTuple):
    """What is taken over from a record.

    Attributes:
        frames: encoded images, at least one.
        label: class index, or `schema.UNLABELLED`.
        id: its own, or that of its item.
        rate: frames per second; 0 where it is not known.
    """

    frames: list[bytes]
    label: int
    id: str
    rate: float


def tfds_source(directory: Path, rate: float = 0.0) -> tuple[Source, StoredFeatures]:
    """All records of a directory that ``tfds.builder_from_directory`` opens.

    Labels, names and rates stand in the records and are read with them (`read_stored`). The folder
    is left as it is.

    Args:
        directory: of the dataset.
        rate: frames per second of records that do not say; 0 where it is not known.

    Raises:
        UserError: it is no such dataset, or has not exactly one feature with videos or images.
    """
    info = dataset_info(directory, f"--tfds={directory}")
    if info.file_format.value != "tfrecord":
        raise UserError(
            f"--tfds={directory} is stored as {info.file_format.value}: prepare it with TFDS as "
            "file_format='tfrecord'"
        )
    features = _find_features(info.features or {}, directory, rate)
    items = []
    for name, split in info.splits.items():
        index = load_index(split.filepaths, split.shard_lengths)
        for number in range(len(index)):
            shard, _ = index.place(number)
            item = Item(f"{name}/{number}", index.paths[shard], split=name, span=index.span(number))
            items.append(item)
    if not items:
        raise UserError(f"--tfds={directory} is empty: prepare it again with TFDS")
    names = info.features[features.label].names if features.label else ()
    return Source(in_order(items), tuple(names)), features


def dataset_info(directory: Path, called: str) -> Any:
    """TFDS's description of a dataset in a local folder.

    Args:
        directory: as ``tfds.builder_from_directory`` opens it.
        called: the user's words for it.

    Raises:
        UserError: TFDS cannot open it.
    """
    try:
        return read_info(directory)
    except NoDatasetError as error:
        raise UserError(
            f"{called} is no dataset that TFDS opens ({error}): give the folder that holds its "
            "dataset_info.json"
        ) from error


def _find_features(features: Any, directory: Path, rate: float) -> StoredFeatures:
    from tensorflow_datasets.core.features import ClassLabel, Image, Sequence, Text, Video

    known = dict(features.items())  # TFDS's own dictionaries know no `get`
    described = sorted(known.items())
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
    ids = [name for name in ID_FEATURES if isinstance(known.get(name), Text)]
    rates = [name for name in RATE_FEATURES if _is_number(known.get(name))]
    return StoredFeatures(
        found[0],
        label=labels[0] if labels else None,
        images=not videos,
        id=ids[0] if ids else None,
        rate=rates[0] if rates and videos else None,
        default_rate=rate,
    )


def _is_number(feature: Any) -> bool:
    from tensorflow_datasets.core.features import ClassLabel, Tensor

    return (
        isinstance(feature, Tensor)
        and not isinstance(feature, ClassLabel)
        and feature.shape == ()
        and np.issubdtype(feature.np_dtype, np.number)
    )


def read_stored(item: Item, features: StoredFeatures) -> StoredRecord:
    """The encoded frames (JPEG or PNG) of one record, and what is said of them.

    Raises:
        BadRecordError: it is damaged, or its frames are missing.
        OSError: the shard cannot be read, again and again.
    """
    assert item.span is not None
    payload = stored_payload(item.path, *item.span).whole()
    try:
        stored = tf_example_pb2.Example.FromString(payload).features.feature
    except DecodeError as error:
        raise BadRecordError("it is no tf.train.Example") from error
    frames = list(stored[features.frames].bytes_list.value)
    if not frames:
        raise BadRecordError(f"its {features.frames!r} holds no frames")
    label = list(stored[features.label].int64_list.value) if features.label else []
    names = list(stored[features.id].bytes_list.value) if features.id else []
    rate = stored[features.rate] if features.rate else None
    rates = [*rate.float_list.value, *rate.int64_list.value] if rate else []
    return StoredRecord(
        frames,
        int(label[0]) if label else schema.UNLABELLED,
        names[0].decode(errors="backslashreplace") if names and names[0] else item.id,
        next((float(rate) for rate in rates if is_believed(rate)), features.default_rate),
    )
