"""Batches of clips for training and for evaluation, made by grain and kept ready.

The same batches come out for any number of hosts, workers and threads; see
`adamae_jax.data.stream`. Whatever becomes of the workers, whoever waits for a batch gets one or an
error.
"""

import itertools
import queue
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NoReturn, Self

import grain
import numpy as np
from absl import flags, logging

from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.damage import Damage, described
from adamae_jax.data.mixture import MixedDataset
from adamae_jax.data.records import Dataset
from adamae_jax.data.stream import Element, EvalClips, Shard, TrainClips, eval_stream, train_stream
from adamae_jax.data.temporal import Views
from adamae_jax.data.workers import init_reader, keep_freed_memory
from adamae_jax.errors import UserError, WorkerDeathError

Batch = dict[str, np.ndarray]
# Batches are made in pieces of about this many clips: the first one comes sooner, and a large
# batch is shared between workers instead of being in the making once in each of them.
PIECE_CLIPS = 16
# An array in shared memory costs a file descriptor, so that only large ones go there: a batch may
# have hundreds of pieces, and a process 1,024 descriptors.
MIN_SHARED_BYTES = 32 << 10
TIMEOUT_S = 300.0
POLL_S = 0.5
CLOSE_S = 5.0


def train_batches(
    dataset: Dataset | MixedDataset,
    spec: ClipSpec,
    *,
    seed: int,
    videos_per_step: int,
    repeats: int = 1,
    first_step: int,
    num_steps: int,
    num_workers: int = 0,
    num_threads: int = 2,
    prefetch: int = 2,
    shard_index: int = 0,
    shard_count: int = 1,
    on_error: str = "replace",
    timeout_s: float = TIMEOUT_S,
) -> "Batches":
    """Returns batches of the training stream for steps ``[first_step, first_step + num_steps)``.

    Starting at a step costs the same for every step and gives what would have come there anyway.
    Each video that is read gives ``R`` clips, which stand next to each other. Each shard gets its
    contiguous part of every global batch, whole videos: shard ``p`` of ``P`` the slots
    ``[p * B / P, (p + 1) * B / P)``, as `jax.make_array_from_process_local_data` expects.

    Args:
        dataset: the records (see `adamae_jax.data.mixture.open_dataset`).
        spec: what a clip is.
        seed: of order and augmentation.
        videos_per_step: ``B``, videos in one global batch.
        repeats: ``R``, clips of each video; see `TrainClips` for what differs between them.
        first_step: first step to be delivered.
        num_steps: how many.
        num_workers: worker processes; 0 makes the clips in threads of this process.
        num_threads: threads in each worker, or in this process; 0 makes one clip after the other.
        prefetch: batches kept ready.
        shard_index: which part of each global batch is read, ``p``.
        shard_count: into how many parts it is divided, ``P``.
        on_error: ``replace`` damaged records, or ``raise`` at the first.
        timeout_s: seconds to wait for a batch before reading is given up.

    Returns:
        An iterator over dicts of arrays, to be closed: ``video`` uint8 [b, T, H, W, 3], where the
        dataset has masks ``foreground`` uint8 [b, T, h, w], and int32 [b] ``label``,
        ``example_index``, ``slot``, ``repeat``, ``replaced``, ``bad_record`` and ``damage``;
        ``b = B * R / P``. See `TrainClips`.

    Raises:
        UserError: a value is out of range, or the dataset cannot give such clips.
    """
    if first_step < 0 or num_steps < 0:
        raise UserError(f"first_step and num_steps are {first_step} and {num_steps}: negative")
    _check(videos_per_step, shard_index, shard_count, "videos_per_step")
    clips = TrainClips(dataset, spec, seed, videos_per_step, repeats, on_error)
    return Batches(
        Shard(train_stream(clips), videos_per_step, shard_index, shard_count, first_step),
        clips_per_video=repeats,
        num_steps=num_steps,
        num_workers=num_workers,
        num_threads=num_threads,
        prefetch=prefetch,
        timeout_s=timeout_s,
    )


def eval_batches(
    dataset: Dataset,
    spec: ClipSpec,
    *,
    batch_size: int,
    num_examples: int | None = None,
    views: tuple[int, int] | None = None,
    num_workers: int = 0,
    num_threads: int = 2,
    prefetch: int = 2,
    shard_index: int = 0,
    shard_count: int = 1,
    timeout_s: float = TIMEOUT_S,
) -> "Batches":
    """Returns batches of a dataset in its own order, each video once.

    The last batch is filled up, and every shard gets the same number of batches.

    Args:
        dataset: the records.
        spec: what a clip is.
        batch_size: videos in one global batch.
        num_examples: only the first so many records; None, or more than there are: all.
        views: (starts, crops) of each video, such as (5, 3); None gives middle frames and centre
            crop.
        num_workers: as in `train_batches`, like the arguments that follow.
        num_threads: threads in each worker, or in this process.
        prefetch: batches kept ready.
        shard_index: which part of each global batch is read.
        shard_count: into how many parts it is divided.
        timeout_s: seconds to wait for a batch before reading is given up.

    Returns:
        An iterator over dicts of arrays, to be closed: ``video``, ``foreground``, ``label``,
        ``example_index`` and ``slot`` as in `train_batches`, bool [b] ``valid`` (false for filling
        and for damaged videos) and ``unreadable`` (true for damaged videos), and int32 [b]
        ``damage``. With views, ``video`` is [b, V, T, H, W, 3] and ``foreground`` [b, V, T, h, w],
        ``V = starts * crops``, and ``video_id`` uint8 [b, 256] is the id (see
        `adamae_jax.data.stream.id_text`). See `EvalClips`.

    Raises:
        UserError: a value is out of range, or the dataset cannot give such clips.
    """
    _check(batch_size, shard_index, shard_count, "batch_size")
    if num_examples is not None and num_examples < 1:
        raise UserError(f"num_examples is {num_examples}, but must be at least 1")
    count = min(num_examples or len(dataset), len(dataset))
    several = None if views is None else Views(*views)
    clips = EvalClips(dataset, spec, batch_size, count, several)
    return Batches(
        Shard(eval_stream(clips), batch_size, shard_index, shard_count),
        clips_per_video=1 if several is None else several.per_video,
        num_steps=-(-count // batch_size),
        num_workers=num_workers,
        num_threads=num_threads,
        prefetch=prefetch,
        timeout_s=timeout_s,
    )


def first_clips(dataset: Dataset, spec: ClipSpec, count: int) -> Batch:
    """Returns those of a dataset's first ``count`` clips that can be read; logs the others.

    Raises:
        UserError: the dataset cannot give such clips, or none of the first can be read.
    """
    with eval_batches(
        dataset, spec, batch_size=count, num_examples=count, num_threads=0
    ) as batches:
        batch = next(batches)
    for index, damage in zip(batch["example_index"], batch["damage"], strict=True):
        if damage:
            logging.warning("left out: %s", described(dataset, int(index), Damage(damage)))
    if not batch["valid"].any():
        raise UserError(
            f"none of the first {count} clips of {dataset.directory}, split {dataset.split!r}, "
            "can be read"
        )
    return {name: values[batch["valid"]] for name, values in batch.items()}


def _check(batch: int, shard_index: int, shard_count: int, name: str) -> None:
    if not 0 <= shard_index < shard_count:
        raise UserError(f"shard_index is {shard_index} of {shard_count} shards")
    if batch < 1 or batch % shard_count:
        raise UserError(
            f"{name} is {batch}, but must be a multiple of the number of shards, {shard_count}"
        )


class Batches:
    """An iterator over one shard's batches; a context manager, since it must be closed.

    A background thread runs grain's iterator and keeps ``prefetch`` batches ready. Arrays are
    ordinary ones, the caller's to keep.
    """

    def __init__(
        self,
        shard: Shard,
        *,
        clips_per_video: int = 1,
        num_steps: int,
        num_workers: int,
        num_threads: int,
        prefetch: int,
        timeout_s: float = TIMEOUT_S,
    ):
        """Starts reading.

        Args:
            shard: the videos.
            clips_per_video: how many clips each of its elements holds.
            num_steps: how many batches.
            num_workers: as in `train_batches`, like the arguments that follow.
            num_threads: threads in each worker, or in this process.
            prefetch: batches kept ready.
            timeout_s: seconds to wait for a batch before reading is given up.

        Raises:
            UserError: a number is negative, or ``prefetch`` or ``timeout_s`` is 0.
        """
        if num_workers < 0 or num_threads < 0 or prefetch < 1:
            raise UserError(
                f"num_workers, num_threads and prefetch are {num_workers}, {num_threads} and "
                f"{prefetch}, but must be at least 0, 0 and 1"
            )
        if timeout_s <= 0:
            raise UserError(f"timeout_s is {timeout_s}, but must be a number of seconds above 0")
        if not num_workers:
            keep_freed_memory()
        self._remaining = num_steps
        self._num_workers = num_workers
        self._timeout_s = timeout_s
        self._ready: queue.Queue[Batch | Exception] = queue.Queue(prefetch)
        self._stop = threading.Event()
        size = piece_size(shard.batch, clips_per_video)
        pieces = _pieces(shard, size, num_workers, num_threads)
        self._thread = threading.Thread(
            target=self._produce, args=(pieces, shard.batch // size), name="batches", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Self:
        """Itself: there is one pass."""
        return self

    def __next__(self) -> Batch:
        """Returns the next batch.

        Raises:
            StopIteration: all steps have been delivered, or the iterator is closed.
            WorkerDeathError: a worker process has died, or no batch came in time.
            BadRecordError: with ``on_error='raise'``, or too many damaged records in a row.
            UserError: the storage keeps failing.
        """
        if not self._remaining:
            self.close()
            raise StopIteration
        batch: Batch | Exception
        try:
            batch = self._ready.get(timeout=self._timeout_s)
        except queue.Empty:
            batch = WorkerDeathError(
                f"no batch came for {self._timeout_s:g} s: the storage does not answer, decoding "
                "does not end, or a data worker has left; if reading is only slow, use a larger "
                "data.timeout_s"
            )
        if isinstance(batch, Exception):
            self.close()
            self._raise(batch)
        self._remaining -= 1
        return batch

    def _raise(self, error: Exception) -> NoReturn:
        """Raises an error, in words for the user where it is grain's or the system's."""
        if isinstance(error, OSError):
            raise UserError(f"the dataset cannot be read any more: {error}") from error
        if self._num_workers and type(error) is RuntimeError:  # as grain's of a dead worker
            raise WorkerDeathError(
                f"the data workers have failed: {error} (Exit code -9: killed, mostly for lack of "
                "memory; -7: out of shared memory, /dev/shm. Use fewer data.num_workers, or a "
                "smaller batch.)"
            ) from error
        raise error

    def __enter__(self) -> Self:
        """Itself, to be closed at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes."""
        self.close()

    def close(self) -> None:
        """Ends threads and worker processes; may be called again.

        Where reading hangs they are left behind, and end with this process.
        """
        self._remaining = 0
        self._stop.set()
        self._thread.join(CLOSE_S)  # it notices as soon as the piece in hand is done

    def _produce(self, pieces: grain.IterDataset[Element], per_batch: int) -> None:
        """Keeps batches ready; all that grain does for this process happens in this thread."""
        iterator: grain.DatasetIterator[Element] | None = None
        try:
            iterator = iter(pieces)
            while (batch := self._joined(iterator, per_batch)) is not None:
                if not self._deliver(batch):
                    break
        except Exception as error:
            self._deliver(error)
        finally:
            if iterator is not None:
                iterator.close()

    def _joined(self, pieces: Iterator[Element], count: int) -> Batch | None:
        """Returns one batch, copied out of the workers' memory; None when it is time to stop."""
        found: list[Element] = []
        for piece in itertools.islice(pieces, count):
            found.append(piece)
            if self._stop.is_set():
                return None
        if len(found) == 1 and not self._num_workers:
            return found[0]
        return {
            name: np.concatenate([np.asarray(each[name]) for each in found]) for name in found[0]
        }

    def _deliver(self, item: Batch | Exception) -> bool:
        """Hands over a batch or an error; returns False when it is time to stop."""
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=POLL_S)
                return True
            except queue.Full:
                continue
        return False


def _pieces(
    shard: Shard, size: int, num_workers: int, num_threads: int
) -> grain.IterDataset[Element]:
    """Returns all batches in pieces of ``size`` videos."""
    if not flags.FLAGS.is_parsed():  # grain reads its flags: outside of absl.app they have defaults
        flags.FLAGS.mark_as_parsed()
    pieces = (
        grain.MapDataset.source(shard)
        .batch(size, batch_fn=join_clips)
        .to_iter_dataset(
            grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
        )
    )
    if not num_workers:
        return pieces
    options = grain.experimental.DatasetOptions(min_shm_size=MIN_SHARED_BYTES)
    pieces = grain.experimental.WithOptionsIterDataset(pieces, options)
    per_worker = -(-shard.batch // (size * num_workers))
    return pieces.mp_prefetch(
        grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=per_worker),
        worker_init_fn=init_reader,
    )


def join_clips(elements: Sequence[Element]) -> Element:
    """Joins the clips of several videos: arrays [p * R, ...] of arrays [R, ...]."""
    return {name: np.concatenate([each[name] for each in elements]) for name in elements[0]}


def piece_size(batch: int, clips_per_video: int) -> int:
    """Returns the largest divisor of a batch up to `PIECE_CLIPS`; all of it if that is tiny.

    Batch and result are in videos.
    """
    most = max(1, PIECE_CLIPS // clips_per_video)
    size = max(size for size in range(1, most + 1) if batch % size == 0)
    return size if size * clips_per_video >= PIECE_CLIPS // 4 else batch
