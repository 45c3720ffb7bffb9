"""Where a clip is cut out of its frames, one box for all of them, and how it is cut and resized.

Sources: for the multi-scale corner crop, `GroupMultiScaleCrop` in ``transforms.py`` of the released
code of VideoMAE and AdaMAE, which has it from Temporal Segment Networks (arXiv 1608.00859); for the
random resized crop, `_get_param_spatial_crop` in ``util/decoder/transform.py`` of the released code
of MAE-ST, which draws the same boxes as torchvision's `RandomResizedCrop`, the crop of MAE's
pre-training. (MAE's linear probe has another one, in ``util/crop.py``, which draws once and clips.)

Pillow filters what it makes smaller, as the released code of VideoMAE, AdaMAE and MAE does. Where
there is nothing to filter OpenCV is five times faster, and where bilinear filters do it
fast_image_resize (cykooz.resizer), which is made for some processors only.
"""

import math
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

try:
    import cykooz_resizer
except ImportError:  # then Pillow has to do it
    cykooz_resizer = None

# The readers are what is parallel, and OpenCV's threads would not survive a fork.
cv2.setNumThreads(0)
_FILTERED = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_BILINEAR = cykooz_resizer and cykooz_resizer.ResizeOptions(
    resize_alg=cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear),
    use_alpha=False,
)
NOT_FILTERED = "bilinear_without_antialias"
INTERPOLATIONS = (*_FILTERED, NOT_FILTERED)
REDUCTIONS = (8, 4, 2, 1)

Crop = Literal["multi_scale_corner", "random_resized", "center", "none"]
CROPS: tuple[str, ...] = get_args(Crop)
SCALES = (1, 0.875, 0.75, 0.66)
MAX_SCALE_STEPS_APART = 1
SNAP_PIXELS = 3
RESIZED_TRIES = 10
# Offsets in quarters of the free space, (x, y): corners, centre, middles of the edges, and the
# centres of the four quadrants.
CORNERS = (*((x, y) for y in (0, 2, 4) for x in (0, 2, 4)), (1, 1), (3, 1), (1, 3), (3, 3))


class Box(NamedTuple):
    """A rectangle of whole pixels inside a frame."""

    left: int
    top: int
    width: int
    height: int


def choose_box(
    crop: str,
    frame_size: tuple[int, int],
    image_size: tuple[int, int],
    rng: np.random.Generator | None,
    *,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Box:
    """Returns the box to cut out.

    Args:
        crop: one of `CROPS`. ``multi_scale_corner`` and ``random_resized`` draw from ``rng``;
            ``center`` is the largest centred box with the proportions of the output (the same as
            resizing the short side and cropping the centre); ``none`` is the whole frame, whatever
            its proportions.
        frame_size: (height, width) of the stored frames.
        image_size: (height, width) of the output.
        rng: None cuts the centre instead of a random box, for evaluation.
        area: lowest and highest area of a ``random_resized`` box, as shares of the frame's.
        aspect: lowest and highest width / height of a ``random_resized`` box.
    """
    height, width = frame_size
    if crop == "none":
        return Box(0, 0, width, height)
    if crop == "center" or rng is None:
        return _center_box(frame_size, image_size)
    if crop == "random_resized":
        return _random_resized_box(frame_size, area, aspect, rng)
    return _multi_scale_corner_box(frame_size, image_size, rng)


def view_boxes(
    frame_size: tuple[int, int], image_size: tuple[int, int], count: int
) -> tuple[tuple[int, int], list[Box]]:
    """Returns the size that frames are resized to for an evaluation, and the boxes in it.

    As in the test loaders of VideoMAE: the side that limits becomes the output's, the other one
    keeps the proportions and is truncated; boxes of the output's size lie from end to end along
    it, and a single one in the centre. (MAE-ST rounds the middle one of three up, where VideoMAE
    truncates, so that it lies one pixel further where an odd number is free.)

    Args:
        frame_size: (height, width) of the stored frames.
        image_size: (height, width) of the output.
        count: number of boxes.

    Returns:
        The (height, width) of the resized frames, and ``count`` boxes in pixels of these.
    """
    (height, width), (box_height, box_width) = frame_size, image_size
    if width * box_height >= height * box_width:
        resized = (box_height, int(box_height * width / height))
    else:
        resized = (int(box_width * height / width), box_width)
    free_y, free_x = resized[0] - box_height, resized[1] - box_width
    boxes = [
        Box(_place(free_x, k, count), _place(free_y, k, count), box_width, box_height)
        for k in range(count)
    ]
    return resized, boxes


def _place(free: int, number: int, count: int) -> int:
    """Returns where box ``number`` of ``count`` begins; in floating point, as theirs."""
    return round(free / 2) if count == 1 else int(number * (free / (count - 1)))


def _center_box(frame_size: tuple[int, int], image_size: tuple[int, int]) -> Box:
    height, width = frame_size
    scale = min(height / image_size[0], width / image_size[1])
    box_height = min(height, max(1, round(image_size[0] * scale)))
    box_width = min(width, max(1, round(image_size[1] * scale)))
    return Box((width - box_width) // 2, (height - box_height) // 2, box_width, box_height)


def _multi_scale_corner_box(
    frame_size: tuple[int, int], image_size: tuple[int, int], rng: np.random.Generator
) -> Box:
    height, width = frame_size
    sides = [int(min(height, width) * scale) for scale in SCALES]
    heights = [_snap(side, image_size[0], height) for side in sides]
    widths = [_snap(side, image_size[1], width) for side in sides]
    sizes = [
        (h, w)
        for i, h in enumerate(heights)
        for j, w in enumerate(widths)
        if abs(i - j) <= MAX_SCALE_STEPS_APART
    ]
    box_height, box_width = sizes[rng.integers(len(sizes))]
    x, y = CORNERS[rng.integers(len(CORNERS))]
    left = x * ((width - box_width) // 4)
    top = y * ((height - box_height) // 4)
    return Box(left, top, box_width, box_height)


def _snap(side: int, output: int, limit: int) -> int:
    """A side less than 3 pixels from the output's becomes it, which saves the resize its blur.

    Never beyond the frame: the released code would pad frames of 222 or 223 pixels with black.
    """
    snapped = output if abs(side - output) < SNAP_PIXELS else side
    return min(max(1, snapped), limit)


def _random_resized_box(
    frame_size: tuple[int, int],
    area: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """Area uniform, aspect log-uniform, place uniform; drawn again while it does not fit."""
    height, width = frame_size
    log_aspect = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(RESIZED_TRIES):
        pixels = rng.uniform(*area) * height * width
        ratio = math.exp(rng.uniform(*log_aspect))
        box_width = round(math.sqrt(pixels * ratio))
        box_height = round(math.sqrt(pixels / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(rng.integers(height - box_height + 1))
            left = int(rng.integers(width - box_width + 1))
            return Box(left, top, box_width, box_height)
    # Nothing has fitted, as in very wide or tall frames: the largest centred box in the range.
    box_width, box_height = width, height
    if width / height < aspect[0]:
        box_height = max(1, round(width / aspect[0]))
    elif width / height > aspect[1]:
        box_width = max(1, round(height * aspect[1]))
    return Box((width - box_width) // 2, (height - box_height) // 2, box_width, box_height)


def cut_frame(
    frame: UInt8[np.ndarray, "frame_h frame_w 3"],
    box: Box,
    out: UInt8[np.ndarray, "h w 3"],
    interpolation: str,
    flipped: bool = False,
) -> None:
    """Cuts ``box`` out of a frame and resizes it.

    ``bilinear`` and ``bicubic`` filter what becomes smaller (antialiasing), as Pillow does it and
    with it the released code of VideoMAE, AdaMAE and MAE. ``bilinear_without_antialias`` weighs the
    four nearest pixels even there, as PyTorch does by default and MAE-ST's code with it. What
    ``bilinear`` gives differs from Pillow's by the rounding, one level at most. The box is cut
    *before* resizing, as by all of them: Pillow's ``resize(box=...)`` would let pixels from
    outside the box bleed in.

    Args:
        frame: RGB.
        box: in pixels of the frame.
        out: takes the result; contiguous.
        interpolation: one of `INTERPOLATIONS`.
        flipped: whether the result is mirrored from left to right.
    """
    cut = frame[box.top : box.top + box.height, box.left : box.left + box.width]
    height, width = out.shape[:2]
    smaller = box.height > height or box.width > width
    if cut.shape == out.shape:
        out[:] = cut
    elif interpolation == NOT_FILTERED or (interpolation == "bilinear" and not smaller):
        cv2.resize(cut, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
    elif interpolation == "bilinear" and cykooz_resizer is not None:
        out[:] = _filtered_fast(cut, (width, height))
    else:
        out[:] = _filtered(cut, (width, height), _FILTERED[interpolation])
    if flipped:
        cv2.flip(out, 1, dst=out)


def reduction(box: Box, image_size: tuple[int, int], interpolation: str) -> int:
    """Returns how many times smaller, in both directions, frames may be decoded for a box.

    A decoder that leaves out the finest frequencies is an antialiasing filter that costs less than
    nothing. What it gives is never enlarged; and that its pixels are coarser than the box's edges
    moves the picture by half a pixel of the result at most.

    Args:
        box: in pixels of whole frames.
        image_size: (height, width) to which the box is resized.
        interpolation: one of `INTERPOLATIONS`.

    Returns:
        One of `REDUCTIONS`.
    """
    if interpolation == NOT_FILTERED:
        return 1
    ratio = min(box.height / image_size[0], box.width / image_size[1])
    return next(factor for factor in REDUCTIONS if factor == 1 or ratio >= 2 * (factor - 1))


def cut_masks(
    masks: UInt8[np.ndarray, "t mask_h mask_w"],
    box: Box,
    frame_size: tuple[int, int],
    mask_size: tuple[int, int],
) -> UInt8[np.ndarray, "t h w"]:
    """Cuts what ``box`` covers out of low-resolution masks of whole frames, and resizes it.

    Always bilinear: coverage is a share, and bicubic interpolation would overshoot at its edges.

    Args:
        masks: coverage of each cell, 0 to 255.
        box: in pixels of the frames.
        frame_size: (height, width) of the frames.
        mask_size: (height, width) of the result.
    """
    height, width = mask_size
    y = masks.shape[1] / frame_size[0]  # cells per pixel
    x = masks.shape[2] / frame_size[1]
    cells = (
        box.left * x,
        box.top * y,
        min((box.left + box.width) * x, masks.shape[2]),
        min((box.top + box.height) * y, masks.shape[1]),
    )
    out = np.empty((len(masks), height, width), np.uint8)
    for mask, cut in zip(masks, out, strict=True):
        cut[:] = _filtered(mask, (width, height), Image.Resampling.BILINEAR, cells)
    return out


def _filtered_fast(
    image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "..."]:
    """As `_filtered` with bilinear weights. (Bicubic ones would overshoot in another order.)"""
    source = cykooz_resizer.ImageData(
        image.shape[1], image.shape[0], cykooz_resizer.PixelType.U8x3, image.tobytes()
    )
    result = cykooz_resizer.ImageData(*size, cykooz_resizer.PixelType.U8x3)
    cykooz_resizer.Resizer().resize(source, result, _BILINEAR)
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(size[1], size[0], 3)


def _filtered(
    image: UInt8[np.ndarray, "..."],
    size: tuple[int, int],
    resampling: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> UInt8[np.ndarray, "..."]:
    return np.asarray(Image.fromarray(image).resize(size, resampling, box))
