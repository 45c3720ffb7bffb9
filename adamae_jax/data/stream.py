"""Videos by address: the endless shuffled stream for training, and the list for evaluation.

Position ``g = step * videos_per_step + slot`` of the training stream belongs to epoch ``g // n``
and holds what that epoch's order puts at ``g % n``; of several datasets, `adamae_jax.data.mixture`
says which has its turn. Everything about an element is a pure function
of (seed, g), so that neither hosts, workers and threads nor a restart can change it.

A position is a video's, and an element holds all clips of its video, one or more: arrays with a
leading axis of clips, [R, ...]. So a video is read once, and its clips stay together.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from adamae_jax.data.clips import ClipSpec, check_clips, make_clips, make_views
from adamae_jax.data.examples import Record
from adamae_jax.data.mixture import MixedDataset, Order, parts_of
from adamae_jax.data.permutation import AUGMENT, REPLACE, generator
from adamae_jax.data.records import Dataset
from adamae_jax.data.schema import UNLABELLED
from adamae_jax.data.tfrecord import BadRecordError
from adamae_jax.data.views import Views
from adamae_jax.errors import UserError

MAX_ATTEMPTS = 16
NO_RECORD = -1
# Of what is wrong with a record, as much travels with its element; a place has about 200.
REASON = np.dtype("S500")
ON_ERROR = ("replace", "raise")
# Arrays only: anything else would travel between processes by pickling.
Element = dict[str, np.ndarray]


class Stream(Protocol):
    """Elements by position, any position from 0 on."""

    def __getitem__(self, position: int) -> Element:
        """The element at ``position``."""
        ...


class TrainStream:
    """The shuffled training stream, endless: epoch after epoch, each in an order of its own.

    An element holds ``video`` (uint8 [R, T, H, W, 3]), ``foreground`` (uint8 [R, T, h, w], where
    the dataset has masks) and, int32 [R], ``label``, ``dataset_index`` (of a mixture, the part that
    the label belongs to), ``example_index`` (of the record that was used), ``slot`` (the video's
    place in the global batch), ``repeat`` (0 to R - 1), ``replaced`` and ``bad_record``, and
    ``bad_reason`` (`REASON` [R], text in UTF-8). Clip ``r`` has a start, crop and flip of its own,
    a pure function of (seed, g, attempt, r): more repeats add clips and change none.

    A damaged record is replaced within the lookup by another one, drawn from (seed, g, attempt):
    later positions are not moved by it. What is damaged for one of the clips is replaced for all.
    ``replaced`` is how many damaged records were met before this element's (nearly always 0),
    ``bad_record`` the first of them, -1 where there was none, and ``bad_reason`` its place and what
    is wrong with it. Nothing is logged here, where each worker would do it anew.
    """

    def __init__(
        self,
        dataset: Dataset | MixedDataset,
        spec: ClipSpec,
        *,
        seed: int,
        videos_per_step: int,
        repeats: int = 1,
        on_error: str = "replace",
    ):
        """Describes the stream; nothing is read.

        Args:
            dataset: the records; of a mixture, each damaged one is replaced from its own dataset.
            spec: what a clip is.
            seed: of order and augmentation, in [0, 2**63).
            videos_per_step: videos in one global batch.
            repeats: clips of each video, ``R``.
            on_error: ``replace`` damaged records, or ``raise`` `BadRecordError` at the first.

        Raises:
            UserError: a value is out of range, or the dataset cannot give such clips.
        """
        for part in parts_of(dataset)[0]:
            check_clips(part, spec)
        if not 0 <= seed < 2**63:
            raise UserError(f"seed is {seed}, but must be at least 0 and below 2**63")
        for name, count in {"videos_per_step": videos_per_step, "repeats": repeats}.items():
            if count < 1:
                raise UserError(f"{name} is {count}, but must be at least 1")
        if on_error not in ON_ERROR:
            raise UserError(f"on_error is {on_error!r}, but must be one of: {', '.join(ON_ERROR)}")
        self._dataset = dataset
        self._order = Order(dataset, seed)
        self._spec = spec
        self._seed = seed
        self._videos_per_step = videos_per_step
        self._repeats = repeats
        self._on_error = on_error

    def example_index(self, position: int, attempt: int = 0) -> int:
        """Which record stands at ``position``, after ``attempt`` damaged ones."""
        if not attempt:
            return self._order.record(position)
        among = self._order.span(position)
        return among[generator(self._seed, REPLACE, position, attempt).integers(len(among))]

    def __getitem__(self, position: int) -> Element:
        """The element at ``position``.

        Raises:
            BadRecordError: the record is damaged and ``on_error`` is ``raise``, or 16 records in
                a row are damaged.
            OSError: the storage keeps failing.
        """
        errors: list[BadRecordError] = []
        for attempt in range(MAX_ATTEMPTS):
            index = self.example_index(position, attempt)
            rngs = [
                generator(self._seed, AUGMENT, position, attempt, repeat)
                for repeat in range(self._repeats)
            ]
            try:
                clips = _load_clips(self._dataset, index, self._spec, rngs)
            except BadRecordError as error:
                if self._on_error == "raise":
                    raise
                errors.append(error)
                continue
            return clips | {
                "dataset_index": self._for_each_clip(self._order.turn(position)[0]),
                "slot": self._for_each_clip(position % self._videos_per_step),
                "repeat": np.arange(self._repeats, dtype=np.int32),
                "replaced": self._for_each_clip(attempt),
                # Those met on the way to a substitute have positions of their own.
                "bad_record": self._for_each_clip(
                    self.example_index(position) if attempt else NO_RECORD
                ),
                "bad_reason": np.full(self._repeats, _reason(*errors[:1])),
            }
        raise BadRecordError(
            f"{MAX_ATTEMPTS} damaged records in a row at position {position} of the stream: copy "
            f"the dataset again or rebuild it (the last of them: {errors[-1]})"
        ) from errors[-1]

    def _for_each_clip(self, value: int) -> np.ndarray:
        return np.full(self._repeats, value, np.int32)


class EvalStream:
    """The first ``num_examples`` records in order, then filling, as much as anybody asks for.

    An element holds one video: ``video`` and ``foreground`` as in `TrainStream`, R being 1 (middle
    frames, centre crop unless ``spec.crop`` is ``none``) or, of several views, uint8
    [1, V, T, H, W, C] and [1, V, T, h, w] (see `adamae_jax.data.views`), ``label``,
    ``example_index`` and ``slot``, int32 [1], two booleans, [1]: ``valid``, false for filling and
    for damaged records, and ``unreadable``, true for damaged records, and ``bad_reason``
    (`REASON` [1]), their place and what is wrong with them. Where ``valid`` is false,
    video and masks are zero and the label is `schema.UNLABELLED`; filling has ``example_index`` -1.
    """

    def __init__(
        self,
        dataset: Dataset,
        spec: ClipSpec,
        *,
        batch_size: int,
        num_examples: int,
        views: Views | None = None,
    ):
        """Describes the list; nothing is read.

        Raises:
            UserError: the dataset cannot give such clips or views.
        """
        check_clips(dataset, spec)
        if views is not None:
            _check_views(views, spec)
        self._views = views
        self._dataset = dataset
        self._spec = spec
        self._batch_size = batch_size
        self._num_examples = num_examples

    def __getitem__(self, position: int) -> Element:
        """The element at ``position``; a damaged record is marked, not raised.

        Raises:
            OSError: the storage keeps failing.
        """
        errors: list[BadRecordError] = []
        clip = None
        if position < self._num_examples:
            try:
                clip = self._load(position)
            except BadRecordError as error:
                errors.append(error)
        return (clip or self._blank(position)) | {
            "slot": np.array([position % self._batch_size], np.int32),
            "valid": np.array([clip is not None]),
            "unreadable": np.array([bool(errors)]),
            "bad_reason": np.array([_reason(*errors)]),
        }

    def _load(self, position: int) -> Element:
        if self._views is None:
            return _load_clips(self._dataset, position, self._spec, [None])
        views = self._views
        clips, label = _decoded(
            self._dataset, position, lambda record: make_views(record, self._spec, views)
        )
        return {name: array[None] for name, array in clips.items()} | {
            "label": np.array([label], np.int32),
            "example_index": np.array([position], np.int32),
        }

    def _blank(self, position: int) -> Element:
        index = position if position < self._num_examples else -1
        leading = (1,) if self._views is None else (1, self._views.per_video)
        blank: Element = {
            "video": np.zeros((*leading, *self._spec.video_shape), np.uint8),
            "label": np.array([UNLABELLED], np.int32),
            "example_index": np.array([index], np.int32),
        }
        if self._dataset.has_foreground:
            blank["foreground"] = np.zeros((*leading, *self._spec.foreground_shape), np.uint8)
        return blank


@dataclasses.dataclass(frozen=True)
class HostSlice:
    """What one host reads of a stream: its contiguous part of each global batch, without end.

    It counts in videos, like the stream, whatever the number of clips of each.

    Host ``p`` of ``P`` reads slots ``[p * B / P, (p + 1) * B / P)``, so that the hosts' batches,
    one after the other, are the global batch.

    Attributes:
        stream: the whole stream.
        global_batch: ``B``, in videos, divisible by ``process_count``.
        process_index: ``p``.
        process_count: ``P``.
        first_step: where to start.
    """

    stream: Stream
    global_batch: int
    process_index: int
    process_count: int
    first_step: int = 0

    @property
    def local_batch(self) -> int:
        """Videos of one global batch that this host reads."""
        return self.global_batch // self.process_count

    def __len__(self) -> int:
        """More than anybody reads: at an end, grain's workers would keep the last shared memory."""
        return 2**62

    def __getitem__(self, index: int) -> Element:
        """The host's element number ``index``, counted from its first one of ``first_step``."""
        step, slot = divmod(index, self.local_batch)
        first = (self.first_step + step) * self.global_batch
        return self.stream[first + self.process_index * self.local_batch + slot]


def _load_clips(
    dataset: Dataset | MixedDataset,
    index: int,
    spec: ClipSpec,
    rngs: Sequence[np.random.Generator | None],
) -> Element:
    clips, label = _decoded(dataset, index, lambda record: make_clips(record, spec, rngs))
    return clips | {
        "label": np.full(len(rngs), label, np.int32),
        "example_index": np.full(len(rngs), index, np.int32),
    }


def _decoded(
    dataset: Dataset | MixedDataset, index: int, make: Callable[[Record], Element]
) -> tuple[Element, int]:
    """What is made of a record, and its label; damage is reported with the place."""
    record = dataset[index]
    try:
        return make(record), record.label
    except BadRecordError as error:
        raise BadRecordError(f"{dataset.where(index)}, {record.id!r}: {error}") from error


def _reason(error: BadRecordError | None = None) -> np.ndarray:
    """An error's text, cut where it is too long; nothing where there is none."""
    return np.array(str(error or "").encode(), REASON)


def _check_views(views: Views, spec: ClipSpec) -> None:
    if min(views) < 1:
        raise UserError(f"views are {tuple(views)}, but must be (starts, crops), each at least 1")
    if spec.crop == "none" and views.crops > 1:
        raise UserError(
            f"views are {tuple(views)}, but crop 'none' takes whole frames: use one crop of each"
        )
