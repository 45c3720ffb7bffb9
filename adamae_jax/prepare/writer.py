"""Datasets as TensorFlow Datasets describes them, all after one schema.

Importing this module does not import TensorFlow; writing does.
"""

import contextlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import simplejpeg
import tensorflow_datasets as tfds
import tqdm
from absl import logging
from jaxtyping import UInt8
from PIL import Image
from tensorflow_datasets.proto import tf_feature_pb2

from adamae_jax.data import schema
from adamae_jax.data.payload import compose, header_checksum
from adamae_jax.prepare import synthetic
from adamae_jax.prepare.encoding import EncodedVideo
from adamae_jax.prepare.pool import ordered_map

Example = dict[str, Any]  # the features of one clip, by their names in the schema

# Small enough to move around and to read in parallel, large enough not to be many.
_MAX_SHARD_BYTES = 512 << 20


def features(
    label_names: Sequence[str] = (), foreground: bool = False, codec: str = schema.CODEC_JPEG
) -> tfds.features.FeaturesDict:
    """The schema of `adamae_jax.data.schema` in terms of TFDS.

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
    """The features of a dataset of images; see `features`."""
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
    """One clip of JPEG frames as `features` describes it.

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
    """One video as `features` describes it; its codec is one of `schema.CODECS`."""
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
    """The bytes of a ``tf.train.Example``, frames last; the same features give the same bytes."""
    header = {name: value for name, value in example.items() if name != schema.FRAMES}
    frames = {name: value for name, value in example.items() if name == schema.FRAMES}
    return compose(
        _messages(header).SerializeToString(deterministic=True),
        _messages(frames).SerializeToString(deterministic=True),
    )


def _messages(example: Example) -> Any:
    """Features as the message ``tf.train.Features``."""
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
    with _quiet():
        tfds.folder_dataset.write_metadata(
            data_dir=folder,
            features=described,
            split_infos=infos,
            filename_template=template,
            check_data=False,
            description=description,
        )


def shard_name(name: str, split: str, file_format: str, number: int, count: int) -> str:
    """The name of one of the `count` shards of a split."""
    return f"{name}-{split}.{file_format}-{number:05d}-of-{count:05d}"


class MovingObjects(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The embedded dataset, made from a seed (see `adamae_jax.prepare.synthetic`)."""

    # TFDS looks beside a builder's code for checksums of downloads, by way of a package that it
    # does not require; here nothing is downloaded.
    code_path = None
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS looks for a list)
        tfds.core.BuilderConfig(name=name, description=f"{size.side}x{size.side} pixels")
        for name, size in synthetic.SIZES.items()
    ]

    def __init__(self, *, seed: int = 0, num_workers: int = 0, **arguments: Any):
        """Like any TFDS builder, with two arguments more.

        Args:
            seed: of all clips.
            num_workers: processes that make clips; 0 makes them in this one.
            **arguments: of `tfds.core.GeneratorBasedBuilder`.
        """
        self._seed = seed
        self._num_workers = num_workers
        super().__init__(**arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Textured objects that move over smooth backgrounds, labelled by motion.",
            features=features(synthetic.MOTIONS, foreground=True),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, Example]]]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in synthetic.SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, Example]]:
        size = self.builder_config.name
        count = synthetic.SIZES[size].clips[split]
        clips = ((size, self._seed, split, index) for index in range(count))
        encoded = ordered_map(encode_clip, clips, self._num_workers)
        # disable=None: a progress bar on a terminal only.
        for fields in tqdm.tqdm(encoded, f"making {split} clips", count, disable=None):
            yield fields["identity"], make_example(**fields)


def encode_clip(address: tuple[str, int, str, int]) -> dict[str, Any]:
    """Makes one clip of the embedded dataset and encodes it: the arguments of `make_example`.

    Args:
        address: name of the size, seed, split, index in the split.
    """
    name, seed, split, index = address
    size = synthetic.SIZES[name]
    clip = synthetic.make_clip(size, seed, split, index)
    return {
        "identity": f"{split}-{index:06d}",
        # Little compression: what it adds to the pixels must stay small against their gradients.
        "frames": [
            simplejpeg.encode_jpeg(frame, quality=95, colorsubsampling="444")
            for frame in clip.frames
        ],
        "rate": synthetic.RATE,
        "height": size.side,
        "width": size.side,
        "label": clip.label,
        "foreground": _encode_masks(clip.foreground),
    }


def _encode_masks(masks: UInt8[np.ndarray, "t h w"]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(masks.reshape(-1, masks.shape[-1])).save(file, format="PNG", compress_level=3)
    return file.getvalue()


def write(builder: tfds.core.GeneratorBasedBuilder) -> tuple[Path, dict[str, int]]:
    """Lets TFDS write a dataset, quietly and without looking for it in the cloud.

    Args:
        builder: made with a `data_dir` in which the dataset does not exist yet.

    Returns:
        The folder that holds ``dataset_info.json`` and the shards, and the number of clips of each
        split.
    """
    # Before TensorFlow is imported, which would announce its processor features otherwise.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False, max_shard_size=_MAX_SHARD_BYTES)
    with _quiet():
        builder.download_and_prepare(download_config=config)
    counts = {name: split.num_examples for name, split in builder.info.splits.items()}
    return Path(builder.data_dir), counts


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what TFDS prints and logs about downloads (of which there are none) and files."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
