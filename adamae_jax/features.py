"""Writes features of videos: python -m adamae_jax.features --checkpoint=PATH ...

``--source=DIR`` is a folder of videos or a prepared dataset, ``--output=DIR`` takes one file for
each video, ``NAME.npz``. Clips cover each video from beginning to end; the file has ``features``
[W, D] (or [W, N, D] with --pool=none), and ``start_s`` and ``end_s`` [W], the seconds at which each
clip begins and ends. Started again, it goes on with the videos that have no file yet.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from jaxtyping import Float, UInt8
from tqdm import tqdm

from adamae_jax import cli, experiment, initial
from adamae_jax.data.damage import BadRecordError
from adamae_jax.data.examples import Record
from adamae_jax.data.records import INFO, Dataset
from adamae_jax.errors import UserError
from adamae_jax.loaded import Loaded
from adamae_jax.prepare.folders import find_files
from adamae_jax.training import files
from adamae_jax.video_files import open_video, windows

POOLINGS = ("mean", "none")


def define_flags() -> None:
    """Defines this job's options; importing the module does not."""
    text, number = flags.DEFINE_string, flags.DEFINE_integer
    text("checkpoint", None, "A run, a model or others' weights.", required=True)
    text("source", None, "A folder of videos, or a prepared dataset.", required=True)
    text("output", None, "Where the files go.", required=True)
    text("split", "train", "Of a dataset, the split.")
    flags.DEFINE_enum("pool", "mean", POOLINGS, "mean: one vector a clip. none: one a token.")
    number("stride", 0, "Video frames between clips; 0: they follow one another.", lower_bound=0)
    number("batch_size", 8, "Clips at a time.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    """Reads, computes and writes, video by video."""
    del argv
    values = flags.FLAGS
    loaded = initial.load(values.checkpoint)
    names, read = source_of(values.source, values.split)
    output = Path(values.output)
    own = names[jax.process_index() :: jax.process_count()]
    wanted = [name for name in own if not file_of(output, name).exists()]
    if len(wanted) < len(own):
        logging.info("%d of %d videos have their file already", len(own) - len(wanted), len(own))
    failed = 0
    for name in tqdm(wanted, unit="video", mininterval=1.0):
        try:
            found = of_video(loaded, read(name), values.stride, values.batch_size, values.pool)
        except (UserError, BadRecordError) as error:
            logging.warning("left out: %s", error)
            failed += 1
            continue
        try:
            write(file_of(output, name), found)
        except OSError as error:
            raise UserError(f"--output={output} cannot be written: {error.strerror}") from error
    if failed and failed == len(wanted):
        raise UserError(f"none of the {failed} videos could be read: see the warnings above")
    print(f"{len(own) - failed} videos in {output}" + (f"; {failed} left out" if failed else ""))


def source_of(source: str, split: str) -> tuple[list[str], Any]:
    """Returns the videos' names, and what reads one by its name.

    Raises:
      UserError: where there is nothing of the kind.
    """
    folder = Path(source)
    if (folder / INFO).is_file() or not folder.is_dir():
        dataset = Dataset(source, split)
        places = {f"{number:08d}": number for number in range(len(dataset))}
        return list(places), lambda name: dataset[places[name]]
    return find_files(folder).things, lambda name: open_video(folder / name)


def file_of(output: Path, name: str) -> Path:
    """Returns where the features of a video are kept."""
    return output / f"{name}.npz"


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
    clips = windows(record, experiment.clip_spec(loaded.config), stride)
    found = np.concatenate(list(_in_batches(loaded, clips.video, batch_size, pool)))
    return {
        "features": found,
        "start_s": clips.start_s,
        "end_s": clips.end_s,
        "id": np.array(record.id),
    }


def _in_batches(
    loaded: Loaded, video: UInt8[np.ndarray, "w T H W C"], batch_size: int, pool: str
) -> Iterator[Float[np.ndarray, "..."]]:
    for start in range(0, len(video), batch_size):
        batch = video[start : start + batch_size]
        # Filled up, so that all batches are of one compiled size.
        filled = np.resize(batch, (batch_size, *batch.shape[1:]))
        found = loaded.features(filled, pool="mean" if pool == "mean" else None)
        yield np.asarray(found)[: len(batch)]


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a file at once: it is whole, or not there."""
    data = io.BytesIO()
    np.savez(data, allow_pickle=False, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, data.getvalue())


if __name__ == "__main__":
    define_flags()
    cli.run(main)
