"""Times reading: clips per second by codec, resolution and number of workers, beside PyTorch's.

    python -m adamae_jax.benchmark data --source=VIDEOS --workers=0,2 --step_seconds=0.5

The videos of a folder, or a few made for the purpose, are prepared with each codec by
``python -m adamae_jax.prepare``, read by the real pipeline and, from the original files, by a plain
PyTorch ``DataLoader`` with PyAV and with decord where those are installed. Prints what each codec
costs (`adamae_jax.benchmark.codecs`), a table of clips per second, and one JSON object.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from adamae_jax.benchmark import codecs, data_peers
from adamae_jax.benchmark.data_peers import PeerClips
from adamae_jax.benchmark.footage import make_videos
from adamae_jax.data import schema
from adamae_jax.data.batches import Reading, train_batches
from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.order import record_order
from adamae_jax.data.records import Dataset
from adamae_jax.data.stream import TrainClips
from adamae_jax.errors import UserError

WARMUP_BATCHES = 2


def define_flags() -> None:
    """Defines this benchmark's options; importing the module does not."""
    flags.DEFINE_string("source", None, "Folder of videos; without it, some are made.")
    flags.DEFINE_integer("num_videos", 8, "How many to make.", 2)
    flags.DEFINE_list("codecs", list(schema.CODECS), "How prepared videos are stored.")
    flags.DEFINE_list("peers", list(data_peers.READERS), "What to compare with.")
    flags.DEFINE_list("workers", ["0"], "Numbers of worker processes; 0: one thread of the main.")
    flags.DEFINE_list("image_sizes", ["224"], "Sides of the clips in pixels.")
    flags.DEFINE_integer("num_frames", 16, "Frames in a clip.", 1)
    flags.DEFINE_integer("sampling_rate", 4, "Video frames from one clip frame to the next.", 1)
    flags.DEFINE_integer("batch_size", 8, "Clips in a batch.", 1)
    flags.DEFINE_integer("batches", 8, "Batches to time.", 1)
    flags.DEFINE_float(
        "step_seconds", 0.1, "Time of a train step on a batch, to see what share of it is waiting."
    )


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
      reader: "ours CODEC", or the peer.
      image_size: side of the clips in pixels.
      workers: worker processes.
      clips_per_second: after the first batches.
      waiting: share of its time that a train step of the given length waits for its batch.
      decode_ms: milliseconds to decode, cut and resize a clip of a record in memory, in one thread;
        None for peers.
    """

    reader: str
    image_size: int
    workers: int
    clips_per_second: float
    waiting: float
    decode_ms: float | None


def main(argv: Sequence[str]) -> None:
    """Measures as the flags say."""
    del argv
    values = flags.FLAGS
    workers = _numbers("workers", values.workers, 0)
    sizes = _numbers("image_sizes", values.image_sizes, 1)
    for name, given, known in (
        ("codecs", values.codecs, schema.CODECS),
        ("peers", values.peers, data_peers.READERS),
    ):
        if not given and name == "codecs":
            raise UserError(f"--codecs is empty: give one or more of {', '.join(known)}")
        if unknown := set(given) - set(known):
            raise UserError(f"--{name} has {', '.join(unknown)}, but knows {', '.join(known)}")
    rows: list[Row] = []
    stored: list[codecs.Stored] = []
    with tempfile.TemporaryDirectory(prefix="benchmark_data_") as folder:
        source = (
            Path(values.source) if values.source else make_videos(Path(folder), values.num_videos)
        )
        datasets = {codec: _prepare(source, Path(folder, codec), codec) for codec in values.codecs}
        for size in sizes:
            spec = ClipSpec(values.num_frames, values.sampling_rate, (size, size))
            for codec, directory in datasets.items():
                # Those that a pipeline without workers is timed with.
                first, count = _warmup(0) * values.batch_size, values.batches * values.batch_size
                timed_clips = range(first, first + count)
                cost = codecs.measure(codec, directory, source, spec, timed_clips)
                print(f"{size:4} px {cost}", flush=True)
                stored.append(cost)
                rows += _measure_codec(cost, directory, spec, workers)
            for peer in values.peers:
                dataset = Dataset(next(iter(datasets.values())), "train")
                rows += _measure_peer(peer, source, dataset, spec, workers)
    found = {
        "codecs": [dataclasses.asdict(one) for one in stored],
        "readers": [dataclasses.asdict(one) for one in rows],
    }
    print(json.dumps(found))


def _measure_codec(
    cost: codecs.Stored, directory: Path, spec: ClipSpec, workers: Sequence[int]
) -> Iterator[Row]:
    for num_workers in workers:
        warmup = _warmup(num_workers)
        # Nor is the end of the run timed.
        num_steps = warmup + 2 * flags.FLAGS.batches + 4
        dataset = Dataset(directory, "train")
        clips = TrainClips(dataset, spec, seed=0, videos_per_step=flags.FLAGS.batch_size)
        reading = Reading(num_workers, num_threads=0, prefetch=1)
        with train_batches(clips, 0, num_steps, reading) as batches:
            rate, waiting = timed(batches, warmup)
        yield _row(f"ours {cost.codec}", spec, num_workers, rate, waiting, cost.decode_ms)


def _warmup(num_workers: int) -> int:
    """Batches that are not timed: what is ready beforehand is not representative."""
    return WARMUP_BATCHES + 2 + 2 * num_workers


def _measure_peer(
    peer: str, source: Path, dataset: Dataset, spec: ClipSpec, workers: Sequence[int]
) -> Iterator[Row]:
    if reason := data_peers.missing(peer):
        print(f"{peer}: not measured, {reason}")
        return
    values, order = flags.FLAGS, record_order(dataset, seed=0)
    files = [source / dataset[index].id for index in range(len(dataset))]
    for num_workers in workers:
        # Each worker makes whole batches here, so that the first ones come all at once.
        warmup = max(WARMUP_BATCHES, 2 * num_workers)
        count = values.batch_size * (warmup + 2 * values.batches)
        clips = PeerClips([files[order[g]] for g in range(count)], spec, peer)
        batches = data_peers.peer_batches(clips, values.batch_size, num_workers)
        rate, waiting = timed(batches, warmup)
        yield _row(peer, spec, num_workers, rate, waiting, None)


def timed(batches: Iterator[Any], warmup: int) -> tuple[float, float]:
    """Clips per second, and the share of its time that a train step waits for its batch.

    The latter with steps that only sleep, as a host does while its accelerators compute.

    Args:
        batches: twice as many as are to be timed, after the first ones.
        warmup: how many are not timed.
    """
    values = flags.FLAGS
    for _ in range(warmup):
        next(batches)
    start = time.perf_counter()
    for _ in range(values.batches):
        next(batches)
    seconds = time.perf_counter() - start
    waited = 0.0
    for _ in range(values.batches):
        time.sleep(values.step_seconds)
        start = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - start
    return (
        values.batches * values.batch_size / seconds,
        waited / (waited + values.batches * values.step_seconds),
    )


def _row(
    reader: str,
    spec: ClipSpec,
    workers: int,
    rate: float,
    waiting: float,
    decode_ms: float | None,
) -> Row:
    row = Row(reader, spec.image_size[0], workers, rate, waiting, decode_ms)
    decoding = ""
    if decode_ms is not None and not workers:
        ratio = 1000 / rate / decode_ms
        decoding = f"; {ratio:.2f} of the {decode_ms:.1f} ms to decode and cut a clip alone"
    print(
        f"{reader:14} {row.image_size:4} px {workers:3} workers {rate:8.1f} clips/s, a step of "
        f"{flags.FLAGS.step_seconds:g} s waits {row.waiting:4.0%}{decoding}",
        flush=True,
    )
    return row


def _prepare(source: Path, output: Path, codec: str) -> Path:
    command = [
        *(sys.executable, "-m", "adamae_jax.prepare"),
        *(f"--source={source}", f"--output={output}", f"--codec={codec}"),
        "--validation_fraction=0.01",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"--source={source} cannot be prepared: {reason}")
    return output


def _numbers(name: str, words: Sequence[str], least: int) -> list[int]:
    try:
        numbers = [int(word) for word in words]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < least:
        raise UserError(
            f"--{name}={','.join(words)} must be whole numbers from {least} on, with commas between"
        )
    return numbers
