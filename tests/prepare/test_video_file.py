import errno
import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import simplejpeg
from av.stream import Disposition
from jaxtyping import Int, UInt8

from adamae_jax.data import schema, storage
from adamae_jax.data.video_file import UnreadableVideoError
from adamae_jax.prepare.encode import read_video
from adamae_jax.prepare.video_file import VideoFile
from tests.data.videos import (
    QUARTERS,
    RATE,
    blot,
    cut,
    frame_pixels,
    make_audio,
    make_video,
    replace,
    turn_clockwise,
)


def decode(frames: list[bytes]) -> UInt8[np.ndarray, "t h w 3"]:
    return np.stack([simplejpeg.decode_jpeg(frame) for frame in frames])


def quarters(frame: UInt8[np.ndarray, "h w 3"]) -> Int[np.ndarray, "2 2 3"]:
    """Colours in the middle of each quarter of a frame."""
    height, width = frame.shape[:2]
    return frame[height // 4 :: height // 2, width // 4 :: width // 2].astype(int)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "mpeg4"), ("a.avi", "mpeg4"), ("a.mkv", "libx264"), ("a.mp4", "libx264")],
)
def test_a_whole_video(tmp_path: Path, name: str, codec: str) -> None:
    video = read_video(make_video(tmp_path / name, 30, codec=codec))
    assert (video.height, video.width, video.rate, video.damage) == (48, 64, RATE, None)
    expected = np.stack([frame_pixels(index, 48, 64) for index in range(30)]).astype(int)
    # Every frame, in the right order: the pattern moves by a third of a period between frames.
    assert abs(decode(video.frames) - expected).mean() < 6
    assert [simplejpeg.decode_jpeg_header(frame)[:2] for frame in video.frames] == [(48, 64)] * 30


def test_frames_come_in_the_order_in_which_they_are_shown(tmp_path: Path) -> None:
    # This encoder stores frames out of order, each after those that it refers to.
    video = read_video(make_video(tmp_path / "a.mp4", 30, codec="libx264"))
    brightness = decode(video.frames)[:, :, :32].mean((1, 2, 3))
    assert (np.diff(brightness) > 0).mean() > 0.9


@pytest.mark.parametrize(
    ("stored", "short_side", "expected"),
    [
        ((48, 64), 24, (24, 32)),
        ((64, 48), 24, (32, 24)),
        ((48, 64), 48, (48, 64)),
        ((48, 64), 256, (48, 64)),
        ((48, 66), 20, (20, 28)),
    ],
)
def test_the_short_side_is_reduced_and_never_enlarged(
    tmp_path: Path, stored: tuple[int, int], short_side: int, expected: tuple[int, int]
) -> None:
    video = read_video(make_video(tmp_path / "a.mp4", 3, *stored), short_side=short_side)
    assert (video.height, video.width) == expected
    frames = decode(video.frames)
    assert frames.shape == (3, *expected, 3)
    assert abs(quarters(frames[0]) - QUARTERS).max() < 60


def test_rotation_is_applied(tmp_path: Path) -> None:
    path = turn_clockwise(make_video(tmp_path / "a.mp4", 3, 48, 64))
    video = read_video(path, short_side=24)
    assert (video.height, video.width) == (32, 24)
    frame = decode(video.frames)[0]
    # Turned clockwise, the left column becomes the upper row, its lower end on the left.
    (up_left, up_right), (down_left, down_right) = QUARTERS
    turned = np.array([[down_left, up_left], [down_right, up_right]])
    assert abs(quarters(frame) - turned).max() < 60


@pytest.mark.parametrize(
    ("name", "codec"), [("a.avi", "mpeg4"), ("a.mp4", "libx264"), ("a.mkv", "libx264")]
)
def test_damage_in_the_middle_ends_the_video(tmp_path: Path, name: str, codec: str) -> None:
    path = blot(make_video(tmp_path / name, 60, codec=codec), 0.65, 150)
    video = read_video(path)
    count = len(video.frames)
    assert video.damage is not None
    assert 10 <= count < 50
    assert video.damage.startswith(f"after {count} frames ({count / RATE:.2f} s): ")
    assert len(video.damage.split(": ")[1]) > 10  # FFmpeg's words
    # What was kept was not touched by the damage.
    expected = np.stack([frame_pixels(index, 48, 64) for index in range(count)]).astype(int)
    assert abs(decode(video.frames) - expected).mean((1, 2, 3)).max() < 8


PLAYLISTS = {
    "one": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}/a.ts\n#EXT-X-ENDLIST\n",
    "list of lists": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1000000\n{}/a.m3u8\n",
    "concat": "ffconcat version 1.0\nfile '{}/a.ts'\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_playlists_reach_no_other_file(tmp_path: Path, kind: str) -> None:
    """Which may be one outside of what is prepared; without protocols, the network neither."""
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    make_video(outside / "a.ts", 5, codec="libx264")
    (outside / "a.m3u8").write_text(PLAYLISTS["one"].format(f"file:{outside}"))
    inside.mkdir()
    for name in ("a.mp4", "a.m3u8?.mp4", "a.m3u8"):
        (inside / name).write_text(PLAYLISTS[kind].format(f"file:{outside}"))
        with pytest.raises(UnreadableVideoError, match="cannot be opened"):
            read_video(inside / name)


def test_a_missing_end_is_noticed_although_ffmpeg_says_nothing(tmp_path: Path) -> None:
    video = read_video(cut(make_video(tmp_path / "a.mkv", 60, codec="libx264"), 0.5))
    assert video.damage == (f"only {len(video.frames)} of the 60 frames that its header announces")


def test_size_is_bounded(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 30)
    whole = read_video(path)
    bound = sum(map(len, whole.frames[:10])) - 1
    video = read_video(path, max_bytes=bound)
    assert video.frames == whole.frames[:10]
    assert video.damage == f"after 10 frames: more than {bound} bytes of JPEGs"


def test_nothing_to_decode(tmp_path: Path) -> None:
    def reason(path: Path) -> str:
        with pytest.raises(UnreadableVideoError) as caught:
            read_video(path)
        return str(caught.value)

    empty, text = tmp_path / "empty.mp4", tmp_path / "text.mp4"
    empty.write_bytes(b"")
    text.write_text("no video\n" * 100)
    assert reason(empty).startswith("cannot be opened: ")
    assert reason(text) == "cannot be opened: Invalid data found when processing input"
    assert "No such file" in reason(tmp_path / "absent.mp4")
    assert reason(make_audio(tmp_path / "sound.mp4")) == "holds no video stream"
    # An MP4 file has its table of contents at the end.
    assert "cannot be opened" in reason(cut(make_video(tmp_path / "cut.mp4"), 0.5))
    strange = make_video(tmp_path / "strange.mp4", codec="libx264")
    replace(strange, b"avc1", b"zzzz", after=b"stsd")
    assert reason(strange) == "FFmpeg has no decoder for its codec"
    blank = blot(make_video(tmp_path / "blank.avi"), 0.5, 0)
    data = blank.read_bytes()
    blank.write_bytes(data[: data.index(b"movi") + 4] + bytes(len(data)))
    assert reason(blank) in ("holds no frame", "cannot be decoded: End of file")


def failing(
    monkeypatch: pytest.MonkeyPatch, number: int, share: float = 0.5, times: int = 1 << 30
) -> None:
    """Local files cannot be read behind a share of them, so many times."""
    read = storage._LocalFile.read
    left = [times]

    def fail(file: storage._LocalFile, offset: int, count: int) -> bytes:
        if left[0] and offset + count > share * os.fstat(file._descriptor).st_size:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return read(file, offset, count)

    monkeypatch.setattr(storage._LocalFile, "read", fail)
    monkeypatch.setattr(storage, "RETRY_DELAYS_S", (0.0, 0.0))


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.mp4", "libx264")],
)
def test_storage_that_fails_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, codec: str
) -> None:
    """FFmpeg would say: an end of the file, or damage."""
    path = make_video(tmp_path / name, 60, 240, 320, codec)
    failing(monkeypatch, number := errno.ESTALE, 0.7)
    with pytest.raises(OSError) as caught:
        read_video(path)
    assert (caught.value.errno, caught.value.filename) == (number, str(path))


def test_storage_that_fails_for_a_moment_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "a.mkv", 30, 240, 320)
    expected = read_video(path)
    failing(monkeypatch, errno.ESTALE, times=2)
    assert read_video(path) == expected


def test_a_file_that_may_not_be_read_is_no_failing_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "a.mkv", 30, 240, 320)
    with monkeypatch.context() as patch:
        failing(patch, errno.EACCES)
        with pytest.raises(UnreadableVideoError, match="cannot be read: Permission denied"):
            read_video(path)
        failing(patch, errno.EACCES, share=-1)
        with pytest.raises(UnreadableVideoError, match="cannot be opened: Permission denied"):
            read_video(path)
    with pytest.raises(UnreadableVideoError, match="cannot be opened: Is a directory"):
        read_video(tmp_path)


@pytest.mark.parametrize("kind", [MemoryError, av.error.MemoryError])
def test_too_little_memory_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[MemoryError]
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise kind(errno.ENOMEM, "Cannot allocate memory")

    path = make_video(tmp_path / "a.mkv")
    monkeypatch.setattr(VideoFile, "_missing_frames", fail)
    with pytest.raises(MemoryError):
        read_video(path)
    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(MemoryError):
        read_video(path)


@pytest.mark.parametrize("name", ["a:b.mp4", "http:%03d.mp4", "bücher 1.mp4"])
def test_names_are_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_video(tmp_path / "a.mp4", 3).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(read_video(name).frames) == 3


def test_titles_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "QQQQ"
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(frame_pixels(0, 48, 64), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert len(read_video(replace(path, b"QQQQ", b"\xff\xfe\xe9\xe9")).frames) == 1


def make_timed(path: Path, rate: int, times_ms: Iterable[int]) -> Path:
    """Writes a video whose header says one rate, and its frames another."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for index, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(frame_pixels(index, 48, 64), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_a_varying_rate_is_no_damage(tmp_path: Path) -> None:
    times_ms = [40 * index + 9 * index**2 for index in range(30)]
    video = read_video(make_timed(tmp_path / "a.mkv", RATE, times_ms))
    assert (video.num_frames, video.damage) == (30, None)


@pytest.mark.parametrize("codec", schema.CODECS)
@pytest.mark.parametrize(
    ("header", "times_ms", "expected"),
    [
        (1000, range(0, 1200, 40), 25),
        (60, range(0, 1200, 40), 25),
        (30, [round(index * 1000 / 29.97) for index in range(30)], 30),  # the same
        (24, [*range(0, 3000, 100), *range(90_000, 93_000, 100)], 10),  # its times jump
        (1000, range(30), 0),  # which no camera of people's videos has
    ],
)
def test_times_of_frames_go_before_the_rate_of_a_header(
    tmp_path: Path, codec: str, header: int, times_ms: Sequence[int], expected: float
) -> None:
    video = read_video(make_timed(tmp_path / "a.mkv", header, times_ms), codec)
    assert (video.rate, video.num_frames, video.damage) == (expected, len(times_ms), None)


def fragments(path: Path) -> tuple[bytes, list[bytes]]:
    """Makes an MP4 file of fragments of ten frames; returns what is before the first, and all."""
    with av.open(str(path), "w", options={"movflags": "cmaf+frag_keyframe"}) as container:
        stream = container.add_stream("libx264", rate=RATE)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = 48, 64, "yuv420p", 10
        for index in range(100):
            frame = av.VideoFrame.from_ndarray(frame_pixels(index, 48, 64), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    head, *parts = path.read_bytes().split(b"moof")
    sizes = [head[-4:], *(part[-4:] for part in parts[:-1])]
    last = parts[-1][: parts[-1].rindex(b"mfra") - 4]
    bodies = [*(part[:-4] for part in parts[:-1]), last]
    return head[:-4], [size + b"moof" + body for size, body in zip(sizes, bodies, strict=True)]


@pytest.mark.parametrize("codec", ["jpeg", "original"])
def test_a_whole_file_of_fragments_is_whole(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.mp4"
    head, parts = fragments(path)
    assert len(parts) == 10
    assert (whole := read_video(path, codec)).damage is None and whole.num_frames == 100
    path.write_bytes(head + b"".join(parts[4:]))  # as a recording that begins late has it
    late = read_video(path, codec)
    assert (late.num_frames, late.damage) == (60, None)


def test_of_several_streams_the_best_is_taken(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        for side in (32, 64):
            stream = container.add_stream("mpeg4", rate=RATE)
            assert isinstance(stream, av.VideoStream)
            stream.height, stream.width, stream.pix_fmt = side, side, "yuv420p"
        stream.disposition = Disposition.default  # of the second
        for stream, count in zip(container.streams.video, (1, 10), strict=True):
            for index in range(count):
                pixels = frame_pixels(index, stream.height, stream.width)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
    for codec in ("jpeg", "original"):
        video = read_video(tmp_path / "a.mkv", codec)
        assert (video.num_frames, video.height, video.width) == (10, 64, 64)


def test_frames_that_an_edit_list_hides_are_no_damage(tmp_path: Path) -> None:
    # As a cut leaves it that copies the stream: decoding starts before what is to be shown.
    whole, path = make_video(tmp_path / "a.mp4", 60, codec="libx264"), tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.pts is not None and packet.dts is not None:
                start = int(2 / packet.time_base)  # two seconds
                packet.pts, packet.dts = packet.pts - start, packet.dts - start
                packet.stream = stream
                container.mux(packet)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 60  # what the header counts
    for codec in ("jpeg", "original"):
        video = read_video(path, codec)
        assert (video.num_frames, video.damage) == (10, None)


def test_sound_that_goes_on_is_no_damage(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        sound = container.add_stream("aac", rate=16000)
        sound.layout = "mono"
        for index in range(50):
            frame = av.VideoFrame.from_ndarray(frame_pixels(index, 48, 64), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        for index in range(64):  # 4.1 s
            silence = np.zeros((1, 1024), np.float32)
            samples = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            samples.sample_rate, samples.pts = 16000, 1024 * index
            container.mux(sound.encode(samples))
        container.mux(sound.encode())
    video = read_video(tmp_path / "a.mkv")
    assert (video.num_frames, video.damage) == (50, None)


def test_a_missing_end_behind_an_mp4_header_is_damage(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for index in range(60):
            frame = av.VideoFrame.from_ndarray(frame_pixels(index, 48, 64), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    video = read_video(cut(tmp_path / "a.mp4", 0.7))
    assert 10 <= video.num_frames < 50
    assert video.damage is not None
