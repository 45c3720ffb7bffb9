import numpy as np
import pytest
from PIL import Image

from adamae_jax.data.crops import Box
from adamae_jax.data.cutting import cut_frames, cut_masks


@pytest.mark.parametrize("image_size", [(24, 24), (16, 40), (30, 22)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_frames_are_cut_then_resized_as_pil_does(
    image_size: tuple[int, int], interpolation: str
) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), np.uint8)
    cut = cut_frames(list(frames), Box(7, 5, 22, 30), image_size, interpolation)
    resampling = Image.Resampling[interpolation.upper()]
    for frame, out in zip(frames, cut, strict=True):
        image = Image.fromarray(frame).crop((7, 5, 29, 35))
        expected = image.resize((image_size[1], image_size[0]), resampling)
        np.testing.assert_array_equal(out, np.asarray(expected))


def test_box_of_the_output_size_is_copied() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), np.uint8)
    np.testing.assert_array_equal(
        cut_frames(list(frames), Box(3, 4, 20, 10), (10, 20), "bicubic"), frames[:, 4:14, 3:23]
    )


def test_masks_are_cut_by_the_scaled_box() -> None:
    masks = np.random.default_rng(0).integers(0, 256, (2, 10, 15), np.uint8)
    # 40 x 60 pixels, so 4 pixels a cell: the box covers rows 2 to 7 and columns 5 to 14.
    cut = cut_masks(masks, Box(20, 8, 36, 20), (40, 60), (5, 9))
    np.testing.assert_array_equal(cut, masks[:, 2:7, 5:14])
    half = cut_masks(np.full((1, 4, 4), 255, np.uint8), Box(0, 0, 16, 16), (16, 16), (2, 6))
    np.testing.assert_array_equal(half, np.full((1, 2, 6), 255))
