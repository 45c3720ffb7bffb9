"""Videos made to be measured with: as heavy to store and to decode as those of Kinetics.

At 340 x 256 and 300 frames, a real clip of Kinetics takes 0.8 MB as x264 encodes by itself, with up
to 250 frames between keyframes, and 5.8 MB as JPEGs of quality 90. So do these.
"""

import contextlib
import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from jaxtyping import Float32, UInt8

SIZE, NUM_FRAMES, RATE = (256, 340), 300, 30
_PICTURE = (700, 1000)
# Columns of noise that is enlarged to the picture, and its strength in levels: coarse to fine.
_LAYERS = ((12, 45.0), (48, 25.0), (160, 16.0))
_GRAIN = 2.0  # levels, anew in every frame
_WAVES = (8, 10)  # places that sway, each by three waves, and everything between them
_SWAY, _PACE = 6.0, 0.3  # pixels; radians a frame of a wave of frequency 1


def make_videos(folder: Path, count: int) -> Path:
    """Makes ``count`` MP4 files, the same every time, and returns the folder that holds them."""
    source = folder / "videos"
    source.mkdir()
    height, width = SIZE
    for number in range(count):
        with contextlib.closing(av.open(os.fspath(source / f"{number}.mp4"), "w")) as container:
            stream = container.add_stream("libx264", rate=Fraction(RATE))
            assert isinstance(stream, av.VideoStream)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            for pixels in _frames(number):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
    return source


def _frames(seed: int) -> list[UInt8[np.ndarray, "h w 3"]]:
    """A camera that wanders over a picture in which everything sways."""
    rng = np.random.default_rng(seed)
    picture = _picture(rng)
    frequencies = rng.uniform(0.5, 2, (1, 3, *_WAVES))
    phases = rng.uniform(0, 2 * np.pi, (2, 3, *_WAVES))
    height, width = SIZE
    y, x = np.mgrid[:height, :width].astype(np.float32)
    frames = []
    for t in range(NUM_FRAMES):
        centre = (
            300 + 220 * np.sin(t / 55 + 2 * seed) + width / 2,
            200 + 150 * np.sin(t / 40 + seed) + height / 2,
        )
        seen = cv2.getRectSubPix(picture, (width, height), centre)
        swaying = np.sin(frequencies * t * _PACE + phases).sum(1)
        by = [_enlarged(_SWAY * each.astype(np.float32), SIZE) for each in swaying]
        seen = cv2.remap(
            seen, x + by[0], y + by[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        seen = seen + rng.normal(0, _GRAIN, seen.shape)
        frames.append(np.clip(seen, 0, 255).astype(np.uint8))
    return frames


def _picture(rng: np.random.Generator) -> Float32[np.ndarray, "h w 3"]:
    height, width = _PICTURE
    picture = np.full((height, width, 3), 128, np.float32)
    for columns, strength in _LAYERS:
        noise = rng.normal(0, strength, (columns * height // width, columns, 3))
        picture += _enlarged(noise.astype(np.float32), _PICTURE)
    return np.clip(picture, 0, 255)


def _enlarged(
    values: Float32[np.ndarray, "..."], size: tuple[int, int]
) -> Float32[np.ndarray, "..."]:
    return np.asarray(cv2.resize(values, size[::-1], interpolation=cv2.INTER_CUBIC))
