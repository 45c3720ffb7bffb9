"""The data of a run: splits opened and checked, and the batches made from them."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
from absl import logging
from ml_collections import ConfigDict

from adamae_jax import experiment
from adamae_jax.data import batches
from adamae_jax.data.clips import check_clips, short_videos
from adamae_jax.data.mixture import MixedDataset, open_dataset, open_first, parts_of
from adamae_jax.data.order import record_order
from adamae_jax.data.records import Dataset
from adamae_jax.errors import UserError
from adamae_jax.training.checkpoints import read_metadata

# To start a worker takes a second or two, as long as it takes to decode about so many videos; an
# evaluation starts its own each time.
VIDEOS_PER_WORKER = 64


@dataclasses.dataclass(frozen=True)
class Data:
    """The splits of a run, opened and checked, and the batches made from them.

    Attributes:
      config: the experiment.
      train: what is trained on.
      validation: what is held out, of a mixture from its first part; None where nothing is
        evaluated.
    """

    config: ConfigDict
    train: Dataset | MixedDataset
    validation: Dataset | None

    @classmethod
    def open(cls, config: ConfigDict) -> "Data":
        """Opens the dataset, or the mixture, of a config.

        Raises:
          UserError: where there is none, a split is missing, or it cannot give such clips.
        """
        directory = config.data.dir
        if not directory:
            raise UserError(
                "data.dir is empty: give --config.data.dir=DIR, a dataset made by "
                "`python -m adamae_jax.prepare`"
            )
        train = open_dataset(directory, config.data.train_split)
        spec = experiment.clip_spec(config)
        for part in parts_of(train)[0]:
            check_clips(part, spec)
            if warning := short_videos(part, spec):
                logging.warning("%s", warning)
        held_out = config.data.validation_split
        if not config.eval_every:
            return cls(config, train, None)
        try:
            return cls(config, train, open_first(directory, held_out))
        except UserError as error:
            raise UserError(
                f"{error}; or train without validation: --config.eval_every=0"
            ) from error

    def check_trained_on(self, checkpoints: Path, step: int) -> None:
        """Raises a `UserError` where a run was trained on another dataset than this."""
        try:
            stored = read_metadata(checkpoints, step)["data_fingerprint"]
        except UserError:
            return  # a damaged checkpoint: restoring says so, and takes an older one
        if stored != self.train.fingerprint:
            raise UserError(
                f"{checkpoints.parent} was trained on another dataset than {self.config.data.dir} "
                f"(fingerprint {stored}, found {self.train.fingerprint}): give the same data, or "
                "another --workdir"
            )

    @property
    def foreground_source(self) -> str:
        """What the lift is measured against: "masks" in the data, "motion" in clips, or "none"."""
        if (self.validation or self.train).has_foreground:
            return "masks"
        return "motion" if self.config.data.num_frames > 1 else "none"

    def clips_of_parts(self, step: int) -> dict[str, float]:
        """Clips of each part of a mixture in the global batch of step 1, 2, ...; for the metrics.

        Figures by name, ``clips_part_0`` and so on; none where there is one dataset.
        """
        if not isinstance(self.train, MixedDataset):
            return {}
        repeats = self.config.data.repeats
        videos = self.config.batch_size // repeats
        order = record_order(self.train, self.config.seed)
        parts = [self.train.part_of(order[(step - 1) * videos + slot]) for slot in range(videos)]
        return {
            f"clips_part_{part}": float(repeats * parts.count(part))
            for part in range(len(self.train.datasets))
        }

    def train_batches(self, first_step: int) -> batches.Batches:
        """The training stream from a step on."""
        config = self.config
        return batches.train_batches(
            self.train,
            experiment.clip_spec(config),
            seed=config.seed,
            videos_per_step=config.batch_size // config.data.repeats,
            repeats=config.data.repeats,
            first_step=first_step,
            num_steps=config.steps - first_step,
            num_workers=config.data.num_workers,
            num_threads=config.data.num_threads,
            prefetch=config.data.prefetch,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
            on_error=config.data.on_error,
            timeout_s=config.data.timeout_s,
        )

    def eval_batches(self, dataset: Dataset, num_examples: int) -> batches.Batches:
        """The first clips of a dataset, in order; 0 examples for all.

        Worker processes read them as in training, where there is enough for them to do.
        """
        count = min(num_examples or len(dataset), len(dataset)) // jax.process_count()
        return batches.eval_batches(
            dataset,
            experiment.clip_spec(self.config),
            batch_size=self.config.eval.batch_size,
            num_examples=num_examples or None,
            num_workers=min(self.config.data.num_workers, count // VIDEOS_PER_WORKER),
            num_threads=self.config.data.num_threads,
            timeout_s=self.config.data.timeout_s,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
        )


def watched(
    stream: Iterable[batches.Batch], see: Callable[[batches.Batch], None]
) -> Iterator[batches.Batch]:
    """The same batches, each shown to a watcher before it is used."""
    for batch in stream:
        see(batch)
        yield batch
