"""What others read videos with: a plain PyTorch ``DataLoader`` on the original files.

Each clip has the frames and the crop of ours at the same position, cut and resized by the same
code, so that only opening, seeking, decoding, workers and collation differ. PyAV and decord are
used as their documentation shows, with one thread each: workers are what is parallel.
"""

import dataclasses
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import av
import numpy as np
from jaxtyping import Int64, UInt8

from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.crops import choose_box, cut_frame
from adamae_jax.data.order import AUGMENT, generator
from adamae_jax.data.temporal import dense_frames

Frames = Callable[[int], Int64[np.ndarray, "t"]]


def read_with_pyav(path: str, choose: Frames) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Seeks to the keyframe before the first frame that is needed and decodes up to the last."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        numbers = choose(stream.frames)
        assert stream.average_rate is not None and stream.time_base is not None
        ticks = 1 / (stream.average_rate * stream.time_base)
        first = stream.start_time or 0
        container.seek(int(first + int(numbers[0]) * ticks), stream=stream)
        needed, found = set(map(int, numbers)), {}
        for frame in container.decode(stream):
            assert frame.pts is not None
            number = round((frame.pts - first) / ticks)
            if number in needed:
                found[number] = frame.to_ndarray(format="rgb24")
            if number >= numbers[-1]:
                break
    return [found[number] for number in map(int, numbers)]


def read_with_decord(path: str, choose: Frames) -> list[UInt8[np.ndarray, "h w 3"]]:
    """One reader for each clip, which gives a batch of frames."""
    decord = importlib.import_module("decord")  # neither it nor torch is among our requirements
    reader = decord.VideoReader(path, num_threads=1)
    return list(reader.get_batch(choose(len(reader))).asnumpy())


READERS = {"pyav": read_with_pyav, "decord": read_with_decord}


def missing(peer: str) -> str | None:
    """Why a peer cannot be measured here; None where it can."""
    for package in ("torch", "av" if peer == "pyav" else peer):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    return None


@dataclasses.dataclass(frozen=True)
class PeerClips:
    """A map-style dataset of PyTorch's kind: clips by position.

    Attributes:
        paths: the video of each clip.
        spec: what a clip is; its frames are dense.
        peer: one of `READERS`.
    """

    paths: Sequence[str | os.PathLike[str]]
    spec: ClipSpec
    peer: str

    def __len__(self) -> int:
        """How many clips there are."""
        return len(self.paths)

    def __getitem__(self, position: int) -> UInt8[np.ndarray, "t h w 3"]:
        """One clip."""
        if not 0 <= position < len(self):
            raise IndexError(position)
        spec, rng = self.spec, generator(0, AUGMENT, position, 0, 0)  # as the training stream
        frames = READERS[self.peer](
            os.fspath(self.paths[position]),
            lambda available: dense_frames(available, spec.num_frames, spec.sampling_rate, rng),
        )
        box = choose_box(
            spec.crop,
            frames[0].shape[:2],
            spec.image_size,
            rng,
            area=spec.crop_area,
            aspect=spec.crop_aspect,
        )
        clip = np.empty(spec.video_shape, np.uint8)
        for frame, out in zip(frames, clip, strict=True):
            cut_frame(frame, box, out, spec.interpolation)
        return clip


def peer_batches(clips: PeerClips, batch_size: int, num_workers: int) -> Iterator[Any]:
    """The batches of a PyTorch ``DataLoader``."""
    options: dict[str, Any] = {}
    if num_workers:
        options["multiprocessing_context"] = "spawn"  # ours has threads, which a fork would break
    loader = importlib.import_module("torch.utils.data").DataLoader(
        clips,
        batch_size=batch_size,
        num_workers=num_workers,
        **options,
    )
    return iter(loader)
