"""Small videos, whole and broken, made on the spot."""

import struct
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

RATE = 25
# The four quarters of every frame made here, row by row.
QUARTERS = np.array([[(220, 40, 40), (40, 200, 40)], [(40, 60, 220), (230, 230, 230)]], np.uint8)


def frame_pixels(index: int, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Four coloured quarters with a pattern that moves, and gets brighter with the index."""
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 2 // width
    quarters = QUARTERS[rows][:, columns].astype(float)
    y, x = np.mgrid[:height, :width]
    pattern = 8 * np.sin((x + 2 * index) / 5) * np.cos(y / 6) + index - 20
    return np.clip(quarters + pattern[..., None], 0, 255).astype(np.uint8)


def make_video(
    path: Path, num_frames: int = 30, height: int = 48, width: int = 64, codec: str = "mpeg4"
) -> Path:
    """Writes a video; the container follows from the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.bit_rate = 1_000_000
        for index in range(num_frames):
            pixels = frame_pixels(index, height, width)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def make_audio(path: Path) -> Path:
    """Writes a file that holds sound only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        stream.layout = "mono"
        for index in range(10):
            samples = np.sin(np.arange(1024) / 10, dtype=np.float32)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cut(path: Path, share: float) -> Path:
    """Keeps the first `share` of a file, as an interrupted copy does."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def blot(path: Path, start: float, num_bytes: int = 2000) -> Path:
    """Overwrites `num_bytes` with zeros, from a share `start` of the file on."""
    content = bytearray(path.read_bytes())
    first = int(len(content) * start)
    content[first : first + num_bytes] = bytes(num_bytes)
    path.write_bytes(content)
    return path


def replace(path: Path, old: bytes, new: bytes, after: bytes = b"") -> Path:
    """Replaces bytes by others of the same number, once, behind the first `after`."""
    content = path.read_bytes()
    start = content.index(old, content.index(after))
    assert len(old) == len(new)
    path.write_bytes(content[:start] + new + content[start + len(old) :])
    return path


def set_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Tells the players of an MP4 file to show (x, y) at (a x + c y, b x + d y).

    The track header holds a 3 x 3 matrix, row by row, that takes (x, y, 1) as a row vector.
    """

    def matrix(a: int, b: int, c: int, d: int) -> bytes:
        parts = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
        return struct.pack(">9i", *parts)

    return replace(path, matrix(1, 0, 0, 1), matrix(a, b, c, d), after=b"tkhd")


def turn_clockwise(path: Path) -> Path:
    """Tells the players of an MP4 file to turn it by 90 degrees clockwise."""
    return set_matrix(path, 0, 1, -1, 0)
