"""What FFmpeg steps over without a word."""

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from PIL import Image

from adamae_jax.data.gaps import Gaps
from adamae_jax.data.video_file import VideoFile
from adamae_jax.prepare.encode import read_video
from tests.data.videos import RATE, blot, cut, frame_pixels, make_video

FRAMES = 200
NOISE = np.random.default_rng(0).normal(0, 1000, (2, 1152)).astype(np.int16)


@pytest.mark.parametrize(
    ("name", "codec", "num_bytes"),
    [("a.webm", "libvpx", 600), ("b.webm", "libvpx", 2000)],
)
def test_a_hole_in_the_file_ends_the_video(
    tmp_path: Path, name: str, codec: str, num_bytes: int
) -> None:
    """The demuxer goes on where it finds sense again, over a second later at times."""
    path = make_video(tmp_path / name, FRAMES, 64, 96, codec)
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
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
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
            frame = av.VideoFrame.from_ndarray(frame_pixels(index, 48, 64), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        container.mux(sound.encode())
    return path


# Of what is whole, and shown now for long, now for short times.
PAUSES = {
    "two long ones": [3000 if index in (20, 40) else 40 for index in range(60)],
    "many short ones": [40 * (1 + (7 * index % 11 == 0) * (index % 7)) for index in range(60)],
}


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mkv", "libx264"), ("a.flv", "flv"), ("a.mp4", "libx264"), ("a.nut", "mpeg4"),
        ("a.wmv", "wmv2"), ("a.ts", "libx264"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("with_sound", [False, True])
@pytest.mark.parametrize("pauses", PAUSES)
def test_a_picture_that_is_shown_for_long_is_no_hole(
    tmp_path: Path, name: str, codec: str, with_sound: bool, pauses: str
) -> None:
    path = write_at(tmp_path / name, codec, np.cumsum(PAUSES[pauses]).tolist(), with_sound)
    with av.open(str(path)) as container:
        expected = sum(1 for _ in container.decode(video=0))
    video = read_video(path)
    assert video.num_frames == expected >= 59
    assert video.damage is None


def test_transport_streams_that_were_joined_are_read_through(tmp_path: Path) -> None:
    """As recorders leave them: the clock starts anew."""
    parts = [make_video(tmp_path / name, 60, codec="libx264") for name in ("a.ts", "b.ts")]
    (tmp_path / "c.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    assert read_video(tmp_path / "c.ts").num_frames == 120


class Packet(NamedTuple):
    """What `Gaps` looks at: a frame of 1,000 bytes each 40 ms, and sound."""

    pos: int | None
    dts: int | None
    size: int = 1000
    stream_index: int = 0
    time_base: Fraction = Fraction(1, 1000)


def lost(packets: list[Packet]) -> list[float]:
    gaps = Gaps(0, 25_000 * 10, 10.0)
    return [gaps.before(packet) for packet in packets]  # type: ignore[arg-type]


def test_holes_are_found_by_time_and_bytes_together() -> None:
    start = [Packet(1000 * index, 40 * index) for index in range(5)]
    assert lost(start) == [0.0] * 5
    assert lost([*start, Packet(30_000, 1200)])[-1] == pytest.approx(1.0)
    assert lost([*start, Packet(5000, 1200)])[-1] == 0.0  # a pause
    assert lost([*start, Packet(30_000, 200)])[-1] == 0.0  # something that is no frame
    sound = Packet(5000, None, 25_000, stream_index=1)
    assert lost([*start, sound, Packet(30_000, 1200)])[-1] == 0.0
    assert lost([*start, sound._replace(pos=30_000), Packet(55_000, 1200)])[-1] > 0


def test_packets_of_one_place_add_up() -> None:
    start = [Packet(1000 * index, 40 * index) for index in range(5)]
    laced = [Packet(5000, None, 3000, stream_index=1)] * 8
    assert lost([*start, *laced, Packet(29_000, 1200)])[-1] == 0.0


def test_a_clock_that_starts_anew_is_no_hole() -> None:
    first = [Packet(1000 * index, 40 * index) for index in range(50)]
    second = [Packet(50_000 + 1000 * index, 40 * index) for index in range(50)]
    assert not any(lost(first + second))
    assert lost([*first, *second[:5], Packet(90_000, 1200)])[-1] > 0


def test_a_frame_that_ffmpeg_calls_corrupt_ends_the_video(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 30, codec="libx264")
    with VideoFile(path) as whole:
        expected = [frame.to_ndarray(format="rgb24") for frame in whole.frames()]
    flagged = 0
    for start in np.linspace(0.3, 0.85, 40):
        damaged = tmp_path / "b.mp4"
        damaged.write_bytes(path.read_bytes())
        with VideoFile(blot(damaged, float(start), 16)) as video:
            frames = list(video.frames())
            assert not any(frame.is_corrupt for frame in frames)
            kept = [frame.to_ndarray(format="rgb24") for frame in frames]
        if video.damage and video.damage.endswith("the next frame is damaged"):
            flagged += 1
            assert len(kept) < 30
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
    data = path.read_bytes()
    for more in (b"", b"\0", b"\n"):
        path.write_bytes(data + more)
        whole = read_video(path)
        assert (whole.num_frames, whole.damage) == (40, None)
        assert read_video(path, "original").damage is None  # of one that is held in memory
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
