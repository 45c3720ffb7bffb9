"""A record's header: its features without the frames, found and proved without reading those.

A ``tf.train.Example`` is a protocol buffer: a message ``Features`` that maps names to values, each
entry behind its length. Walking from entry to entry needs a few bytes of each, so that the entry
with the frames, nearly all of the record, is passed over. The record's own checksum covers every
byte and is of no use then; the header has one of its own, and so has each frame.
"""

import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from google.protobuf.message import DecodeError
from jaxtyping import Int64
from tensorflow_datasets.proto import tf_feature_pb2

from adamae_jax.data import schema
from adamae_jax.data.payload import Payload
from adamae_jax.data.tfrecord import BadRecordError

NO_EXAMPLE = "it is no tf.train.Example"
BLOCK = 1 << 14  # bytes asked for at a time: the header of a video of some 2,000 frames
# Field numbers and the mark of what has a length, in one byte each. Features are field 1 of the
# example, entries of the features, and so on: nearly everything here is the first field.
_FIRST, _SECOND = 0x0A, 0x12
_VARINT_BYTES = 10  # at most
_KINDS = ("bytes_list", "float_list", "int64_list")


class Span(NamedTuple):
    """Bytes of a payload, from ``start`` to before ``stop``."""

    start: int
    stop: int


class Header(NamedTuple):
    """What a record says.

    Attributes:
        features: messages ``tf.train.Feature`` by name, without the frames.
        frames: where the frames lie, each behind its tag and length; None where there are none.
    """

    features: Mapping[str, Any]
    frames: Span | None


def read_header(payload: Payload) -> Header:
    """Finds all features of a record but its frames, in any order; best if those come last.

    Raises:
        BadRecordError: the payload is no ``tf.train.Example``, or its frames are no byte strings.
        OSError: the storage keeps failing.
    """
    window = _Window(payload)
    small: list[bytes] = []
    frames: Span | None = None
    for entry in _entries(window):
        inside = window.field(entry.start, _FIRST, entry.stop)
        key = window.field(inside.start, _FIRST, inside.stop)
        if window[key] != schema.FRAMES.encode():
            small.append(window[entry])
        elif frames is not None:
            raise BadRecordError(f"it has {schema.FRAMES!r} twice")
        else:
            feature = window.field(key.stop, _SECOND, inside.stop)
            frames = window.field(feature.start, _FIRST, feature.stop)
    try:
        return Header(tf_feature_pb2.Features.FromString(b"".join(small)).feature, frames)
    except DecodeError as error:
        raise BadRecordError(NO_EXAMPLE) from error


def header_checksum(features: Mapping[str, Any]) -> int:
    """CRC32C of the features of a header but its checksum, as an unsigned number of 32 bits.

    Protocol buffers have several forms for the same content, so that it is not theirs that counts:
    of each feature, sorted by name, the name, the kind and the values, with all lengths. One
    without values is of no kind, and counts as bytes.

    Args:
        features: messages ``tf.train.Feature`` by name; the frames and the checksum are left out.
    """
    parts: list[bytes] = []
    for name in sorted(set(features) - {schema.FRAMES, schema.HEADER_CHECKSUM}):
        feature = features[name]
        kind = next((kind for kind in _KINDS if getattr(feature, kind).value), _KINDS[0])
        values = getattr(feature, kind).value
        parts += [_counted(name.encode()), struct.pack("<BI", _KINDS.index(kind), len(values))]
        if kind == "bytes_list":
            parts += map(_counted, values)
        else:
            parts.append(np.array(values, "<f4" if kind == "float_list" else "<i8").tobytes())
    return int(google_crc32c.value(b"".join(parts)))


def compose(small: bytes, frames: bytes) -> bytes:
    """A ``tf.train.Example`` of two serialised messages ``Features``, whose entries it joins."""
    length, size = b"", len(small) + len(frames)
    while size >= 128:
        length += bytes([size & 127 | 128])
        size >>= 7
    return b"".join((bytes([_FIRST]), length, bytes([size]), small, frames))


def varint_lengths(numbers: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    """In how many bytes protocol buffers write numbers from 0 to 2**31."""
    return 1 + np.sum([numbers >> bits > 0 for bits in (7, 14, 21, 28)], axis=0)


def _counted(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


class _Window:
    """Bytes of a payload by place, read in blocks."""

    def __init__(self, payload: Payload):
        self.size = payload.size
        self._payload = payload
        self._start = 0
        self._data = b""

    def __getitem__(self, span: Span) -> bytes:
        start, stop = span
        if start < self._start or stop > self._start + len(self._data):
            count = min(max(stop - start, BLOCK), self.size - start)
            self._start, self._data = start, self._payload.read(start, count)
        return self._data[start - self._start : stop - self._start]

    def field(self, place: int, tag: int, stop: int) -> Span:
        """What a field that begins at ``place`` holds, if it has this tag and ends by ``stop``."""
        start, length = place + 1, 0
        head = self[Span(place, min(start + _VARINT_BYTES, stop))]
        for shift, byte in enumerate(head[1:]):
            start += 1
            length |= (byte & 127) << 7 * shift
            if byte < 128:
                break
        else:
            raise BadRecordError(NO_EXAMPLE)
        if head[0] != tag or start + length > stop:
            raise BadRecordError(NO_EXAMPLE)
        return Span(start, start + length)


def _entries(window: _Window) -> Iterator[Span]:
    """The entries of the map, with tag and length."""
    place = 0
    while place < window.size:  # once, unless somebody joined two examples
        features = window.field(place, _FIRST, window.size)
        place = features.start
        while place < features.stop:
            stop = window.field(place, _FIRST, features.stop).stop
            yield Span(place, stop)
            place = stop
