"""Which frames a clip has; VideoMAE's are compared with its loaders in test_parity_frames."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamae_jax.data.temporal import (
    FRAME_SAMPLINGS,
    dense_frames,
    stretched_frames,
    time_scaled_frames,
    view_frames,
)


class Last:
    """Instead of a generator: always the last choice."""

    def integers(self, choices: int) -> int:
        return choices - 1


class Share:
    """Instead of a generator: always the same share of the way from low to high."""

    def __init__(self, share: float):
        self.share = share

    def uniform(self, low: float, high: float) -> float:
        return low + self.share * (high - low)


# frames in the video, frames in the clip, rate -> frame numbers of the last possible start,
# worked out by hand from the rule in the docstring.
TABLE = {
    (20, 16, 4): [0, 4, 8, 12, *[16] * 12],
    (64, 16, 4): [4 * k for k in range(16)],
    (65, 16, 4): [4 * k + 1 for k in range(16)],
    (63, 16, 4): [*(4 * k for k in range(15)), 60],
    (62, 16, 4): [*(4 * k for k in range(15)), 60],
    (61, 16, 4): [*(4 * k for k in range(15)), 56],
    (31, 16, 2): [*(2 * k for k in range(15)), 28],
    (30, 16, 2): [*(2 * k for k in range(15)), 28],
    (29, 16, 2): [*(2 * k for k in range(14)), 26, 26],
    (5, 4, 4): [0, 0, 0, 0],
    (6, 4, 4): [0, 4, 4, 4],
    (1, 4, 2): [0, 0, 0, 0],
    (8, 8, 1): [0, 1, 2, 3, 4, 5, 6, 7],
    (10, 8, 1): [2, 3, 4, 5, 6, 7, 8, 9],
    (7, 8, 1): [0, 1, 2, 3, 4, 5, 5, 5],
}


@pytest.mark.parametrize(("case", "expected"), TABLE.items(), ids=str)
def test_table(case: tuple[int, int, int], expected: list[int]) -> None:
    assert dense_frames(*case, Last()).tolist() == expected  # type: ignore[arg-type]


@given(st.integers(1, 200), st.integers(1, 20), st.integers(2, 9), st.integers(0, 2**32))
def test_positions_advance_as_the_authors_say(
    available: int, num_frames: int, rate: int, seed: int
) -> None:
    frames = dense_frames(available, num_frames, rate, np.random.default_rng(seed))
    start = int(frames[0])
    assert 0 <= start <= max(0, available - num_frames * rate)
    position = start + 1  # counted from 1, as there
    for frame in frames:
        assert frame == position - 1
        position += rate if position + rate < available else 0


def test_center() -> None:
    assert dense_frames(12, 4, 2, None).tolist() == [2, 4, 6, 8]
    assert dense_frames(13, 4, 2, None).tolist() == [2, 4, 6, 8]
    assert dense_frames(20, 16, 4, None).tolist() == TABLE[20, 16, 4]


def test_one_frame_may_be_any_frame() -> None:
    rng = np.random.default_rng(0)
    frames = [dense_frames(5, 1, 1, rng) for _ in range(100)]
    assert {frame.shape for frame in frames} == {(1,)}
    assert {int(frame[0]) for frame in frames} == set(range(5))
    assert dense_frames(5, 1, 1, None).tolist() == [2]
    assert dense_frames(1, 1, 4, rng).tolist() == [0]
    assert stretched_frames(5, 1, 1, Last()).tolist() == [3]  # type: ignore[arg-type]


# frames in the video, its frame rate, share of the way from the first start to the last (None: the
# middle, for evaluation) -> 16 frames at rate 4 of 30 frames per second, computed with PyTorch from
# the formula of the released code, in its float32.
SCALED = {
    (300, 30.0, 0.0): [0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63],
    (300, 30.0, 0.5): [
        118, 122, 126, 130, 134, 139, 143, 147, 151, 155, 160, 164, 168, 172, 176, 181,
    ],
    (300, 25.0, 0.0): [0, 3, 6, 10, 13, 17, 20, 24, 27, 31, 34, 38, 41, 45, 48, 52],
    (300, 25.0, 1.0): [
        246, 250, 253, 257, 260, 264, 267, 271, 274, 278, 281, 285, 288, 292, 295, 299,
    ],
    (300, 29.97, 0.0): [0, 4, 8, 12, 16, 20, 25, 29, 33, 37, 41, 46, 50, 54, 58, 62],
    (300, 29.97, 0.7): [
        165, 169, 173, 177, 182, 186, 190, 194, 198, 203, 207, 211, 215, 219, 223, 228,
    ],
    (250, 60.0, 0.25): [30, 38, 47, 55, 64, 72, 81, 89, 98, 106, 115, 123, 132, 140, 149, 157],
    (250, 12.5, 0.9): [
        201, 202, 204, 206, 207, 209, 211, 212, 214, 216, 218, 219, 221, 223, 224, 226,
    ],
    (64, 30.0, 0.5): [0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63],
    (63, 30.0, 0.5): [0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 62],
    (54, 25.0, 0.9): [0, 4, 7, 11, 14, 18, 21, 25, 28, 32, 35, 38, 42, 45, 49, 52],
    (40, 30.0, 0.5): [0, 4, 8, 12, 16, 21, 25, 29, 33, 37, *[39] * 6],
    (40, 25.0, 0.0): [0, 3, 6, 10, 13, 17, 20, 24, 27, 31, 34, 38, *[39] * 4],
    (10, 25.0, 0.5): [0, 3, 6, *[9] * 13],
    (1, 29.97, 0.5): [0] * 16,
    (300, 30.0, None): [
        118, 122, 126, 130, 134, 139, 143, 147, 151, 155, 160, 164, 168, 172, 176, 181,
    ],
    (301, 25.0, None): [
        123, 126, 129, 133, 136, 140, 143, 147, 150, 154, 157, 161, 164, 168, 171, 175,
    ],
    (300, 29.97, None): [
        118, 122, 126, 130, 134, 138, 143, 147, 151, 155, 159, 164, 168, 172, 176, 180,
    ],
    (10, 30.0, None): [0, 4, 8, *[9] * 13],
}  # fmt: skip


@pytest.mark.parametrize(("case", "expected"), SCALED.items(), ids=str)
def test_time_scaled_table(case: tuple[int, float, float | None], expected: list[int]) -> None:
    available, fps, share = case
    rng: Any = None if share is None else Share(share)
    frames = time_scaled_frames(available, 16, 4, rng, fps=fps, target_fps=30.0)
    assert frames.tolist() == expected


def test_positions_that_are_whole_stay_whole() -> None:
    # The sixth position is 136 2/3 + 5/7 * 25 2/3 = 155; float64 falls short of it by its last bit.
    frames = time_scaled_frames(300, 8, 4, Share(0.5), fps=25.0, target_fps=30.0)  # type: ignore[arg-type]
    assert frames.tolist() == [136, 140, 144, 147, 151, 155, 158, 162]


@given(
    st.integers(1, 400),
    st.integers(1, 20),
    st.integers(1, 9),
    st.floats(1, 120),
    st.floats(1, 120),
    st.integers(0, 2**32),
)
def test_time_scaled_clips_run_forwards_inside_the_video(
    available: int, num_frames: int, rate: int, fps: float, target_fps: float, seed: int
) -> None:
    for rng in (np.random.default_rng(seed), None):
        frames = time_scaled_frames(
            available, num_frames, rate, rng, fps=fps, target_fps=target_fps
        )
        assert len(frames) == num_frames
        assert frames[0] >= 0 and frames[-1] < available
        assert (np.diff(frames) >= 0).all()
        assert frames[-1] - frames[0] <= max(rate * num_frames * fps / target_fps, 1)


def test_a_slower_video_gives_the_same_seconds() -> None:
    # 16 frames at rate 4 of 30 frames per second last 2.1 s, at every frame rate.
    for fps in (15.0, 25.0, 30.0, 60.0):
        frames = time_scaled_frames(600, 16, 4, Share(0.5), fps=fps, target_fps=30.0)  # type: ignore[arg-type]
        assert (frames[-1] - frames[0]) / fps == pytest.approx(2.1, abs=1.1 / fps)
    half = time_scaled_frames(600, 16, 4, Share(0.0), fps=30.0, target_fps=15.0)  # type: ignore[arg-type]
    assert half[-1] == 127


@given(st.integers(1, 300), st.integers(1, 20), st.integers(1, 9), st.integers(0, 2**32))
def test_stretched_clips_run_forwards_inside_the_video(
    available: int, num_frames: int, rate: int, seed: int
) -> None:
    for rng in (np.random.default_rng(seed), None):
        frames = stretched_frames(available, num_frames, rate, rng)
        assert len(frames) == num_frames
        assert frames[0] >= 0 and frames[-1] < available
        assert (np.diff(frames) >= 0).all()
        assert frames[-1] - frames[0] < num_frames * rate


def test_views_of_dense_clips_are_those_of_stretched_ones() -> None:
    found, expected = (
        view_frames(sampling, 250, 16, 4, 5, fps=30.0, target_fps=30.0)
        for sampling in ("dense", "stretched")
    )
    np.testing.assert_array_equal(found, expected)


def test_views_of_mae_st() -> None:
    # 300 frames, 64 of them in a clip: starts floor(236 / 9) = 26 apart.
    frames = view_frames("time_scaled", 300, 16, 4, 10, fps=30.0, target_fps=30.0)
    assert frames[:, 0].tolist() == [26 * k for k in range(10)]
    assert frames[1].tolist() == [
        26, 30, 34, 38, 42, 47, 51, 55, 59, 63, 68, 72, 76, 80, 84, 89,
    ]  # fmt: skip
    slow = view_frames("time_scaled", 300, 16, 4, 3, fps=15.0, target_fps=30.0)
    assert slow[:, 0].tolist() == [0, 134, 268]  # clips of 32 frames


@given(
    st.sampled_from(FRAME_SAMPLINGS), st.integers(1, 300), st.integers(1, 16), st.integers(1, 5),
    st.integers(1, 6),
)  # fmt: skip
def test_views_run_forwards_inside_the_video(
    sampling: str, available: int, num_frames: int, rate: int, starts: int
) -> None:
    frames = view_frames(sampling, available, num_frames, rate, starts, fps=25.0, target_fps=30.0)
    assert frames.shape == (starts, num_frames)
    assert frames.min() >= 0 and frames.max() < available
    assert (np.diff(frames, axis=1) >= 0).all()
    assert (np.diff(frames[:, 0]) >= 0).all()
