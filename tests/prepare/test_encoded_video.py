"""Videos encoded to be stored as video files."""

from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from jaxtyping import UInt8

from adamae_jax.data import schema
from adamae_jax.data.frames import decode_frames
from adamae_jax.data.video_file import StoredVideo, Upright
from adamae_jax.prepare.encode import EncodedVideo, encode_h264, read_video
from adamae_jax.prepare.video_file import VideoFile
from tests.data.videos import blot, frame_pixels, make_video, set_matrix, turn_clockwise


def from_the_front(video: EncodedVideo) -> UInt8[np.ndarray, "t h w 3"]:
    upright = Upright(size=(video.height, video.width))
    with VideoFile(video.frames[0]) as file:
        frames = [upright(frame) for frame in islice(file.frames(), video.num_frames)]
    return np.stack(frames)


def stored(video: EncodedVideo) -> StoredVideo:
    return StoredVideo(video.frames[0], video.num_frames, video.times, video.keyframes)


@pytest.mark.parametrize("codec", [schema.CODEC_H264, schema.CODEC_ORIGINAL])
def test_rotation(tmp_path: Path, codec: str) -> None:
    path = turn_clockwise(make_video(tmp_path / "a.mp4", 20, 48, 64))
    video = read_video(path, codec)
    assert (video.height, video.width) == (64, 48)
    jpegs = read_video(path)
    expected = decode_frames(tuple(jpegs.frames), np.arange(20), (64, 48)).astype(int)
    pixels = decode_frames(stored(video), np.arange(20), (64, 48))
    assert abs(pixels - expected).mean() < 4


# What FFmpeg's players make of each display matrix (a, b, c, d).
ORIENTATIONS: dict[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]] = {
    (1, 0, 0, 1): lambda frame: frame,
    (0, 1, -1, 0): lambda frame: np.rot90(frame, -1),
    (-1, 0, 0, -1): lambda frame: np.rot90(frame, 2),
    (0, -1, 1, 0): np.rot90,
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (0, 1, 1, 0): lambda frame: frame.swapaxes(0, 1),
    (0, -1, -1, 0): lambda frame: np.rot90(frame, 2).swapaxes(0, 1),
}


@pytest.mark.parametrize("codec", schema.CODECS)
@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_all_eight_orientations(
    tmp_path: Path, matrix: tuple[int, int, int, int], codec: str
) -> None:
    path = set_matrix(make_video(tmp_path / "a.mp4", 3, 48, 64), *matrix)
    expected = ORIENTATIONS[matrix](frame_pixels(1, 48, 64)).astype(int)
    video = read_video(path, codec)
    assert (video.height, video.width) == expected.shape[:2]
    frames = tuple(video.frames) if codec == schema.CODEC_JPEG else stored(video)
    (pixels,) = decode_frames(frames, np.array([1]), expected.shape[:2])
    assert abs(pixels - expected).mean() < 8


def test_h264_has_short_groups_and_is_close_to_its_source(tmp_path: Path) -> None:
    video = read_video(
        make_video(tmp_path / "a.mp4", 50, 96, 130), schema.CODEC_H264, short_side=48
    )
    assert (video.height, video.width, video.num_frames) == (48, 64, 50)  # even
    assert video.keyframes == (0, 12, 24, 36, 48)
    assert len(video.times) == 50
    expected = np.stack([frame_pixels(index, 48, 64) for index in range(50)]).astype(int)
    assert abs(decode_frames(stored(video), np.arange(50), (48, 64)) - expected).mean() < 8


def test_h264_has_no_keyframes_but_every_twelfth() -> None:
    """Nor where the picture changes at once; by what the file says of its packets."""
    pictures = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), np.uint8)
    scenes = pictures.repeat(8, axis=1).repeat(8, axis=2).repeat(11, axis=0)  # 11 frames each
    video = encode_h264(iter(scenes), Fraction(25))
    with VideoFile(video.frames[0]) as file:
        packets = {packet.pts: packet.is_keyframe for packet in file.container.demux(file.stream)}
    assert len(video.times) == 55
    assert [number for number in range(55) if packets[video.times[number]]] == [0, 12, 24, 36, 48]
    assert video.keyframes == (0, 12, 24, 36, 48)


def test_the_same_frames_give_the_same_h264() -> None:
    """So that shards are the same however often they are made; x264 by itself often differs."""
    rng = np.random.default_rng(0)
    picture = rng.normal(128, 40, (60, 80, 3)).repeat(16, 0).repeat(16, 1)
    frames = []
    for t in range(60):
        seen = picture[3 * t : 3 * t + 256, 2 * t : 2 * t + 340]
        frames.append(np.clip(seen + rng.normal(0, 4, seen.shape), 0, 255).astype(np.uint8))
    encoded = {encode_h264(iter(frames), Fraction(25)).frames[0] for _ in range(8)}
    assert len(encoded) == 1


PIXEL_FORMATS = [
    ("png", "rgb24", 48, 64),
    ("png", "pal8", 48, 64),
    ("png", "monob", 48, 64),
    ("png", "rgba64be", 47, 65),
    ("ffv1", "yuv420p", 47, 65),
    ("ffv1", "yuv422p", 48, 65),
    ("ffv1", "yuv410p", 47, 65),
    ("ffv1", "yuv420p10le", 47, 65),
    ("ffv1", "gray16le", 47, 65),
    ("ffv1", "gbrp12le", 47, 65),
]


@pytest.mark.parametrize(("codec", "pixel_format", "height", "width"), PIXEL_FORMATS)
def test_originals_have_any_pixel_format(
    tmp_path: Path, codec: str, pixel_format: str, height: int, width: int
) -> None:
    path = tmp_path / ("a.mov" if codec == "png" else "a.mkv")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, pixel_format
        for index in range(5):
            frame = av.VideoFrame.from_ndarray(frame_pixels(index, height, width), format="rgb24")
            if pixel_format == "pal8":  # which FFmpeg does not convert to
                gray = frame_pixels(index, height, width)[..., 0]
                palette = np.full((256, 4), 255, np.uint8)
                palette[:, 1:] = np.arange(256)[:, None]
                frame = av.VideoFrame.from_ndarray((gray, palette), format="pal8")  # type: ignore[arg-type]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    expected = read_video(path)
    video = read_video(path, schema.CODEC_ORIGINAL)
    assert (video.num_frames, video.height, video.width) == (5, height, width)
    assert (video.damage, video.rate) == (None, 25)
    numbers = np.arange(5)
    pixels = decode_frames(stored(video), numbers, (height, width)).astype(int)
    jpegs = decode_frames(tuple(expected.frames), numbers, (height, width))
    assert abs(pixels - jpegs).mean() < 8


@pytest.mark.parametrize("codec", [schema.CODEC_H264, schema.CODEC_ORIGINAL])
def test_damaged_videos_are_kept_up_to_the_damage(tmp_path: Path, codec: str) -> None:
    path = blot(make_video(tmp_path / "a.mkv", 60, codec="libx264"), 0.65, 150)
    expected = read_video(path)
    video = read_video(path, codec)
    assert (video.num_frames, video.damage) == (expected.num_frames, expected.damage)
    assert video.damage is not None and 10 <= video.num_frames < 50
    last = video.num_frames - 1
    pixels = decode_frames(stored(video), np.array([0, last // 2, last]), (48, 64))
    np.testing.assert_array_equal(pixels, from_the_front(video)[[0, last // 2, last]])


def test_size_is_bounded(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 60)
    video = read_video(path, schema.CODEC_H264, max_bytes=5_000)
    assert video.num_frames < 60
    assert video.damage == f"after {video.num_frames} frames: more than 5000 bytes of H.264"
    with pytest.raises(Exception, match="has more than 5000 bytes: use --codec"):
        read_video(path, schema.CODEC_ORIGINAL, max_bytes=5_000)
