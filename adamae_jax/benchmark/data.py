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
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from adamae_jax.benchmark import codecs, data_peers
from adamae_jax.benchmark.footage import make_videos
from adamae_jax.data import schema
from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.pipeline import train_batches
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
        "step_seconds", 0.5, "Time of a train step on a batch, to tell what share it would wait."
    )


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
      reader: "ours CODEC", or the peer.
      image_size: side of the clips in pixels.
      workers: worker processes.
      clips_per_second: after the first batches.
      waiting: share of the time that a train step of the given length would wait for its batch.
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
                cost = codecs.measure(codec, directory, source, spec)
                print(f"{size:4} px {cost}", flush=True)
                stored.append(cost)
                rows += _measure_codec(cost, directory, spec, workers)
            for peer in values.peers:
                rows += _measure_peer(peer, source, spec, workers)
    found = {
        "codecs": [dataclasses.asdict(one) for one in stored],
        "readers": [dataclasses.asdict(one) for one in rows],
    }
    print(json.dumps(found))


def _measure_codec(
    cost: codecs.Stored, directory: Path, spec: ClipSpec, workers: Sequence[int]
) -> Iterator[Row]:
    for num_workers in workers:
        rate = our_rate(directory, spec, num_workers)
        yield _row(f"ours {cost.codec}", spec, num_workers, rate, cost.decode_ms)


def _measure_peer(peer: str, source: Path, spec: ClipSpec, workers: Sequence[int]) -> Iterator[Row]:
    if reason := data_peers.missing(peer):
        print(f"{peer}: not measured, {reason}")
        return
    paths = sorted(map(str, source.iterdir()))
    values = flags.FLAGS
    for num_workers in workers:
        # Each worker makes whole batches here, so that the first ones come all at once.
        warmup = max(WARMUP_BATCHES, 2 * num_workers)
        clips = data_peers.PeerClips(
            paths, spec, peer, values.batch_size * (values.batches + warmup)
        )
        rate = data_peers.peer_rate(clips, values.batch_size, num_workers, warmup)
        yield _row(peer, spec, num_workers, rate, None)


def _row(reader: str, spec: ClipSpec, workers: int, rate: float, decode_ms: float | None) -> Row:
    values = flags.FLAGS
    row = Row(
        reader=reader,
        image_size=spec.image_size[0],
        workers=workers,
        clips_per_second=rate,
        waiting=waiting_share(values.batch_size / rate, values.step_seconds),
        decode_ms=decode_ms,
    )
    decoding = ""
    if decode_ms is not None and not workers:
        ratio = 1000 / rate / decode_ms
        decoding = f"; {ratio:.2f} of the {decode_ms:.1f} ms to decode and cut a clip alone"
    print(
        f"{reader:14} {row.image_size:4} px {workers:3} workers {rate:8.1f} clips/s, a step of "
        f"{values.step_seconds:g} s waits {row.waiting:4.0%}{decoding}",
        flush=True,
    )
    return row


def waiting_share(batch_seconds: float, step_seconds: float) -> float:
    """The share of the time that training waits, if batches are made while steps run."""
    return max(0.0, 1 - step_seconds / batch_seconds)


def our_rate(directory: Path, spec: ClipSpec, num_workers: int) -> float:
    """Clips per second of the pipeline; one thread in this process, or in each worker."""
    values = flags.FLAGS
    # More than are timed: what is ready beforehand must not count, nor is the end representative.
    warmup = WARMUP_BATCHES + 2 + 2 * num_workers
    with train_batches(
        directory,
        "train",
        spec,
        seed=0,
        videos_per_step=values.batch_size,
        first_step=0,
        num_steps=warmup + values.batches + 4,
        num_workers=num_workers,
        num_threads=0,
        prefetch=1,
    ) as batches:
        return data_peers.timed(batches, values.batch_size, warmup, values.batches)


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
