"""From one record to one clip: frames chosen, decoded, cut and resized."""

import dataclasses

import numpy as np

from adamae_jax.data.crops import CROPS, choose_box, cut_frames, cut_masks
from adamae_jax.data.frames import decode_foreground, decode_frames
from adamae_jax.data.records import Record
from adamae_jax.data.temporal import center_frames, random_frames
from adamae_jax.errors import UserError

MASK_STRIDE = 4  # pixels of the clip per cell of its foreground mask


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """What a clip is.

    Attributes:
        num_frames: frames in the clip.
        sampling_rate: take every so-many-th frame of the video.
        image_size: (height, width) in pixels.
        crop: what training clips are cut by: ``multi_scale_corner`` (the authors'), ``center`` or
            ``none`` (whole frames, whatever their proportions).

    Raises:
        UserError: a value is out of range.
    """

    num_frames: int
    sampling_rate: int
    image_size: tuple[int, int]
    crop: str = "multi_scale_corner"

    def __post_init__(self) -> None:
        """Checks the values."""
        for name in ("num_frames", "sampling_rate"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise UserError(f"image_size is {self.image_size}, but must be (height, width)")
        if self.crop not in CROPS:
            raise UserError(f"crop is {self.crop!r}, but must be one of: {', '.join(CROPS)}")

    @property
    def mask_size(self) -> tuple[int, int]:
        """(height, width) of the foreground masks: a quarter of the image, at least one cell."""
        return tuple(max(1, side // MASK_STRIDE) for side in self.image_size)  # type: ignore[return-value]

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """Shape of ``video``, [T, H, W, 3]."""
        return (self.num_frames, *self.image_size, 3)

    @property
    def foreground_shape(self) -> tuple[int, int, int]:
        """Shape of ``foreground``, [T, h, w]."""
        return (self.num_frames, *self.mask_size)


def make_clip(
    record: Record, spec: ClipSpec, rng: np.random.Generator | None
) -> dict[str, np.ndarray]:
    """Cuts one clip out of a video.

    Args:
        record: the video.
        spec: what the clip is.
        rng: gives start and crop of a training clip. None gives the clip for evaluation: middle
            frames, and the centre crop instead of ``multi_scale_corner``.

    Returns:
        ``video``, uint8 [T, H, W, 3], and, where the record has masks, ``foreground``,
        uint8 [T, h, w], coverage 0 to 255 by the same frames and the same box.

    Raises:
        BadRecordError: a needed frame, or the masks, cannot be decoded.
    """
    available = len(record.frames)
    if rng is None:
        chosen = center_frames(available, spec.num_frames, spec.sampling_rate)
    else:
        chosen = random_frames(available, spec.num_frames, spec.sampling_rate, rng)
    frame_size = (record.height, record.width)
    # A short video repeats a frame, which is then decoded and resized once.
    frames, repeats = np.unique(chosen, return_inverse=True)
    pixels = decode_frames(record.frames, frames, frame_size)
    box = choose_box(spec.crop, frame_size, spec.image_size, rng)
    clip = {"video": cut_frames(pixels, box, spec.image_size)[repeats]}
    if record.foreground is not None:
        masks = decode_foreground(record.foreground, available, frames)
        clip["foreground"] = cut_masks(masks, box, frame_size, spec.mask_size)[repeats]
    return clip
