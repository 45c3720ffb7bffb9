"""Clips of a video file, as a model that is trained wants them."""

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Float64, Int64, UInt8

from adamae_jax.data import schema
from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.damage import BadRecordError
from adamae_jax.data.examples import Record
from adamae_jax.data.temporal import Views, segment_frames, spaced_frames
from adamae_jax.data.video_file import StoredVideo, UnreadableVideoError
from adamae_jax.data.views import make_views, make_windows
from adamae_jax.errors import UserError


class Windows(NamedTuple):
    """Clips that cover a video from its first frame to its last, one after the other.

    Attributes:
      frames: of the video, that each clip shows.
      start_s: when each begins, in seconds from the video's first frame; not-a-number where the
        video says neither when its frames are shown nor their rate.
      end_s: when each ends, likewise.
    """

    frames: Int64[np.ndarray, "w T"]
    start_s: Float64[np.ndarray, "w"]
    end_s: Float64[np.ndarray, "w"]


def open_video(path: str | os.PathLike[str]) -> Record:
    """Looks at whatever FFmpeg reads, upright and with the rate that its frames show.

    The file stays on disk, so that it may be of any size. It is decoded once here, to see what it
    holds, and from its front again wherever frames are wanted: which of its keyframes could be
    trusted, only decoding it once more would tell. A video that ends in damage gives the frames
    before it.

    Raises:
      UserError: where there is no such file, or no frame can be decoded.
    """
    from adamae_jax.prepare.encode import survey  # imports what only preparation needs
    from adamae_jax.prepare.video_file import VideoFile

    name = os.fspath(path)
    try:
        with VideoFile(name) as video:
            seen = survey(video, with_digests=False)
    except (OSError, UnreadableVideoError) as error:
        raise UserError(f"{name}: {error}; give a video that FFmpeg can read") from error
    stored = StoredVideo(name, video.num_frames, seen.times)
    return Record(name, schema.UNLABELLED, stored, float(video.rate), *seen.size, None)


def view_clips(record: Record, spec: ClipSpec, views: Views) -> UInt8[np.ndarray, "v T H W C"]:
    """Returns the clips of an evaluation; see `adamae_jax.data.views.make_views`.

    Raises:
      UserError: where the video is damaged.
    """
    try:
        return make_views(record, spec, views)["video"]
    except BadRecordError as error:
        raise UserError(f"{record.id}: {error}") from error


def windows(record: Record, spec: ClipSpec, stride: int = 0) -> Windows:
    """Returns which clips cover a whole video; the last one ends with it.

    A model that samples one frame in each segment of a video (``segments``) gets one clip of all.

    Args:
      record: the video.
      spec: what a clip is.
      stride: frames of the video from one clip to the next; 0 for the length of a clip.

    Raises:
      UserError: where the video has no rate and the clips need one, or it is damaged.
    """
    count = len(record.frames)
    span = frame_span(record, spec)
    last = max(count - span, 0.0)
    starts = np.arange(0, math.floor(last) + 1, stride or max(1, int(span)), dtype=np.float64)
    if starts[-1] < last:
        starts = np.append(starts, last)
    frames = np.stack([_frames_from(start, span, count, spec) for start in starts])
    numbers, times = np.arange(count + 1), frame_times(record)
    ends = np.minimum(starts + span, count)
    return Windows(frames, np.interp(starts, numbers, times), np.interp(ends, numbers, times))


def _frames_from(start: float, span: float, count: int, spec: ClipSpec) -> Int64[np.ndarray, "T"]:
    """Returns the frames of the clip that begins at a place, as training and evaluation take them.

    (``stretched`` as its evaluation in several clips does: every so-many-th frame.)
    """
    if spec.frame_sampling == "segments":
        return segment_frames(count, spec.num_frames, None)
    if spec.frame_sampling == "time_scaled":
        return spaced_frames(start, span, count, spec.num_frames)
    offsets = spec.sampling_rate * np.arange(spec.num_frames)
    return np.minimum(int(start) + offsets, count - 1)


def frame_times(record: Record) -> Float64[np.ndarray, "n"]:
    """Returns when each frame of a video begins, and when the last one ends: one number more.

    In seconds from the first frame on. A file says it of each frame; else they come at the video's
    rate. Not-a-number where neither is known, of which a warning tells.

    Raises:
      UserError: where the file is damaged.
    """
    frames, count = record.frames, len(record.frames)
    try:
        shown = frames.seconds() if isinstance(frames, StoredVideo) else None
    except BadRecordError as error:
        raise UserError(f"{record.id}: {error}") from error
    if shown is not None and (record.rate or count > 1):
        lasts = 1 / record.rate if record.rate else shown[-1] / (count - 1)
        return np.append(shown, shown[-1] + lasts)
    if record.rate:
        return np.arange(count + 1) / record.rate
    logging.log_first_n(
        logging.WARNING,
        "%s: neither its frames' times nor their rate are known: whatever is in seconds is NaN, of "
        "all videos like it",
        1,
        record.id,
    )
    return np.full(count + 1, np.nan)


def frame_rate(record: Record) -> float:
    """Returns the frames per second of a video, in the mean; 0 where nobody knows them."""
    lasts = float(frame_times(record)[-1])
    return record.rate or (len(record.frames) / lasts if lasts > 0 else 0.0)


def map_windows(
    compute: Callable[[UInt8[np.ndarray, "b T H W C"]], Any],
    record: Record,
    spec: ClipSpec,
    frames: Int64[np.ndarray, "w T"],
    batch_size: int,
) -> np.ndarray:
    """Returns what a function makes of each clip of a video; they are never there all at once.

    Args:
      compute: from clips to an array with a row for each; always so many, so that it is compiled
        once.
      record: the video.
      spec: what a clip is.
      frames: of each clip; see `Windows`.
      batch_size: clips at a time.

    Raises:
      UserError: where the video is damaged.
    """
    found = []
    try:
        for batch in make_windows(record, spec, frames, batch_size):
            filled = np.resize(batch, (batch_size, *batch.shape[1:]))
            found.append(np.asarray(compute(filled))[: len(batch)])
    except BadRecordError as error:
        raise UserError(f"{record.id}: {error}") from error
    return np.concatenate(found)


def frame_span(record: Record, spec: ClipSpec) -> float:
    """Returns how many frames of a video a clip stretches over.

    Raises:
      UserError: where that depends on the video's rate, and it is not known.
    """
    if spec.frame_sampling == "segments":
        return float(len(record.frames))
    span = float(spec.num_frames * spec.sampling_rate)
    if spec.frame_sampling != "time_scaled":
        return span
    if not record.rate:
        raise UserError(
            f"{record.id}: its frame rate is unknown, but the model's clips ('time_scaled') need "
            "it: convert the video to a file that states its rate"
        )
    return span * record.rate / spec.target_fps
