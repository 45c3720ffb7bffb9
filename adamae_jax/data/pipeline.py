"""Batches of clips for training and for evaluation.

The same batches come out for any number of hosts, workers and threads; see
`adamae_jax.data.stream`.
"""

from absl import logging

from adamae_jax.data.batches import TIMEOUT_S, Batch, Batches
from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.mixture import MixedDataset
from adamae_jax.data.records import Dataset
from adamae_jax.data.stream import EvalStream, HostSlice, TrainStream
from adamae_jax.data.views import Views
from adamae_jax.errors import UserError


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
    timeout_s: float = TIMEOUT_S,
    process_index: int = 0,
    process_count: int = 1,
    on_error: str = "replace",
) -> Batches:
    """Batches of the training stream for steps ``[first_step, first_step + num_steps)``.

    Starting at a step costs the same for every step and gives what would have come there anyway.
    Each video that is read gives ``R`` clips, which stand next to each other. Each host gets its
    contiguous part of every global batch, whole videos: host ``p`` of ``P`` the slots
    ``[p * B / P, (p + 1) * B / P)``, as `jax.make_array_from_process_local_data` expects.

    Args:
        dataset: the records (see `adamae_jax.data.mixture.open_dataset`).
        spec: what a clip is.
        seed: of order and augmentation.
        videos_per_step: ``B``, videos in one global batch.
        repeats: ``R``, clips of each video, with a start, crop and flip of their own.
        first_step: first step to be delivered.
        num_steps: how many.
        num_workers: worker processes; 0 makes the clips in threads of this process.
        num_threads: threads in each worker, or in this process; 0 makes one clip after the other.
        prefetch: batches kept ready.
        timeout_s: seconds without a single video being read after which reading is given up.
        process_index: this host, ``p``.
        process_count: number of hosts, ``P``.
        on_error: ``replace`` damaged records, or ``raise`` at the first.

    Returns:
        An iterator over dicts of arrays, to be closed: ``video`` uint8 [b, T, H, W, 3], where the
        dataset has masks ``foreground`` uint8 [b, T, h, w], and int32 [b] ``label``,
        ``dataset_index``, ``example_index``, ``slot``, ``repeat``, ``replaced`` and ``bad_record``,
        and ``bad_reason`` (text); ``b = B * R / P``. See `TrainStream`.

    Raises:
        UserError: a value is out of range, or the dataset cannot give such clips.
    """
    _check(videos_per_step, process_index, process_count, "videos_per_step")
    if first_step < 0 or num_steps < 0:
        raise UserError(f"first_step and num_steps are {first_step} and {num_steps}: negative")
    stream = TrainStream(
        dataset,
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
    timeout_s: float = TIMEOUT_S,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Batches of a dataset in its own order, each video once.

    The last batch is filled up, and every host gets the same number of batches.

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
        timeout_s: seconds without a single video being read after which reading is given up.
        process_index: this host.
        process_count: number of hosts.

    Returns:
        An iterator over dicts of arrays, to be closed: ``video``, ``foreground``, ``label``,
        ``example_index`` and ``slot`` as in `train_batches`, and bool [b] ``valid`` (false for
        filling and for damaged videos) and ``unreadable`` (true for damaged videos), and
        ``bad_reason`` (text). With views,
        ``video`` is [b, V, T, H, W, 3] and ``foreground`` [b, V, T, h, w]; ``V = starts * crops``.

    Raises:
        UserError: a value is out of range, or the dataset cannot give such clips.
    """
    _check(batch_size, process_index, process_count, "batch_size")
    if num_examples is not None and num_examples < 1:
        raise UserError(f"num_examples is {num_examples}, but must be at least 1")
    count = min(num_examples or len(dataset), len(dataset))
    several = None if views is None else Views(*views)
    stream = EvalStream(dataset, spec, batch_size=batch_size, num_examples=count, views=several)
    return Batches(
        HostSlice(stream, batch_size, process_index, process_count),
        clips_per_video=1 if several is None else several.per_video,
        num_steps=-(-count // batch_size),
        num_workers=num_workers,
        num_threads=num_threads,
        prefetch=prefetch,
        timeout_s=timeout_s,
    )


def first_clips(dataset: Dataset, spec: ClipSpec, count: int) -> Batch:
    """Those of a dataset's first ``count`` clips that can be read, as one batch; logs the others.

    Raises:
        UserError: the dataset cannot give such clips, or none of the first can be read.
    """
    with eval_batches(
        dataset, spec, batch_size=count, num_examples=count, num_threads=0
    ) as batches:
        batch = next(batches)
    for reason in batch["bad_reason"][batch["unreadable"]]:
        logging.warning("left out: %s", reason.decode(errors="replace"))
    if not batch["valid"].any():
        raise UserError(
            f"none of the first {count} clips of {dataset.directory}, split {dataset.split!r}, "
            "can be read"
        )
    return {name: values[batch["valid"]] for name, values in batch.items()}


def _check(batch: int, process_index: int, process_count: int, name: str) -> None:
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index is {process_index} of {process_count} processes")
    if batch < 1 or batch % process_count:
        raise UserError(
            f"{name} is {batch}, but must be a multiple of the number of hosts, {process_count}"
        )
