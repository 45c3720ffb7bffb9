"""From one record to its clips: frames chosen, decoded, cut, resized and flipped."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from adamae_jax.data.crops import (
    CROPS,
    INTERPOLATIONS,
    Box,
    choose_box,
    cut_frame,
    cut_masks,
    reduction,
)
from adamae_jax.data.damage import BadRecordError, Damage
from adamae_jax.data.examples import Record
from adamae_jax.data.frames import decode_foreground, each_frame
from adamae_jax.data.rand_augment import Operation, augment, parse
from adamae_jax.data.rand_augment import draw as draw_operations
from adamae_jax.data.records import Dataset
from adamae_jax.data.temporal import (
    FRAME_SAMPLINGS,
    dense_frames,
    segment_frames,
    stretched_frames,
    time_scaled_frames,
)
from adamae_jax.errors import UserError

_LOOKED_AT = 8  # videos, to see whether all are short
MASK_STRIDE = 4  # pixels of the clip per cell of its foreground mask


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """What a clip is.

    Attributes:
        num_frames: frames in the clip.
        sampling_rate: take every so-many-th frame of the video.
        image_size: (height, width) in pixels.
        crop: what training clips are cut by: ``multi_scale_corner`` (VideoMAE's and AdaMAE's),
            ``random_resized`` (MAE's and MAE-ST's), ``center`` or ``none`` (whole frames, whatever
            their proportions).
        crop_area: lowest and highest area of a ``random_resized`` crop, as shares of the frame's.
        crop_aspect: lowest and highest width / height of a ``random_resized`` crop.
        interpolation: how crops are resized: ``bilinear``, ``bicubic`` (both with antialiasing) or
            ``bilinear_without_antialias``; see `adamae_jax.data.crops.cut_frame`.
        horizontal_flip: whether every other training clip, at random, is mirrored.
        frame_sampling: ``dense`` counts ``sampling_rate`` in frames of the video (pre-training of
            VideoMAE and AdaMAE), ``stretched`` too, but reaches to both ends of the
            ``num_frames * sampling_rate`` frames (their fine-tuning on Kinetics); ``time_scaled``
            counts it in frames at ``target_fps``, so that clips of all videos last equally long
            (MAE-ST); ``segments`` takes one frame of each of ``num_frames`` segments of the whole
            video and has no use for ``sampling_rate`` (fine-tuning on Something-Something).
        target_fps: frames per second, for ``time_scaled``.
        rand_augment: random operations on the whole frames of training clips, in timm's notation
            (see `adamae_jax.data.rand_augment.parse`); empty for none. Such clips have no masks,
            which the operations would not fit.
        shared_frames: whether all training clips of a video show the frames of its first one.

    Raises:
        UserError: a value is out of range.
    """

    num_frames: int
    sampling_rate: int
    image_size: tuple[int, int]
    crop: str = "multi_scale_corner"
    crop_area: tuple[float, float] = (0.5, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
    horizontal_flip: bool = False
    frame_sampling: str = "dense"
    target_fps: float = 30.0
    rand_augment: str = ""
    shared_frames: bool = False

    def __post_init__(self) -> None:
        """Checks the values."""
        for name in ("num_frames", "sampling_rate"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise UserError(f"image_size is {self.image_size}, but must be (height, width)")
        for name, choices in {
            "crop": CROPS,
            "interpolation": INTERPOLATIONS,
            "frame_sampling": FRAME_SAMPLINGS,
        }.items():
            if getattr(self, name) not in choices:
                raise UserError(
                    f"{name} is {getattr(self, name)!r}, but must be one of: {', '.join(choices)}"
                )
        _check_range("crop_area", self.crop_area, 1.0)
        _check_range("crop_aspect", self.crop_aspect, math.inf)
        if not 0 < self.target_fps < math.inf:
            raise UserError(
                f"target_fps is {self.target_fps}, but must be a number of frames per second"
            )
        if self.rand_augment:
            parse(self.rand_augment)

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


def _check_range(name: str, bounds: Sequence[float], limit: float) -> None:
    """Checks that ``bounds`` are two finite numbers in order, above 0 and not above ``limit``."""
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= limit or math.isinf(bounds[1]):
        most = "" if math.isinf(limit) else f" and at most {limit:g}"
        raise UserError(f"{name} is {bounds}, but must be (lowest, highest), both above 0{most}")


def check_clips(dataset: Dataset, spec: ClipSpec) -> None:
    """Checks that the records of a dataset can give such clips.

    Raises:
        UserError: the dataset holds images, but the clips have several frames or need a rate.
    """
    if not dataset.holds_images:
        return
    if spec.num_frames != 1:
        raise UserError(
            f"num_frames is {spec.num_frames}, but must be 1 for the dataset at "
            f"{dataset.directory}, which holds images"
        )
    if spec.frame_sampling != "dense":
        raise UserError(
            f"frame_sampling is {spec.frame_sampling!r}, but must be 'dense' for the dataset at "
            f"{dataset.directory}, which holds images: they have no frame rate"
        )


def short_videos(dataset: Dataset, spec: ClipSpec) -> str | None:
    """Returns words on a dataset of videos that are shorter than the clips, as its first ones tell.

    Such clips are made all the same, as the authors make them: a late frame fills them up.
    """
    longest = (0, 0.0)  # and what it needs
    for index in range(min(_LOOKED_AT, len(dataset))):
        try:
            record = dataset[index]
            needed = _frames_needed(record, spec)
        except (BadRecordError, OSError):  # those who read it for a batch tell of it
            continue
        if len(record.frames) >= needed:
            return None
        longest = max(longest, (len(record.frames), needed))
    frames, needed = longest
    if not frames:
        return None
    return (
        f"the first videos of {dataset.directory} have {frames} frames at most, a clip needs "
        f"{math.ceil(needed)}: a late frame is repeated instead; unless that is meant, make "
        "data.sampling_rate or data.num_frames smaller"
    )


def _frames_needed(record: Record, spec: ClipSpec) -> float:
    """Returns how many frames a video needs for clips that are what the spec says."""
    if spec.frame_sampling == "segments" or spec.num_frames == 1:
        return spec.num_frames
    if spec.frame_sampling == "time_scaled":
        return spec.num_frames * spec.sampling_rate * rate_of(record) / spec.target_fps
    return spec.num_frames * spec.sampling_rate


class _Draw(NamedTuple):
    """What one clip takes of its video; all that is random about it."""

    frames: Int64[np.ndarray, "t"]
    box: Box
    flipped: bool
    operations: tuple[Operation, ...] = ()


def make_clips(
    record: Record, spec: ClipSpec, rngs: Sequence[np.random.Generator | None]
) -> dict[str, np.ndarray]:
    """Cuts clips out of a video, one for each of ``rngs``, decoding no frame twice alike.

    Args:
        record: the video.
        spec: what a clip is.
        rngs: each gives start, crop, flip and RandAugment of a training clip. None gives the clip
            for evaluation: middle frames, the centre crop instead of a random one, and no more.

    Returns:
        ``video``, uint8 [R, T, H, W, 3], and, where the record has masks and nothing is augmented,
        ``foreground``, uint8 [R, T, h, w], coverage 0 to 255 by the same frames, boxes and flips.

    Raises:
        BadRecordError: a needed frame, or the masks, cannot be decoded, or the sampling needs a
            frame rate and the record has none.
    """
    draws = [_draw(record, spec, rng) for rng in rngs]
    if spec.shared_frames:
        draws = [draw._replace(frames=draws[0].frames) for draw in draws]
    augmented = bool(spec.rand_augment) and any(rng is not None for rng in rngs)
    return _cut_clips(record, spec, draws, augmented)


def _cut_clips(
    record: Record, spec: ClipSpec, draws: Sequence[_Draw], augmented: bool
) -> dict[str, np.ndarray]:
    frame_size = (record.height, record.width)
    video = np.empty((len(draws), *spec.video_shape), np.uint8)
    factors = [
        1 if augmented else reduction(draw.box, spec.image_size, spec.interpolation)
        for draw in draws
    ]
    # Together only what is decoded alike, so that no clip depends on what others there are.
    for factor in set(factors):
        group = [place for place, other in enumerate(factors) if other == factor]
        alike = [(video[place], draws[place]) for place in group]
        _cut_alike(record, factor, spec.interpolation, alike)
    clips = {"video": video}
    if record.foreground is not None and not augmented:
        masks = decode_foreground(record.foreground, len(record.frames))
        clips["foreground"] = np.stack(
            [_cut_foreground(masks, frame_size, draw, spec) for draw in draws]
        )
    return clips


def _cut_alike(
    record: Record,
    factor: int,
    interpolation: str,
    clips: Sequence[tuple[UInt8[np.ndarray, "t h w 3"], _Draw]],
) -> None:
    """Fills the clips as drawn, from frames decoded ``factor`` times smaller."""
    frame_size = (record.height, record.width)
    needed = np.unique(np.concatenate([draw.frames for _, draw in clips]))
    # A short video repeats a frame, which is then cut once.
    places = [_places(draw.frames) for _, draw in clips]
    for number, pixels in each_frame(record.frames, needed, frame_size, factor):
        smaller = 1 if pixels.shape[:2] == frame_size else factor
        for (clip, draw), of_number in zip(clips, places, strict=True):
            first, *others = of_number.get(number, (None,))
            if first is not None:
                box = Box(*(side // smaller for side in draw.box))
                whole = augment(pixels, draw.operations)
                cut_frame(whole, box, clip[first], interpolation, draw.flipped)
            for other in others:
                clip[other] = clip[first]


def _places(frames: Int64[np.ndarray, "t"]) -> dict[int, list[int]]:
    """Returns where in a clip each of its frames stands."""
    places: dict[int, list[int]] = {}
    for place, number in enumerate(frames.tolist()):
        places.setdefault(number, []).append(place)
    return places


def _draw(record: Record, spec: ClipSpec, rng: np.random.Generator | None) -> _Draw:
    """Start, box, flip and operations, drawn in this order."""
    frames = _choose_frames(record, spec, rng)
    box = choose_box(
        spec.crop,
        (record.height, record.width),
        spec.image_size,
        rng,
        area=spec.crop_area,
        aspect=spec.crop_aspect,
    )
    flipped = spec.horizontal_flip and rng is not None and bool(rng.random() < 0.5)
    operations: tuple[Operation, ...] = ()
    if spec.rand_augment and rng is not None:
        operations = draw_operations(parse(spec.rand_augment), rng)
    return _Draw(frames, box, flipped, operations)


def _choose_frames(
    record: Record, spec: ClipSpec, rng: np.random.Generator | None
) -> Int64[np.ndarray, "t"]:
    counts = len(record.frames), spec.num_frames, spec.sampling_rate
    if spec.frame_sampling == "dense":
        return dense_frames(*counts, rng)
    if spec.frame_sampling == "stretched":
        return stretched_frames(*counts, rng)
    if spec.frame_sampling == "segments":
        return segment_frames(len(record.frames), spec.num_frames, rng)
    return time_scaled_frames(*counts, rng, fps=rate_of(record), target_fps=spec.target_fps)


def rate_of(record: Record) -> float:
    """Returns the frames per second of a video; raises `BadRecordError` where nobody knows them."""
    if not 0 < record.rate < math.inf:
        raise BadRecordError(
            f"its frame rate is {record.rate}, unknown, but frame_sampling 'time_scaled' needs it: "
            "prepare the dataset from files that state their rate, or use frame_sampling 'dense'",
            Damage.NO_RATE,
        )
    return record.rate


def _cut_foreground(
    masks: UInt8[np.ndarray, "n mask_h mask_w"],
    frame_size: tuple[int, int],
    draw: _Draw,
    spec: ClipSpec,
) -> UInt8[np.ndarray, "t h w"]:
    """Returns one clip's masks out of those of the whole video."""
    cut = cut_masks(masks[draw.frames], draw.box, frame_size, spec.mask_size)
    return cut[:, :, ::-1] if draw.flipped else cut
