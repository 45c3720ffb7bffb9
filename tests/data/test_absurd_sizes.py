"""Headers that claim more pixels than a frame may have, though FFmpeg would make room for them."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest

from adamae_jax.data import schema
from adamae_jax.data.frames import decode_frames
from adamae_jax.data.stored_video import StoredVideo
from adamae_jax.data.tfrecord import BadRecordError
from adamae_jax.data.video_file import UnreadableVideoError, VideoFile
from adamae_jax.prepare.encode import read_video
from tests.data.videos import RATE, frame_pixels

# How 64x48 stands in the headers of videos whose frames have no size of their own.
KINDS = {
    "a.gif": ("gif", "rgb8", "<HH"),
    "a.avi": ("rawvideo", "yuv420p", "<ii"),
}


def claiming(folder: Path, name: str, width: int, height: int) -> Path:
    """A video of one small frame, whose header claims another size."""
    path, (codec, pix_fmt, layout) = folder / name, KINDS[name]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 48, 64, pix_fmt
        frame = av.VideoFrame.from_ndarray(frame_pixels(0, 48, 64), format="rgb24")
        container.mux(stream.encode(frame.reformat(format=pix_fmt)))
        container.mux(stream.encode())
    old, new = struct.pack(layout, 64, 48), struct.pack(layout, width, height)
    content = path.read_bytes()
    header, rest = content[:512], content[512:]
    assert old in header
    path.write_bytes(header.replace(old, new) + rest)
    return path


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("codec", schema.CODECS)
@pytest.mark.parametrize("size", [(12000, 12000), (8192, 8193)])
def test_more_pixels_than_a_frame_may_have_are_refused(
    tmp_path: Path, name: str, codec: str, size: tuple[int, int]
) -> None:
    """By the header, before anything is decoded."""
    with pytest.raises(UnreadableVideoError) as caught:
        read_video(claiming(tmp_path, name, *size), codec)
    assert str(caught.value) == f"its frames claim to have {size[0]}x{size[1]} pixels"


@pytest.mark.parametrize("name", KINDS)
def test_as_many_as_a_frame_may_have_are_not_refused(tmp_path: Path, name: str) -> None:
    """Which is twice what 8K has."""
    with VideoFile(claiming(tmp_path, name, 8192, 8192)) as video:
        assert (video.stream.width, video.stream.height) == (8192, 8192)


@pytest.mark.parametrize("shown", [0, 2])
def test_frames_that_outgrow_their_header_are_damage(tmp_path: Path, shown: int) -> None:
    """Each of this codec says its size, whatever the container does."""
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libvpx", rate=RATE, options={"g": "1"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(frame_pixels(number, 48, 64), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    start = b"\x9d\x01\x2a"
    before, *frames = (tmp_path / "a.mkv").read_bytes().split(start)
    assert len(frames) == 3
    frames[shown] = struct.pack("<HH", 12000, 12000) + frames[shown][4:]
    (tmp_path / "a.mkv").write_bytes(start.join([before, *frames]))
    if not shown:
        with pytest.raises(UnreadableVideoError, match="cannot be decoded: Invalid argument"):
            read_video(tmp_path / "a.mkv")
        return
    video = read_video(tmp_path / "a.mkv")
    assert (video.num_frames, video.height, video.width) == (shown, 48, 64)
    assert video.damage == "after 2 frames (0.08 s): Invalid argument"


def test_records_that_claim_more_are_bad() -> None:
    with pytest.raises(BadRecordError, match=r"its frames claim the size \(8193, 8192\)"):
        decode_frames(StoredVideo(b"never opened", 1), np.array([0]), (8193, 8192))
