import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from adamae_jax.data import crops
from adamae_jax.data.crops import (
    CROPS,
    INTERPOLATIONS,
    Box,
    cut_frame,
    cut_masks,
    reduction,
    view_boxes,
)
from adamae_jax.data.crops import choose_box as choose_any_box
from adamae_jax.data.order import AUGMENT, generator

ASPECT = (3 / 4, 4 / 3)
choose_box = functools.partial(choose_any_box, area=(0.5, 1.0), aspect=ASPECT)


def draw(frame_size: tuple[int, int], image_size: tuple[int, int], count: int) -> list[Box]:
    rng = np.random.default_rng(0)
    return [choose_box("multi_scale_corner", frame_size, image_size, rng) for _ in range(count)]


def test_multi_scale_corner_sizes_and_corners_of_the_paper() -> None:
    boxes = draw((256, 340), (224, 224), 2000)
    # 256 * (1, 0.875, 0.75, 0.66); neighbours only.
    sides = [256, 224, 192, 168]
    pairs = {(sides[i], sides[j]) for i in range(4) for j in range(4) if abs(i - j) <= 1}
    assert {(box.width, box.height) for box in boxes} == pairs
    assert len(pairs) == 10
    # Free space 340 - 192 = 148 and 256 - 192 = 64: quarters of 37 and 16.
    assert {(b.left, b.top) for b in boxes if (b.width, b.height) == (192, 192)} == {
        *((37 * x, 16 * y) for x in (0, 2, 4) for y in (0, 2, 4)),
        *((37 * x, 16 * y) for x in (1, 3) for y in (1, 3)),
    }


def test_sides_near_the_output_snap_to_it() -> None:
    assert {box.width for box in draw((226, 400), (224, 224), 200)} == {224, 197, 169, 149}
    assert {box.width for box in draw((227, 400), (224, 224), 200)} == {227, 198, 170, 149}
    # Short side 96 and an output of 83 x 62 (sides 96, 84, 72, 63): each axis to its own.
    boxes = draw((96, 200), (83, 62), 300)
    assert {box.height for box in boxes} == {96, 83, 72, 63}
    assert {box.width for box in boxes} == {96, 84, 72, 62}


def test_snapping_never_leaves_the_frame() -> None:
    boxes = draw((222, 300), (224, 224), 500)
    assert {box.height for box in boxes} == {222, 194, 166, 146}
    assert {box.width for box in boxes} == {224, 194, 166, 146}


@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from(CROPS),
    st.integers(0, 2**32),
)
def test_boxes_lie_inside_the_frame(
    height: int, width: int, image_height: int, image_width: int, crop: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    box = choose_box(crop, (height, width), (image_height, image_width), rng)
    assert box.left >= 0 and box.top >= 0 and box.width > 0 and box.height > 0
    assert box.left + box.width <= width and box.top + box.height <= height


def test_center_and_whole_boxes() -> None:
    assert choose_box("center", (256, 340), (224, 224), None) == Box(42, 0, 256, 256)
    assert choose_box("multi_scale_corner", (256, 340), (224, 224), None) == Box(42, 0, 256, 256)
    assert choose_box("center", (256, 340), (64, 128), None) == Box(0, 43, 340, 170)
    assert choose_box("none", (256, 340), (64, 128), None) == Box(0, 0, 340, 256)


# (height, width) of the frame, range of the area -> the boxes of the first four stream positions.
RESIZED = {
    ((256, 340), (0.5, 1.0)): [
        (34, 9, 296, 230), (51, 0, 278, 249), (58, 1, 277, 223), (16, 8, 274, 208),
    ],
    ((256, 340), (0.2, 1.0)): [
        (32, 0, 293, 253), (52, 8, 166, 214), (91, 3, 240, 193), (28, 14, 226, 171),
    ],
    ((224, 224), (0.2, 1.0)): [
        (2, 2, 222, 192), (29, 12, 126, 163), (39, 4, 182, 147), (13, 15, 171, 130),
    ],
    ((120, 400), (0.2, 1.0)): [
        (120, 0, 160, 120), (26, 1, 120, 118), (0, 5, 117, 95), (120, 0, 160, 120),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("case", "expected"), RESIZED.items(), ids=str)
def test_random_resized_table(
    case: tuple[tuple[int, int], tuple[float, float]], expected: list[tuple[int, ...]]
) -> None:
    frame_size, area = case
    rngs = [generator(0, AUGMENT, position) for position in range(4)]
    boxes = [
        choose_any_box("random_resized", frame_size, (224, 224), rng, area=area, aspect=ASPECT)
        for rng in rngs
    ]
    assert boxes == expected


@given(
    st.integers(60, 300),
    st.floats(0.7, 1.4),
    st.floats(0.05, 1),
    st.floats(0.05, 1),
    st.floats(0.5, 2),
    st.floats(0.5, 2),
    st.integers(0, 2**32),
)
def test_random_resized_boxes_have_area_and_aspect_in_range(
    height: int, shape: float, low: float, high: float, narrow: float, wide: float, seed: int
) -> None:
    width = round(height * shape)
    area, aspect = (min(low, high), max(low, high)), (min(narrow, wide), max(narrow, wide))
    rng = np.random.default_rng(seed)
    box = choose_any_box("random_resized", (height, width), (8, 8), rng, area=area, aspect=aspect)
    # Rounding moves a side by half a pixel; only the fallback leaves the area's range.
    slack = 0.5 / box.width + 0.5 / box.height
    share, ratio = box.width * box.height / (width * height), box.width / box.height
    assert aspect[0] * (1 - 2 * slack) <= ratio <= aspect[1] * (1 + 2 * slack)
    centred = box.left == (width - box.width) // 2 and box.top == (height - box.height) // 2
    touches = box.width == width or box.height == height
    assert (centred and touches) or (
        area[0] * (1 - 2 * slack) <= share <= area[1] * (1 + 2 * slack)
    )


def test_random_resized_boxes_are_spread_as_they_should() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array(
        [
            choose_any_box(
                "random_resized", (1000, 1000), (8, 8), rng, area=(0.1, 0.5), aspect=(0.5, 2.0)
            )
            for _ in range(4000)
        ]
    )
    left, top, width, height = boxes.T
    shares = [
        (width * height / 1e6 - 0.1) / 0.4,
        (np.log(width / height) / np.log(2) + 1) / 2,
        left / (1000 - width),
        top / (1000 - height),
    ]
    for share in shares:  # four times uniform in [0, 1]
        counts = np.histogram(share, 8, (-1e-3, 1.001))[0]
        assert counts.sum() == 4000
        assert np.abs(counts - 500).max() < 5 * np.sqrt(500)


def test_frames_too_wide_or_tall_give_their_centre() -> None:
    rng = np.random.default_rng(0)
    assert choose_box("random_resized", (100, 1000), (8, 8), rng) == Box(433, 0, 133, 100)
    assert choose_box("random_resized", (1000, 90), (8, 8), rng) == Box(0, 440, 90, 120)
    # No box of the whole area fits but the frame itself.
    whole = functools.partial(choose_any_box, area=(1.0, 1.0), aspect=(0.5, 2.0))
    assert whole("random_resized", (100, 80), (8, 8), rng) == Box(0, 0, 80, 100)


def test_evaluation_cuts_the_centre_instead_of_a_random_box() -> None:
    assert choose_box("random_resized", (256, 340), (224, 224), None) == Box(42, 0, 256, 256)


# (height, width) of frames and output, boxes -> (height, width) of the resized frames, and the
# corners (left, top) of the boxes. VideoMAE's are compared in test_parity_frames.
VIEWS = {
    ((224, 299), (224, 224), 1): ((224, 299), [(38, 0)]),  # of 37.5 the even one
    ((100, 300), (50, 100), 3): ((50, 150), [(0, 0), (25, 0), (50, 0)]),
    ((100, 120), (50, 100), 2): ((83, 100), [(0, 0), (0, 33)]),
    ((120, 160), (224, 224), 4): ((224, 298), [(0, 0), (24, 0), (49, 0), (74, 0)]),
}


@pytest.mark.parametrize(("case", "expected"), VIEWS.items(), ids=str)
def test_boxes_of_an_evaluation(
    case: tuple[tuple[int, int], tuple[int, int], int],
    expected: tuple[tuple[int, int], list[tuple[int, int]]],
) -> None:
    resized, boxes = view_boxes(*case)
    height, width = case[1]
    assert (resized, boxes) == (expected[0], [(x, y, width, height) for x, y in expected[1]])


@given(*[st.integers(1, 400)] * 4, st.integers(1, 6))
def test_boxes_of_an_evaluation_lie_inside_and_reach_both_ends(
    height: int, width: int, image_height: int, image_width: int, count: int
) -> None:
    resized, boxes = view_boxes((height, width), (image_height, image_width), count)
    free = resized[0] - image_height, resized[1] - image_width
    assert min(free) == 0 and len(boxes) == count
    for box in boxes:
        assert (box.height, box.width) == (image_height, image_width)
        assert 0 <= box.top <= free[0] and 0 <= box.left <= free[1]
    if count > 1:
        assert boxes[0][:2] == (0, 0) and boxes[-1][:2] == free[::-1]


BOX = Box(7, 5, 22, 30)
FRAME = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


def cut(
    frame: np.ndarray,
    box: Box,
    image_size: tuple[int, int],
    interpolation: str,
    flipped: bool = False,
) -> np.ndarray:
    out = np.empty((*image_size, 3), np.uint8)
    cut_frame(frame, box, out, interpolation, flipped)
    return out


def by_pillow(
    frame: np.ndarray, box: Box, image_size: tuple[int, int], interpolation: str
) -> np.ndarray:
    left, top, width, height = box
    image = Image.fromarray(frame).crop((left, top, left + width, top + height))
    resampling = Image.Resampling[interpolation.upper()]
    return np.asarray(image.resize((image_size[1], image_size[0]), resampling))


@pytest.mark.parametrize("image_size", [(24, 24), (16, 40), (40, 11), (30, 22), (60, 50), (3, 2)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("fast", [True, False])
def test_frames_are_cut_then_resized_as_pillow_does(
    image_size: tuple[int, int], interpolation: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one level for the rounding; without, where Pillow does it."""
    if not fast:
        monkeypatch.setattr(crops, "cykooz_resizer", None)
    found = cut(FRAME, BOX, image_size, interpolation).astype(int)
    expected = by_pillow(FRAME, BOX, image_size, interpolation)
    enlarged = image_size[0] >= BOX.height and image_size[1] >= BOX.width
    levels = 1 if interpolation == "bilinear" and (enlarged or fast) else 0
    assert np.abs(found - expected).max() <= levels


@pytest.mark.skipif(crops.cykooz_resizer is None, reason="no wheel for this processor")
def test_what_is_made_smaller_is_the_same_on_all_processors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of one architecture: some have wider registers."""
    kinds = crops.cykooz_resizer.CpuExtensions
    results = []
    for kind in (kinds.none, kinds.sse4_1, kinds.avx2, kinds.neon):
        resizer = crops.cykooz_resizer.Resizer()
        resizer.cpu_extensions = kind  # or the best that there is
        monkeypatch.setattr(crops.cykooz_resizer, "Resizer", lambda resizer=resizer: resizer)
        results.append(cut(FRAME, BOX, (16, 19), "bilinear"))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_without_antialias_the_nearest_four_pixels_are_weighed() -> None:
    """As PyTorch does by default: places of pixels are those of their centres."""
    image_size = (12, 9)
    part = FRAME[BOX.top : BOX.top + BOX.height, BOX.left : BOX.left + BOX.width].astype(float)
    expected = part
    for axis, side in enumerate(image_size):
        place = (np.arange(side) + 0.5) * part.shape[axis] / side - 0.5
        low = np.floor(place).astype(int)
        share = (place - low).reshape([-1 if a == axis else 1 for a in range(3)])
        expected = expected.take(low, axis) * (1 - share) + expected.take(low + 1, axis) * share
    found = cut(FRAME, BOX, image_size, "bilinear_without_antialias")
    np.testing.assert_allclose(found, expected, atol=1.01)
    filtered = cut(FRAME, BOX, image_size, "bilinear").astype(float)
    assert np.abs(filtered - expected).mean() > 20


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("image_size", [(30, 22), (24, 24), (60, 50)])
def test_flipped_is_mirrored(image_size: tuple[int, int], interpolation: str) -> None:
    plain = cut(FRAME, BOX, image_size, interpolation)
    np.testing.assert_array_equal(
        cut(FRAME, BOX, image_size, interpolation, flipped=True), plain[:, ::-1]
    )


def test_box_of_the_output_size_is_copied() -> None:
    np.testing.assert_array_equal(
        cut(FRAME, Box(3, 4, 20, 10), (10, 20), "bicubic"), FRAME[4:14, 3:23]
    )


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((256, 256), 1),
        ((448, 447), 1),
        ((448, 448), 2),
        ((448, 5000), 2),
        ((1343, 1343), 2),
        ((1344, 1344), 4),
        ((3136, 4000), 8),
    ],
)
def test_frames_are_decoded_smaller_only_where_that_enlarges_nothing(
    box: tuple[int, int], expected: int
) -> None:
    assert reduction(Box(5, 5, *box), (224, 224), "bilinear") == expected
    assert reduction(Box(5, 5, *box), (224, 224), "bilinear_without_antialias") == 1


def test_masks_are_cut_by_the_scaled_box() -> None:
    masks = np.random.default_rng(0).integers(0, 256, (2, 10, 15), np.uint8)
    # 40 x 60 pixels, so 4 pixels a cell: the box covers rows 2 to 7 and columns 5 to 14.
    found = cut_masks(masks, Box(20, 8, 36, 20), (40, 60), (5, 9))
    np.testing.assert_array_equal(found, masks[:, 2:7, 5:14])
    half = cut_masks(np.full((1, 4, 4), 255, np.uint8), Box(0, 0, 16, 16), (16, 16), (2, 6))
    np.testing.assert_array_equal(half, np.full((1, 2, 6), 255))
