"""A dataset on disk as a list of records: opened as TFDS opens it, read without TensorFlow."""

import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from absl import logging

from adamae_jax.data import schema, storage
from adamae_jax.data.array_records import ArrayRecordReader
from adamae_jax.data.damage import BadRecordError
from adamae_jax.data.examples import ImageLayout, Layout, Record, VideoLayout
from adamae_jax.data.payload import Payload
from adamae_jax.data.tfrecord import COPY_AGAIN, SEE_TO_STORAGE, RecordReader, load_index
from adamae_jax.errors import UserError

INFO = "dataset_info.json"
FEATURES = "features.json"

REQUIRED_FEATURES = (
    schema.ID,
    schema.LABEL,
    schema.FRAMES,
    schema.CODEC,
    schema.NUM_FRAMES,
    schema.RATE,
    schema.HEIGHT,
    schema.WIDTH,
    schema.FRAME_SIZES,
    schema.FRAME_CHECKSUMS,
    schema.HEADER_CHECKSUM,
)
IMAGE_NAMES = (schema.ID, schema.FILE_NAME)  # what may name an image, the better name first
LABELS = f"{schema.LABEL}.labels.txt"
DESCRIPTIONS = (INFO, FEATURES, LABELS)  # what TFDS needs beside the shards
PREPARE = "python -m adamae_jax.prepare"


class Reader(Protocol):
    """The records of several shards by number; can be pickled and used in threads."""

    def __len__(self) -> int:
        """Returns the number of records."""
        ...

    def payload(self, record: int) -> Payload:
        """Returns the bytes of a record; raises `BadRecordError` or, if storage fails, OSError."""
        ...

    def place(self, record: int) -> tuple[str, int]:
        """Returns the file that holds a record, and the record's number in it."""
        ...


class Dataset:
    """One split of a dataset directory, as a random-access sequence of records.

    The directory holds ``dataset_info.json``, ``features.json`` and shards directly, as
    ``tfds.builder_from_directory`` expects: videos after `adamae_jax.data.schema`, or images as
    TFDS prepared them itself (features ``image`` and, where there are any, ``label`` and ``id`` or
    ``file_name``), which are read as videos of one frame. Of a video in a TFRecord file, only the
    frames are read that are asked for. TFRecord shards may be on a file system that fsspec knows
    (``gs://bucket/folder``); an index of their records is kept beside them (``.index-SPLIT.npy``;
    see `load_index`). ArrayRecord shards have an index in themselves, and must be local. Objects
    can be pickled and used in several threads and processes.

    Attributes:
        directory: the dataset's directory, or its address.
        split: name of the split.
        label_names: class names by label; empty for a dataset without labels.
        has_foreground: whether records carry foreground masks.
        holds_images: whether records are images, without frame rate.
        fingerprint: hexadecimal digest of ``dataset_info.json``, the shards' names and sizes and
            the number of records; another digest means other data.
    """

    def __init__(self, directory: str | os.PathLike[str], split: str):
        """Opens a split; what fails for a moment is tried again for some seconds.

        Raises:
            UserError: directory, split or a shard is missing, empty or damaged, the storage keeps
                failing, or the dataset holds neither videos after `adamae_jax.data.schema` nor
                images.
        """
        self.directory = os.fspath(directory)
        self.split = split
        try:
            self._open()
        except OSError as error:
            raise UserError(
                f"the dataset at {self.directory} cannot be read ({error}): {SEE_TO_STORAGE}"
            ) from error

    def _open(self) -> None:
        split = self.split
        info = _dataset_info(self.directory)
        split_info = _split_info(info, self.directory, split)
        self._layout = layout_of(info.features, self.directory)
        self.holds_images = isinstance(self._layout, ImageLayout)
        labelled = schema.LABEL in info.features
        self.label_names = tuple(info.features[schema.LABEL].names or ()) if labelled else ()
        self.has_foreground = not self.holds_images and schema.FOREGROUND in info.features
        paths = [
            storage.join(self.directory, os.path.basename(path)) for path in split_info.filepaths
        ]
        self._reader = _reader(info.file_format.value, paths, split_info.shard_lengths, split)
        if not len(self):
            raise UserError(f"split {split!r} of {self.directory} is empty: rebuild with {PREPARE}")
        self.fingerprint = _fingerprint(self.directory, paths, len(self))

    def __len__(self) -> int:
        """Returns the number of records in the split."""
        return len(self._reader)

    def __getitem__(self, index: int) -> Record:
        """Reads one record, without its frames where they can be read later.

        Raises:
            IndexError: ``index`` is outside ``[0, len(self))``.
            BadRecordError: the record is damaged.
            OSError: the storage keeps failing.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        try:
            record = self._layout.read(self._reader.payload(index))
        except BadRecordError as error:
            raise BadRecordError(f"{self.where(index)}: {error}") from error
        return record if record.id else dataclasses.replace(record, id=f"{self.split}/{index}")

    def place(self, index: int) -> tuple[str, int]:
        """Returns the file that holds a record, and the record's number in it."""
        return self._reader.place(index)

    def where(self, index: int) -> str:
        """Returns words for messages: which record of which file this is."""
        path, number = self.place(index)
        return f"record {index} of split {self.split!r} (number {number} in {path})"


def _reader(file_format: str, paths: Sequence[str], counts: Sequence[int], split: str) -> Reader:
    if file_format == schema.ARRAY_RECORD:
        return ArrayRecordReader(paths, counts)
    beside = storage.join(paths[0].rpartition("/")[0], f".index-{split}.npy")
    return RecordReader(load_index(paths, counts, beside))


class NoDatasetError(UserError):
    """TFDS does not open a folder as a dataset; the message says why."""


def read_info(directory: str | os.PathLike[str]) -> Any:
    """Returns TFDS's ``DatasetInfo`` of a folder that ``tfds.builder_from_directory`` opens.

    Raises:
        NoDatasetError: it does not, or the names of the shards or of the classes cannot be had.
    """
    import tensorflow_datasets as tfds  # slow to import, and workers have no need of it

    folder = os.path.expanduser(directory)  # as TFDS itself does
    verbosity = logging.get_verbosity()
    try:
        logging.set_verbosity(logging.WARNING)  # TFDS tells of every dataset that it opens
        for name in (INFO, FEATURES):
            if not Path(folder, name).is_file():
                raise ValueError(f"{name} is missing")
        info = tfds.builder_from_directory(folder).info
        for split in info.splits.values():
            _ = split.filepaths  # made of a template that is not looked at before
        _check_label_names(info, Path(folder, LABELS))
        return info
    except Exception as error:  # TFDS raises many kinds here: a file is damaged or not its own
        raise NoDatasetError((str(error).splitlines() or [repr(error)])[0]) from error
    finally:
        logging.set_verbosity(verbosity)


def _check_label_names(info: Any, file: Path) -> None:
    """Raises a `ValueError` where `adamae_jax.prepare` has named classes, and the names are lost.

    TFDS passes over it, and calls them by numbers.
    """
    features = info.features or {}
    written = schema.PREPARED in info.description or set(REQUIRED_FEATURES) <= set(features)
    classes = features[schema.LABEL].num_classes if written and schema.LABEL in features else 0
    if not classes:
        return
    if not file.is_file():
        raise ValueError(f"{file.name} is missing, and with it the names of the classes")
    names = set(file.read_text(encoding="utf-8", errors="replace").splitlines())
    if len(names) != classes:
        raise ValueError(f"{file.name} has {len(names)} different names for {classes} classes")


def _dataset_info(directory: str) -> Any:
    """Returns TFDS's description, after checking what its own errors leave unclear."""
    if INFO not in (files := storage.list_directory(directory)):
        raise UserError(_no_dataset(directory))
    with tempfile.TemporaryDirectory() as copy:
        # What describes the data is small. Of a copy TFDS needs to know no remote file system, nor
        # takes it for damaged what cannot be read for a moment.
        for name in DESCRIPTIONS:
            if name in files:
                Path(copy, name).write_bytes(storage.read_file(storage.join(directory, name)))
        return _builder_info(copy, directory)


def _no_dataset(directory: str) -> str:
    hint = f"make one with {PREPARE} --source=FOLDER --output=DIR"
    if storage.is_remote(directory):
        return f"no dataset at {directory}, which holds no {INFO}: {hint}, and copy it there"
    inside = sorted(path.parent for path in Path(directory).glob(f"*/**/{INFO}"))
    hint = f"did you mean {inside[-1]}?" if inside else hint
    what = f"holds no {INFO}" if os.path.isdir(directory) else "is no directory"
    return f"no dataset at {directory}, which {what}: {hint}"


def _builder_info(folder: str, directory: str) -> Any:
    """Returns what TFDS reads from a folder with copies of the directory's descriptions."""
    try:
        info = read_info(folder)
    except NoDatasetError as error:
        raise UserError(
            f"TFDS cannot open the dataset at {directory} ({error}): {COPY_AGAIN}"
        ) from error
    if info.file_format.value not in schema.FILE_FORMATS:
        raise UserError(
            f"the dataset at {directory} is stored as {info.file_format.value}, but only "
            f"{' and '.join(schema.FILE_FORMATS)} are read: make one with {PREPARE}, or, of "
            "images, let TFDS prepare it again with file_format='tfrecord'"
        )
    return info


def layout_of(features: Any, directory: str) -> Layout:
    """Returns how the records of a dataset are written down.

    Args:
        features: as TFDS describes them.
        directory: of the dataset, for messages.

    Raises:
        UserError: they are neither videos after `adamae_jax.data.schema` nor images.
    """
    names = set(features or ())
    if not (missing := [name for name in REQUIRED_FEATURES if name not in names]):
        return VideoLayout(has_foreground=schema.FOREGROUND in names)
    if schema.FRAMES in names or schema.IMAGE not in names:
        raise UserError(
            f"the dataset at {directory} holds neither videos as {PREPARE} writes them today, for "
            f"it lacks the features {', '.join(missing)}, nor images, as a feature "
            f"{schema.IMAGE!r}: make it again with {PREPARE}"
        )
    return _image_layout({name: features[name] for name in names}, directory)


def _image_layout(features: dict[str, Any], directory: str) -> ImageLayout:
    from tensorflow_datasets.core.features import ClassLabel, Image, Text

    image, label = features[schema.IMAGE], features.get(schema.LABEL)
    if not isinstance(image, Image) or image.np_dtype != np.uint8:
        raise UserError(
            f"feature {schema.IMAGE!r} of the dataset at {directory} is {image}, but must be an "
            "image of 8 bits per channel: prepare it so with TFDS"
        )
    if not isinstance(label, ClassLabel | None):
        raise UserError(
            f"feature {schema.LABEL!r} of the dataset at {directory} is {label}, but must be the "
            "one class of each image: prepare it so with TFDS, or without labels"
        )
    texts = [name for name in IMAGE_NAMES if isinstance(features.get(name), Text)]
    return ImageLayout(texts[0] if texts else None, has_label=label is not None)


def _split_info(info: Any, directory: str, split: str) -> Any:
    if split not in info.splits:
        names = ", ".join(sorted(info.splits)) or "none"
        raise UserError(f"the dataset at {directory} has no split {split!r}; it has: {names}")
    split_info = info.splits[split]
    if not split_info.num_examples:
        raise UserError(f"split {split!r} of {directory} is empty: rebuild it with {PREPARE}")
    return split_info


def _fingerprint(directory: str, paths: list[str], num_records: int) -> str:
    digest = hashlib.sha256(storage.read_file(storage.join(directory, INFO)))
    for path, size in zip(paths, storage.file_sizes(paths), strict=True):
        digest.update(f"\n{os.path.basename(path)} {size}".encode())
    digest.update(f"\n{num_records}".encode())
    return digest.hexdigest()
