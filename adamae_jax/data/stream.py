"""Clips by position: the endless shuffled stream for training, and the list for evaluation.

A position is a video's: number ``step * videos_per_step + slot`` of the training stream. Everything
about an element is a pure function of the seed and its position, so that neither hosts, workers and
threads nor a restart can change it. An element holds all clips of its video, so that the video is
read once and its clips stay together: arrays with a leading axis of clips, [R, ...].

Nothing but arrays of numbers travels between processes, and nothing is logged here, where each
worker would do it anew: a damaged record is told by its index and the number of its `Damage`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import UInt8

from adamae_jax.data.clips import ClipSpec, check_clips, make_clips
from adamae_jax.data.damage import BadRecordError, Damage
from adamae_jax.data.examples import Record
from adamae_jax.data.mixture import MixedDataset, parts_of
from adamae_jax.data.order import AUGMENT, ENDLESS, REPLACE, generator, record_order
from adamae_jax.data.records import Dataset
from adamae_jax.data.schema import UNLABELLED
from adamae_jax.data.temporal import Views
from adamae_jax.data.views import make_views
from adamae_jax.errors import UserError

MAX_ATTEMPTS = 16
NO_RECORD = -1
ID_BYTES = 256
ON_ERROR = ("replace", "raise")

Element = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TrainClips:
    """Makes the elements of the training stream.

    An element holds ``video`` (uint8 [R, T, H, W, 3]), ``foreground`` (uint8 [R, T, h, w], where
    the dataset has masks) and, int32 [R], ``label`` (of a mixture, as its part has it),
    ``example_index`` (of the record that was used), ``slot`` (the video's place in the global
    batch), ``repeat`` (0 to R - 1), ``replaced`` (how many damaged records were met before this
    one), ``bad_record`` (the first of them; -1 where there was none) and ``damage`` (of that one, a
    `Damage`). Clip ``r`` has a start, crop, flip and RandAugment of its own, a pure function of
    (seed, position, attempt, r): more repeats add clips and change none. With
    ``spec.shared_frames`` all have clip 0's start.

    A damaged record is replaced within its position by another one of the same part of a mixture,
    drawn from (seed, position, attempt); what is damaged for one of the clips is replaced for all.

    Attributes:
        dataset: the records.
        spec: what a clip is.
        seed: of order and augmentation, in [0, 2**63).
        videos_per_step: videos in one global batch.
        repeats: clips of each video, ``R``.
        on_error: ``replace`` damaged records, or ``raise`` `BadRecordError` at the first.

    Raises:
        UserError: a value is out of range, or the dataset cannot give such clips.
    """

    dataset: Dataset | MixedDataset
    spec: ClipSpec
    seed: int
    videos_per_step: int
    repeats: int = 1
    on_error: str = "replace"

    def __post_init__(self) -> None:
        """Checks the values."""
        for part in parts_of(self.dataset)[0]:
            check_clips(part, self.spec)
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed is {self.seed}, but must be at least 0 and below 2**63")
        if self.repeats < 1:
            raise UserError(f"repeats is {self.repeats}, but must be at least 1")
        if self.on_error not in ON_ERROR:
            raise UserError(
                f"on_error is {self.on_error!r}, but must be one of: {', '.join(ON_ERROR)}"
            )

    def __call__(self, position: int, first: int) -> Element:
        """Makes the element at ``position``, where the record ``first`` stands.

        Raises:
            BadRecordError: the record is damaged and ``on_error`` is ``raise``, or 16 records in
                a row are damaged.
            OSError: the storage keeps failing.
        """
        damage = Damage.NONE
        for attempt in range(MAX_ATTEMPTS):
            index = self._substitute(position, first, attempt) if attempt else first
            rngs = [
                generator(self.seed, AUGMENT, position, attempt, repeat)
                for repeat in range(self.repeats)
            ]
            try:
                clips = _clips(self.dataset, index, self.spec, rngs)
            except BadRecordError as error:
                if self.on_error == "raise":
                    raise
                damage, last = damage or error.damage, error
                continue
            # Those met on the way to a substitute have positions of their own.
            bad = first if attempt else NO_RECORD
            return clips | {
                "slot": self._for_each_clip(position % self.videos_per_step),
                "repeat": np.arange(self.repeats, dtype=np.int32),
                "replaced": self._for_each_clip(attempt),
                "bad_record": self._for_each_clip(bad),
                "damage": self._for_each_clip(damage),
            }
        raise BadRecordError(
            f"{MAX_ATTEMPTS} damaged records in a row at position {position} of the stream: copy "
            f"the dataset again or rebuild it (the last of them: {last})"
        ) from last

    def _substitute(self, position: int, first: int, attempt: int) -> int:
        """Returns a record of the same part as ``first``."""
        start, count = 0, len(self.dataset)
        if isinstance(self.dataset, MixedDataset):
            start, count = self.dataset.span(self.dataset.part_of(first))
        return start + int(generator(self.seed, REPLACE, position, attempt).integers(count))

    def _for_each_clip(self, value: int) -> np.ndarray:
        return np.full(self.repeats, value, np.int32)


def train_stream(clips: TrainClips) -> grain.MapDataset[Element]:
    """Returns the training stream: elements by position, without an end."""
    return record_order(clips.dataset, clips.seed).map_with_index(clips)


@dataclasses.dataclass(frozen=True)
class EvalClips:
    """Makes the elements of an evaluation: a dataset's first records in order, then filling.

    An element holds one video: ``video`` and ``foreground`` as in `TrainClips`, R being 1 (middle
    frames, centre crop unless ``spec.crop`` is ``none``) or, of several views, uint8
    [1, V, T, H, W, C] and [1, V, T, h, w], ``label``, ``example_index``, ``slot`` and ``damage``,
    int32 [1], and two booleans, [1]: ``valid``, false for filling and for damaged records, and
    ``unreadable``, true for damaged records. With views there is also ``video_id``, uint8 [1, 256]:
    the record's id (see `id_text`). Where ``valid`` is false, video, masks and id are zero and the
    label is `schema.UNLABELLED`; filling has ``example_index`` -1.

    Attributes:
        dataset: the records.
        spec: what a clip is.
        batch_size: videos in one global batch.
        num_examples: only the first so many records; None, or more than there are: all.
        views: (starts, crops) of each video; None gives middle frames and centre crop.

    Raises:
        UserError: a value is out of range, or the dataset cannot give such clips or views.
    """

    dataset: Dataset
    spec: ClipSpec
    batch_size: int
    num_examples: int | None = None
    views: Views | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        check_clips(self.dataset, self.spec)
        if self.num_examples is not None and self.num_examples < 1:
            raise UserError(f"num_examples is {self.num_examples}, but must be at least 1")
        if self.views is None:
            return
        given = tuple(self.views)
        if min(given) < 1:
            raise UserError(f"views are {given}, but must be (starts, crops), each at least 1")
        if self.spec.crop == "none" and self.views.crops > 1:
            raise UserError(
                f"views are {given}, but crop 'none' takes whole frames: use one crop of each"
            )

    @property
    def count(self) -> int:
        """How many records are evaluated."""
        return min(self.num_examples or len(self.dataset), len(self.dataset))

    def __call__(self, position: int) -> Element:
        """Makes the element at ``position``; a damaged record is marked, not raised.

        Raises:
            OSError: the storage keeps failing.
        """
        damage, element = Damage.NONE, None
        if position < self.count:
            try:
                element = self._load(position)
            except BadRecordError as error:
                damage = error.damage
        valid = element is not None
        return (element or self._blank(position)) | {
            "slot": np.array([position % self.batch_size], np.int32),
            "valid": np.array([valid]),
            "unreadable": np.array([damage != Damage.NONE]),
            "damage": np.array([damage], np.int32),
        }

    def _load(self, position: int) -> Element:
        if (views := self.views) is None:
            return _clips(self.dataset, position, self.spec, [None])

        def make(record: Record) -> Element:
            return make_views(record, self.spec, views) | {"video_id": _id_bytes(record.id)}

        several, label = _decoded(self.dataset, position, make)
        return {name: array[None] for name, array in several.items()} | _named(label, position)

    def _blank(self, position: int) -> Element:
        leading = (1,) if self.views is None else (1, self.views.per_video)
        blank = {"video": np.zeros((*leading, *self.spec.video_shape), np.uint8)}
        if self.views is not None:
            blank["video_id"] = _id_bytes("")[None]
        if self.dataset.has_foreground:
            blank["foreground"] = np.zeros((*leading, *self.spec.foreground_shape), np.uint8)
        return blank | _named(UNLABELLED, position if position < self.count else NO_RECORD)


def _id_bytes(identity: str) -> UInt8[np.ndarray, "bytes"]:
    encoded = identity.encode("utf-8")[:ID_BYTES]
    return np.frombuffer(encoded.ljust(ID_BYTES, b"\0"), np.uint8)


def id_text(video_id: UInt8[np.ndarray, "bytes"]) -> str:
    """Returns the text of a ``video_id``: UTF-8, cut to 256 bytes, the rest of which is zero."""
    return video_id.tobytes().rstrip(b"\0").decode("utf-8", errors="ignore")


def eval_stream(clips: EvalClips) -> grain.MapDataset[Element]:
    """Returns the elements of an evaluation by position; filling comes without an end."""
    return grain.MapDataset.range(ENDLESS).map(clips)


@dataclasses.dataclass(frozen=True)
class HostSlice:
    """A source for grain: the contiguous part of each global batch that one host reads.

    Host ``p`` of ``P`` reads slots ``[p * B / P, (p + 1) * B / P)``, so that the hosts' batches,
    one after the other, are the global batch. It counts in videos.

    Attributes:
        stream: elements by position.
        global_batch: ``B``, divisible by ``count``.
        index: ``p``.
        count: ``P``.
        first_step: where to start.
    """

    stream: grain.MapDataset[Element]
    global_batch: int
    index: int
    count: int
    first_step: int = 0

    @property
    def batch(self) -> int:
        """Videos of one global batch that this host reads."""
        return self.global_batch // self.count

    def __len__(self) -> int:
        """More than anybody reads: at an end, grain's workers would keep the last shared memory."""
        return ENDLESS

    def __getitem__(self, number: Any) -> Element:
        """Returns the host's element of this number, counted from its first of ``first_step``."""
        step, slot = divmod(number, self.batch)
        first = (self.first_step + step) * self.global_batch
        return self.stream[first + self.index * self.batch + slot]


def _clips(
    dataset: Dataset | MixedDataset,
    index: int,
    spec: ClipSpec,
    rngs: Sequence[np.random.Generator | None],
) -> Element:
    clips, label = _decoded(dataset, index, lambda record: make_clips(record, spec, rngs))
    return clips | _named(label, index, len(rngs))


def _decoded(
    dataset: Dataset | MixedDataset, index: int, make: Callable[[Record], Element]
) -> tuple[Element, int]:
    """Returns what is made of a record, and its label; damage is raised with the place."""
    record = dataset[index]
    try:
        return make(record), record.label
    except BadRecordError as error:
        message = f"{dataset.where(index)}, {record.id!r}: {error}"
        raise BadRecordError(message, error.damage) from error


def _named(label: int, index: int, count: int = 1) -> Element:
    return {
        "label": np.full(count, label, np.int32),
        "example_index": np.full(count, index, np.int32),
    }
