from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from adamae_jax.data.crops import CROPS, Box, choose_box, cut_frames, cut_masks


def draw(frame_size: tuple[int, int], image_size: tuple[int, int], count: int) -> list[Box]:
    rng = np.random.default_rng(0)
    return [choose_box("multi_scale_corner", frame_size, image_size, rng) for _ in range(count)]


def test_multi_scale_corner_sizes_and_corners_of_the_paper() -> None:
    boxes = draw((256, 340), (224, 224), 20_000)
    # 256 * (1, 0.875, 0.75, 0.66); neighbours only; each pair as likely as any other.
    sides = [256, 224, 192, 168]
    pairs = {(sides[i], sides[j]) for i in range(4) for j in range(4) if abs(i - j) <= 1}
    sizes = Counter((box.width, box.height) for box in boxes)
    assert set(sizes) == pairs
    assert len(pairs) == 10
    assert max(sizes.values()) / min(sizes.values()) < 1.2
    # Free space 340 - 192 = 148 and 256 - 192 = 64: quarters of 37 and 16.
    corners = Counter((b.left, b.top) for b in boxes if (b.width, b.height) == (192, 192))
    assert set(corners) == {
        *((37 * x, 16 * y) for x in (0, 2, 4) for y in (0, 2, 4)),
        *((37 * x, 16 * y) for x in (1, 3) for y in (1, 3)),
    }
    assert len(corners) == 13
    assert max(corners.values()) / min(corners.values()) < 1.6


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


@pytest.mark.parametrize("image_size", [(24, 24), (16, 40), (30, 22)])
def test_frames_are_cut_then_resized_as_pil_does(image_size: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), np.uint8)
    cut = cut_frames(frames, Box(7, 5, 22, 30), image_size)
    for frame, out in zip(frames, cut, strict=True):
        image = Image.fromarray(frame).crop((7, 5, 29, 35))
        expected = image.resize((image_size[1], image_size[0]), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(out, np.asarray(expected))


def test_box_of_the_output_size_is_copied() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), np.uint8)
    np.testing.assert_array_equal(
        cut_frames(frames, Box(3, 4, 20, 10), (10, 20)), frames[:, 4:14, 3:23]
    )


def test_masks_are_cut_by_the_scaled_box() -> None:
    masks = np.random.default_rng(0).integers(0, 256, (2, 10, 15), np.uint8)
    # 40 x 60 pixels, so 4 pixels a cell: the box covers rows 2 to 7 and columns 5 to 14.
    cut = cut_masks(masks, Box(20, 8, 36, 20), (40, 60), (5, 9))
    np.testing.assert_array_equal(cut, masks[:, 2:7, 5:14])
    half = cut_masks(np.full((1, 4, 4), 255, np.uint8), Box(0, 0, 16, 16), (16, 16), (2, 6))
    np.testing.assert_array_equal(half, np.full((1, 2, 6), 255))
