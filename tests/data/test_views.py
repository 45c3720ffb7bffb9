"""The views of an evaluation: which frames and places they show, and how batches hold them."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from adamae_jax.data import views as views_module
from adamae_jax.data.clips import ClipSpec, make_clips
from adamae_jax.data.frames import decode_frames
from adamae_jax.data.records import Dataset
from adamae_jax.data.schema import UNLABELLED
from adamae_jax.data.stream import id_text
from adamae_jax.data.temporal import FRAME_SAMPLINGS, Views
from adamae_jax.data.views import make_views, make_windows
from adamae_jax.errors import UserError
from tests.data.fixtures import evaluation, serialize, video, write_dataset
from tests.data.test_clips import moment, painted_record

SPEC = ClipSpec(4, 1, (16, 16))


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos of 10 frames of 24 x 40; number 3 is damaged, number 4 has a long name."""
    records = []
    for number in range(5):
        frames = video(number, 10, 24, 40)
        name = "v4-" + 100 * "\N{SNOWMAN}" if number == 4 else f"v{number}"
        records.append(serialize(frames, name, number % 3, frames[:, ::4, ::4, 1].copy()))
    records[3] = b"\xff"
    return write_dataset(tmp_path_factory.mktemp("views"), {"test": records})


@pytest.mark.parametrize("sampling", FRAME_SAMPLINGS)
def test_one_view_is_the_clip_for_evaluation_where_nothing_is_resized(
    dataset_dir: Path, sampling: str
) -> None:
    record = Dataset(dataset_dir, "test")[0]
    spec = ClipSpec(4, 1, (24, 24), frame_sampling=sampling)
    clip, view = make_clips(record, spec, [None]), make_views(record, spec, Views())
    assert clip.keys() == view.keys() == {"video", "foreground"}
    for name, values in clip.items():
        np.testing.assert_array_equal(values, view[name])


@pytest.mark.parametrize("crop", ["random_resized", "none"])
def test_views_are_cut_out_of_resized_frames(dataset_dir: Path, crop: str) -> None:
    record = Dataset(dataset_dir, "test")[0]
    spec = ClipSpec(4, 1, (16, 16), crop, interpolation="bilinear_without_antialias")
    views = Views(2, 3 if crop == "random_resized" else 1)
    found = make_views(record, spec, views)["video"]
    frames = [
        decode_frames(record.frames, np.arange(start, start + 4), (24, 40)) for start in (0, 6)
    ]
    if crop == "none":
        boxes, width = [0], 16
    else:
        boxes, width = [0, 5, 10], 26  # 16 * 40 / 24 is 26.7
    expected = [
        [
            cv2.resize(frame, (width, 16), interpolation=cv2.INTER_LINEAR)[:, x : x + 16]
            for frame in f
        ]
        for f in frames
        for x in boxes
    ]
    np.testing.assert_array_equal(found, expected)


def test_masks_of_views_fit_their_pixels() -> None:
    for size in ((64, 96), (96, 64)):
        views = make_views(painted_record(12, *size), ClipSpec(4, 2, (48, 48)), Views(2, 3))
        for pixels, masks in zip(views["video"], views["foreground"], strict=True):
            np.testing.assert_allclose(moment(pixels[..., 0]), moment(masks), atol=0.025)


def test_no_frame_is_decoded_twice_for_views(
    dataset_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    decode = views_module.each_frame

    def noted(frames: Any, numbers: Any, *rest: Any) -> Any:
        decoded.extend(numbers.tolist())
        return decode(frames, numbers, *rest)

    monkeypatch.setattr(views_module, "each_frame", noted)
    make_views(Dataset(dataset_dir, "test")[0], SPEC, Views(3, 2))
    assert decoded == list(range(10))


@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_windows_in_batches_decode_each_frame_once(
    dataset_dir: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    """In order, whatever clips have in common, and no frame before a batch needs it."""
    decoded: list[int] = []
    decode = views_module.each_frame

    def noted(*given: Any) -> Any:
        for number, pixels in decode(*given):
            decoded.append(number)
            yield number, pixels

    record = Dataset(dataset_dir, "test")[0]
    frames = np.array([[0, 1, 2, 3], [1, 2, 3, 4], [6, 7, 7, 9]])
    expected = np.concatenate(list(make_windows(record, SPEC, frames, 3)))
    assert expected.shape == (3, 4, 16, 16, 3)
    np.testing.assert_array_equal(expected[0, 2], expected[1, 1])
    # The red channel's mean tells the frame.
    shown = np.rint((expected[..., 0].mean((2, 3)) - 5) / 10)
    np.testing.assert_array_equal(shown, frames)
    monkeypatch.setattr(views_module, "each_frame", noted)
    found: list[np.ndarray] = []
    for batch in make_windows(record, SPEC, frames, batch_size):
        assert len(batch) <= batch_size
        found.extend(batch)
        assert decoded[-1] == frames[len(found) - 1].max()
    np.testing.assert_array_equal(found, expected)
    assert decoded == [0, 1, 2, 3, 4, 6, 7, 9]


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
    arguments: dict[str, Any] = {"batch_size": 4, "views": Views(2, 3)}
    with evaluation(Dataset(dataset_dir, "test"), SPEC, **arguments) as batches:
        first, last = list(batches)
    assert first["video"].shape == (4, 6, 4, 16, 16, 3)
    assert first["foreground"].shape == (4, 6, 4, 4, 4)
    assert first["valid"].tolist() == [True, True, True, False]
    assert first["unreadable"].tolist() == [False, False, False, True]
    assert last["valid"].tolist() == [True, False, False, False]
    assert first["label"].tolist() == [0, 1, 2, UNLABELLED]
    ids = [id_text(row) for batch in (first, last) for row in batch["video_id"]]
    assert ids == ["v0", "v1", "v2", "", "v4-" + 84 * "\N{SNOWMAN}", "", "", ""]
    assert first["video_id"].shape == (4, 256) and first["video_id"].dtype == np.uint8
    assert not first["video"][3].any()
    record = Dataset(dataset_dir, "test")[2]
    np.testing.assert_array_equal(first["video"][2], make_views(record, SPEC, Views(2, 3))["video"])
    parts = []
    for host in range(2):
        with evaluation(
            Dataset(dataset_dir, "test"), SPEC, host=host, num_hosts=2, **arguments
        ) as batches:
            parts.append(next(batches))
    for name, values in first.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values)


def test_impossible_views_are_refused(dataset_dir: Path) -> None:
    with pytest.raises(UserError, match=r"views are \(0, 3\), but must be \(starts, crops\)"):
        evaluation(Dataset(dataset_dir, "test"), SPEC, batch_size=4, views=Views(0, 3))
    whole = ClipSpec(4, 1, (16, 16), crop="none")
    with pytest.raises(UserError, match=r"views are \(1, 3\), but crop 'none' takes whole frames"):
        evaluation(Dataset(dataset_dir, "test"), whole, batch_size=4, views=Views(1, 3))
