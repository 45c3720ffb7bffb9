"""What a codec costs: bytes on disk and per clip, milliseconds per clip, and what it loses."""

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adamae_jax.data.clips import ClipSpec, make_clips
from adamae_jax.data.examples import Record
from adamae_jax.data.frames import decode_frames
from adamae_jax.data.order import AUGMENT, generator, record_order
from adamae_jax.data.payload import StoredFrames
from adamae_jax.data.records import Dataset
from adamae_jax.prepare.video_file import VideoFile

FIDELITY_FRAMES = 16  # of each video
IO_COUNTERS = Path("/proc/self/io")


@dataclasses.dataclass(frozen=True)
class Stored:
    """What was found of one codec, on one core.

    Attributes:
      codec: of the prepared videos.
      video_mb: megabytes of a video in its shard.
      clip_mb: megabytes read for a clip; None where the system does not count them.
      read_ms: milliseconds to read, check and parse what a clip needs of a record.
      decode_ms: milliseconds to decode, cut and resize a clip of a record in memory. Clips differ:
        it is the mean over those that were asked for.
      psnr_db: of the stored frames against those of the source, from its size on; None where they
        are the same.
    """

    codec: str
    video_mb: float
    clip_mb: float | None
    read_ms: float
    decode_ms: float
    psnr_db: float | None

    def __str__(self) -> str:
        """One line of a table."""
        read = "" if self.clip_mb is None else f"{self.clip_mb:6.2f} MB read"
        loss = "the same frames" if self.psnr_db is None else f"PSNR {self.psnr_db:.1f} dB"
        return (
            f"{self.codec:10} {self.video_mb:6.2f} MB a video; a clip: {read}, {self.read_ms:5.1f} "
            f"ms to read, {self.decode_ms:5.1f} ms to decode and cut; {loss}"
        )


def measure(
    codec: str, directory: Path, source: Path, spec: ClipSpec, positions: Sequence[int]
) -> Stored:
    """Measures a dataset that was prepared with a codec from a folder of videos.

    Args:
        codec: of the dataset.
        directory: of the dataset.
        source: the folder.
        spec: what a clip is.
        positions: which clips of the training stream with seed 0 are made.
    """
    dataset = Dataset(directory, "train")
    shards = sum(path.stat().st_size for path in directory.glob("*.tfrecord*"))
    videos = len(dataset) + len(Dataset(directory, "validation"))
    read_s = decode_s = 0.0
    order = record_order(dataset, seed=0)
    for count, position in enumerate([positions[0], *positions]):  # the first one warms up
        start = time.perf_counter()
        record = dataset[order[position]]
        _clip(record, spec, position)
        both = time.perf_counter() - start
        if isinstance(record.frames, StoredFrames):  # else the whole file has been read already
            record = dataclasses.replace(record, frames=record.frames.held())
        start = time.perf_counter()
        _clip(record, spec, position)
        alone = time.perf_counter() - start
        if count:
            decode_s, read_s = decode_s + alone, read_s + both - alone
    return Stored(
        codec=codec,
        video_mb=shards / videos / 1e6,
        clip_mb=_clip_mb(dataset, spec, positions),
        read_ms=max(0.0, 1000 * read_s / len(positions)),
        decode_ms=1000 * decode_s / len(positions),
        psnr_db=_psnr(dataset, source),
    )


def _clip(record: Record, spec: ClipSpec, position: int) -> None:
    """As `adamae_jax.data.stream.TrainClips` does it."""
    make_clips(record, spec, [generator(0, AUGMENT, position, 0, 0)])


def _clip_mb(dataset: Dataset, spec: ClipSpec, positions: Sequence[int]) -> float | None:
    order = record_order(dataset, seed=0)
    before = _bytes_read()
    for position in positions:
        _clip(dataset[order[position]], spec, position)
    after = _bytes_read()
    return None if before is None or after is None else (after - before) / len(positions) / 1e6


def _bytes_read() -> int | None:
    """Bytes that this process has asked the system for; None where it does not count them."""
    try:
        counters = IO_COUNTERS.read_text()
    except OSError:
        return None
    return int(dict(line.split(": ") for line in counters.splitlines())["rchar"])


def _psnr(dataset: Dataset, source: Path) -> float | None:
    """Over a few frames of each video; those of another size than the source's are passed over."""
    errors = []
    for index in range(len(dataset)):
        record = dataset[index]
        size = (record.height, record.width)
        chosen = np.unique(np.linspace(0, len(record.frames) - 1, FIDELITY_FRAMES).astype(int))
        stored = dict(zip(chosen.tolist(), decode_frames(record.frames, chosen, size), strict=True))
        with VideoFile(os.fspath(source / record.id)) as video:
            for number, frame in enumerate(video.frames()):
                if number in stored and (frame.height, frame.width) == size:
                    original = frame.to_ndarray(format="rgb24").astype(np.float64)
                    errors.append(np.mean((original - stored[number]) ** 2))
    return None if not np.sum(errors) else float(10 * np.log10(255**2 / np.mean(errors)))
