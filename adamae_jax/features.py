"""Writes features of videos: python -m adamae_jax.features --checkpoint=PATH ...

``--source=DIR`` is a folder of videos or a prepared dataset, ``--output=DIR`` takes one file for
each video, ``NAME.npz``. Clips cover each video from beginning to end; the file has ``features``
[W, D] (or [W, N, D] with --pool=none), and ``start_s`` and ``end_s`` [W], the seconds at which each
clip begins and ends. ``features.json`` says of which model, videos and options. Started again, it
goes on with the videos that have no file yet; with another model or other options, it refuses.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags, logging
from jaxtyping import Array, Float, UInt8
from tqdm import tqdm

from adamae_jax import agreement, cli, distributed, experiment, feature_files, peers, stored
from adamae_jax.data.damage import BadRecordError
from adamae_jax.data.examples import Record
from adamae_jax.data.records import INFO, Dataset
from adamae_jax.errors import UserError
from adamae_jax.feature_files import file_of
from adamae_jax.loaded import Loaded
from adamae_jax.prepare.folders import find_files
from adamae_jax.run_data import make_embedded
from adamae_jax.video_files import map_windows, open_video, windows

POOLINGS = ("mean", "none")
# Of a clip: what its features depend on, beside the model.
CLIP = ("num_frames", "sampling_rate", "image_size", "frame_sampling", "target_fps")


class Source(NamedTuple):
    """Videos by their names.

    Attributes:
      names: of all.
      read: reads one.
      described: what tells these videos from others: values that JSON can hold.
    """

    names: list[str]
    read: Callable[[str], Record]
    described: dict[str, Any]


def define_flags() -> None:
    """Defines this job's options; importing the module does not."""
    distributed.define_flags()
    text, number = flags.DEFINE_string, flags.DEFINE_integer
    text("checkpoint", None, "A run, a model or others' weights.", required=True)
    text("source", None, "A folder of videos, or a dataset (embedded: made).", required=True)
    text("output", None, "Where the files go.", required=True)
    text("split", "train", "Of a dataset, the split.")
    flags.DEFINE_enum("pool", "mean", POOLINGS, "mean: one vector a clip. none: one a token.")
    number("stride", 0, "Video frames between clips; 0: they follow one another.", lower_bound=0)
    number("batch_size", 8, "Clips at a time.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    """Computes and writes as the flags say; of several processes each does its share of videos."""
    del argv
    values = flags.FLAGS
    loaded = stored.load(values.checkpoint)
    spec = experiment.clip_spec(loaded.config)
    if values.stride and spec.frame_sampling == "segments":
        raise UserError(
            f"--stride={values.stride} is for models of short clips, but this one's "
            "('segments') cover a whole video each: leave it out"
        )
    output = Path(values.output)
    with peers.ending_together(output):
        source = source_of(values.source, values.split)
        described = described_by(loaded, values.pool, values.stride) | source.described
        agreement.check(described)
        if jax.process_index() == 0:
            feature_files.begin(output, described, source.names)
        agreement.gathered("begun")
        if jax.process_index():  # where they share no folder, each has a record of its own
            feature_files.begin(output, described, source.names)
        own = source.names[jax.process_index() :: jax.process_count()]
        counts = write_all(loaded, source, own, output)
        # None ends before the others: JAX would end them too.
        wanted, left_out = map(sum, zip(*agreement.gathered(counts), strict=True))
        if left_out and left_out == wanted:
            raise UserError(f"none of the {wanted} videos could be read: see the warnings above")
    if jax.process_index() == 0:
        done = len(source.names) - left_out
        print(f"{done} videos in {output}" + (f"; {left_out} left out" if left_out else ""))


def write_all(loaded: Loaded, source: Source, own: Sequence[str], output: Path) -> tuple[int, int]:
    """Writes the features of those videos that have no file yet, one after the other.

    Returns:
      How many had no file, and how many of those could not be read.

    Raises:
      UserError: where nothing can be written.
    """
    values = flags.FLAGS
    wanted = [name for name in own if not file_of(output, name).exists()]
    if len(wanted) < len(own):
        logging.info("%d of %d videos have their file already", len(own) - len(wanted), len(own))
    failed = 0
    for name in tqdm(wanted, unit="video", mininterval=1.0):
        try:
            record = source.read(name)
            found = of_video(loaded, record, values.stride, values.batch_size, values.pool)
        except (UserError, BadRecordError) as error:
            logging.warning("left out: %s", error)
            failed += 1
            continue
        try:
            feature_files.write(file_of(output, name), found)
        except OSError as error:
            raise UserError(f"--output={output} cannot be written: {error.strerror}") from error
    return len(wanted), failed


def described_by(loaded: Loaded, pool: str, stride: int) -> dict[str, Any]:
    """Returns what features of a video depend on beside the video: values that JSON can hold."""
    spec = experiment.clip_spec(loaded.config)
    return {
        "model": feature_files.digest(loaded.params),
        "step": loaded.step,
        "pool": pool,
        "stride": stride,
        **{name: getattr(spec, name) for name in CLIP},
    }


def source_of(source: str, split: str) -> Source:
    """Returns the videos of a folder or of a dataset's split; an embedded dataset is made.

    Raises:
      UserError: where there is nothing of the kind.
    """
    if "," not in source:  # a comma is of a mixture's parts, which this job has not
        make_embedded(source)
    folder = Path(source)
    if (folder / INFO).is_file() or not folder.is_dir():
        dataset = Dataset(source, split)
        places = {f"{number:08d}": number for number in range(len(dataset))}
        described = {"source": source, "split": split, "data": dataset.fingerprint}
        return Source(list(places), lambda name: dataset[places[name]], described)
    return Source(
        find_files(folder).things,
        lambda name: open_video(folder / name),
        {"source": str(folder.absolute())},
    )


def of_video(
    loaded: Loaded, record: Record, stride: int, batch_size: int, pool: str
) -> dict[str, np.ndarray]:
    """Returns the features of a video's clips, and when they are.

    Args:
      loaded: the model.
      record: the video.
      stride: frames from one clip to the next; 0 for their length.
      batch_size: clips at a time.
      pool: one of `POOLINGS`.
    """
    spec = experiment.clip_spec(loaded.config)
    clips = windows(record, spec, stride)

    def compute(video: UInt8[np.ndarray, "b T H W C"]) -> Float[Array, "b ..."]:
        return loaded.features(video, pool="mean" if pool == "mean" else None)

    return {
        "features": map_windows(compute, record, spec, clips.frames, batch_size),
        "start_s": clips.start_s,
        "end_s": clips.end_s,
        "id": np.array(record.id),
    }


if __name__ == "__main__":
    define_flags()
    cli.run(main)
