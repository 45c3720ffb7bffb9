import numpy as np
import pytest
from PIL import Image

from adamae_jax.data import cutting
from adamae_jax.data.crops import Box
from adamae_jax.data.cutting import INTERPOLATIONS, cut_frame, cut_masks, reduction

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
        monkeypatch.setattr(cutting, "cykooz_resizer", None)
    found = cut(FRAME, BOX, image_size, interpolation).astype(int)
    expected = by_pillow(FRAME, BOX, image_size, interpolation)
    enlarged = image_size[0] >= BOX.height and image_size[1] >= BOX.width
    levels = 1 if interpolation == "bilinear" and (enlarged or fast) else 0
    assert np.abs(found - expected).max() <= levels


@pytest.mark.skipif(cutting.cykooz_resizer is None, reason="no wheel for this processor")
def test_what_is_made_smaller_is_the_same_on_all_processors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of one architecture: some have wider registers."""
    kinds = cutting.cykooz_resizer.CpuExtensions
    results = []
    for kind in (kinds.none, kinds.sse4_1, kinds.avx2, kinds.neon):
        resizer = cutting.cykooz_resizer.Resizer()
        resizer.cpu_extensions = kind  # or the best that there is
        monkeypatch.setattr(cutting.cykooz_resizer, "Resizer", lambda resizer=resizer: resizer)
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
