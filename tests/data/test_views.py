from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamae_jax.data.clips import ClipSpec, make_clips, make_views
from adamae_jax.data.pipeline import eval_batches
from adamae_jax.data.records import Dataset
from adamae_jax.data.schema import UNLABELLED
from adamae_jax.data.temporal import FRAME_SAMPLINGS
from adamae_jax.data.views import Views, view_frames
from adamae_jax.errors import UserError
from tests.data.fixtures import serialize, video, write_dataset

SPEC = ClipSpec(4, 1, (16, 16))

# Frames in the video -> first frames of the 5 views of VideoMAE on Kinetics: 16 frames at rate 4,
# L = ceil(n / 4) are taken, and view k starts at number int(k (L - 16) / 4) of those.
DENSE = {
    300: [0, 56, 116, 176, 236],  # L = 75, 14.75 apart
    250: [0, 44, 92, 140, 188],  # L = 63, 11.75 apart
    65: [0, 0, 0, 0, 4],  # L = 17
    64: [0, 0, 0, 0, 0],
    20: [0, 0, 0, 0, 0],
}


@pytest.mark.parametrize(("available", "starts"), DENSE.items())
@pytest.mark.parametrize("sampling", ["dense", "stretched"])
def test_views_on_kinetics(available: int, starts: list[int], sampling: str) -> None:
    frames = view_frames(sampling, available, 16, 4, 5, fps=30.0, target_fps=30.0)
    last = (available - 1) // 4 * 4
    expected = [[min(start + 4 * k, last) for k in range(16)] for start in starts]
    assert frames.tolist() == expected


# Of 4 frames each: the sorted numbers int(tick x) and int(tick / 2 + tick x), taken in turns.
SEGMENTS = {
    40: [[0, 10, 20, 30], [5, 15, 25, 35]],
    10: [[0, 2, 5, 7], [1, 3, 6, 8]],
    4: [[0, 1, 2, 3], [0, 1, 2, 3]],
    3: [[0, 0, 1, 2], [0, 1, 1, 2]],
    1: [[0, 0, 0, 0], [0, 0, 0, 0]],
}


@pytest.mark.parametrize(("available", "expected"), SEGMENTS.items())
def test_views_on_something_something(available: int, expected: list[list[int]]) -> None:
    frames = view_frames("segments", available, 4, 4, 2, fps=30.0, target_fps=30.0)
    assert frames.tolist() == expected


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


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos of 10 frames of 24 x 40; number 3 is damaged."""
    records = []
    for number in range(5):
        frames = video(number, 10, 24, 40)
        records.append(serialize(frames, f"v{number}", number % 3, frames[:, ::4, ::4, 1].copy()))
    records[3] = b"\xff"
    return write_dataset(tmp_path_factory.mktemp("views"), {"test": records})


@pytest.mark.parametrize("sampling", FRAME_SAMPLINGS)
def test_one_view_is_the_clip_for_evaluation(dataset_dir: Path, sampling: str) -> None:
    record = Dataset(dataset_dir, "test")[0]
    spec = ClipSpec(4, 1, (16, 16), frame_sampling=sampling)
    clip, view = make_clips(record, spec, [None]), make_views(record, spec, Views())
    assert clip.keys() == view.keys() == {"video", "foreground"}
    for name, values in clip.items():
        np.testing.assert_array_equal(values, view[name])


def test_views_show_their_frames_and_places(dataset_dir: Path) -> None:
    record = Dataset(dataset_dir, "test")[0]
    views = make_views(record, SPEC, Views(3, 2))
    assert views["video"].shape == (6, 4, 16, 16, 3)
    assert views["foreground"].shape == (6, 4, 4, 4)
    # The red channel's mean tells the frame: 10 frames, clips of 4, starts at 0, 3 and 6.
    numbers = np.round((views["video"][..., 0].mean((2, 3)) - 5) / 10).astype(int)
    assert (
        numbers[::2].tolist()
        == numbers[1::2].tolist()
        == [[s, s + 1, s + 2, s + 3] for s in (0, 3, 6)]
    )
    left = make_views(record, ClipSpec(4, 1, (24, 24)), Views(1, 2))["video"]
    whole = make_views(record, ClipSpec(4, 1, (24, 40)), Views())["video"]
    np.testing.assert_array_equal(left[0], whole[0][:, :, :24])
    np.testing.assert_array_equal(left[1], whole[0][:, :, 16:])


def test_batches_hold_videos_with_their_views(dataset_dir: Path) -> None:
    arguments = {"batch_size": 4, "views": (2, 3)}
    with eval_batches(Dataset(dataset_dir, "test"), SPEC, **arguments) as batches:  # type: ignore[arg-type]
        first, last = list(batches)
    assert first["video"].shape == (4, 6, 4, 16, 16, 3)
    assert first["foreground"].shape == (4, 6, 4, 4, 4)
    assert first["valid"].tolist() == [True, True, True, False]
    assert first["unreadable"].tolist() == [False, False, False, True]
    assert last["valid"].tolist() == [True, False, False, False]
    assert first["label"].tolist() == [0, 1, 2, UNLABELLED]
    assert not first["video"][3].any()
    record = Dataset(dataset_dir, "test")[2]
    np.testing.assert_array_equal(first["video"][2], make_views(record, SPEC, Views(2, 3))["video"])
    parts = []
    for host in range(2):
        with eval_batches(
            Dataset(dataset_dir, "test"),
            SPEC,
            process_index=host,
            process_count=2,
            **arguments,  # type: ignore[arg-type]
        ) as batches:
            parts.append(next(batches))
    for name, values in first.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values)


def test_impossible_views_are_refused(dataset_dir: Path) -> None:
    with pytest.raises(UserError, match=r"views are \(0, 3\), but must be \(starts, crops\)"):
        eval_batches(Dataset(dataset_dir, "test"), SPEC, batch_size=4, views=(0, 3))
    whole = ClipSpec(4, 1, (16, 16), crop="none")
    with pytest.raises(UserError, match=r"views are \(1, 3\), but crop 'none' takes whole frames"):
        eval_batches(Dataset(dataset_dir, "test"), whole, batch_size=4, views=(1, 3))
