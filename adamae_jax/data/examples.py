"""From the bytes of one ``tf.train.Example`` to a record: a video, or an image as one of a frame.

Without TensorFlow, and without decoding pixels. Of a video's JPEG frames only those are read that
somebody asks for: `Record.frames` is then a `StoredFrames`, whose ``fetch(numbers)`` reads and
checks them.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from adamae_jax.data import schema
from adamae_jax.data.damage import BadRecordError, Damage
from adamae_jax.data.frames import encoded_size
from adamae_jax.data.payload import (
    NO_EXAMPLE,
    HeldPayload,
    Payload,
    Span,
    StoredFrames,
    locate,
    read_header,
)
from adamae_jax.data.video_file import StoredVideo
from adamae_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Record:
    """One video as stored.

    Attributes:
        id: its name, unique within the dataset; empty where the dataset has no names.
        label: class index, or `schema.UNLABELLED`.
        frames: one JPEG per frame, read when they are asked for; an image in memory; or a video
            file. At least one frame.
        rate: frames per second; 0 where it is not known.
        height: pixels of each frame.
        width: pixels of each frame.
        foreground: grey PNG of the frames' masks stacked from top to bottom, where there is one.
    """

    id: str
    label: int
    frames: StoredFrames | tuple[bytes, ...] | StoredVideo
    rate: float
    height: int
    width: int
    foreground: bytes | None


class Layout(abc.ABC):
    """How the records of a dataset are written down; can be pickled."""

    def parse(self, payload: bytes) -> Record:
        """Returns the record in bytes that are in memory; raises as `read` does."""
        return self.read(HeldPayload(payload))

    @abc.abstractmethod
    def read(self, payload: Payload) -> Record:
        """Returns the record in a ``tf.train.Example``, reading no more of it than it takes.

        Raises:
            BadRecordError: it is damaged.
            UserError: it is written in a way that this version cannot read.
            OSError: the storage keeps failing.
        """


@dataclasses.dataclass(frozen=True)
class VideoLayout(Layout):
    """Videos after our own `adamae_jax.data.schema`.

    Attributes:
        has_foreground: whether records carry foreground masks.
    """

    has_foreground: bool

    def read(self, payload: Payload) -> Record:
        """See `Layout`."""
        if payload.size <= payload.gap:
            payload = HeldPayload(payload.read(0, payload.size))
        features, span = read_header(payload)
        example = _Example(features)
        codec = example.text(schema.CODEC)
        if codec not in schema.CODECS:
            raise UserError(
                f"frames are stored with codec {codec!r}, but only {', '.join(schema.CODECS)} are "
                "read: update adamae_jax, or rebuild the dataset with python -m adamae_jax.prepare"
            )
        return Record(
            id=example.text(schema.ID),
            label=example.integer(schema.LABEL),
            frames=_frames(payload, span, example, codec),
            rate=example.one(schema.RATE, "float_list"),
            height=example.integer(schema.HEIGHT),
            width=example.integer(schema.WIDTH),
            foreground=example.bytes(schema.FOREGROUND) if self.has_foreground else None,
        )


def _frames(
    payload: Payload, span: Span | None, example: "_Example", codec: str
) -> StoredFrames | StoredVideo:
    stored = locate(
        payload,
        span,
        example.integers(schema.FRAME_SIZES),
        example.integers(schema.FRAME_CHECKSUMS),
    )
    num_frames = example.integer(schema.NUM_FRAMES)
    num_stored = num_frames if codec == schema.CODEC_JPEG else 1
    if num_frames < 1 or len(stored) != num_stored:
        raise BadRecordError(f"it has {len(stored)} frames and says that it has {num_frames}")
    if codec == schema.CODEC_JPEG:
        return stored
    # Which bytes of a video file a frame needs, only its demuxer finds out: read it whole.
    return StoredVideo(
        stored[0],
        num_frames,
        example.integers(schema.TIMES),
        example.integers(schema.KEYFRAMES),
    )


@dataclasses.dataclass(frozen=True)
class ImageLayout(Layout):
    """Images as TFDS itself prepares them, each a video of one frame.

    Attributes:
        name: the feature that names the images; None where there is none.
        has_label: whether the images have labels.
    """

    name: str | None
    has_label: bool

    def read(self, payload: Payload) -> Record:
        """See `Layout`."""
        try:
            message = tf_example_pb2.Example.FromString(payload.whole())
        except DecodeError as error:
            raise BadRecordError(NO_EXAMPLE) from error
        example = _Example(message.features.feature)
        image = example.bytes(schema.IMAGE)
        try:
            height, width = encoded_size(image)  # stored nowhere else
        except BadRecordError as error:
            raise BadRecordError(f"its image is {error}", Damage.FRAMES) from error
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

    def __init__(self, features: Mapping[str, Any]):
        self._features = features

    def one(self, name: str, kind: str) -> Any:
        # The membership test first: asking a protobuf map for what it lacks adds it.
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
