import io
from typing import Any

import google_crc32c
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from adamae_jax.data import frames
from adamae_jax.data.damage import BadRecordError
from adamae_jax.data.frames import decode_foreground, decode_frames, each_frame, encoded_size
from adamae_jax.data.payload import HeldPayload, StoredFrames
from tests.data.fixtures import encode_png, video

SIZE = (24, 32)
FRAMES = video(0)
JPEGS = [simplejpeg.encode_jpeg(frame, quality=98, colorsubsampling="444") for frame in FRAMES]
MASKS = np.random.default_rng(0).integers(0, 256, (6, 5, 7), np.uint8)


def test_only_the_frames_asked_for_are_decoded() -> None:
    jpegs = [b"not needed", JPEGS[1], b"not needed", JPEGS[3]]
    pixels = decode_frames(jpegs, np.array([1, 3]), SIZE)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - FRAMES[[1, 3]]).mean() < 2


@pytest.mark.parametrize(
    ("jpeg", "complaint"),
    [
        (b"rubbish", "frame 1 is no JPEG or PNG"),
        (JPEGS[1][:-20], "frame 1 is damaged"),
        (simplejpeg.encode_jpeg(FRAMES[1][:16].copy()), r"frame 1 is of size \(16, 32\), not"),
    ],
)
def test_damaged_frames_are_bad_records(jpeg: bytes, complaint: str) -> None:
    with pytest.raises(BadRecordError, match=complaint):
        decode_frames([JPEGS[0], jpeg], np.array([0, 1]), SIZE)


def encode(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_pngs_of_every_kind_become_rgb(mode: str) -> None:
    image = Image.fromarray(FRAMES[0]).convert(mode)
    png = encode(image, format="PNG")
    assert encoded_size(png) == SIZE
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_frames([png], np.array([0]), SIZE)[0], expected)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpegs_of_every_kind_become_rgb(mode: str) -> None:
    image = Image.fromarray(FRAMES[0]).convert(mode)
    decoded = decode_frames([encode(image, format="JPEG", quality=98)], np.array([0]), SIZE)
    assert np.abs(decoded[0].astype(int) - np.asarray(image.convert("RGB"))).mean() < 4


def test_of_stored_frames_only_those_asked_for_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here with the bytes that a record has before each frame between them."""
    sizes = [len(jpeg) for jpeg in JPEGS]
    starts = np.cumsum([4 + size for size in sizes]) - sizes
    stored = StoredFrames(
        tuple(sizes),
        tuple(google_crc32c.value(jpeg) for jpeg in JPEGS),
        starts,
        HeldPayload(b"".join(b"size" + jpeg for jpeg in JPEGS)),
    )
    reads: list[tuple[int, int]] = []
    read = HeldPayload.read

    def note(payload: HeldPayload, start: int, count: int) -> bytes:
        reads.append((start, count))
        return read(payload, start, count)

    monkeypatch.setattr(HeldPayload, "read", note)
    monkeypatch.setattr(HeldPayload, "whole", lambda _: pytest.fail("all was read"))
    found = [number for number, _ in each_frame(stored, np.array([1, 2, 5]), SIZE)]
    assert found == [1, 2, 5]
    assert reads == [(starts[number], sizes[number]) for number in found]


def test_colours_are_smoothed_in_images_and_repeated_in_videos() -> None:
    colours = np.random.default_rng(0).integers(64, 192, (12, 16, 3), np.uint8)
    blocky = colours.repeat(2, axis=0).repeat(2, axis=1)
    jpeg = simplejpeg.encode_jpeg(blocky, quality=100, colorsubsampling="420")
    image = decode_frames([jpeg], np.array([0]), SIZE)[0]
    np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(jpeg))))
    start = np.array([0])
    stored = StoredFrames((len(jpeg),), (google_crc32c.value(jpeg),), start, HeldPayload(jpeg))
    frame = decode_frames(stored, np.array([0]), SIZE)[0]
    assert np.abs(frame.astype(int) - blocky).max() <= 4
    assert np.abs(image.astype(int) - blocky).max() >= 16


def test_pngs_that_do_not_fit_are_bad_records() -> None:
    deep = encode(Image.fromarray(np.zeros(SIZE, np.uint16)), format="PNG")
    with pytest.raises(BadRecordError, match="frame 0 is damaged .*not of 8 bits"):
        decode_frames([deep], np.array([0]), SIZE)
    png = encode(Image.fromarray(FRAMES[0]), format="PNG")
    with pytest.raises(BadRecordError, match="frame 0 is damaged"):
        decode_frames([png[:-40]], np.array([0]), SIZE)
    with pytest.raises(BadRecordError, match=r"frame 0 is of size \(24, 32\), not"):
        decode_frames([png], np.array([0]), (24, 24))


def test_enormous_images_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_PIXELS", 24 * 32 - 1)
    for image in (JPEGS[0], encode(Image.fromarray(FRAMES[0]), format="PNG")):
        with pytest.raises(BadRecordError, match=r"of size \(24, 32\), which is more than 767"):
            encoded_size(image)


def test_masks_are_taken_off_their_stack() -> None:
    png = encode_png(MASKS)
    np.testing.assert_array_equal(decode_foreground(png, 6), MASKS)


@pytest.mark.parametrize(
    ("png", "num_frames", "complaint"),
    [
        (b"rubbish", 6, "no sound PNG"),
        (encode_png(MASKS)[:-40], 6, "no sound PNG"),
        (encode_png(MASKS), 7, "L of height 30, not grey"),
    ],
)
def test_damaged_masks_are_bad_records(png: bytes, num_frames: int, complaint: str) -> None:
    with pytest.raises(BadRecordError, match=complaint):
        decode_foreground(png, num_frames)
