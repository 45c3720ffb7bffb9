"""Which frames of a video make a clip: the dense sampling of VideoMAE and AdaMAE.

Source: `VideoMAE._sample_train_indices` and `_video_TSN_decord_batch_loader` in ``kinetics.py`` of
the code released with AdaMAE (arXiv 2211.09120).
"""

import numpy as np
from jaxtyping import Int64


def random_frames(
    available: int, num_frames: int, sampling_rate: int, rng: np.random.Generator
) -> Int64[np.ndarray, "t"]:
    """Frame numbers of a training clip, its start drawn from ``[0, available - t * rate]``.

    Args:
        available: frames in the video, at least 1.
        num_frames: frames in the clip, ``t``.
        sampling_rate: take every so-many-th frame.
        rng: gives the start; used only where there is a choice.
    """
    choices = available - num_frames * sampling_rate + 1
    start = int(rng.integers(choices)) if choices > 1 else 0
    return _frames_from(start, available, num_frames, sampling_rate)


def center_frames(available: int, num_frames: int, sampling_rate: int) -> Int64[np.ndarray, "t"]:
    """Frame numbers of the clip in the middle of the video, for evaluation."""
    start = max(0, available - num_frames * sampling_rate) // 2
    return _frames_from(start, available, num_frames, sampling_rate)


def _frames_from(
    start: int, available: int, num_frames: int, sampling_rate: int
) -> Int64[np.ndarray, "t"]:
    steps = np.arange(num_frames)
    if available < num_frames * sampling_rate:
        # The released code counts positions from 1 and steps on only while position + rate stays
        # below the number of frames, so that one late frame repeats, not always the very last.
        # (It does so in long videos too, where it can matter at rate 1 only: there the clip that
        # ends with the video would repeat its last frame but one. That is not imitated.)
        steps = np.minimum(steps, max(0, (available - 2) // sampling_rate))
    return start + sampling_rate * steps
