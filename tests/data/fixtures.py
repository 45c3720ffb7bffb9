"""Small datasets written on the spot, without TensorFlow."""

import dataclasses
import io
import itertools
import json
import os
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import google_crc32c
import numpy as np
import simplejpeg
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from adamae_jax.data import schema
from adamae_jax.data.batches import Batches, Reading, eval_batches, train_batches
from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.examples import Record
from adamae_jax.data.mixture import MixedDataset
from adamae_jax.data.payload import StoredFrames
from adamae_jax.data.records import Dataset
from adamae_jax.data.stream import EvalClips, TrainClips
from adamae_jax.prepare.examples import features

Result = TypeVar("Result")
NAME = "small"


def frame_record(payload: bytes) -> bytes:
    """One record of a TFRecord file, written down independently of the reader."""

    def checksum(data: bytes) -> bytes:
        crc = google_crc32c.value(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(payload))
    return length + checksum(length) + payload + checksum(payload)


def stored_frames(record: Record) -> StoredFrames:
    """The frames of a record of JPEGs."""
    assert isinstance(record.frames, StoredFrames)
    return record.frames


def encode_png(masks: np.ndarray) -> bytes:
    """Masks [T, h, w] as the grey PNG of the schema."""
    file = io.BytesIO()
    Image.fromarray(masks.reshape(-1, masks.shape[-1])).save(file, "PNG")
    return file.getvalue()


def serialize(
    pixels: np.ndarray,
    identity: str = "video",
    label: int = 0,
    masks: np.ndarray | None = None,
    **changes: Any,
) -> bytes:
    """A ``tf.train.Example`` of pixels [T, H, W, 3]; ``changes`` overwrite what it says."""
    values: dict[str, Any] = {
        schema.ID: identity.encode(),
        schema.LABEL: label,
        schema.FRAMES: [
            simplejpeg.encode_jpeg(frame, quality=98, colorsubsampling="444") for frame in pixels
        ],
        schema.CODEC: schema.CODEC_JPEG.encode(),
        schema.NUM_FRAMES: len(pixels),
        schema.RATE: 8.0,
        schema.HEIGHT: pixels.shape[1],
        schema.WIDTH: pixels.shape[2],
    }
    if masks is not None:
        values[schema.FOREGROUND] = encode_png(masks)
    lists = {
        name: value if isinstance(value, list) else [value]
        for name, value in (values | changes).items()
    }
    return tf_example_pb2.Example(features=sealed(lists)).SerializeToString(deterministic=True)


def sealed(lists: dict[str, list[Any]]) -> tf_feature_pb2.Features:
    """Features, with the sizes and checksums that prove them, independently of the writer."""
    lists = {
        schema.FRAME_SIZES: [len(frame) for frame in lists[schema.FRAMES]],
        schema.FRAME_CHECKSUMS: [google_crc32c.value(frame) for frame in lists[schema.FRAMES]],
        **lists,
    }
    features = tf_feature_pb2.Features()
    for name, values in lists.items():
        kind = {bytes: "bytes_list", int: "int64_list", float: "float_list"}[
            type((values or [0 if name in schema.INTEGER_LISTS else b""])[0])
        ]
        getattr(features.feature[name], kind).value.extend(values)
    if schema.HEADER_CHECKSUM not in lists:
        header = tf_feature_pb2.Features.FromString(features.SerializeToString())
        header.feature.pop(schema.FRAMES, None)
        checksum = google_crc32c.value(header.SerializeToString(deterministic=True))
        features.feature[schema.HEADER_CHECKSUM].int64_list.value.append(checksum)
    return features


def video(seed: int, num_frames: int = 6, height: int = 24, width: int = 32) -> np.ndarray:
    """A smooth random video [T, H, W, 3], whose red channel's mean grows with the frame number."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (num_frames, height // 8, width // 8, 3), np.uint8)
    frames = coarse.repeat(8, axis=1).repeat(8, axis=2)
    frames[..., 0] = 10 * np.arange(num_frames)[:, None, None] + 5
    return frames


def small_records(count: int, with_masks: bool = True) -> list[bytes]:
    """Examples with different pixels and labels 0, 1, 2, 0, ..."""
    records = []
    for number in range(count):
        frames = video(number)
        masks = frames[:, ::4, ::4, 1].copy() if with_masks else None
        records.append(serialize(frames, f"video-{number}", number % 3, masks))
    return records


def write_dataset(
    directory: Path,
    splits: Mapping[str, Sequence[bytes]],
    shards: int = 1,
    with_masks: bool = True,
    label_names: Sequence[str] = ("a", "b", "c"),
) -> Path:
    """Writes serialised examples as TFDS would, each split in ``shards`` files."""
    directory.mkdir(parents=True, exist_ok=True)
    described = []
    for split, records in splits.items():
        bounds = np.linspace(0, len(records), shards + 1).astype(int)
        for shard, (start, stop) in enumerate(itertools.pairwise(bounds)):
            path = shard_path(directory, split, shard, shards)
            path.write_bytes(b"".join(map(frame_record, records[start:stop])))
        described.append(
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": str(sum(map(len, records))),
                "shardLengths": [str(n) for n in np.diff(bounds)],
            }
        )
    info = {"name": NAME, "version": "1.0.0", "fileFormat": "tfrecord", "splits": described}
    (directory / "dataset_info.json").write_text(json.dumps(info))
    features(label_names, foreground=with_masks).save_config(os.fspath(directory))
    return directory


def shard_path(directory: Path, split: str, shard: int = 0, shards: int = 1) -> Path:
    """The file of one shard."""
    return directory / f"{NAME}-{split}.tfrecord-{shard:05d}-of-{shards:05d}"


def flip_byte(path: Path, position: int) -> None:
    """Damages one byte, leaving size and modification time alone."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def training(
    dataset: Dataset | MixedDataset, spec: ClipSpec, first_step: int, num_steps: int, **options: Any
) -> Batches:
    """Training batches, with options of `TrainClips` and of `Reading`."""
    clips, reading = _parted(options)
    return train_batches(TrainClips(dataset, spec, **clips), first_step, num_steps, reading)


def evaluation(dataset: Dataset, spec: ClipSpec, **options: Any) -> Batches:
    """Batches of an evaluation, with options of `EvalClips` and of `Reading`."""
    clips, reading = _parted(options)
    return eval_batches(EvalClips(dataset, spec, **clips), reading)


def _parted(options: dict[str, Any]) -> tuple[dict[str, Any], Reading]:
    names = {field.name for field in dataclasses.fields(Reading)}
    reading = {name: value for name, value in options.items() if name in names}
    clips = {name: value for name, value in options.items() if name not in names}
    return clips, Reading(**reading)


class ExitingStream:
    """Elements of one clip's number; position ``last`` ends the process, with a signal or 0."""

    def __init__(self, last: int, with_signal: int = 0):
        self.last = last
        self.with_signal = with_signal

    def __getitem__(self, position: int) -> dict[str, Any]:
        if position == self.last:
            if self.with_signal:
                os.kill(os.getpid(), self.with_signal)
            os._exit(0)
        return {"slot": np.array([position], np.int32)}


class SleepingStream:
    """Elements of one clip's number, ``every`` seconds each; position ``last`` takes for ever."""

    def __init__(self, last: int = -1, every: float = 0.0):
        self.last = last
        self.every = every

    def __getitem__(self, position: int) -> dict[str, Any]:
        time.sleep(3600 if position == self.last else self.every)
        return {"slot": np.array([position], np.int32)}
