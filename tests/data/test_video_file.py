"""Any frame of a stored file, compared with decoding all of them from the front."""

from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jaxtyping import UInt8

from adamae_jax.data import schema, video_file
from adamae_jax.data.damage import BadRecordError
from adamae_jax.data.examples import VideoLayout
from adamae_jax.data.frames import decode_frames
from adamae_jax.data.video_file import StoredVideo, Upright
from adamae_jax.prepare import examples as writing
from adamae_jax.prepare import keyframes
from adamae_jax.prepare.encode import EncodedVideo, read_video
from adamae_jax.prepare.video_file import VideoFile
from tests.data.videos import blot, frame_pixels, make_video


def make(
    path: Path,
    codec: str,
    num_frames: int = 40,
    pix_fmt: str = "yuv420p",
    sound: bool = False,
    times: list[int] | None = None,
    **options: str,
) -> Path:
    """A video of 48 x 64 pixels with these options of its encoder; `times` in 1/1000 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 48, 64, pix_fmt
        stream.options = dict(options)
        audio = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        if times is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(frame_pixels(index, 48, 64), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            if pix_fmt == "rgb8":
                frame = frame.reformat(format="rgb8")
            container.mux(stream.encode(frame))
            if audio is not None:
                samples = np.zeros((1, 1024), np.float32)
                tone = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                tone.sample_rate, tone.pts = 16000, 1024 * index
                container.mux(audio.encode(tone))
        for each in container.streams:
            container.mux(each.encode())  # type: ignore[attr-defined]
    return path


def from_the_front(video: EncodedVideo) -> UInt8[np.ndarray, "t h w 3"]:
    upright = Upright(size=(video.height, video.width))
    with VideoFile(video.frames[0]) as file:
        frames = [upright(frame) for frame in islice(file.frames(), video.num_frames)]
    return np.stack(frames)


def stored(video: EncodedVideo) -> StoredVideo:
    return StoredVideo(video.frames[0], video.num_frames, video.times, video.keyframes)


SHORT_GROUPS = {"g": "8", "bf": "3"}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "b-frames": ("a.mp4", "libx264", SHORT_GROUPS),
    "one group": ("a.mp4", "libx264", {}),
    "pyramid": ("a.mkv", "libx264", {"x264-params": "keyint=10:bframes=5:b-pyramid=normal"}),
    "open groups": ("a.mp4", "libx264", {"x264-params": "keyint=10:bframes=3:open-gop=1"}),
    "intra refresh": ("a.mp4", "libx264", {"x264-params": "keyint=10:intra-refresh=1"}),
    "all key": ("a.mp4", "libx264", {"g": "1"}),
    "10 bits": ("a.mp4", "libx264", {"pix_fmt": "yuv420p10le", **SHORT_GROUPS}),
    "sound": ("a.mp4", "libx264", {"sound": True, **SHORT_GROUPS}),
    "hevc": ("a.mp4", "libx265", {"x265-params": "keyint=10:log-level=none"}),
    "webm": ("a.webm", "libvpx-vp9", {"g": "8", "deadline": "realtime", "cpu-used": "8"}),
    "avi": ("a.avi", "mpeg4", {"g": "8"}),
    "mpeg4 b": ("a.mp4", "mpeg4", {"g": "8", "bf": "2"}),
    "stream": ("a.ts", "libx264", SHORT_GROUPS),
    "gif": ("a.gif", "gif", {"pix_fmt": "rgb8"}),
    "variable rate": (
        "a.mkv", "libx264", {"times": [7 * n * n + 40 * n for n in range(40)], **SHORT_GROUPS}
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def original(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> EncodedVideo:
    name, codec, options = KINDS[request.param]
    path = make(tmp_path_factory.mktemp("videos") / name, codec, **options)
    video = read_video(path, schema.CODEC_ORIGINAL)
    assert video.frames == [path.read_bytes()]
    return video


@given(data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_frames_are_those_that_decoding_from_the_front_gives(
    original: EncodedVideo, data: st.DataObject
) -> None:
    assert (original.num_frames, original.damage) == (40, None)
    expected = from_the_front(original)
    number = st.integers(0, 39)
    chosen = data.draw(st.lists(number, min_size=1, max_size=8))
    pixels = decode_frames(stored(original), np.array(chosen), (48, 64))
    np.testing.assert_array_equal(pixels, expected[chosen])


def test_all_frames_in_one_go(original: EncodedVideo) -> None:
    pixels = decode_frames(stored(original), np.arange(40), (48, 64))
    np.testing.assert_array_equal(pixels, from_the_front(original))


@pytest.mark.parametrize("kind", ["b-frames", "open groups", "webm", "avi", "variable rate"])
def test_only_what_is_needed_is_decoded(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, codec, options = KINDS[kind]
    video = read_video(make(tmp_path / name, codec, **options), schema.CODEC_ORIGINAL)
    assert len(video.keyframes) >= 3
    decoded = []
    frames_from = StoredVideo.frames_from

    def count(*arguments: Any, **options: Any) -> Any:
        for frame in frames_from(*arguments, **options):
            decoded.append(frame)
            yield frame

    monkeypatch.setattr(StoredVideo, "frames_from", count)
    decode_frames(stored(video), np.array([36, 37]), (48, 64))
    assert 2 <= len(decoded) <= 12


def test_frames_that_none_refers_to_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = read_video(make_video(tmp_path / "a.mp4", 48), schema.CODEC_H264)
    shown: list[Any] = []
    disposable: list[bool] = []
    upright, is_disposable = Upright.__call__, video_file._is_disposable

    def note_frame(self: Upright, frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
        shown.append(frame)
        return upright(self, frame)

    def note_packet(packet: av.Packet) -> bool:
        disposable.append(is_disposable(packet))
        return disposable[-1]

    monkeypatch.setattr(Upright, "__call__", note_frame)
    monkeypatch.setattr(video_file, "_is_disposable", note_packet)
    decode_frames(stored(video), np.arange(0, 48, 4), (48, 64))
    assert len(shown) == 12
    assert sum(disposable) > 48 // 2


def test_keyframes_that_do_not_repair_the_picture_at_once_are_dropped(tmp_path: Path) -> None:
    name, codec, options = KINDS["b-frames"]
    video = read_video(make(tmp_path / name, codec, **options), schema.CODEC_ORIGINAL)
    with VideoFile(video.frames[0]) as file:
        digests = [keyframes.digest(frame) for frame in file.frames()]
    digests[video.keyframes[1] + 1] ^= 1
    assert keyframes.exact_keyframes(stored(video), digests) == (
        video.keyframes[0], *video.keyframes[2:]
    )  # fmt: skip


@pytest.mark.parametrize("codec", [schema.CODEC_H264, schema.CODEC_ORIGINAL])
def test_through_the_record(tmp_path: Path, codec: str) -> None:
    video = read_video(make_video(tmp_path / "a.mp4", 20, codec="libx264"), codec)
    payload = writing.serialize(writing.video_example("a", 1, codec, video))
    record = VideoLayout(has_foreground=False).parse(payload)
    assert (record.id, record.label, len(record.frames), record.rate) == ("a", 1, 20, 25.0)
    frames = decode_frames(record.frames, np.array([3, 17]), (record.height, record.width))
    np.testing.assert_array_equal(frames, from_the_front(video)[[3, 17]])


def test_bad_records(tmp_path: Path) -> None:
    video = read_video(make_video(tmp_path / "a.mp4", 20), schema.CODEC_H264)
    data, size = video.frames[0], (48, 64)
    good = stored(video)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"data": b"rubbish"}, "its video is damaged"),
        ({"data": data[: len(data) // 2]}, "its video is damaged"),
        ({"times": [time + 1 for time in video.times]}, "shows only 0 of the frames"),
        ({"num_frames": 30, "times": (), "keyframes": ()}, "shows only 1 of the frames"),
    ]
    for change, message in changes:
        numbers = np.array([3, 25 if "num_frames" in change else 5])
        with pytest.raises(BadRecordError, match=message):
            decode_frames(StoredVideo(**{**vars(good), **change}), numbers, size)
    with pytest.raises(BadRecordError, match="frames \\[20\\] were asked for"):
        decode_frames(good, np.array([20]), size)
    with pytest.raises(BadRecordError, match="claim the size"):
        decode_frames(good, np.array([2]), (1 << 20, 1 << 20))
    with pytest.raises(BadRecordError, match="it has 20 times for 21 frames"):
        StoredVideo(data, 21, video.times)
    with pytest.raises(BadRecordError, match="its keyframes are 0 to 20"):
        StoredVideo(data, 20, video.times, (0, 20))


@pytest.mark.parametrize("place", [0.55, 0.6, 0.65])
def test_frames_close_to_damage_come_out_alone(tmp_path: Path, place: float) -> None:
    """A decoder that waits for more before it shows a frame finds the damage first."""
    path = blot(make(tmp_path / "a.mp4", "libx264", 60, g="12", bf="3"), place, 30)
    video = read_video(path, schema.CODEC_ORIGINAL)
    assert video.damage is not None
    expected = from_the_front(video)
    for number in range(video.num_frames - 6, video.num_frames):
        (pixels,) = decode_frames(stored(video), np.array([number]), (video.height, video.width))
        np.testing.assert_array_equal(pixels, expected[number])
