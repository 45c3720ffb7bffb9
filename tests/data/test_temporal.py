import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamae_jax.data.temporal import center_frames, random_frames


class Last:
    """Instead of a generator: always the last choice."""

    def integers(self, choices: int) -> int:
        return choices - 1


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
    assert random_frames(*case, Last()).tolist() == expected  # type: ignore[arg-type]


@given(st.integers(1, 200), st.integers(1, 20), st.integers(2, 9), st.integers(0, 2**32))
def test_positions_advance_as_the_authors_say(
    available: int, num_frames: int, rate: int, seed: int
) -> None:
    frames = random_frames(available, num_frames, rate, np.random.default_rng(seed))
    start = int(frames[0])
    assert 0 <= start <= max(0, available - num_frames * rate)
    position = start + 1  # counted from 1, as there
    for frame in frames:
        assert frame == position - 1
        position += rate if position + rate < available else 0


def test_every_start_is_as_likely_as_any_other() -> None:
    rng = np.random.default_rng(0)
    starts = [int(random_frames(12, 4, 2, rng)[0]) for _ in range(5000)]
    counts = np.bincount(starts)
    assert len(counts) == 5
    assert np.abs(counts - 1000).max() < 4 * np.sqrt(1000 * 0.8)


def test_center() -> None:
    assert center_frames(12, 4, 2).tolist() == [2, 4, 6, 8]
    assert center_frames(13, 4, 2).tolist() == [2, 4, 6, 8]
    assert center_frames(20, 16, 4).tolist() == TABLE[20, 16, 4]
