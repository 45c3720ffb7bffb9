"""Clips of a video file, as a model that is trained wants them."""

import os
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from adamae_jax.data import schema
from adamae_jax.data.clips import ClipSpec, make_views, make_windows
from adamae_jax.data.damage import BadRecordError
from adamae_jax.data.examples import Record
from adamae_jax.data.temporal import Views
from adamae_jax.data.video_file import StoredVideo, UnreadableVideoError
from adamae_jax.errors import UserError


class Windows(NamedTuple):
    """Clips that cover a video from its first frame to its last, one after the other.

    Attributes:
      video: the clips, centre crops.
      frames: of the video, that each clip shows.
      start_s: when each begins, in seconds; in frames where the video's rate is not known.
      end_s: when each ends, likewise.
    """

    video: UInt8[np.ndarray, "w T H W C"]
    frames: Int64[np.ndarray, "w T"]
    start_s: Float64[np.ndarray, "w"]
    end_s: Float64[np.ndarray, "w"]


def open_video(path: str | os.PathLike[str]) -> Record:
    """Reads whatever FFmpeg does, upright and with the rate that its frames show.

    A video that ends in damage gives the frames before it.

    Raises:
      UserError: where there is no such file, or no frame can be decoded.
    """
    from adamae_jax.prepare.encode import read_video  # imports what only preparation needs

    try:
        found = read_video(path, schema.CODEC_ORIGINAL)
    except (OSError, UnreadableVideoError) as error:
        raise UserError(f"{os.fspath(path)}: {error}; give a video that FFmpeg can read") from error
    stored = StoredVideo(found.frames[0], found.num_frames, found.times, found.keyframes)
    return Record(
        os.fspath(path), schema.UNLABELLED, stored, found.rate, found.height, found.width, None
    )


def view_clips(record: Record, spec: ClipSpec, views: Views) -> UInt8[np.ndarray, "v T H W C"]:
    """Returns the clips of an evaluation; see `adamae_jax.data.clips.make_views`.

    Raises:
      UserError: where the video is damaged.
    """
    try:
        return make_views(record, spec, views)["video"]
    except BadRecordError as error:
        raise UserError(f"{record.id}: {error}") from error


def windows(record: Record, spec: ClipSpec, stride: int = 0) -> Windows:
    """Returns clips that cover a whole video; the last one ends with it.

    A model that samples one frame in each segment of a video (``segments``) gets one clip of all.

    Args:
      record: the video.
      spec: what a clip is.
      stride: frames of the video from one clip to the next; 0 for the length of a clip.

    Raises:
      UserError: where the video is damaged, or has no rate and the clips need one.
    """
    count = len(record.frames)
    span = frame_span(record, spec)
    step = stride or max(1, int(span))
    starts = np.arange(0, max(count - span, 0) + 1, step, dtype=np.float64)
    if starts[-1] + span < count:
        starts = np.append(starts, count - span)
    offsets = np.arange(spec.num_frames) * (span / spec.num_frames)
    frames = np.minimum((starts[:, None] + offsets).astype(np.int64), count - 1)
    try:
        video = make_windows(record, spec, frames)
    except BadRecordError as error:
        raise UserError(f"{record.id}: {error}") from error
    rate = record.rate or 1.0
    return Windows(video, frames, starts / rate, np.minimum(starts + span, count) / rate)


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
