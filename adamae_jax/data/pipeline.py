"""Batches of clips, made by grain in threads or worker processes and kept ready in the background.

The same batches come out for any number of workers and threads; see `adamae_jax.data.stream`.
"""

import itertools
import os
import queue
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import grain
import numpy as np
from absl import flags

from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.records import Dataset
from adamae_jax.data.stream import EvalStream, HostSlice, TrainStream
from adamae_jax.data.workers import WorkerDeathError, Workers, init_worker
from adamae_jax.errors import UserError

Batch = dict[str, np.ndarray]
# Batches are made in pieces of about this many clips: the first one comes sooner, and a large
# batch is shared between workers instead of being in the making once in each of them.
PIECE_CLIPS = 16
POLL_S = 0.5
POLLS_OF_SILENCE = 4
CLOSE_S = 5.0
GRAIN_ON_DEATH = "terminated unexpectedly"


def train_batches(
    dataset_dir: str | os.PathLike[str],
    split: str,
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
    process_index: int = 0,
    process_count: int = 1,
    on_error: str = "replace",
) -> "Batches":
    """Batches of the training stream for steps ``[first_step, first_step + num_steps)``.

    Starting at a step costs the same for every step and gives what would have come there anyway.
    Each video that is read gives ``R`` clips, which stand next to each other. Each host gets its
    contiguous part of every global batch, whole videos: host ``p`` of ``P`` the slots
    ``[p * B / P, (p + 1) * B / P)``, as `jax.make_array_from_process_local_data` expects.

    Args:
        dataset_dir: directory of the dataset.
        split: name of the split.
        spec: what a clip is.
        seed: of order and augmentation.
        videos_per_step: ``B``, videos in one global batch.
        repeats: ``R``, clips of each video, with a start, crop and flip of their own.
        first_step: first step to be delivered.
        num_steps: how many.
        num_workers: worker processes; 0 makes the clips in threads of this process.
        num_threads: threads in each worker, or in this process; 0 makes one clip after the other.
        prefetch: batches kept ready.
        process_index: this host, ``p``.
        process_count: number of hosts, ``P``.
        on_error: ``replace`` damaged records, or ``raise`` at the first.

    Returns:
        An iterator over dicts of arrays, to be closed: ``video`` uint8 [b, T, H, W, 3], where the
        dataset has masks ``foreground`` uint8 [b, T, h, w], and int32 [b] ``label``,
        ``example_index``, ``slot``, ``repeat``, ``replaced``; ``b = B * R / P``. See `TrainStream`.

    Raises:
        UserError: the dataset cannot be used, or a value is out of range.
    """
    _check(videos_per_step, process_index, process_count, "videos_per_step")
    if first_step < 0 or num_steps < 0:
        raise UserError(f"first_step and num_steps are {first_step} and {num_steps}: negative")
    stream = TrainStream(
        Dataset(dataset_dir, split),
        spec,
        seed=seed,
        videos_per_step=videos_per_step,
        repeats=repeats,
        on_error=on_error,
    )
    part = HostSlice(stream, videos_per_step, process_index, process_count, first_step)
    return Batches(
        part,
        clips_per_video=repeats,
        num_steps=num_steps,
        num_workers=num_workers,
        num_threads=num_threads,
        prefetch=prefetch,
    )


def eval_batches(
    dataset_dir: str | os.PathLike[str],
    split: str,
    spec: ClipSpec,
    *,
    batch_size: int,
    num_examples: int | None = None,
    num_workers: int = 0,
    num_threads: int = 2,
    prefetch: int = 2,
    process_index: int = 0,
    process_count: int = 1,
) -> "Batches":
    """Batches of a split in its own order, each video once: middle frames, centre crop.

    The last batch is filled up, and every host gets the same number of batches.

    Args:
        dataset_dir: directory of the dataset.
        split: name of the split.
        spec: what a clip is.
        batch_size: videos in one global batch.
        num_examples: only the first so many records; None, or more than there are: all.
        num_workers: as in `train_batches`, like the arguments that follow.
        num_threads: threads in each worker, or in this process.
        prefetch: batches kept ready.
        process_index: this host.
        process_count: number of hosts.

    Returns:
        An iterator over dicts of arrays, to be closed: ``video``, ``foreground``, ``label``,
        ``example_index`` and ``slot`` as in `train_batches`, and bool [b] ``valid`` (false for
        filling and for damaged videos) and ``unreadable`` (true for damaged videos).

    Raises:
        UserError: the dataset cannot be used, or a value is out of range.
    """
    _check(batch_size, process_index, process_count, "batch_size")
    dataset = Dataset(dataset_dir, split)
    if num_examples is not None and num_examples < 1:
        raise UserError(f"num_examples is {num_examples}, but must be at least 1")
    count = min(num_examples or len(dataset), len(dataset))
    stream = EvalStream(dataset, spec, batch_size=batch_size, num_examples=count)
    return Batches(
        HostSlice(stream, batch_size, process_index, process_count),
        num_steps=-(-count // batch_size),
        num_workers=num_workers,
        num_threads=num_threads,
        prefetch=prefetch,
    )


def first_clips(
    dataset_dir: str | os.PathLike[str], split: str, spec: ClipSpec, count: int
) -> Batch:
    """Those of a split's first ``count`` clips that can be read, as one batch.

    Raises:
        UserError: the dataset cannot be used, or none of its first clips can be read.
    """
    with eval_batches(
        dataset_dir, split, spec, batch_size=count, num_examples=count, num_threads=0
    ) as batches:
        batch = next(batches)
    if not batch["valid"].any():
        raise UserError(f"none of the first {count} clips of {dataset_dir}, {split!r}, can be read")
    return {name: values[batch["valid"]] for name, values in batch.items()}


def _check(batch: int, process_index: int, process_count: int, name: str) -> None:
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index is {process_index} of {process_count} processes")
    if batch < 1 or batch % process_count:
        raise UserError(
            f"{name} is {batch}, but must be a multiple of the number of hosts, {process_count}"
        )


class Batches:
    """An iterator over one host's batches; a context manager, since it must be closed.

    A background thread keeps ``prefetch`` batches ready. Arrays are ordinary ones, the caller's
    to keep.
    """

    def __init__(
        self,
        part: HostSlice,
        *,
        clips_per_video: int = 1,
        num_steps: int,
        num_workers: int,
        num_threads: int,
        prefetch: int,
    ):
        """Starts reading.

        Args:
            part: the videos.
            clips_per_video: how many clips each of its elements holds.
            num_steps: how many batches.
            num_workers: as in `train_batches`, like the arguments that follow.
            num_threads: threads in each worker, or in this process.
            prefetch: batches kept ready.

        Raises:
            UserError: a number is negative, or ``prefetch`` is 0.
        """
        if num_workers < 0 or num_threads < 0 or prefetch < 1:
            raise UserError(
                f"num_workers, num_threads and prefetch are {num_workers}, {num_threads} and "
                f"{prefetch}, but must be at least 0, 0 and 1"
            )
        self._remaining = num_steps
        self._workers = Workers()
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(prefetch)
        self._stop = threading.Event()
        self._pieces: grain.DatasetIterator[Batch] | None = _piece_iterator(
            part, _piece_size(part.local_batch, clips_per_video), num_workers, num_threads
        )
        self._thread = threading.Thread(
            target=self._produce,
            args=(self._pieces, num_steps, part.local_batch, num_workers),
            name="batches",
            daemon=True,
        )
        self._thread.start()

    def __iter__(self) -> Self:
        """Itself: there is one pass."""
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            StopIteration: all steps have been delivered, or the iterator is closed.
            WorkerDeathError: a worker process has died.
            BadRecordError: with ``on_error='raise'``, or too many damaged records in a row.
            UserError: the storage keeps failing.
        """
        if not self._remaining:
            self.close()
            raise StopIteration
        batch = self._wait()
        if isinstance(batch, BaseException):
            self.close()
            if isinstance(batch, OSError):
                raise UserError(f"the dataset cannot be read any more: {batch}") from batch
            raise batch
        self._remaining -= 1
        return batch

    def _wait(self) -> Batch | BaseException:
        """What comes next, or an error when nothing can come any more."""
        polls_in_vain = 0
        while True:
            try:
                return self._ready.get(timeout=POLL_S)
            except queue.Empty:
                death = self._workers.death()
                polls_in_vain = polls_in_vain + 1 if death else 0
                # Grain ends the workers itself when one of them reports an error, which is then
                # on its way here: only a lasting silence means that it has not noticed.
                if death and polls_in_vain > POLLS_OF_SILENCE:
                    return WorkerDeathError(death)

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
        """Ends threads and worker processes; may be called again."""
        self._remaining = 0
        self._stop.set()
        pieces, self._pieces = self._pieces, None
        if pieces is not None and self._workers.death():
            self._workers.kill()
            # In a thread of its own, since grain waits for ever to close behind a worker that
            # ended with status 0. What is left then are idle threads, which end with the process.
            closing = threading.Thread(target=pieces.close, name="close", daemon=True)
            closing.start()
            closing.join(CLOSE_S)
        elif pieces is not None:
            self._thread.join(CLOSE_S)  # it notices as soon as the piece in hand is done
            pieces.close()
            self._thread.join(CLOSE_S)

    def _produce(
        self,
        pieces: grain.DatasetIterator[Batch],
        num_steps: int,
        local_batch: int,
        num_workers: int,
    ) -> None:
        try:
            started = self._started(pieces, num_workers)
            for _ in range(num_steps):
                batch = self._assemble(started, local_batch)
                if batch is None or not self._deliver(batch):
                    return
        except BaseException as error:
            if GRAIN_ON_DEATH in str(error) and (death := self._workers.death()):
                error = WorkerDeathError(death)
            self._deliver(error)

    def _started(self, pieces: grain.DatasetIterator[Batch], num_workers: int) -> Iterator[Batch]:
        """The same pieces, after every worker process has delivered one."""
        if not num_workers:
            return pieces
        with self._workers.starting():
            first = list(itertools.islice(pieces, num_workers))
        return itertools.chain(first, pieces)

    def _assemble(self, pieces: Iterator[Batch], local_batch: int) -> Batch | None:
        """One batch, copied out of the workers' shared memory; None when it is time to stop.

        Pieces have axes of videos and of their clips, [p, R, ...]; a batch has one axis of clips.
        """
        batch: Batch = {}
        filled = 0
        while filled < local_batch:
            if self._stop.is_set():
                return None
            piece = next(pieces)
            end = filled + len(piece["slot"])
            for name, values in piece.items():
                if not filled:
                    batch[name] = np.empty((local_batch, *values.shape[1:]), values.dtype)
                batch[name][filled:end] = values
            filled = end
        return {name: values.reshape(-1, *values.shape[2:]) for name, values in batch.items()}

    def _deliver(self, item: Batch | BaseException) -> bool:
        """Hands over a batch or an error; False when it is time to stop."""
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=POLL_S)
                return True
            except queue.Full:
                continue
        return False


def _piece_iterator(
    part: HostSlice, size: int, num_workers: int, num_threads: int
) -> grain.DatasetIterator[Batch]:
    """Grain's iterator over all batches in pieces of ``size`` videos; starts when it is used."""
    if not flags.FLAGS.is_parsed():  # grain reads its flags: outside of absl.app they have defaults
        flags.FLAGS.mark_as_parsed()
    pieces = (
        grain.MapDataset.source(part)
        .batch(size)
        .to_iter_dataset(
            grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
        )
    )
    if num_workers:
        per_worker = -(-part.local_batch // (size * num_workers))
        pieces = pieces.mp_prefetch(
            grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=per_worker),
            worker_init_fn=init_worker,
        )
    return iter(pieces)


def _piece_size(batch: int, clips_per_video: int) -> int:
    """The largest divisor of ``batch`` up to `PIECE_CLIPS`; the whole batch if that is tiny.

    Batch and result are in videos.
    """
    most = max(1, PIECE_CLIPS // clips_per_video)
    size = max(size for size in range(1, most + 1) if batch % size == 0)
    return size if size * clips_per_video >= PIECE_CLIPS // 4 else batch
