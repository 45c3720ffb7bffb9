import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adamae_jax.data import clips
from adamae_jax.data.clips import ClipSpec, make_clips, short_videos
from adamae_jax.data.crops import CROPS, reduction
from adamae_jax.data.damage import BadRecordError
from adamae_jax.data.examples import Record, VideoLayout
from adamae_jax.data.frames import each_frame
from adamae_jax.data.records import Dataset
from adamae_jax.data.temporal import FRAME_SAMPLINGS
from adamae_jax.errors import UserError
from tests.data.fixtures import flip_byte, serialize, video, write_dataset

CELL = 4  # pixels of a frame per cell of its mask


def parsed(payload: bytes, has_foreground: bool) -> Record:
    return VideoLayout(has_foreground).parse(payload)


def make_clip(
    record: Record, spec: ClipSpec, rng: np.random.Generator | None
) -> dict[str, np.ndarray]:
    """The only one."""
    return {name: values[0] for name, values in make_clips(record, spec, [rng]).items()}


def painted_record(num_frames: int, height: int, width: int) -> Record:
    """White rectangles that move over black, and masks that are white where they are."""
    cells = np.zeros((num_frames, height // CELL, width // CELL), np.uint8)
    for number, mask in enumerate(cells):
        top, left = 1 + number % 5, 2 + 2 * number % (mask.shape[1] - 6)
        mask[top : top + 5, left : left + 6] = 255
    pixels = cells.repeat(CELL, axis=1).repeat(CELL, axis=2)[..., None].repeat(3, axis=3)
    return parsed(serialize(pixels, masks=cells), True)


def moment(grey: np.ndarray) -> np.ndarray:
    """Each frame's share of white, and the same weighted by place, down and to the right."""
    weights = grey / 255
    y, x = (np.indices(grey.shape[1:]) + 0.5) / np.array(grey.shape[1:])[:, None, None]
    return np.stack([(weights * by).mean((1, 2)) for by in (np.ones_like(y), y, x)], axis=1)


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("image_size", [(48, 48), (32, 56)])
def test_masks_get_frames_crop_and_flip_of_the_pixels(
    crop: str, image_size: tuple[int, int]
) -> None:
    record = painted_record(12, 64, 80)
    spec = ClipSpec(6, 2, image_size, crop, horizontal_flip=True)
    boxes = set()
    for seed in range(8):
        clip = make_clip(record, spec, np.random.default_rng(seed))
        assert clip["video"].shape == (6, *image_size, 3) == spec.video_shape
        assert clip["foreground"].shape == spec.foreground_shape == (6, *spec.mask_size)
        assert clip["video"].dtype == clip["foreground"].dtype == np.uint8
        pixels, masks = moment(clip["video"][..., 0]), moment(clip["foreground"])
        np.testing.assert_allclose(pixels, masks, atol=0.025)
        boxes.add(tuple(masks.round(3).ravel()))
    assert len(boxes) > (5 if crop in ("multi_scale_corner", "random_resized") else 1)


def test_frames_follow_the_sampling() -> None:
    # The red channel counts frames: 10 * number + 5.
    record = parsed(serialize(video(0, num_frames=20)), False)
    spec = ClipSpec(4, 3, (24, 32), "none")

    def numbers(rng: np.random.Generator | None, spec: ClipSpec = spec) -> list[int]:
        reds = make_clip(record, spec, rng)["video"][..., 0].mean((1, 2))
        return [round((red - 5) / 10) for red in reds]

    assert numbers(None) == [4, 7, 10, 13]
    starts = set()
    for seed in range(40):
        start, *rest = numbers(np.random.default_rng(seed))
        assert rest == [start + 3, start + 6, start + 9]
        starts.add(start)
    assert starts == set(range(9))
    assert numbers(None, ClipSpec(8, 4, (24, 32), "none")) == [0, 4, 8, 12, 16, 16, 16, 16]


def test_frames_may_be_scaled_to_the_rate_of_the_video() -> None:
    spec = ClipSpec(4, 3, (24, 32), "none", frame_sampling="time_scaled", target_fps=16.0)
    # 8 frames per second, as the fixture says, so that 12 frames at 16 are 6 here.
    record = parsed(serialize(video(0, num_frames=20)), False)
    reds = make_clip(record, spec, None)["video"][..., 0].mean((1, 2))
    assert [round((red - 5) / 10) for red in reds] == [7, 8, 10, 12]
    for rate in (0.0, -1.0, math.nan, math.inf):
        unknown = parsed(serialize(video(0), rate=rate), False)
        with pytest.raises(BadRecordError, match=r"its frame rate is .*, unknown, .* 'dense'"):
            make_clip(unknown, spec, None)
        make_clip(unknown, ClipSpec(4, 3, (24, 32)), None)


def test_one_frame_clips() -> None:
    record = painted_record(12, 64, 80)
    for sampling in FRAME_SAMPLINGS:
        spec = ClipSpec(1, 1, (32, 32), frame_sampling=sampling)
        clip = make_clip(record, spec, np.random.default_rng(0))
        assert clip["video"].shape == (1, 32, 32, 3)
        assert clip["foreground"].shape == (1, 8, 8)
        np.testing.assert_allclose(
            moment(clip["video"][..., 0]), moment(clip["foreground"]), atol=0.03
        )


def test_half_of_the_clips_are_mirrored() -> None:
    pixels = np.zeros((3, 16, 32, 3), np.uint8)
    pixels[:, :, :8] = 255  # bright on the left
    record = parsed(serialize(pixels, masks=pixels[:, ::4, ::4, 0].copy()), True)
    whole = ClipSpec(2, 1, (16, 32), "none")
    mirrored = dataclasses.replace(whole, horizontal_flip=True)
    plain = make_clip(record, whole, np.random.default_rng(0))
    count = 0
    for seed in range(200):
        clip = make_clip(record, mirrored, np.random.default_rng(seed))
        flipped = bool(clip["video"][0, 8, 4, 0] < 128)
        count += flipped
        for name, values in clip.items():
            step = -1 if flipped else 1
            np.testing.assert_array_equal(values[:, :, ::step], plain[name])
    assert 70 < count < 130
    evaluated = make_clip(record, mirrored, None)
    np.testing.assert_array_equal(evaluated["video"], make_clip(record, whole, None)["video"])


def test_clips_of_a_video_differ_and_do_not_depend_on_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # So large that some boxes are cut out of frames decoded at half the size, and others not.
    record = painted_record(12, 256, 320)
    spec = ClipSpec(4, 2, (100, 100), "random_resized", horizontal_flip=True)
    factors: list[int] = []

    def noted(*arguments: Any) -> int:
        factors.append(reduction(*arguments))
        return factors[-1]

    monkeypatch.setattr(clips, "reduction", noted)

    def rngs() -> list[np.random.Generator]:
        return [np.random.default_rng(seed) for seed in range(4)]

    together = make_clips(record, spec, rngs())
    assert set(factors) == {1, 2}
    assert together["video"].shape == (4, *spec.video_shape)
    assert together["foreground"].shape == (4, *spec.foreground_shape)
    assert len({clip.tobytes() for clip in together["video"]}) == 4
    for number, rng in enumerate(rngs()):
        for name, values in make_clip(record, spec, rng).items():
            np.testing.assert_array_equal(together[name][number], values)


def test_no_frame_is_decoded_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = clips.each_frame

    def noted(jpegs: Any, frames: Any, *rest: Any) -> Any:
        decoded.extend(frames.tolist())
        return decode(jpegs, frames, *rest)

    monkeypatch.setattr(clips, "each_frame", noted)
    record = painted_record(6, 64, 80)
    make_clips(record, ClipSpec(8, 1, (32, 32)), [np.random.default_rng(k) for k in range(3)])
    assert decoded == sorted(set(decoded))


def test_area_and_aspect_are_those_asked_for() -> None:
    record = painted_record(6, 64, 80)
    whole = make_clip(record, ClipSpec(6, 1, (32, 40), "none"), None)["video"]
    spec = ClipSpec(6, 1, (32, 40), "random_resized", crop_area=(1, 1), crop_aspect=(1.25, 1.25))
    narrow = dataclasses.replace(spec, crop_aspect=(0.5, 0.5))
    for seed in range(4):
        clip = make_clip(record, spec, np.random.default_rng(seed))["video"]
        np.testing.assert_array_equal(clip, whole)
        clip = make_clip(record, narrow, np.random.default_rng(seed))["video"]
        assert (clip != whole).any()


def test_interpolation_is_the_one_asked_for() -> None:
    record = parsed(serialize(video(0)), False)
    smooth, sharp = (
        make_clip(record, ClipSpec(2, 1, (48, 64), "none", interpolation=name), None)["video"]
        for name in ("bilinear", "bicubic")
    )
    assert (
        np.abs(np.diff(sharp.astype(int), axis=2)).max()
        > 1.1 * np.abs(np.diff(smooth.astype(int), axis=2)).max()
    )


def test_evaluation_takes_the_centre() -> None:
    record = painted_record(6, 64, 80)
    evaluated = make_clip(record, ClipSpec(6, 1, (32, 32)), None)["video"]
    centred = make_clip(record, ClipSpec(6, 1, (32, 32), "center"), None)["video"]
    np.testing.assert_array_equal(evaluated, centred)
    assert make_clip(record, ClipSpec(6, 1, (32, 32), "none"), None)["video"].shape == (
        6,
        32,
        32,
        3,
    )


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_frames": 0}, "num_frames is 0, but must be at least 1"),
        ({"sampling_rate": -1}, "sampling_rate is -1, but must be at least 1"),
        ({"image_size": (8, 0)}, r"image_size is \(8, 0\), but must be"),
        ({"crop": "random"}, "crop is 'random', but must be one of: multi_scale_corner, random_"),
        ({"crop_area": (0.0, 1.0)}, r"crop_area is \(0.0, 1.0\), but must be .* at most 1"),
        ({"crop_area": (0.5, 1.1)}, "crop_area is"),
        ({"crop_area": (0.9, 0.5)}, r"must be \(lowest, highest\)"),
        ({"crop_area": (0.5,)}, "crop_area is"),
        ({"crop_aspect": (math.nan, 2.0)}, "crop_aspect is"),
        ({"crop_aspect": (0.5, math.inf)}, "crop_aspect is"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic', .* one of: bilinear, bicubic"),
        ({"frame_sampling": "uniform"}, "frame_sampling is 'uniform', .* one of: dense, str"),
        ({"target_fps": 0.0}, "target_fps is 0.0"),
        ({"target_fps": math.inf}, "target_fps is inf"),
    ],
)
def test_impossible_clips_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        dataclasses.replace(ClipSpec(4, 1, (8, 8)), **changes)


def photograph(height: int, width: int) -> np.ndarray:
    """Smooth, as pictures are: what is fine in it is faint."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / period + y / (3 * period)) * period**0.5 for period in (9, 20, 60)]
    grey = 128 + 6 * np.sum(waves, axis=0)
    return np.clip(np.stack([grey, grey[::-1], grey[:, ::-1]], -1), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(256, 340), (255, 341), (480, 640)])
def test_a_large_box_is_cut_out_of_frames_decoded_smaller(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = parsed(serialize(photograph(*size)[None].repeat(2, 0)), False)
    spec = ClipSpec(2, 1, (100, 100))
    small = make_clip(record, spec, None)["video"].astype(int)
    decoded = [
        pixels.shape[:2]
        for factor in (1, 2)
        for _, pixels in each_frame(record.frames, np.arange(1), size, factor)
    ]
    assert decoded == [size, (-(-size[0] // 2), -(-size[1] // 2))]
    monkeypatch.setattr(clips, "reduction", lambda *_: 1)
    whole = make_clip(record, spec, None)["video"].astype(int)
    assert 0 < np.abs(small - whole).mean() < 2.5  # of 130 levels, at half a pixel off
    assert np.abs(small - whole).max() < 16


def test_frames_of_other_kinds_are_not_made_smaller() -> None:
    """A PNG has no frequencies to leave out; the box is then one of the whole frame."""
    pixels = photograph(200, 300)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    record = Record("id", 0, (png.getvalue(),), 0.0, 200, 300, None)
    (clip,) = make_clip(record, ClipSpec(1, 1, (50, 50)), None)["video"]
    expected = (
        Image.fromarray(pixels).crop((50, 0, 250, 200)).resize((50, 50), Image.Resampling.BILINEAR)
    )
    # To one level: see `cut_frame`.
    assert np.abs(clip.astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize(
    ("spec", "needed"),
    [
        (ClipSpec(4, 3, (32, 32)), 12),
        (ClipSpec(4, 3, (32, 32), frame_sampling="stretched"), 12),
        (ClipSpec(12, 3, (32, 32), frame_sampling="segments"), 12),
        (ClipSpec(4, 6, (32, 32), frame_sampling="time_scaled", target_fps=20.0), 12),
        (ClipSpec(4, 2, (32, 32)), None),
        (ClipSpec(11, 9, (32, 32), frame_sampling="segments"), None),
        (ClipSpec(4, 5, (32, 32), frame_sampling="time_scaled", target_fps=20.0), None),
        (ClipSpec(1, 90, (32, 32)), None),
    ],
)
def test_videos_that_are_all_too_short_are_told(
    spec: ClipSpec, needed: int | None, tmp_path: Path
) -> None:
    records = [serialize(video(number, 9 + number % 3), rate=10.0) for number in range(8)]
    folder = write_dataset(tmp_path / "a", {"train": records}, with_masks=False)
    found = short_videos(Dataset(folder, "train"), spec)
    if needed is None:
        assert found is None
    else:
        assert found is not None and f"have 11 frames at most, a clip needs {needed}: " in found
        flip_byte(next(folder.glob("*.tfrecord*")), 20)
        assert short_videos(Dataset(folder, "train"), spec)
