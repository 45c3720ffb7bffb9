"""Cutting a box out of frames and masks, and resizing what it holds."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from adamae_jax.data.crops import Box

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
INTERPOLATIONS = tuple(_RESAMPLING)


def cut_frames(
    frames: Sequence[UInt8[np.ndarray, "frame_h frame_w 3"]],
    box: Box,
    image_size: tuple[int, int],
    interpolation: str,
) -> UInt8[np.ndarray, "t h w 3"]:
    """Cuts ``box`` out of every frame and resizes it.

    With antialiasing, as PIL does it and with it the released code of VideoMAE, AdaMAE and MAE.
    (MAE-ST's interpolates normalised floats between the four nearest pixels, even where it makes
    frames smaller; that is not imitated.) The box is cut *before* resizing, as by all of them:
    PIL's ``resize(box=...)`` would let pixels from outside the box bleed in.

    Args:
        frames: all of the same size.
        box: in pixels of the frames.
        image_size: (height, width) of the result.
        interpolation: one of `INTERPOLATIONS`.
    """
    resampling = _RESAMPLING[interpolation]
    height, width = image_size
    clip = np.empty((len(frames), height, width, 3), np.uint8)
    bottom, right = box.top + box.height, box.left + box.width
    for frame, out in zip(frames, clip, strict=True):
        cut = frame[box.top : bottom, box.left : right]
        out[:] = cut if cut.shape == out.shape else _resize(cut, (width, height), resampling)
    return clip


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
        cut[:] = _resize(mask, (width, height), Image.Resampling.BILINEAR, cells)
    return out


def _resize(
    image: UInt8[np.ndarray, "..."],
    size: tuple[int, int],
    resampling: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> UInt8[np.ndarray, "..."]:
    return np.asarray(Image.fromarray(image).resize(size, resampling, box))
