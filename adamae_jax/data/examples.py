"""From the bytes of one ``tf.train.Example`` to a record: a video, or an image as one of a frame.

Without TensorFlow, and without decoding pixels.
"""

import dataclasses
from typing import Any, Protocol

from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from adamae_jax.data import schema
from adamae_jax.data.frames import encoded_size
from adamae_jax.data.stored_video import StoredVideo
from adamae_jax.data.tfrecord import BadRecordError
from adamae_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Record:
    """One video as stored.

    Attributes:
        id: its name, unique within the dataset; empty where the dataset has no names.
        label: class index, or `schema.UNLABELLED`.
        frames: one JPEG or PNG per frame, or a video file; at least one frame.
        rate: frames per second; 0 where it is not known.
        height: pixels of each frame.
        width: pixels of each frame.
        foreground: grey PNG of the frames' masks stacked from top to bottom, where there is one.
    """

    id: str
    label: int
    frames: tuple[bytes, ...] | StoredVideo
    rate: float
    height: int
    width: int
    foreground: bytes | None


class Layout(Protocol):
    """How the records of a dataset are written down; can be pickled."""

    def parse(self, payload: bytes) -> Record:
        """The record in the bytes of a ``tf.train.Example``.

        Raises:
            BadRecordError: it is damaged.
            UserError: it is written in a way that this version cannot read.
        """
        ...


@dataclasses.dataclass(frozen=True)
class VideoLayout:
    """Videos after our own `adamae_jax.data.schema`.

    Attributes:
        has_foreground: whether records carry foreground masks.
    """

    has_foreground: bool

    def parse(self, payload: bytes) -> Record:
        """See `Layout`."""
        example = _Example(payload)
        codec = example.text(schema.CODEC)
        if codec not in schema.CODECS:
            raise UserError(
                f"frames are stored with codec {codec!r}, but only {', '.join(schema.CODECS)} are "
                "read: update adamae_jax, or rebuild the dataset with python -m adamae_jax.prepare"
            )
        frames: tuple[bytes, ...] | StoredVideo = example.many(schema.FRAMES)
        num_frames = example.integer(schema.NUM_FRAMES)
        if codec != schema.CODEC_JPEG:
            frames = StoredVideo(
                example.bytes(schema.FRAMES),
                num_frames,
                example.integers(schema.TIMES),
                example.integers(schema.KEYFRAMES),
            )
        if num_frames < 1 or len(frames) != num_frames:
            raise BadRecordError(f"it has {len(frames)} frames and says that it has {num_frames}")
        return Record(
            id=example.text(schema.ID),
            label=example.integer(schema.LABEL),
            frames=frames,
            rate=example.one(schema.RATE, "float_list"),
            height=example.integer(schema.HEIGHT),
            width=example.integer(schema.WIDTH),
            foreground=example.bytes(schema.FOREGROUND) if self.has_foreground else None,
        )


@dataclasses.dataclass(frozen=True)
class ImageLayout:
    """Images as TFDS itself prepares them, each a video of one frame.

    Attributes:
        name: the feature that names the images; None where there is none.
        has_label: whether the images have labels.
    """

    name: str | None
    has_label: bool

    def parse(self, payload: bytes) -> Record:
        """See `Layout`."""
        example = _Example(payload)
        image = example.bytes(schema.IMAGE)
        try:
            height, width = encoded_size(image)  # stored nowhere else
        except BadRecordError as error:
            raise BadRecordError(f"its image is {error}") from error
        return Record(
            id=example.text(self.name) if self.name else "",
            label=example.integer(schema.LABEL) if self.has_label else schema.UNLABELLED,
            frames=(image,),
            rate=0.0,
            height=height,
            width=width,
            foreground=None,
        )


class _Example:
    """The features of a ``tf.train.Example``, each asked for by name and kind."""

    def __init__(self, payload: bytes):
        try:
            self._features = tf_example_pb2.Example.FromString(payload).features.feature
        except DecodeError as error:
            raise BadRecordError("it is no tf.train.Example") from error

    def many(self, name: str) -> tuple[bytes, ...]:
        # The membership test first: asking a protobuf map for what it lacks adds it.
        return tuple(self._features[name].bytes_list.value) if name in self._features else ()

    def one(self, name: str, kind: str) -> Any:
        values = getattr(self._features[name], kind).value if name in self._features else []
        if len(values) != 1:
            raise BadRecordError(f"{name!r} has {len(values)} values of {kind} instead of one")
        return values[0]

    def integers(self, name: str) -> tuple[int, ...]:
        return tuple(self._features[name].int64_list.value) if name in self._features else ()

    def integer(self, name: str) -> int:
        return int(self.one(name, "int64_list"))

    def bytes(self, name: str) -> bytes:
        return bytes(self.one(name, "bytes_list"))

    def text(self, name: str) -> str:
        return self.bytes(name).decode(errors="replace")
