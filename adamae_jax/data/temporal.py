"""Which frames of a video make a clip: dense, or scaled to the video's frame rate.

Sources: for `dense_frames`, `VideoMAE._sample_train_indices` and `_video_TSN_decord_batch_loader`
in ``kinetics.py`` of the code released with AdaMAE (arXiv 2211.09120); for `time_scaled_frames`,
`get_start_end_idx` and `temporal_sampling` in ``util/decoder/decoder.py`` of the code released
with MAE-ST (arXiv 2205.09113).
"""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Int64

FrameSampling = Literal["dense", "time_scaled"]
FRAME_SAMPLINGS: tuple[str, ...] = get_args(FrameSampling)


def dense_frames(
    available: int, num_frames: int, sampling_rate: int, rng: np.random.Generator | None
) -> Int64[np.ndarray, "t"]:
    """Numbers of every so-many-th frame, whatever time lies between two frames.

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


def time_scaled_frames(
    available: int,
    num_frames: int,
    sampling_rate: int,
    rng: np.random.Generator | None,
    *,
    fps: float,
    target_fps: float,
) -> Int64[np.ndarray, "t"]:
    """Frame numbers of a clip that lasts equally long in videos of any frame rate.

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
    # A clip shorter than one frame would run backwards in the released code.
    positions = np.linspace(start, start + max(length - 1, 0.0), num_frames)
    # Through float32, as there: a whole number that float64 misses by its last bit stays whole.
    return np.clip(positions.astype(np.float32), 0, available - 1).astype(np.int64)
