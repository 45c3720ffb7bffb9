"""What FFmpeg steps over without a word."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from adamae_jax.data.encoding import read_video
from adamae_jax.data.video_file import VideoFile
from tests.data.videos import RATE, blot, cut, frame_pixels, make_video

FRAMES = 200
NOISE = np.random.default_rng(0).normal(0, 1000, (2, 1152)).astype(np.int16)


@pytest.mark.parametrize(
    ("name", "codec", "num_bytes"),
    [("a.webm", "libvpx", 600), ("b.webm", "libvpx", 6000), ("c.wmv", "wmv2", 600)],
)
def test_a_hole_in_the_file_ends_the_video(
    tmp_path: Path, name: str, codec: str, num_bytes: int
) -> None:
    """The demuxer goes on where it finds sense again, over a second later at times."""
    path = make_video(tmp_path / name, FRAMES, 96, 128, codec)
    assert read_video(path).damage is None
    video = read_video(blot(path, 0.4, num_bytes))
    count = len(video.frames)
    assert 60 < count < 90 and video.damage is not None
    assert video.damage.startswith(f"after {count} frames ({count / RATE:.2f} s): ")
    assert video.damage.endswith(" s are missing")


def write_at(path: Path, codec: str, times_ms: list[int], with_sound: bool) -> Path:
    """A video whose frames are shown at these times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("libmp3lame", rate=44100)
        assert isinstance(sound, av.AudioStream)
        sample = 0
        for index, time_ms in enumerate(times_ms):
            while with_sound and sample < 44.1 * time_ms:
                samples = av.AudioFrame.from_ndarray(NOISE, format="s16p", layout="stereo")
                samples.sample_rate, samples.pts = 44100, sample
                container.mux(sound.encode(samples))
                sample += NOISE.shape[1]
            frame = av.VideoFrame.from_ndarray(frame_pixels(index, 96, 128), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        container.mux(sound.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mkv", "libx264"), ("a.flv", "flv"), ("a.mp4", "libx264")],
)
@pytest.mark.parametrize("with_sound", [False, True])
def test_a_picture_that_is_shown_for_long_is_no_hole(
    tmp_path: Path, name: str, codec: str, with_sound: bool
) -> None:
    holds = [3000 if index in (40, 80) else 40 for index in range(120)]
    times = np.cumsum(holds).tolist()
    video = read_video(write_at(tmp_path / name, codec, times, with_sound))
    assert (video.num_frames, video.damage) == (120, None)


def test_a_frame_that_ffmpeg_calls_corrupt_ends_the_video(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 60, 96, 128, "libx264")
    with VideoFile(path) as whole:
        expected = [frame.to_ndarray(format="rgb24") for frame in whole.frames()]
    flagged = 0
    for start in np.linspace(0.05, 0.85, 60):
        damaged = tmp_path / "b.mp4"
        damaged.write_bytes(path.read_bytes())
        with VideoFile(blot(damaged, float(start), 16)) as video:
            frames = list(video.frames())
            assert not any(frame.is_corrupt for frame in frames)
            kept = [frame.to_ndarray(format="rgb24") for frame in frames]
        if video.damage and video.damage.endswith("the next frame is damaged"):
            flagged += 1
            assert len(kept) < 60
            np.testing.assert_array_equal(kept[:-8], expected[: len(kept)][:-8])
    assert flagged


def test_frames_before_the_first_intact_one_are_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A video that was cut out of another one at any place begins with some."""

    class Frame:
        def __init__(self, number: int, is_corrupt: bool):
            self.time, self.is_corrupt = number / RATE, is_corrupt

    corrupt = [True, True, False, False, True, False]
    frames = [Frame(number, is_corrupt) for number, is_corrupt in enumerate(corrupt)]
    path = make_video(tmp_path / "a.mp4")
    monkeypatch.setattr(VideoFile, "_decoded", lambda video: iter(frames))
    with VideoFile(path) as video:
        assert list(video.frames()) == frames[:4]  # type: ignore[comparison-overlap]
        assert video.damage == "after 4 frames (0.16 s): the next frame is damaged"


def test_a_gif_that_ends_early(tmp_path: Path) -> None:
    """Between two frames its decoder has nothing to say."""
    path = tmp_path / "a.gif"
    first, *others = (Image.fromarray(frame_pixels(index, 48, 64)) for index in range(40))
    first.save(path, save_all=True, append_images=others, duration=40)
    whole = read_video(path)
    assert (whole.num_frames, whole.damage) == (40, None)
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux() if packet.size]
    path.write_bytes(path.read_bytes()[: places[20]])
    video = read_video(path)
    assert (
        video.num_frames == 20 and video.damage == "after 20 frames (0.80 s): the file ends early"
    )


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_wmv_that_ends_early(tmp_path: Path, share: float) -> None:
    path = make_video(tmp_path / "a.wmv", FRAMES, codec="wmv2")
    assert read_video(path).damage is None
    video = read_video(cut(path, share))
    assert video.num_frames < 0.9 * FRAMES and video.damage is not None
