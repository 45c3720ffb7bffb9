"""Where a clip is cut out of its frames, and the cutting: one box for all frames of a clip.

Source of the multi-scale corner crop: `GroupMultiScaleCrop` in ``transforms.py`` of the released
code of VideoMAE and AdaMAE, which has it from Temporal Segment Networks (arXiv 1608.00859).
"""

from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Crop = Literal["multi_scale_corner", "center", "none"]
CROPS: tuple[str, ...] = get_args(Crop)
SCALES = (1, 0.875, 0.75, 0.66)
MAX_SCALE_STEPS_APART = 1
SNAP_PIXELS = 3
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
) -> Box:
    """The box to cut out.

    Args:
        crop: one of `CROPS`. ``multi_scale_corner`` draws from ``rng``; ``center`` is the largest
            centred box with the proportions of the output (the same as resizing the short side
            and cropping the centre); ``none`` is the whole frame, whatever its proportions.
        frame_size: (height, width) of the stored frames.
        image_size: (height, width) of the output.
        rng: needed for ``multi_scale_corner`` only.
    """
    height, width = frame_size
    if crop == "none":
        return Box(0, 0, width, height)
    if crop == "center" or rng is None:
        return _center_box(frame_size, image_size)
    return _multi_scale_corner_box(frame_size, image_size, rng)


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


def cut_frames(
    frames: UInt8[np.ndarray, "t frame_h frame_w 3"], box: Box, image_size: tuple[int, int]
) -> UInt8[np.ndarray, "t h w 3"]:
    """Cuts ``box`` out of every frame and resizes it to (height, width) ``image_size``.

    Bilinear with antialiasing, as PIL does it. The box is cut *before* resizing, as by the
    authors: PIL's ``resize(box=...)`` would let pixels from outside the box bleed in.
    """
    height, width = image_size
    clip = np.empty((len(frames), height, width, 3), np.uint8)
    bottom, right = box.top + box.height, box.left + box.width
    for frame, out in zip(frames, clip, strict=True):
        cut = frame[box.top : bottom, box.left : right]
        out[:] = cut if cut.shape == out.shape else _resize(cut, (width, height))
    return clip


def cut_masks(
    masks: UInt8[np.ndarray, "t mask_h mask_w"],
    box: Box,
    frame_size: tuple[int, int],
    mask_size: tuple[int, int],
) -> UInt8[np.ndarray, "t h w"]:
    """Cuts what ``box`` covers out of low-resolution masks of whole frames, and resizes it.

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
        cut[:] = _resize(mask, (width, height), cells)
    return out


def _resize(
    image: UInt8[np.ndarray, "..."],
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> UInt8[np.ndarray, "..."]:
    resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box)
    return np.asarray(resized)
