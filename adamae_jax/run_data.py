"""The data of a run: splits opened and checked, and the batches made from them."""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Iterator

import jax
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from adamae_jax import classes, experiment
from adamae_jax.data.batches import Reading, eval_batches, train_batches
from adamae_jax.data.clips import check_clips, short_videos
from adamae_jax.data.damage import DamageWatch
from adamae_jax.data.mixture import MixedDataset, open_dataset, open_first, parts_in, parts_of
from adamae_jax.data.order import record_order
from adamae_jax.data.records import Dataset
from adamae_jax.data.stream import EvalClips, TrainClips
from adamae_jax.data.temporal import Views
from adamae_jax.errors import UserError
from adamae_jax.prepare import embedded
from adamae_jax.training import rundir
from adamae_jax.training.checkpoints import read_metadata
from adamae_jax.training.evaluation import HostBatch
from adamae_jax.training.files import AnyPath
from adamae_jax.training.partitioning import DATA, FSDP, batch_shard

# To start a worker takes a second or two, as long as it takes to decode about so many videos; an
# evaluation starts its own each time.
VIDEOS_PER_WORKER = 64


def make_embedded(directory: str) -> None:
    """Makes embedded datasets that a config names where they are not there yet.

    One process makes them, and says so on standard error; the others wait.

    Raises:
      UserError: where they cannot be made.
    """
    if jax.process_index() == 0:
        with contextlib.redirect_stdout(sys.stderr):
            for part in parts_in(directory):
                embedded.ensure(part.directory)
    multihost_utils.sync_global_devices("embedded datasets")


def open_training(config: ConfigDict) -> Dataset | MixedDataset:
    """Opens what a config trains on; its length resolves the config.

    Raises:
      UserError: where there is no such dataset or split, or it cannot give such clips.
    """
    if not config.data.dir:
        raise UserError(
            "data.dir is empty: give --config.data.dir=DIR, a dataset made by "
            "`python -m adamae_jax.prepare`"
        )
    make_embedded(config.data.dir)
    train = open_dataset(config.data.dir, config.data.train_split)
    spec = experiment.clip_spec(config)
    for part in parts_of(train)[0]:
        check_clips(part, spec)
        if warning := short_videos(part, spec):
            logging.warning("%s", warning)
    return train


def open_validation(config: ConfigDict) -> Dataset | None:
    """Opens what is held out, of a mixture from its first part; None where nothing is evaluated.

    Raises:
      UserError: where there is no such split, or it has no labels, or some of no class, and
        classes are told apart.
    """
    if not config.eval_every:
        return None
    try:
        held_out = open_first(config.data.dir, config.data.validation_split)
        if config.classifier.num_classes:
            classes.check_labels(held_out, config.classifier.num_classes)
    except UserError as error:
        raise UserError(f"{error}; or train without validation: --config.eval_every=0") from error
    return held_out


@dataclasses.dataclass(frozen=True)
class RunData:
    """The splits of a run, and the batches that this process reads of them.

    Damaged records are counted, and listed in the workdir.

    Attributes:
      config: the effective config.
      mesh: the devices, which say what part of a batch this process reads.
      workdir: of the run.
      train: what is trained on.
      validation: what is held out; None where nothing is evaluated.
      views: of each held-out video; None for a clip of each, as pretraining cuts it.
    """

    config: ConfigDict
    mesh: Mesh
    workdir: AnyPath
    train: Dataset | MixedDataset
    validation: Dataset | None
    views: Views | None = None

    def __post_init__(self) -> None:
        """Raises a `UserError` where a step's videos do not divide over the processes."""
        options = self.config.data
        videos, (_, count) = self.config.batch_size // options.repeats, batch_shard(self.mesh)
        if videos % count:
            raise UserError(
                f"batch_size {self.config.batch_size} with data.repeats {options.repeats} is "
                f"{videos} videos in a step, which do not divide over {count} processes: choose "
                "numbers that do"
            )

    @property
    def fingerprint(self) -> str:
        """A digest of what is trained on."""
        return self.train.fingerprint

    @property
    def foreground_source(self) -> str:
        """What the lift is measured against: "masks" in the data, "motion" in clips, or "none"."""
        if (self.validation or self.train).has_foreground:
            return "masks"
        return "motion" if self.config.data.num_frames > 1 else "none"

    def check_trained_on(self, checkpoints: AnyPath, step: int) -> None:
        """Raises a `UserError` where a run was trained on another dataset than this."""
        try:
            stored = read_metadata(checkpoints, step)["data_fingerprint"]
        except UserError:
            return  # a damaged checkpoint: restoring says so, and takes an older one
        if stored != self.fingerprint:
            raise UserError(
                f"{checkpoints.parent} was trained on another dataset than {self.config.data.dir} "
                f"(fingerprint {stored}, found {self.fingerprint}): give the same data, or "
                "another --workdir"
            )

    def step_figures(self, step: int) -> dict[str, float]:
        """Returns ``epoch`` and, of a mixture, how many clips of the batch each part gives."""
        repeats, batch_size = self.config.data.repeats, self.config.batch_size
        videos = batch_size // repeats
        figures = {"epoch": step * videos / self.config.data.num_examples}
        if isinstance(self.train, MixedDataset):
            order = record_order(self.train, self.config.seed)
            first = (step - 1) * videos
            parts = [self.train.part_of(order[first + slot]) for slot in range(videos)]
            figures |= {
                f"clips_part_{part}": float(repeats * parts.count(part))
                for part in range(len(self.train.datasets))
            }
        return figures

    @contextlib.contextmanager
    def training_from(self, first_step: int) -> Iterator[Iterator[HostBatch]]:
        """The training stream from a step on."""
        config = self.config
        damage = damage_watch(config, self.workdir, self.train)

        def see(batch: HostBatch) -> None:
            damage.see(batch)
            damage.check(damage.count, len(self.train))

        options = config.data
        clips = TrainClips(
            self.train,
            experiment.clip_spec(config),
            seed=config.seed,
            videos_per_step=config.batch_size // options.repeats,
            repeats=options.repeats,
            on_error=options.on_error,
        )
        reading = reading_of(config, self.mesh, options.num_workers)
        with train_batches(clips, first_step, config.steps - first_step, reading) as batches:
            yield watched(watched(batches, see), labels_of(self.train, config))

    def held_out(self) -> contextlib.AbstractContextManager["HeldOutClips"]:
        """The first clips of the validation split, in order."""
        assert self.validation is not None  # it is opened wherever something is evaluated
        return self._evaluated(self.validation, self.config.eval.num_examples, self.views)

    def neighbours(self) -> contextlib.AbstractContextManager["HeldOutClips"]:
        """The first clips of the training split, in order and without augmentation."""
        return self._evaluated(parts_of(self.train)[0][0], self.config.eval.knn_examples)

    def _evaluated(
        self, dataset: Dataset, most: int, views: Views | None = None
    ) -> contextlib.AbstractContextManager["HeldOutClips"]:
        return evaluation_batches(
            self.config, self.mesh, self.workdir, dataset, most=most, views=views
        )


@contextlib.contextmanager
def evaluation_batches(
    config: ConfigDict,
    mesh: Mesh,
    workdir: AnyPath,
    dataset: Dataset,
    *,
    most: int = 0,
    views: Views | None = None,
) -> Iterator["HeldOutClips"]:
    """The records of a dataset in order, each once, for a run as for an evaluation by itself.

    Args:
      config: says what a clip is and how it is read; resolved, for the size of batches.
      mesh: the devices, which say what part of a batch this process reads.
      workdir: where damaged records are listed.
      dataset: the records.
      most: only the first so many of them. 0: all.
      views: of each video, ``video`` being [b, V, T, H, W, C]: a batch then has as many videos as
        `videos_per_batch` says. None: one clip of each, [b, T, H, W, C].

    Raises:
      UserError: the dataset cannot give such clips or views; in a batch, a label is of no class.
    """
    batch_size = config.eval.batch_size
    if views is not None:
        batch_size = videos_per_batch(batch_size, mesh, views)
    clips = EvalClips(dataset, experiment.clip_spec(config), batch_size, most or None, views)
    _, hosts = batch_shard(mesh)
    workers = min(config.data.num_workers, clips.count // hosts // VIDEOS_PER_WORKER)
    with eval_batches(clips, reading_of(config, mesh, workers)) as batches:
        damage = damage_watch(config, workdir, dataset)
        yield HeldOutClips(clips.count, watched(batches, labels_of(dataset, config)), damage)


def reading_of(config: ConfigDict, mesh: Mesh, num_workers: int) -> Reading:
    """Returns how this process reads its part of each batch."""
    host, num_hosts = batch_shard(mesh)
    options = config.data
    return Reading(
        num_workers, options.num_threads, options.prefetch, options.timeout_s, host, num_hosts
    )


def videos_per_batch(clips: int, mesh: Mesh, views: Views) -> int:
    """Returns how many videos' views make about ``clips`` clips and divide over the devices."""
    devices = mesh.shape[DATA] * mesh.shape[FSDP]
    return max(1, clips // (views.per_video * devices)) * devices


def labels_of(dataset: Dataset | MixedDataset, config: ConfigDict) -> Callable[[HostBatch], None]:
    """Returns what looks at the labels of each batch; see `adamae_jax.classes.check_batch`."""
    return functools.partial(classes.check_batch, dataset, config.classifier.num_classes)


def damage_watch(
    config: ConfigDict, workdir: AnyPath, records: Dataset | MixedDataset
) -> DamageWatch:
    """Returns what lists this process's damaged records in the workdir."""
    return DamageWatch(records, config.data.max_bad_fraction, workdir / rundir.damaged_name())


@dataclasses.dataclass(frozen=True)
class HeldOutClips:
    """This process's batches of an evaluation.

    Attributes:
      num_examples: clips, or videos with their views, that are evaluated, over all processes.
      batches: padded to whole batches.
      damage: counts those that cannot be read.
    """

    num_examples: int
    batches: Iterable[HostBatch]
    damage: DamageWatch

    def __iter__(self) -> Iterator[HostBatch]:
        """Each batch, once."""
        return watched(self.batches, self.damage.see)

    def check(self, unreadable: int) -> None:
        """Raises a `UserError` where more could not be read than ``data.max_bad_fraction``."""
        self.damage.check(unreadable, self.num_examples)


def watched(batches: Iterable[HostBatch], see: Callable[[HostBatch], None]) -> Iterator[HostBatch]:
    """The same batches, each shown to a watcher before it is used."""
    for batch in batches:
        see(batch)
        yield batch
