"""Makes a dataset to train on: of a folder of videos, or the embedded one.

    python -m adamae_jax.prepare --source=FOLDER --output=DIR
    python -m adamae_jax.prepare --embedded=demo --output=DIR

DIR then holds TFRecord shards that `tfds.builder_from_directory` opens, and ``prepare.json``, which
says what they were made with; for a folder of videos also ``skipped.csv``, which lists what could
not be read. A killed job leaves no DIR; one that is finished already is left as it is.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import tqdm
from absl import flags

from adamae_jax.cli import run
from adamae_jax.data import output, synthetic, video_folder, writer
from adamae_jax.data.parallel import num_cores
from adamae_jax.errors import UserError

SKIPPED_NAME = "skipped.csv"
_MOST_NAMED = 30  # videos that an error message names


@dataclasses.dataclass(frozen=True)
class FolderOptions:
    """What determines the dataset that a folder of videos becomes.

    Attributes:
        max_skipped: fraction of the videos that may be left out.
        min_frames: videos with fewer frames are left out.
        validation_fraction: share of the videos in the validation split, at least one.
        short_side: of the stored frames, in pixels; smaller videos keep their size.

    Raises:
        UserError: a value that makes no sense.
    """

    max_skipped: float = 0.01
    min_frames: int = 16
    validation_fraction: float = 0.1
    short_side: int = 256

    def __post_init__(self) -> None:
        """Checks the values."""
        if not 0 <= self.max_skipped <= 1:
            raise UserError(f"--max_skipped={self.max_skipped} must be a fraction from 0 to 1")
        if self.min_frames < 1:
            raise UserError(f"--min_frames={self.min_frames} must be 1 or more")
        if not 0 < self.validation_fraction < 1:
            raise UserError(
                f"--validation_fraction={self.validation_fraction} must be a fraction between 0 "
                "and 1, neither of them"
            )
        if self.short_side < 16:
            raise UserError(f"--short_side={self.short_side} must be 16 pixels or more")


_FOLDER_FLAGS = [field.name for field in dataclasses.fields(FolderOptions)]


def prepare_embedded(name: str, destination: Path, seed: int = 0, num_workers: int = 0) -> None:
    """Writes the embedded dataset.

    Args:
        name: of a size in `synthetic.SIZES`.
        destination: folder to make; if it holds this dataset already, nothing is done.
        seed: of the clips; not negative.
        num_workers: processes that make clips; 0 makes them in this one.

    Raises:
        UserError: bad arguments, or `destination` holds something else.
    """
    if name not in synthetic.SIZES:
        raise UserError(f"--embedded={name} is unknown: choose {' or '.join(synthetic.SIZES)}")
    if seed < 0:
        raise UserError(f"--seed={seed} must be 0 or more")
    arguments = {"embedded": name, "seed": seed}
    if output.already_written(destination, arguments):
        print(f"{destination} already holds this dataset: nothing to do")
        return
    with output.workspace(destination) as workspace:
        builder = writer.MovingObjects(
            config=name, data_dir=workspace, seed=seed, num_workers=num_workers
        )
        built, counts = writer.write(builder)
        output.publish(built, destination, arguments, clips=counts)
    print(f"wrote {destination}: {_describe(counts)}")


def prepare_folder(
    source: Path, destination: Path, options: FolderOptions, num_workers: int = 0
) -> None:
    """Turns a folder of videos into a dataset with a training and a validation split.

    Args:
        source: searched with all folders in it.
        destination: folder to make, not inside `source`; if it holds this dataset already, nothing
            is done.
        options: what is kept, and how.
        num_workers: processes that read videos; 0 reads in this one.

    Raises:
        UserError: nothing to read, too much that cannot be read, or `destination` holds something
            else.
    """
    paths = video_folder.find_videos(source)
    if destination.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--output={destination} lies inside --source={source}: choose another one")
    arguments = {
        "source": str(source.resolve()),
        "files": _fingerprint(source, paths),
        **dataclasses.asdict(options),
    }
    if output.already_written(destination, arguments):
        print(f"{destination} already holds this dataset: nothing to do")
        return
    print(f"reading {_count(len(paths), 'video')} from {source}")
    flaws: list[video_folder.Flaw] = []
    with output.workspace(destination) as workspace:
        built, counts = _write_videos(source, paths, options, num_workers, workspace, flaws)
        video_folder.write_flaws(flaws, built / SKIPPED_NAME)
        output.publish(built, destination, arguments, clips=counts)
    _summarise(flaws, destination)
    print(f"wrote {destination}: {_describe(counts)}")


def _write_videos(
    source: Path,
    paths: Sequence[str],
    options: FolderOptions,
    num_workers: int,
    workspace: Path,
    flaws: list[video_folder.Flaw],
) -> tuple[Path, dict[str, int]]:
    """Reads and writes all videos; returns as `writer.write` does, and adds to `flaws`."""
    ordered = video_folder.in_hash_order(paths)
    read = video_folder.read_videos(
        source, ordered, options.short_side, options.min_frames, num_workers, flaws
    )
    bar = tqdm.tqdm(read, "reading videos", len(paths), disable=None)  # on a terminal only
    examples = (
        writer.make_example(identity, video.frames, video.rate, video.height, video.width)
        for identity, video in filter(None, bar)
    )
    validation = max(1, round(options.validation_fraction * len(paths)))
    splits = video_folder.split(examples, validation)
    if splits:
        written = writer.write(writer.VideoFolder(splits=splits, data_dir=workspace))
    bar.close()
    _refuse_if_too_many(flaws, len(paths), options.max_skipped)
    if not splits:
        raise UserError(f"none of the {_count(len(paths), 'video')} can be used:{_list(flaws)}")
    return written


def _refuse_if_too_many(
    flaws: Sequence[video_folder.Flaw], num_videos: int, max_skipped: float
) -> None:
    skipped = [flaw for flaw in flaws if flaw.status == "skipped"]
    fraction = len(skipped) / num_videos
    if fraction > max_skipped:
        raise UserError(
            f"{len(skipped)} of {_count(num_videos, 'video')} cannot be used, a fraction of "
            f"{fraction:.3f}, more than --max_skipped={max_skipped:g}; nothing was written; "
            f"mend or remove them, or raise it:{_list(skipped)}"
        )


def _list(flaws: Sequence[video_folder.Flaw]) -> str:
    named = [f" {flaw.id} ({flaw.reason})" for flaw in sorted(flaws, key=lambda flaw: flaw.id)]
    more = [f" and {len(named) - _MOST_NAMED} more"] if len(named) > _MOST_NAMED else []
    return ";".join(named[:_MOST_NAMED] + more)


def _summarise(flaws: Sequence[video_folder.Flaw], destination: Path) -> None:
    for status, meaning in (("skipped", "left out"), ("truncated", "kept up to their damage")):
        concerned = [flaw for flaw in flaws if flaw.status == status]
        if concerned:
            where = destination / SKIPPED_NAME
            print(f"{meaning} (see {where}): {_count(len(concerned), 'video')}:{_list(concerned)}")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _describe(counts: dict[str, int]) -> str:
    return ", ".join(f"{_count(count, 'clip')} for {name}" for name, count in counts.items())


def _fingerprint(source: Path, paths: Sequence[str]) -> str:
    """Changes when files come, go or change their size."""
    listing = "\n".join(f"{path}\t{(source / path).stat().st_size}" for path in paths)
    return hashlib.sha256(os.fsencode(listing)).hexdigest()


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines this job's options. Importing the module does not: other jobs have their own."""
    defaults = FolderOptions()
    flags.DEFINE_string("source", None, "folder of videos to make a dataset of", values)
    flags.DEFINE_string("embedded", None, "write the embedded dataset: demo or large", values)
    flags.DEFINE_string("output", None, "folder to write; must not exist, or be empty", values)
    flags.DEFINE_integer("seed", 0, "of the embedded dataset", flag_values=values)
    flags.DEFINE_float(
        "max_skipped", defaults.max_skipped, "fraction of videos that may be left out",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "min_frames", defaults.min_frames, "leave out videos with fewer frames", flag_values=values
    )
    flags.DEFINE_float(
        "validation_fraction", defaults.validation_fraction, "share of videos for validation",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "short_side", defaults.short_side, "height or width of frames, the smaller of the two",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "num_workers", num_cores(), "processes that read or make clips", flag_values=values
    )


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """Does what the options ask for.

    Raises:
        UserError: see `prepare_embedded` and `prepare_folder`; also options that do not fit
            together.
    """
    del argv
    if (values.source is None) == (values.embedded is None):
        raise UserError("give either --source=FOLDER or --embedded=demo (or large)")
    if not values.output:
        raise UserError("--output=DIR is missing: give a folder to write")
    if values.num_workers < 0:
        raise UserError(f"--num_workers={values.num_workers} must be 0 or more")
    destination = Path(values.output).absolute()
    if values.embedded is not None:
        _refuse_foreign(values, "--embedded", _FOLDER_FLAGS)
        prepare_embedded(values.embedded, destination, values.seed, values.num_workers)
        return
    _refuse_foreign(values, "--source", ["seed"])
    options = FolderOptions(
        max_skipped=values.max_skipped,
        min_frames=values.min_frames,
        validation_fraction=values.validation_fraction,
        short_side=values.short_side,
    )
    prepare_folder(Path(values.source), destination, options, values.num_workers)


def _refuse_foreign(values: flags.FlagValues, kind: str, names: Sequence[str]) -> None:
    for name in names:
        if values[name].present:
            raise UserError(f"--{name} means nothing with {kind}: leave it out")


if __name__ == "__main__":
    define_flags()
    run(main)
