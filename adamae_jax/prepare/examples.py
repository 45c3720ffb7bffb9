"""Examples after the one schema, and the metadata by which TensorFlow Datasets opens them."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_feature_pb2

from adamae_jax.data import schema
from adamae_jax.data.payload import compose, header_checksum
from adamae_jax.prepare.encode import EncodedVideo

Example = dict[str, Any]  # the features of one clip, by their names in the schema


def features(
    label_names: Sequence[str] = (), foreground: bool = False, codec: str = schema.CODEC_JPEG
) -> tfds.features.FeaturesDict:
    """Returns the schema of `adamae_jax.data.schema` in terms of TFDS.

    Args:
        label_names: the classes; none where clips have no labels.
        foreground: whether clips come with foreground masks.
        codec: how their frames are stored.
    """
    image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
    jpegs = codec == schema.CODEC_JPEG
    described: dict[str, Any] = {
        schema.ID: tfds.features.Text(),
        schema.LABEL: tfds.features.ClassLabel(names=list(label_names)),
        # TFDS calls a string of bytes a text.
        schema.FRAMES: tfds.features.Sequence(image) if jpegs else tfds.features.Text(),
        schema.CODEC: tfds.features.Text(),
        schema.NUM_FRAMES: np.int64,
        schema.RATE: np.float32,
        schema.HEIGHT: np.int64,
        schema.WIDTH: np.int64,
        schema.FRAME_SIZES: tfds.features.Sequence(np.int64),
        schema.FRAME_CHECKSUMS: tfds.features.Sequence(np.int64),
        schema.HEADER_CHECKSUM: np.int64,
    }
    if not jpegs:
        described[schema.TIMES] = tfds.features.Sequence(np.int64)
        described[schema.KEYFRAMES] = tfds.features.Sequence(np.int64)
    if foreground:
        described[schema.FOREGROUND] = tfds.features.Image(
            shape=(None, None, 1), encoding_format="png"
        )
    return tfds.features.FeaturesDict(described)


def image_features(label_names: Sequence[str] = ()) -> tfds.features.FeaturesDict:
    """Returns the features of a dataset of images; see `features`."""
    return tfds.features.FeaturesDict(
        {
            schema.ID: tfds.features.Text(),
            schema.LABEL: tfds.features.ClassLabel(names=list(label_names)),
            schema.IMAGE: tfds.features.Image(shape=(None, None, 3)),
        }
    )


def make_example(
    identity: str,
    frames: Sequence[bytes],
    rate: float,
    height: int,
    width: int,
    label: int = schema.UNLABELLED,
    foreground: bytes | None = None,
) -> Example:
    """Returns one clip of JPEG frames as `features` describes it.

    Args:
        identity: unique within the dataset.
        frames: one JPEG per frame, stored as it is.
        rate: frames per second.
        height: pixels of the frames.
        width: pixels of the frames.
        label: class index, `schema.UNLABELLED` where there is none.
        foreground: PNG of all masks, see `schema.FOREGROUND`.
    """
    video = EncodedVideo(list(frames), len(frames), rate, height, width, None)
    return video_example(identity, label, schema.CODEC_JPEG, video, foreground)


def video_example(
    identity: str, label: int, codec: str, video: EncodedVideo, foreground: bytes | None = None
) -> Example:
    """Returns one video as `features` describes it; its codec is one of `schema.CODECS`."""
    example: Example = {
        schema.ID: identity,
        schema.LABEL: label,
        schema.FRAMES: video.frames,
        schema.CODEC: codec,
        schema.NUM_FRAMES: video.num_frames,
        schema.RATE: float(video.rate),
        schema.HEIGHT: video.height,
        schema.WIDTH: video.width,
        schema.FRAME_SIZES: [len(frame) for frame in video.frames],
        schema.FRAME_CHECKSUMS: [google_crc32c.value(frame) for frame in video.frames],
    }
    if codec != schema.CODEC_JPEG:
        example[schema.TIMES] = list(video.times)
        example[schema.KEYFRAMES] = list(video.keyframes)
    if foreground is not None:
        example[schema.FOREGROUND] = foreground
    header = {name: value for name, value in example.items() if name != schema.FRAMES}
    return {**example, schema.HEADER_CHECKSUM: header_checksum(_messages(header).feature)}


def serialize(example: Example) -> bytes:
    """Returns a ``tf.train.Example`` as bytes: frames last, the same for the same features."""
    header = {name: value for name, value in example.items() if name != schema.FRAMES}
    frames = {name: value for name, value in example.items() if name == schema.FRAMES}
    return compose(
        _messages(header).SerializeToString(deterministic=True),
        _messages(frames).SerializeToString(deterministic=True),
    )


def _messages(example: Example) -> Any:
    """Returns features as the message ``tf.train.Features``."""
    messages = tf_feature_pb2.Features()
    for name, value in example.items():
        values = value if isinstance(value, list) else [value]
        feature = messages.feature[name]
        if name in schema.INTEGER_LISTS or isinstance(value, int):
            feature.int64_list.value.extend(values)
        elif isinstance(value, float):
            feature.float_list.value.extend(values)
        else:
            texts = (item.encode() if isinstance(item, str) else item for item in values)
            feature.bytes_list.value.extend(texts)
    return messages


def write_metadata(
    folder: Path,
    described: tfds.features.FeaturesDict,
    splits: Mapping[str, Sequence[tuple[int, int]]],
    file_format: str,
    name: str,
    description: str,
) -> None:
    """Makes a folder of shards into a dataset that TFDS opens.

    Args:
        folder: with all shards, named as `shard_name` names them.
        described: the features.
        splits: for each split, the number of records and bytes of each shard.
        file_format: of the shards, as TFDS calls it.
        name: of the dataset.
        description: one sentence.
    """
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, filetype_suffix=file_format
    )
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[records for records, _ in shards],
            num_bytes=sum(num_bytes for _, num_bytes in shards),
            filename_template=template.replace(split=split),
        )
        for split, shards in splits.items()
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS tells what it writes
        tfds.folder_dataset.write_metadata(
            data_dir=folder,
            features=described,
            split_infos=infos,
            filename_template=template,
            check_data=False,
            description=description,
        )


def shard_name(name: str, split: str, file_format: str, number: int, count: int) -> str:
    """Returns the name of one of the `count` shards of a split."""
    return f"{name}-{split}.{file_format}-{number:05d}-of-{count:05d}"
