"""Cutting a box out of frames and masks, and resizing what it holds.

Pillow filters what it makes smaller, as the released code of VideoMAE, AdaMAE and MAE does. Where
there is nothing to filter OpenCV is five times faster, and where bilinear filters do it
fast_image_resize (cykooz.resizer), which is made for some processors only.
"""

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from adamae_jax.data.crops import Box

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
    """How many times smaller, in both directions, frames may be decoded for a box.

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
