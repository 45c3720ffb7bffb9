"""Records read in part: what their header says, and what no damage can make of it."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from adamae_jax.data import header, schema
from adamae_jax.data.examples import Record, VideoLayout
from adamae_jax.data.header import compose, header_checksum, read_header, varint_lengths
from adamae_jax.data.payload import HeldPayload
from adamae_jax.data.tfrecord import BadRecordError
from adamae_jax.prepare import examples as writing
from tests.data.fixtures import canonical, sealed, stored_frames

FRAMES = [bytes([number]) * size for number, size in enumerate([200, 3, 127, 128, 0, 300])]
LAYOUT = VideoLayout(has_foreground=True)
NEEDED = (1, 2, 5)


@dataclasses.dataclass(frozen=True)
class Counted:
    """Bytes that are read in part, and a note of how many at a time."""

    data: bytes
    reads: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    gap: int = 10

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, start: int, count: int) -> bytes:
        self.reads.append((start, count))
        return HeldPayload(self.data).read(start, count)

    def whole(self) -> bytes:
        raise AssertionError("it was read whole")


def lists(**changes: Any) -> dict[str, list[Any]]:
    values: dict[str, list[Any]] = {
        schema.ID: ["ü".encode()],
        schema.LABEL: [-1],
        schema.FRAMES: FRAMES,
        schema.CODEC: [b"jpeg"],
        schema.NUM_FRAMES: [6],
        schema.RATE: [29.97],
        schema.HEIGHT: [24],
        schema.WIDTH: [32],
        schema.FOREGROUND: [bytes(range(256)) * 3],
    }
    return values | changes


def split(values: dict[str, list[Any]]) -> tuple[bytes, bytes]:
    """The features without the frames, and the frames, as two messages."""
    small, frames = sealed(values), sealed(values)
    del small.feature[schema.FRAMES]
    for name in set(frames.feature) - {schema.FRAMES}:
        del frames.feature[name]
    return small.SerializeToString(), frames.SerializeToString()


SMALL, LARGE = split(lists())
PAYLOADS = {"last": compose(SMALL, LARGE), "first": compose(LARGE, SMALL)}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "BLOCK", 64)


def fields(record: Record) -> tuple[Any, ...]:
    """All that a record says, and the frames that a clip needs."""
    frames = stored_frames(record)
    return dataclasses.replace(record, frames=()), frames.sizes, frames.fetch(NEEDED)


@pytest.mark.parametrize("place", PAYLOADS)
def test_header_and_frames_are_found(place: str) -> None:
    payload = Counted(PAYLOADS[place])
    record = LAYOUT.read(payload)
    assert (record.id, record.label, record.height, record.width) == ("ü", -1, 24, 32)
    assert record.rate == pytest.approx(29.97)
    assert record.foreground == lists()[schema.FOREGROUND][0]
    frames = stored_frames(record)
    # What is read of the frames is less than a block of them.
    start = payload.data.index(FRAMES[0])
    passed = set(range(start + 64, start + sum(map(len, FRAMES))))
    assert not any(passed & set(range(start, start + count)) for start, count in payload.reads)
    payload.reads.clear()
    assert frames.fetch(NEEDED) == [FRAMES[number] for number in NEEDED]
    assert [count for _, count in payload.reads] == [3 + 2 + 127, 300]
    payload.reads.clear()
    assert list(frames) == FRAMES
    assert len(payload.reads) == 1
    assert frames[-2:] == FRAMES[-2:] and frames[-1] == FRAMES[-1]
    with pytest.raises(IndexError):
        frames.fetch([6])


def test_held_frames_are_the_same_and_read_nothing() -> None:
    payload = Counted(PAYLOADS["last"])
    held = stored_frames(LAYOUT.read(payload)).held()
    payload.reads.clear()
    assert list(held) == FRAMES
    assert held.fetch([5, 1]) == [FRAMES[5], FRAMES[1]]
    assert not payload.reads


def test_two_examples_on_end_are_one() -> None:
    """As any reader of protocol buffers has it."""
    joined = compose(SMALL, b"") + compose(b"", LARGE)
    assert fields(LAYOUT.read(Counted(joined))) == fields(LAYOUT.parse(PAYLOADS["last"]))


def test_the_writer_puts_frames_last() -> None:
    payload = writing.serialize(writing.make_example("a", FRAMES, 25, 24, 32, foreground=b"png"))
    assert payload.endswith(FRAMES[-1])
    whole = tf_example_pb2.Example.FromString(payload)
    assert list(whole.features.feature[schema.FRAMES].bytes_list.value) == FRAMES
    assert stored_frames(LAYOUT.read(Counted(payload))).fetch(range(6)) == FRAMES


def test_the_checksum_is_of_every_feature() -> None:
    values = lists()
    checksum = header_checksum(sealed(values).feature)
    assert checksum == sealed(values).feature[schema.HEADER_CHECKSUM].int64_list.value[0]
    others = [
        *({name: [*values[name], values[name][0]]} for name in values if name != schema.FRAMES),
        {schema.ID: [b"u"]},
        {schema.ID: [b"a", b"b"]},
        {schema.ID: [b"ab", b""]},
        {schema.ID: []},
        {schema.LABEL: [0]},
        {schema.RATE: [30.0]},
        {schema.HEIGHT: [24.0]},
        {"more": [1]},
    ]
    found = [header_checksum(sealed(values | other).feature) for other in others]
    assert len({checksum, *found}) == len(others) + 1
    # How a message is written down does not matter.
    assert header_checksum(read_header(HeldPayload(PAYLOADS["first"])).features) == checksum
    assert canonical(values) == canonical(dict(reversed(values.items())))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({schema.FRAME_SIZES: [200, 3, 127]}, "it has 3 frame sizes and 6 checksums"),
        ({schema.FRAME_SIZES: [200, 3, 127, 128, 1, 299]}, None),
        ({schema.FRAME_SIZES: [200, 3, 127, 128, 0, 301]}, "frames do not fill the place"),
        ({schema.FRAME_SIZES: [200, 3, 127, 128, -1, 301]}, "claim sizes from -1 to 301"),
        ({schema.FRAME_SIZES: [200, 3, 127, 128, 0, 2**62]}, "claim sizes from 0 to 4611686018"),
        ({schema.FRAME_CHECKSUMS: [0, 1, 2, 3, 4, 5]}, "frame 1 does not match its checksum"),
        ({schema.NUM_FRAMES: [7]}, "it has 6 frames and says that it has 7"),
        ({schema.HEADER_CHECKSUM: [1]}, "its features do not match their checksum"),
        ({schema.HEADER_CHECKSUM: []}, "'header_checksum' has 0 values"),
    ],
)
def test_what_does_not_fit_together(changes: dict[str, list[Any]], complaint: str | None) -> None:
    payload = Counted(compose(*split(lists(**changes))))
    if complaint is None:  # sizes that fill the place are found out by the frames' checksums
        complaint = "frame 5 does not match"
    with pytest.raises(BadRecordError, match=complaint):
        fields(LAYOUT.read(payload))


def test_frames_that_stand_twice_or_are_numbers() -> None:
    with pytest.raises(BadRecordError, match="it has 'frames' twice"):
        LAYOUT.read(Counted(compose(LARGE, SMALL + LARGE)))
    numbers = tf_feature_pb2.Features()
    numbers.feature[schema.FRAMES].int64_list.value.extend(range(100))
    with pytest.raises(BadRecordError):
        LAYOUT.read(Counted(compose(SMALL, numbers.SerializeToString())))


def damaged_reading_is_right_or_refused(data: bytes, place: str) -> None:
    payload = Counted(data)
    try:
        found = fields(LAYOUT.read(payload))
    except BadRecordError:
        pass
    else:
        assert found == fields(LAYOUT.parse(PAYLOADS[place]))
    # However large a length lies, no more is asked for than there is.
    assert all(0 <= start <= start + count <= len(data) for start, count in payload.reads)


@pytest.mark.parametrize("place", PAYLOADS)
def test_every_flipped_byte_is_harmless_or_found_out(place: str) -> None:
    whole = PAYLOADS[place]
    harmless = 0
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 0xFF if position % 2 else 1 << position % 8
        damaged_reading_is_right_or_refused(bytes(data), place)
        try:
            LAYOUT.parse(bytes(data))
        except BadRecordError:
            continue
        harmless += 1
    # All of the header is covered, but for bits of long numbers that nobody keeps; the frames are
    # not, before somebody asks for them.
    frames = sum(map(len, FRAMES)) + sum(1 + (size > 127) + 1 for size in map(len, FRAMES))
    assert frames <= harmless <= frames + 4


@given(st.sampled_from(sorted(PAYLOADS)), st.integers(0, 2100), st.binary(min_size=1, max_size=40))
@example("last", 0, b"\xff" * 12)
@example("last", 1, b"\xff\xff\xff\xff\x7f")
@settings(max_examples=400, deadline=None)
def test_overwritten_bytes_are_harmless_or_found_out(place: str, start: int, new: bytes) -> None:
    whole = PAYLOADS[place]
    data = (whole[:start] + new + whole[start + len(new) :])[: len(whole)]
    damaged_reading_is_right_or_refused(data, place)


@pytest.mark.parametrize("place", PAYLOADS)
def test_every_cut_is_found_out(place: str) -> None:
    whole = PAYLOADS[place]
    for length in range(len(whole)):
        with pytest.raises(BadRecordError):
            LAYOUT.read(Counted(whole[:length]))


@given(st.lists(st.integers(0, 2**31 - 1), max_size=5), st.sampled_from([0, 127, 128, 2**28]))
def test_lengths_of_varints(numbers: list[int], number: int) -> None:
    numbers = [*numbers, number]
    expected = [max(1, -(-value.bit_length() // 7)) for value in numbers]
    assert varint_lengths(np.array(numbers, np.int64)).tolist() == expected
    for value, length in zip(numbers, expected, strict=True):
        # A message of one field is its tag and the number.
        message = tf_example_pb2.Example().features.feature["x"].int64_list
        message.value.append(value)
        assert len(message.SerializeToString()) == 2 + length


def test_compose_writes_any_length() -> None:
    for size in (0, 127, 128, 16383, 16384, 3_000_000):
        value = sealed({schema.FRAMES: [bytes(size)]})
        data = compose(value.SerializeToString(), b"")
        assert tf_example_pb2.Example.FromString(data).features == value
    with pytest.raises(DecodeError):
        tf_example_pb2.Example.FromString(compose(b"\xff", b""))
