import numpy as np
import pytest
import simplejpeg

from adamae_jax.data.frames import decode_foreground, decode_frames
from adamae_jax.data.tfrecord import BadRecordError
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
        (b"rubbish", "frame 1 is no JPEG"),
        (JPEGS[1][:-20], "frame 1 is damaged"),
        (simplejpeg.encode_jpeg(FRAMES[1][:16].copy()), r"frame 1 is of size \(16, 32\), not"),
    ],
)
def test_damaged_frames_are_bad_records(jpeg: bytes, complaint: str) -> None:
    with pytest.raises(BadRecordError, match=complaint):
        decode_frames([JPEGS[0], jpeg], np.array([0, 1]), SIZE)


def test_masks_are_taken_from_their_stack() -> None:
    png = encode_png(MASKS)
    np.testing.assert_array_equal(decode_foreground(png, 6, np.array([0, 4])), MASKS[[0, 4]])


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
        decode_foreground(png, num_frames, np.array([0]))
