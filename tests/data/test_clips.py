import numpy as np
import pytest

from adamae_jax.data.clips import ClipSpec, make_clip
from adamae_jax.data.records import Record, _parse
from adamae_jax.errors import UserError
from tests.data.fixtures import serialize, video

CELL = 4  # pixels of a frame per cell of its mask


def painted_record(num_frames: int, height: int, width: int) -> Record:
    """White rectangles that move over black, and masks that are white where they are."""
    cells = np.zeros((num_frames, height // CELL, width // CELL), np.uint8)
    for number, mask in enumerate(cells):
        top, left = 1 + number % 5, 2 + 2 * number % (mask.shape[1] - 6)
        mask[top : top + 5, left : left + 6] = 255
    pixels = cells.repeat(CELL, axis=1).repeat(CELL, axis=2)[..., None].repeat(3, axis=3)
    return _parse(serialize(pixels, masks=cells), has_foreground=True)


def moment(grey: np.ndarray) -> np.ndarray:
    """Each frame's share of white, and the same weighted by place, down and to the right."""
    weights = grey / 255
    y, x = (np.indices(grey.shape[1:]) + 0.5) / np.array(grey.shape[1:])[:, None, None]
    return np.stack([(weights * by).mean((1, 2)) for by in (np.ones_like(y), y, x)], axis=1)


@pytest.mark.parametrize("crop", ["multi_scale_corner", "center", "none"])
@pytest.mark.parametrize("image_size", [(48, 48), (32, 56)])
def test_masks_get_the_frames_and_the_crop_of_the_pixels(
    crop: str, image_size: tuple[int, int]
) -> None:
    record = painted_record(12, 64, 80)
    spec = ClipSpec(6, 2, image_size, crop)
    boxes = set()
    for seed in range(8):
        clip = make_clip(record, spec, np.random.default_rng(seed))
        assert clip["video"].shape == (6, *image_size, 3) == spec.video_shape
        assert clip["foreground"].shape == spec.foreground_shape == (6, *spec.mask_size)
        assert clip["video"].dtype == clip["foreground"].dtype == np.uint8
        pixels, masks = moment(clip["video"][..., 0]), moment(clip["foreground"])
        np.testing.assert_allclose(pixels, masks, atol=0.025)
        boxes.add(tuple(masks.round(3).ravel()))
    assert len(boxes) > (5 if crop == "multi_scale_corner" else 0)


def test_frames_follow_the_sampling() -> None:
    # The red channel counts frames: 10 * number + 5.
    record = _parse(serialize(video(0, num_frames=20)), has_foreground=False)
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
    ("arguments", "complaint"),
    [
        ((0, 1, (8, 8)), "num_frames is 0, but must be at least 1"),
        ((4, -1, (8, 8)), "sampling_rate is -1, but must be at least 1"),
        ((4, 1, (8, 0)), r"image_size is \(8, 0\), but must be"),
        ((4, 1, (8, 8), "random"), "crop is 'random', but must be one of: multi_scale_corner, "),
    ],
)
def test_impossible_clips_are_refused(arguments: tuple, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        ClipSpec(*arguments)
