"""One host's batches, made by grain in threads or worker processes, kept ready in the background.

Whatever becomes of the workers, whoever waits for a batch gets one or an error.
"""

import errno
import functools
import itertools
import queue
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import grain
import numpy as np
from absl import flags

from adamae_jax.data.stream import HostSlice
from adamae_jax.data.watchdog import Heartbeat, Watched, leave_without_threads
from adamae_jax.data.workers import Workers, init_reader, keep_freed_memory
from adamae_jax.errors import UserError, WorkerDeathError

Batch = dict[str, np.ndarray]
# Batches are made in pieces of about this many clips: the first one comes sooner, and a large
# batch is shared between workers instead of being in the making once in each of them.
PIECE_CLIPS = 16
MIN_SHARED_BYTES = 32 << 10
POLL_S = 0.5
POLLS_OF_SILENCE = 4
CLOSE_S = 5.0
TIMEOUT_S = 25.0
START_S = 120.0  # until every worker has delivered: they import libraries, perhaps over a network
GRAIN_ON_DEATH = "terminated unexpectedly"


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
        timeout_s: float = TIMEOUT_S,
    ):
        """Starts reading.

        Args:
            part: the videos.
            clips_per_video: how many clips each of its elements holds.
            num_steps: how many batches.
            num_workers: as in `train_batches`, like the arguments that follow.
            num_threads: threads in each worker, or in this process.
            prefetch: batches kept ready.
            timeout_s: as in `train_batches`.

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
        self._remaining = num_steps
        self._timeout_s = timeout_s
        if not num_workers:
            keep_freed_memory()
        self._num_workers = num_workers
        self._heartbeat = Heartbeat(num_workers)
        self._all_started = threading.Event()
        self._num_pieces = 0
        self._hangs = False
        self._workers = Workers()
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(prefetch)
        self._stop = threading.Event()
        self._pieces: grain.DatasetIterator[Batch] | None = _piece_iterator(
            Watched(part, self._heartbeat),
            part.local_batch,
            _piece_size(part.local_batch, clips_per_video),
            num_workers,
            num_threads,
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
            WorkerDeathError: a worker process has died, or reading hangs.
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
                raise UserError(_words_on(batch)) from batch
            raise batch
        self._remaining -= 1
        return batch

    def _wait(self) -> Batch | BaseException:
        """What comes next, or an error when nothing can come any more."""
        polls_in_vain = 0
        start = time.monotonic()
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
                # What was before does not count: nobody reads while nobody needs a batch.
                silence = min(self._heartbeat.age(), time.monotonic() - start)
                if silence > self._patience():
                    self._hangs = True
                    return WorkerDeathError(self._describe_hang(silence))

    def _describe_hang(self, silence: float) -> str:
        cause = (
            f"no video could be read for {silence:.0f} s: the storage does not answer, or decoding "
            "does not end"
        )
        if not self._num_workers:
            leave_without_threads()
            return cause
        pid = self._heartbeat.worker(self._num_pieces % self._num_workers)
        if self._workers.tell_stack(pid):
            return f"{cause}; data worker {pid} hangs where the stack that it printed above says"
        return cause

    def _patience(self) -> float:
        return self._timeout_s if self._all_started.is_set() else max(START_S, self._timeout_s)

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
        if pieces is not None and (self._hangs or self._workers.death()):
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
        self._heartbeat.unlink()

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
            if GRAIN_ON_DEATH in str(error):
                error = WorkerDeathError(self._workers.death() or f"a data worker died: {error}")
            self._deliver(error)

    def _started(self, pieces: grain.DatasetIterator[Batch], num_workers: int) -> Iterator[Batch]:
        """The same pieces, after every worker process has delivered one."""
        if not num_workers:
            self._all_started.set()
            self._heartbeat.unlink()
            return pieces
        with self._workers.starting():
            first = list(itertools.islice(pieces, num_workers))
        self._num_pieces = len(first)
        self._all_started.set()
        self._heartbeat.unlink()  # all have it open
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
            self._num_pieces += 1
            end = filled + len(piece["slot"])
            if end == local_batch and not filled and not self._num_workers:
                batch = piece  # nobody else has it
                break
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


def _words_on(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return (
            f"there is too little shared memory, /dev/shm, for what data workers make ({error}): "
            "give it more (docker run --shm-size=8g), or use a smaller data.num_workers"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"the data pipeline has too many files open ({error}): allow more (ulimit -n 65536)"
    return f"the dataset cannot be read any more: {error}"


def _piece_iterator(
    source: Watched, local_batch: int, size: int, num_workers: int, num_threads: int
) -> grain.DatasetIterator[Batch]:
    """Grain's iterator over all batches in pieces of ``size`` videos; starts when it is used."""
    if not flags.FLAGS.is_parsed():  # grain reads its flags: outside of absl.app they have defaults
        flags.FLAGS.mark_as_parsed()
    pieces = (
        grain.MapDataset.source(source)
        .batch(size)
        .to_iter_dataset(
            grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
        )
    )
    if num_workers:
        # An array in shared memory costs a file descriptor, so that only large ones go there: a
        # batch may have hundreds of pieces, and a process 1,024 descriptors.
        options = grain.experimental.DatasetOptions(min_shm_size=MIN_SHARED_BYTES)
        pieces = grain.experimental.WithOptionsIterDataset(pieces, options)
        per_worker = -(-local_batch // (size * num_workers))
        pieces = pieces.mp_prefetch(
            grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=per_worker),
            worker_init_fn=functools.partial(init_reader, source.heartbeat),
        )
    return iter(pieces)


def _piece_size(batch: int, clips_per_video: int) -> int:
    """The largest divisor of ``batch`` up to `PIECE_CLIPS`; the whole batch if that is tiny.

    Batch and result are in videos.
    """
    most = max(1, PIECE_CLIPS // clips_per_video)
    size = max(size for size in range(1, most + 1) if batch % size == 0)
    return size if size * clips_per_video >= PIECE_CLIPS // 4 else batch
