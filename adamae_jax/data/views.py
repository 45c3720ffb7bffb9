"""The clips of an evaluation, and those that cover a whole video, cut out of one record."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64, UInt8

from adamae_jax.data.clips import ClipSpec, rate_of
from adamae_jax.data.crops import Box, cut_frame, cut_masks, reduction, view_boxes
from adamae_jax.data.examples import Record
from adamae_jax.data.frames import decode_foreground, each_frame
from adamae_jax.data.temporal import Views, view_frames


def make_views(record: Record, spec: ClipSpec, views: Views) -> dict[str, np.ndarray]:
    """Cuts the clips of an evaluation out of a video, decoding and resizing no frame twice.

    Frames are resized first and cut then (see `view_boxes`), as in the test loaders of VideoMAE.
    (The clips of `adamae_jax.data.clips.make_clips` for evaluation are cut first.)

    Args:
        record: the video.
        spec: what a clip is; of its ``crop``, only ``none`` matters.
        views: how many; the crops of a start stand next to each other.

    Returns:
        As `adamae_jax.data.clips.make_clips`, with ``R = views.per_video``.

    Raises:
        BadRecordError: see `adamae_jax.data.clips.make_clips`.
    """
    starts = view_frames(
        spec.frame_sampling,
        len(record.frames),
        spec.num_frames,
        spec.sampling_rate,
        views.starts,
        fps=rate_of(record) if spec.frame_sampling == "time_scaled" else spec.target_fps,
        target_fps=spec.target_fps,
    )
    return _cut_views(record, spec, starts, views.crops)


def make_windows(
    record: Record, spec: ClipSpec, frames: Int64[np.ndarray, "v t"], batch_size: int
) -> Iterator[UInt8[np.ndarray, "b t h w 3"]]:
    """Cuts clips of given frames out of a video, from the centre, as for an evaluation.

    In batches, so that a video may be of any length: each frame is decoded once, from the first to
    the last, and kept in its small size while clips need it.

    Args:
        record: the video.
        spec: what a clip is.
        frames: of each clip, rising; no clip begins before the one in front of it.
        batch_size: clips in a batch; the last one has what is left.

    Raises:
        BadRecordError: a needed frame cannot be decoded.
    """
    size, (box,) = _view_boxes(record, spec, 1)
    resized = _resized(record, spec, size, np.unique(frames))
    kept: dict[int, UInt8[np.ndarray, "h w 3"]] = {}
    newest = -1
    for start in range(0, len(frames), batch_size):
        batch = frames[start : start + batch_size]
        first, last = int(batch.min()), int(batch.max())
        kept = {number: pixels for number, pixels in kept.items() if number >= first}
        while newest < last:
            newest, pixels = next(resized)
            kept[newest] = _inside(box, pixels).copy()
        yield np.stack([[kept[number] for number in clip] for clip in batch.tolist()])


def _view_boxes(record: Record, spec: ClipSpec, crops: int) -> tuple[tuple[int, int], list[Box]]:
    """Returns (height, width) to which frames are resized, and what is cut out of them."""
    if spec.crop == "none":
        return spec.image_size, [Box(0, 0, *spec.image_size[::-1])]
    size, boxes = view_boxes((record.height, record.width), spec.image_size, crops)
    return size, list(boxes)


def _inside(box: Box, pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]


def _resized(
    record: Record, spec: ClipSpec, size: tuple[int, int], numbers: Int64[np.ndarray, "n"]
) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
    """Frames of these sorted numbers in another size, each good until the next is asked for."""
    resized = np.empty((*size, 3), np.uint8)
    factor = reduction(Box(0, 0, record.width, record.height), size, spec.interpolation)
    frame_size = (record.height, record.width)
    for number, pixels in each_frame(record.frames, numbers, frame_size, factor):
        whole = Box(0, 0, pixels.shape[1], pixels.shape[0])
        cut_frame(pixels, whole, resized, spec.interpolation)
        yield number, resized


def _cut_views(
    record: Record, spec: ClipSpec, starts: Int64[np.ndarray, "v t"], crops: int
) -> dict[str, np.ndarray]:
    size, boxes = _view_boxes(record, spec, crops)
    video = np.empty((len(starts), len(boxes), *spec.video_shape), np.uint8)
    for number, resized in _resized(record, spec, size, np.unique(starts)):
        start, place = np.nonzero(starts == number)
        for crop, box in enumerate(boxes):
            video[start, crop, place] = _inside(box, resized)
    clips = {"video": video.reshape(-1, *spec.video_shape)}
    if record.foreground is not None:
        masks = decode_foreground(record.foreground, len(record.frames))
        clips["foreground"] = np.stack(
            [cut_masks(masks[t], box, size, spec.mask_size) for t in starts for box in boxes]
        )
    return clips
