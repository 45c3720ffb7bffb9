r"""Makes a dataset to train on: of videos, of folders of frames, of images, or the embedded one.

    python -m adamae_jax.prepare --source=FOLDER --output=DIR
    python -m adamae_jax.prepare --source=FOLDER --class_folders --output=DIR
    python -m adamae_jax.prepare --source=FOLDER --list=train=train.csv --list=validation=val.csv \
        --output=DIR
    python -m adamae_jax.prepare --source=FOLDER --frame_folders --rate=25 --output=DIR
    python -m adamae_jax.prepare --tfds=FOLDER --output=DIR
    python -m adamae_jax.prepare --embedded=demo --output=DIR

DIR then holds shards that `tfds.builder_from_directory` opens, ``prepare.json``, which says what
they were made with, and ``skipped.csv``, which lists what could not be read. A killed job leaves no
DIR, and the same command continues where it was; with other options it does not start, so that
shards that are finished are left as they are, as is a whole dataset.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from adamae_jax.data import schema, storage
from adamae_jax.data.schema import FILE_FORMATS, TFRECORD
from adamae_jax.errors import UserError
from adamae_jax.prepare import embedded, examples
from adamae_jax.prepare.beam import BeamOptions
from adamae_jax.prepare.build import MAX_SECONDS, Engine, Output, Plan, build
from adamae_jax.prepare.find import Found, find_source
from adamae_jax.prepare.pool import num_cores
from adamae_jax.prepare.sources import text_of
from adamae_jax.prepare.transform import Recipe, reader

_SOURCES = ("source", "tfds", "embedded")
# Which options say something about which of the sources.
_FILE_OPTIONS = (
    "class_folders", "frame_folders", "frame_names", "images", "list", "labels",
    "validation_fraction",
)  # fmt: skip
_RECIPE_OPTIONS = (
    "codec", "short_side", "min_frames", "max_skipped", "shard_mb", "file_format", "beam_runner",
    "beam_options", "max_seconds_per_video",
)  # fmt: skip
_FOREIGN = {
    "source": ("seed",),
    "tfds": ("seed", *_FILE_OPTIONS),
    "embedded": ("rate", *_FILE_OPTIONS, *_RECIPE_OPTIONS),
}


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines this job's options. Importing the module does not: other jobs have their own."""
    recipe, output = Recipe(), Output(Path())
    text, number = flags.DEFINE_string, flags.DEFINE_integer
    text("output", None, "folder to write; must not exist, or be empty", values)
    text("source", None, "folder to make a dataset of: videos, folders of frames or images", values)
    text("tfds", None, "folder of a dataset that TFDS prepared, to make one of", values)
    text("embedded", None, "write the embedded dataset: demo, medium or large", values)
    number("seed", 0, "of the embedded dataset", flag_values=values)
    flags.DEFINE_multi_string(
        "list", [], "SPLIT=FILE, or SPLIT=PATTERN of several: the videos of a split, in --source; "
        "may be repeated",
        flag_values=values,
    )  # fmt: skip
    text("labels", None, "file with the classes of the lists, one a line or as JSON", values)
    flags.DEFINE_boolean(
        "class_folders", False, "the folder of each file is its class", flag_values=values
    )
    flags.DEFINE_boolean(
        "frame_folders", False, "--source holds folders of numbered images, each of them a video",
        flag_values=values,
    )  # fmt: skip
    text(
        "frame_names", "", "pattern of the images of --frame_folders that are frames, in quotes: "
        "'img_*.jpg'; empty: all",
        values,
    )  # fmt: skip
    flags.DEFINE_boolean("images", False, "--source holds images", flag_values=values)
    flags.DEFINE_float(
        "validation_fraction", 0.1, "share of each class for validation, where nothing says which",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "rate", 0.0, "frames per second of --frame_folders, and of the videos of --tfds whose "
        "records do not say; 0: not known",
        flag_values=values,
    )  # fmt: skip
    text("codec", recipe.codec, f"how frames are stored: {', '.join(schema.CODECS)}", values)
    number(
        "short_side", recipe.short_side, "height or width of frames, the smaller of the two",
        flag_values=values,
    )  # fmt: skip
    number("min_frames", recipe.min_frames, "leave out shorter videos", flag_values=values)
    flags.DEFINE_float(
        "max_skipped", output.max_skipped, "fraction of files that may be left out",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "max_seconds_per_video", MAX_SECONDS,
        "leave out what takes longer to read: a decoder that hangs, a film of many hours",
        flag_values=values,
    )  # fmt: skip
    number("shard_mb", output.shard_mb, "size of a shard in MB, about", flag_values=values)
    text("file_format", TFRECORD, f"of the shards: {' or '.join(FILE_FORMATS)}", values)
    text("beam_runner", None, "let Apache Beam do the work: DirectRunner, for instance", values)
    text("beam_options", "", "of Apache Beam, in one string: '--region=... --project=...'", values)
    number("num_workers", num_cores(), "processes that read or make clips", flag_values=values)


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """Does what the options ask for.

    Raises:
        UserError: what is asked for makes no sense or cannot be done; see `build`.
    """
    del argv
    kinds = [name for name in _SOURCES if values[name].value is not None]
    if len(kinds) != 1:
        raise UserError(
            "give one of --source=FOLDER, --tfds=FOLDER and --embedded=demo|medium|large"
        )
    for name, why in _useless_options(values, kinds[0]):
        if values[name].present:
            raise UserError(f"--{name} means nothing with {why}: leave it out")
    for name in ("source", "tfds", "output"):
        if storage.is_remote(values[name].value or ""):
            raise UserError(
                f"--{name}={values[name].value} is an address, but folders are needed here: mount "
                "the bucket and give its folder (training reads gs:// and s3:// as they are, so "
                "a finished dataset may also be copied there)"
            )
    if not values.output:
        raise UserError("--output=DIR is missing: give a folder to write")
    if values.num_workers < 0:
        raise UserError(f"--num_workers={values.num_workers} must be 0 or more")
    destination = Path(values.output).absolute()
    if values.embedded is not None:
        embedded.prepare(values.embedded, destination, values.seed, values.num_workers)
        return
    output = Output(destination, values.max_skipped, values.shard_mb, values.file_format)
    on_beam = None
    if values.beam_runner is not None:
        on_beam = BeamOptions(values.beam_runner, values.beam_options, values.num_workers)
    engine = Engine(values.num_workers, on_beam, values.max_seconds_per_video)
    found = find_source(values)
    recipe = Recipe(
        values.codec,
        values.short_side,
        values.min_frames,
        found.images,
        found.stored,
        found.frame_folders,
    )
    if destination.resolve().is_relative_to(found.root.resolve()):
        raise UserError(f"--output={destination} lies inside --source={found.root}: choose another")
    build(_plan(found, recipe), output, engine)


def _useless_options(values: flags.FlagValues, kind: str) -> Iterator[tuple[str, str]]:
    """Yields options that mean nothing beside others, and what these are."""
    yield from ((name, f"--{kind}") for name in _FOREIGN[kind])
    if values.frame_folders:
        yield "images", "--frame_folders"
    elif kind == "source":
        yield from ((name, "videos, without --frame_folders") for name in ("frame_names", "rate"))
    if values.images:
        yield "min_frames", "--images"
    if values.codec == schema.CODEC_ORIGINAL:
        yield "short_side", "--codec=original"
    if values.beam_runner is None:
        yield "beam_options", "no --beam_runner"
        if not values.num_workers:  # no process that could be ended
            yield "max_seconds_per_video", "--num_workers=0"


def _plan(found: Found, recipe: Recipe) -> Plan:
    names = found.source.label_names
    return Plan(
        name="images" if recipe.images else "videos",
        thing="image" if recipe.images else "video",
        source=text_of(str(found.root)),
        items=found.source.items,
        read=reader(recipe),
        features=examples.image_features(names)
        if recipe.images
        else examples.features(names, codec=recipe.codec),
        arguments={**found.fingerprint(), **dataclasses.asdict(recipe)},
    )
