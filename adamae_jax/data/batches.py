"""Batches of clips for training and for evaluation, made by grain and kept ready.

The same batches come out for any number of hosts, workers and threads; see
`adamae_jax.data.stream`. Whatever becomes of the workers, whoever waits for a batch gets one or an
error.
"""

import dataclasses
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
from adamae_jax.data.records import Dataset
from adamae_jax.data.stream import (
    Element,
    EvalClips,
    HostSlice,
    TrainClips,
    eval_stream,
    train_stream,
)
from adamae_jax.data.workers import init_reader, keep_freed_memory
from adamae_jax.errors import UserError, WorkerDeathError

# Batches are made in pieces of about this many clips: the first one comes sooner, and a large
# batch is shared between workers instead of being in the making once in each of them.
PIECE_CLIPS = 16
# An array in shared memory costs a file descriptor, so that only large ones go there: a batch may
# have hundreds of pieces, and a process 1,024 descriptors.
MIN_SHARED_BYTES = 32 << 10
TIMEOUT_S = 300.0
POLL_S = 0.5
CLOSE_S = 5.0


@dataclasses.dataclass(frozen=True)
class Reading:
    """How batches are read, and which part of each: nothing that changes a clip.

    Host ``p`` of ``P`` gets its contiguous part of every global batch of ``B`` videos, the slots
    ``[p * B / P, (p + 1) * B / P)``, as `jax.make_array_from_process_local_data` expects.

    Attributes:
        num_workers: worker processes; 0 makes the clips in threads of this process.
        num_threads: threads in each worker, or in this process; 0 makes one clip after the other.
        prefetch: batches kept ready.
        timeout_s: seconds to wait for a batch before reading is given up.
        host: which part of each global batch is read, ``p``.
        num_hosts: into how many parts it is divided, ``P``.

    Raises:
        UserError: a value is out of range.
    """

    num_workers: int = 0
    num_threads: int = 2
    prefetch: int = 2
    timeout_s: float = TIMEOUT_S
    host: int = 0
    num_hosts: int = 1

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.num_workers < 0 or self.num_threads < 0 or self.prefetch < 1:
            raise UserError(
                f"num_workers, num_threads and prefetch are {self.num_workers}, "
                f"{self.num_threads} and {self.prefetch}, but must be at least 0, 0 and 1"
            )
        if self.timeout_s <= 0:
            raise UserError(
                f"timeout_s is {self.timeout_s}, but must be a number of seconds above 0"
            )
        if not 0 <= self.host < self.num_hosts:
            raise UserError(f"host is {self.host} of {self.num_hosts} hosts")


def train_batches(
    clips: TrainClips, first_step: int, num_steps: int, reading: Reading = Reading()
) -> "Batches":
    """Returns batches of the training stream for steps ``[first_step, first_step + num_steps)``.

    Starting at a step costs the same for every step and gives what would have come there anyway.
    The ``R`` clips of a video stand next to each other.

    Returns:
        An iterator over dicts of arrays, to be closed: ``video`` uint8 [b, T, H, W, 3], where the
        dataset has masks ``foreground`` uint8 [b, T, h, w], and int32 [b] ``label``,
        ``example_index``, ``slot``, ``repeat``, ``replaced``, ``bad_record`` and ``damage``;
        ``b = B * R / P``. See `TrainClips`.

    Raises:
        UserError: a step is negative, or a batch does not divide over the hosts.
    """
    if first_step < 0 or num_steps < 0:
        raise UserError(f"first_step and num_steps are {first_step} and {num_steps}: negative")
    return Batches(
        train_stream(clips), clips.videos_per_step, clips.repeats, first_step, num_steps, reading
    )


def eval_batches(clips: EvalClips, reading: Reading = Reading()) -> "Batches":
    """Returns batches of a dataset's first records in its own order, each video once.

    The last batch is filled up, and every host gets the same number of batches.

    Returns:
        An iterator over dicts of arrays, to be closed: ``video``, ``foreground``, ``label``,
        ``example_index`` and ``slot`` as in `train_batches`, bool [b] ``valid`` (false for filling
        and for damaged videos) and ``unreadable`` (true for damaged videos), and int32 [b]
        ``damage``. With views, ``video`` is [b, V, T, H, W, 3] and ``foreground`` [b, V, T, h, w],
        ``V = starts * crops``, and ``video_id`` uint8 [b, 256] is the id (see
        `adamae_jax.data.stream.id_text`). See `EvalClips`.

    Raises:
        UserError: a batch does not divide over the hosts.
    """
    per_video = 1 if clips.views is None else clips.views.per_video
    num_steps = -(-clips.count // clips.batch_size)
    return Batches(eval_stream(clips), clips.batch_size, per_video, 0, num_steps, reading)


def first_clips(dataset: Dataset, spec: ClipSpec, count: int) -> Element:
    """Returns those of a dataset's first ``count`` clips that can be read; logs the others.

    Raises:
        UserError: the dataset cannot give such clips, or none of the first can be read.
    """
    clips = EvalClips(dataset, spec, batch_size=count, num_examples=count)
    with eval_batches(clips, Reading(num_threads=0)) as batches:
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


class Batches:
    """An iterator over one host's batches; a context manager, since it must be closed.

    A background thread runs grain's iterator and keeps some batches ready. Arrays are ordinary
    ones, the caller's to keep.
    """

    def __init__(
        self,
        stream: grain.MapDataset[Element],
        batch_size: int,
        clips_per_video: int,
        first_step: int,
        num_steps: int,
        reading: Reading,
    ):
        """Starts reading.

        Args:
            stream: the elements of all hosts by position, each with all clips of one video.
            batch_size: videos in one global batch.
            clips_per_video: how many clips each element holds.
            first_step: where to start.
            num_steps: how many batches.
            reading: how.

        Raises:
            UserError: a batch does not divide over the hosts.
        """
        if batch_size < 1 or batch_size % reading.num_hosts:
            raise UserError(
                f"a batch has {batch_size} videos, but must have a multiple of the number of "
                f"hosts, {reading.num_hosts}"
            )
        if not reading.num_workers:
            keep_freed_memory()
        self._remaining = num_steps
        self._reading = reading
        self._ready: queue.Queue[Element | Exception] = queue.Queue(reading.prefetch)
        self._stop = threading.Event()
        part = HostSlice(stream, batch_size, reading.host, reading.num_hosts, first_step)
        size = piece_size(part.batch, clips_per_video)
        pieces = _pieces(part, size, reading)
        self._thread = threading.Thread(
            target=self._produce, args=(pieces, part.batch // size), name="batches", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Self:
        """Itself: there is one pass."""
        return self

    def __next__(self) -> Element:
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
        batch: Element | Exception
        try:
            batch = self._ready.get(timeout=self._reading.timeout_s)
        except queue.Empty:
            batch = WorkerDeathError(
                f"no batch came for {self._reading.timeout_s:g} s: the storage does not answer, "
                "decoding does not end, or a data worker has left; if reading is only slow, use a "
                "larger data.timeout_s"
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
        if self._reading.num_workers and type(error) is RuntimeError:  # as grain's of a dead worker
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

    def _joined(self, pieces: Iterator[Element], count: int) -> Element | None:
        """Returns one batch, copied out of the workers' memory; None when it is time to stop."""
        found: list[Element] = []
        for piece in itertools.islice(pieces, count):
            found.append(piece)
            if self._stop.is_set():
                return None
        if len(found) == 1 and not self._reading.num_workers:
            return found[0]
        return {
            name: np.concatenate([np.asarray(each[name]) for each in found]) for name in found[0]
        }

    def _deliver(self, item: Element | Exception) -> bool:
        """Hands over a batch or an error; returns False when it is time to stop."""
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=POLL_S)
                return True
            except queue.Full:
                continue
        return False


def _pieces(part: HostSlice, size: int, reading: Reading) -> grain.IterDataset[Element]:
    """Returns all batches in pieces of ``size`` videos."""
    if not flags.FLAGS.is_parsed():  # grain reads its flags: outside of absl.app they have defaults
        flags.FLAGS.mark_as_parsed()
    threads = grain.ReadOptions(reading.num_threads, prefetch_buffer_size=reading.num_threads)
    pieces = grain.MapDataset.source(part).batch(size, batch_fn=join_clips).to_iter_dataset(threads)
    if not reading.num_workers:
        return pieces
    options = grain.experimental.DatasetOptions(min_shm_size=MIN_SHARED_BYTES)
    pieces = grain.experimental.WithOptionsIterDataset(pieces, options)
    per_worker = -(-part.batch // (size * reading.num_workers))
    return pieces.mp_prefetch(
        grain.MultiprocessingOptions(reading.num_workers, per_worker_buffer_size=per_worker),
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
