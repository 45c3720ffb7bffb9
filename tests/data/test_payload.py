"""Records read in part: what their header says, and what damage makes of it."""

import dataclasses
from typing import Any

import pytest
from tensorflow_datasets.proto import tf_example_pb2

from adamae_jax.data import payload as payload_module
from adamae_jax.data import schema
from adamae_jax.data.damage import BadRecordError
from adamae_jax.data.examples import Record, VideoLayout
from adamae_jax.data.payload import HeldPayload, compose, header_checksum
from adamae_jax.prepare import examples as writing
from tests.data.fixtures import sealed, stored_frames

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
    monkeypatch.setattr(payload_module, "BLOCK", 64)


def fields(record: Record) -> tuple[Any, ...]:
    """All that a record says, and the frames that a clip needs."""
    frames = stored_frames(record)
    return dataclasses.replace(record, frames=()), frames.sizes, frames.fetch(NEEDED)


@pytest.mark.parametrize("place", PAYLOADS)
def test_header_and_frames_are_found_and_little_else_is_read(place: str) -> None:
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
    held = frames.held()
    payload.reads.clear()
    assert held.fetch([5, 1]) == [FRAMES[5], FRAMES[1]] and list(held) == FRAMES
    assert not payload.reads


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
        {schema.LABEL: [0]},
        {schema.RATE: [30.0]},
        {"more": [1]},
    ]
    found = [header_checksum(sealed(values | other).feature) for other in others]
    assert len({checksum, *found}) == len(others) + 1


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({schema.FRAME_SIZES: [200, 3, 127]}, "frames do not fill the place"),
        ({schema.FRAME_SIZES: [200, 3, 127, 128, 1, 299]}, "frame 5 does not match"),
        ({schema.FRAME_SIZES: [200, 3, 127, 128, 0, 301]}, "frames do not fill the place"),
        ({schema.FRAME_CHECKSUMS: [0, 1, 2, 3, 4, 5]}, "frame 1 does not match its checksum"),
        ({schema.NUM_FRAMES: [7]}, "it has 6 frames and says that it has 7"),
        ({schema.HEADER_CHECKSUM: [1]}, "its features do not match their checksum"),
        ({schema.HEADER_CHECKSUM: []}, "its features do not match their checksum"),
    ],
)
def test_what_does_not_fit_together(changes: dict[str, list[Any]], complaint: str) -> None:
    payload = Counted(compose(*split(lists(**changes))))
    with pytest.raises(BadRecordError, match=complaint):
        fields(LAYOUT.read(payload))


@pytest.mark.parametrize("place", PAYLOADS)
def test_every_cut_is_found_out(place: str) -> None:
    whole = PAYLOADS[place]
    for length in range(len(whole)):
        with pytest.raises(BadRecordError):
            LAYOUT.read(Counted(whole[:length]))


def test_any_length_is_written_and_located() -> None:
    for size in (0, 127, 128, 16383, 16384, 3_000_000):
        frames = [bytes(size), b"x"]
        data = compose(*split(lists(**{schema.FRAMES: frames, schema.NUM_FRAMES: [2]})))
        assert tf_example_pb2.Example.FromString(data).features.feature[schema.ID]
        assert list(stored_frames(LAYOUT.parse(data))) == frames
