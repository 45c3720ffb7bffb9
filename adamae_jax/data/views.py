"""Which frames the several clips of an evaluation take.

Sources: the test loaders of the code released with VideoMAE (arXiv 2203.12602), ``kinetics.py`` and
``ssv2.py``, and of MAE-ST (arXiv 2205.09113), ``util/decoder/decoder.py``.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from adamae_jax.data.temporal import (
    dense_frames,
    segment_frames,
    spaced_frames,
    stretched_frames,
    time_scaled_frames,
)


class Views(NamedTuple):
    """How many clips of each video are evaluated: VideoMAE's are 5 x 3 on Kinetics, 2 x 3 on SSv2.

    Attributes:
        starts: in time.
        crops: of each start, along the longer side of the frame.
    """

    starts: int = 1
    crops: int = 1

    @property
    def per_video(self) -> int:
        """Clips of each video, ``V``."""
        return self.starts * self.crops


def view_frames(
    frame_sampling: str,
    available: int,
    num_frames: int,
    sampling_rate: int,
    starts: int,
    *,
    fps: float,
    target_fps: float,
) -> Int64[np.ndarray, "v t"]:
    """The frame numbers of each start; a single one is the clip in the middle.

    Args:
        frame_sampling: how clips are sampled in training. ``dense`` and ``stretched``: every
            ``rate``-th frame of the video is taken, the last one repeated where they are fewer than
            ``t``, and the starts are spread over those. ``segments``: the views share out
            ``starts`` frames of each segment. ``time_scaled``: starts are spread over the video.
        available: frames in the video, at least 1.
        num_frames: frames in a clip, ``t``.
        sampling_rate: see `adamae_jax.data.temporal`, like ``fps`` and ``target_fps``.
        starts: how many, ``v``.
        fps: the video's frames per second; for ``time_scaled``.
        target_fps: the frames per second that ``sampling_rate`` speaks of; for ``time_scaled``.
    """
    if frame_sampling == "segments":
        return _segment_views(available, num_frames, starts)
    if frame_sampling == "time_scaled":
        return _time_scaled_views(available, num_frames, sampling_rate, starts, fps, target_fps)
    if starts == 1:
        middle = dense_frames if frame_sampling == "dense" else stretched_frames
        return middle(available, num_frames, sampling_rate, None)[None]
    strided = np.arange(0, available, sampling_rate)
    strided = np.pad(strided, (0, max(0, num_frames - len(strided))), mode="edge")
    step = (len(strided) - num_frames) / (starts - 1)
    return np.stack([strided[int(k * step) :][:num_frames] for k in range(starts)])


def _segment_views(available: int, num_frames: int, starts: int) -> Int64[np.ndarray, "v t"]:
    if starts == 1:
        return segment_frames(available, num_frames, None)[None]
    tick = available / num_frames
    numbers = np.arange(num_frames)
    shifts = [tick * k / starts + tick * numbers for k in range(starts)]
    frames = np.sort(np.concatenate(shifts).astype(np.int64))
    return np.stack([frames[k::starts] for k in range(starts)])


def _time_scaled_views(
    available: int, num_frames: int, rate: int, starts: int, fps: float, target_fps: float
) -> Int64[np.ndarray, "v t"]:
    if starts == 1:
        return time_scaled_frames(
            available, num_frames, rate, None, fps=fps, target_fps=target_fps
        )[None]
    length = rate * num_frames * fps / target_fps
    step = math.floor(max(available - length, 0.0) / (starts - 1))
    return np.stack([spaced_frames(k * step, length, available, num_frames) for k in range(starts)])
