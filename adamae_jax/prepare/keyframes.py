"""From which keyframes of a video file decoding may start."""

from collections.abc import Sequence

import av
import av.error
import google_crc32c

from adamae_jax.data.video_file import OpenVideo, StoredVideo

_PLAIN = ("yuv420p", "yuvj420p")


def digest(frame: av.VideoFrame) -> int:
    """Returns a checksum of a frame's pixels, in whatever format they are."""
    # Most are of the first kind, and need no conversion. PyAV has no arrays of all others, nor of
    # halved colours of an odd height or width.
    plain = frame.format.name in _PLAIN and not (frame.width | frame.height) & 1
    pixels = frame.to_ndarray() if plain else frame.to_ndarray(format="rgb24")
    return int(google_crc32c.value(pixels.tobytes()))


def exact_keyframes(stored: StoredVideo, digests: Sequence[int]) -> tuple[int, ...]:
    """Returns those keyframes from which decoding gives the same frames as from the front.

    Not all do: a recovery point may repair the picture little by little, an open group refer to
    what is before it, and a container's index may be wrong.

    Args:
        stored: with all keyframes.
        digests: of every frame, decoded from the front.
    """
    exact = []
    with stored.file() as file, OpenVideo(file) as video:
        for place, start in enumerate(stored.keyframes):
            stop = [*stored.keyframes, stored.num_frames][place + 1]
            expected = dict(zip(stored.times[start:stop], digests[start:stop], strict=True))
            if start == 0 or _gives(stored, video, start, expected):
                exact.append(start)
    return tuple(exact)


def _gives(stored: StoredVideo, video: OpenVideo, start: int, expected: dict[int, int]) -> bool:
    """Returns whether decoding from a keyframe shows frames of these times and digests."""
    missing = dict(expected)
    try:
        for frame in stored.frames_from(video, start):
            if frame.pts in missing and missing.pop(frame.pts) != digest(frame):
                return False
            if not missing:
                return True
    except av.error.FFmpegError:
        return False
    return False
