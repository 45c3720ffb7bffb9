"""A dataset on disk as a list of records: opened as TFDS opens it, read without TensorFlow."""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

from absl import logging
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from adamae_jax.data import schema
from adamae_jax.data.tfrecord import BadRecordError, RecordReader, load_index
from adamae_jax.errors import UserError

REQUIRED_FEATURES = (
    schema.ID,
    schema.LABEL,
    schema.FRAMES,
    schema.CODEC,
    schema.NUM_FRAMES,
    schema.RATE,
    schema.HEIGHT,
    schema.WIDTH,
)
PREPARE = "python -m adamae_jax.prepare"


@dataclasses.dataclass(frozen=True)
class Record:
    """One video as stored.

    Attributes:
        id: its name, unique within the dataset.
        label: class index, or `schema.UNLABELLED`.
        frames: one JPEG per frame, at least one.
        rate: frames per second.
        height: pixels of each frame.
        width: pixels of each frame.
        foreground: grey PNG of the frames' masks stacked from top to bottom, where there is one.
    """

    id: str
    label: int
    frames: tuple[bytes, ...]
    rate: float
    height: int
    width: int
    foreground: bytes | None


class Dataset:
    """One split of a dataset directory, as a random-access sequence of records.

    The directory holds ``dataset_info.json``, ``features.json`` and TFRecord shards directly, as
    ``tfds.builder_from_directory`` expects. An index of the records is kept beside the shards
    (``.index-SPLIT.npz``); where the directory cannot be written it is rebuilt at every start.
    Objects can be pickled and used in several threads and processes.

    Attributes:
        directory: the dataset's directory.
        split: name of the split.
        label_names: class names by label; empty for a dataset without labels.
        has_foreground: whether records carry foreground masks.
        fingerprint: hexadecimal digest of ``dataset_info.json``, the shards' names and sizes and
            the number of records; another digest means other data.
    """

    def __init__(self, directory: str | os.PathLike[str], split: str):
        """Opens a split.

        Raises:
            UserError: directory, split or a shard is missing, empty or damaged, or the dataset
                does not follow `adamae_jax.data.schema`.
        """
        self.directory = Path(directory)
        self.split = split
        info = _dataset_info(self.directory)
        split_info = _split_info(info, self.directory, split)
        self.label_names = tuple(getattr(info.features[schema.LABEL], "names", None) or ())
        self.has_foreground = schema.FOREGROUND in info.features
        paths = [Path(path) for path in split_info.filepaths]
        index = load_index(paths, split_info.shard_lengths, self.directory / f".index-{split}.npz")
        if not len(index):
            raise UserError(f"split {split!r} of {self.directory} is empty: rebuild with {PREPARE}")
        self._reader = RecordReader(index)
        self.fingerprint = _fingerprint(self.directory, paths, len(index))

    def __len__(self) -> int:
        """Number of records in the split."""
        return len(self._reader.index)

    def __getitem__(self, index: int) -> Record:
        """Reads one record.

        Raises:
            IndexError: ``index`` is outside ``[0, len(self))``.
            BadRecordError: the record is damaged.
            OSError: the storage keeps failing.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        try:
            return _parse(self._reader.read(index), self.has_foreground)
        except BadRecordError as error:
            raise BadRecordError(f"{self.where(index)}: {error}") from error

    def where(self, index: int) -> str:
        """Words for messages: which record of which file this is."""
        records = self._reader.index
        shard = records.shard_of(index)
        return (
            f"record {index} of split {self.split!r} "
            f"(number {index - int(records.first[shard])} in {records.paths[shard]})"
        )


def _dataset_info(directory: Path) -> Any:
    """TFDS's description of the dataset, after checking what its own errors leave unclear."""
    if not (directory / "dataset_info.json").is_file():
        inside = sorted(path.parent for path in directory.glob("*/**/dataset_info.json"))
        hint = f"did you mean {inside[-1]}?" if inside else f"make one with {PREPARE} --output=DIR"
        what = "holds no dataset_info.json" if directory.is_dir() else "is no directory"
        raise UserError(f"no dataset at {directory}, which {what}: {hint}")
    import tensorflow_datasets as tfds  # slow to import, and workers have no need of it

    verbosity = logging.get_verbosity()
    try:
        logging.set_verbosity(logging.WARNING)  # TFDS tells of every dataset that it opens
        info = tfds.builder_from_directory(directory).info
        features = set(info.features or ())
    except Exception as error:  # TFDS raises many kinds here: a file is damaged or not its own
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise UserError(
            f"TFDS cannot open the dataset at {directory} ({reason}): rebuild it with {PREPARE}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    if missing := [name for name in REQUIRED_FEATURES if name not in features]:
        raise UserError(
            f"the dataset at {directory} lacks the features {', '.join(missing)}: "
            f"make one with {PREPARE}"
        )
    if info.file_format.value != "tfrecord":
        raise UserError(
            f"the dataset at {directory} is stored as {info.file_format.value}, "
            f"but only tfrecord is read: make one with {PREPARE}"
        )
    return info


def _split_info(info: Any, directory: Path, split: str) -> Any:
    if split not in info.splits:
        names = ", ".join(sorted(info.splits)) or "none"
        raise UserError(f"the dataset at {directory} has no split {split!r}; it has: {names}")
    split_info = info.splits[split]
    if not split_info.num_examples:
        raise UserError(f"split {split!r} of {directory} is empty: rebuild it with {PREPARE}")
    return split_info


def _fingerprint(directory: Path, paths: list[Path], num_records: int) -> str:
    digest = hashlib.sha256((directory / "dataset_info.json").read_bytes())
    for path in paths:
        digest.update(f"\n{path.name} {path.stat().st_size}".encode())
    digest.update(f"\n{num_records}".encode())
    return digest.hexdigest()


def _parse(payload: bytes, has_foreground: bool) -> Record:
    try:
        feature = tf_example_pb2.Example.FromString(payload).features.feature
    except DecodeError as error:
        raise BadRecordError("it is no tf.train.Example") from error

    def value(name: str, kind: str) -> Any:
        values = getattr(feature[name], kind).value if name in feature else []
        if len(values) != 1:
            raise BadRecordError(f"{name!r} has {len(values)} values of {kind} instead of one")
        return values[0]

    codec = value(schema.CODEC, "bytes_list").decode()
    if codec != schema.CODEC_JPEG:
        raise UserError(
            f"frames are stored with codec {codec!r}, but only {schema.CODEC_JPEG!r} is read: "
            f"update adamae_jax, or rebuild the dataset with {PREPARE}"
        )
    frames = tuple(feature[schema.FRAMES].bytes_list.value) if schema.FRAMES in feature else ()
    num_frames = value(schema.NUM_FRAMES, "int64_list")
    if not frames or len(frames) != num_frames:
        raise BadRecordError(f"it has {len(frames)} frames and says that it has {num_frames}")
    return Record(
        id=value(schema.ID, "bytes_list").decode(errors="replace"),
        label=value(schema.LABEL, "int64_list"),
        frames=frames,
        rate=value(schema.RATE, "float_list"),
        height=value(schema.HEIGHT, "int64_list"),
        width=value(schema.WIDTH, "int64_list"),
        foreground=value(schema.FOREGROUND, "bytes_list") if has_foreground else None,
    )
