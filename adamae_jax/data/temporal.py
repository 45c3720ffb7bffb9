"""Which frames of a video make a clip for training, and the one or several for evaluation.

Sources: for `dense_frames`, `VideoMAE._sample_train_indices` and `_video_TSN_decord_batch_loader`
in ``kinetics.py`` of the code released with AdaMAE (arXiv 2211.09120); for `stretched_frames` and
`segment_frames`, the fine-tuning loaders for Kinetics-400 (``kinetics.py``) and Something-Something
v2 (``ssv2.py``) of the code released with VideoMAE (arXiv 2203.12602), the latter after Temporal
Segment Networks (arXiv 1608.00859); for `time_scaled_frames`, `get_start_end_idx` and
`temporal_sampling` in ``util/decoder/decoder.py`` of the code released with MAE-ST (arXiv
2205.09113); for the several clips of an evaluation (`view_frames`), the test loaders in the same
files. Their clip for validation is drawn at random as in training; the one in the middle, which
stands for it here, is that of VideoMAE V2 (arXiv 2303.16727).
"""

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Int64

FrameSampling = Literal["dense", "stretched", "segments", "time_scaled"]
FRAME_SAMPLINGS: tuple[str, ...] = get_args(FrameSampling)


def dense_frames(
    available: int, num_frames: int, sampling_rate: int, rng: np.random.Generator | None
) -> Int64[np.ndarray, "t"]:
    """Returns the numbers of every so-many-th frame, whatever time lies between two frames.

    Args:
        available: frames in the video, at least 1.
        num_frames: frames in the clip, ``t``.
        sampling_rate: take every so-many-th frame.
        rng: gives the start, a whole number in ``[0, available - t * rate]``; used only where there
            is a choice. None puts the clip in the middle, for evaluation.
    """
    slack = max(0, available - num_frames * sampling_rate)
    start = slack // 2
    if rng is not None and slack:
        start = int(rng.integers(slack + 1))
    steps = np.arange(num_frames)
    if available < num_frames * sampling_rate:
        # The released code counts positions from 1 and steps on only while position + rate stays
        # below the number of frames, so that one late frame repeats, not always the very last.
        # (It does so in long videos too, where it can matter at rate 1 only: there the clip that
        # ends with the video would repeat its last frame but one. That is not imitated.)
        steps = np.minimum(steps, max(0, (available - 2) // sampling_rate))
    return start + sampling_rate * steps


def stretched_frames(
    available: int, num_frames: int, sampling_rate: int, rng: np.random.Generator | None
) -> Int64[np.ndarray, "t"]:
    """Returns frames spread over ``t * rate`` frames of the video, from the first to the last.

    Args:
        available: frames in the video, at least 1. Where they are no more than ``t * rate``, they
            are taken in about equal steps, and the last one fills up the clip.
        num_frames: frames in the clip, ``t``.
        sampling_rate: frames of the video for each frame of the clip.
        rng: gives the start, a whole number in ``[0, available - t * rate)``. None puts the clip in
            the middle, for evaluation.
    """
    length = num_frames * sampling_rate
    if available <= length:
        taken = available // sampling_rate
        positions = np.full(num_frames, float(available))
        positions[:taken] = np.linspace(0, available, taken)
        return np.clip(positions, 0, available - 1).astype(np.int64)
    slack = available - length
    start = slack // 2 if rng is None else int(rng.integers(slack))
    positions = np.linspace(start, start + length, num_frames)
    return np.clip(positions, start, start + length - 1).astype(np.int64)


def segment_frames(
    available: int, num_frames: int, rng: np.random.Generator | None
) -> Int64[np.ndarray, "t"]:
    """Returns one frame of each of ``t`` equal segments of the video, whatever its length.

    Args:
        available: frames in the video, at least 1.
        num_frames: frames in the clip, ``t``.
        rng: chooses in each segment of ``available // t`` frames; a video with fewer frames than
            the clip gives its first one only. None takes the middle of each segment, for
            evaluation, as VideoMAE V2 does; a video with fewer frames than the clip then gives its
            first one until the others fill the clip.
    """
    length = available // num_frames
    if rng is None:
        numbers = np.arange(num_frames) * max(length, 1) + length // 2
        return np.maximum(numbers - max(0, num_frames - available), 0)
    if not length:
        return np.zeros(num_frames, np.int64)
    return np.arange(num_frames) * length + rng.integers(length, size=num_frames)


def time_scaled_frames(
    available: int,
    num_frames: int,
    sampling_rate: int,
    rng: np.random.Generator | None,
    *,
    fps: float,
    target_fps: float,
) -> Int64[np.ndarray, "t"]:
    """Returns the frames of a clip that lasts equally long in videos of any frame rate.

    The clip is ``rate * t * fps / target_fps`` frames long, a real number, and its frames lie
    evenly from its first to its last. A video shorter than that repeats its last frame.

    Args:
        available: frames in the video, at least 1.
        num_frames: frames in the clip, ``t``.
        sampling_rate: frames between two frames of the clip, were the video at ``target_fps``.
        rng: gives the start, a real number in ``[0, available - length)``. None puts the clip in
            the middle, for evaluation.
        fps: the video's frames per second, above 0.
        target_fps: the frames per second that ``sampling_rate`` speaks of, above 0.
    """
    length = sampling_rate * num_frames * fps / target_fps
    slack = max(available - length, 0.0)
    start = slack // 2 if rng is None else rng.uniform(0, slack)
    return spaced_frames(start, length, available, num_frames)


def spaced_frames(
    start: float, length: float, available: int, num_frames: int
) -> Int64[np.ndarray, "t"]:
    """Returns frames evenly from ``start`` to the end of ``length`` frames, both real numbers."""
    # A clip shorter than one frame would run backwards in the released code.
    positions = np.linspace(start, start + max(length - 1, 0.0), num_frames)
    # Through float32, as there: a whole number that float64 misses by its last bit stays whole.
    return np.clip(positions.astype(np.float32), 0, available - 1).astype(np.int64)


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
    """Returns the frame numbers of each start; a single one is the clip in the middle.

    Args:
        frame_sampling: how clips are sampled in training. ``dense`` and ``stretched``: every
            ``rate``-th frame of the video is taken, the last one repeated where they are fewer than
            ``t``, and the starts are spread over those. ``segments``: the views share out
            ``starts`` frames of each segment. ``time_scaled``: starts are spread over the video.
        available: frames in the video, at least 1.
        num_frames: frames in a clip, ``t``.
        sampling_rate: see `dense_frames` and `time_scaled_frames`.
        starts: how many, ``v``. (With ``segments`` and more than two, VideoMAE's code gives clips
            that are too long; this is VideoMAE V2's. With a single one VideoMAE's divides by zero.)
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
