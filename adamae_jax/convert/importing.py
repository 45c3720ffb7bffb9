"""Imports a model: python -m adamae_jax.convert import --source=FILE --output=MODEL_DIR.

The source is a PyTorch checkpoint or a .safetensors file with the authors' names, or a Hugging Face
directory. The output is a model directory, for `load`, `visualize` and export.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from adamae_jax import licenses, pretrained
from adamae_jax.convert.classifier import into_classifier
from adamae_jax.convert.output import check_new, whole
from adamae_jax.errors import UserError
from adamae_jax.fields import FIELDS
from adamae_jax.interop import architecture, imports, resizing, sources
from adamae_jax.interop.imports import Imported
from adamae_jax.interop.sources import Source
from adamae_jax.interop.systems import GENERATOR, VIT

# Fields of `ImportOptions` that have a flag of the same name.
OPTIONS = (
    *("num_frames", "num_heads", "decoder_num_heads", "sampler_num_heads"),
    *("mask_ratio", "norm_epsilon", "sampling_rate", "frame_sampling"),
)

MOST_CLASSES = 2**20  # a typing error must not fill the memory


def define_flags() -> None:
    """Defines this command's options; importing the module does not."""
    text, number = flags.DEFINE_string, flags.DEFINE_integer
    text("source", None, "A .pth or .safetensors file, or a Hugging Face directory.", required=True)
    text("output", None, "The model directory to make.", required=True)
    text("key", None, "Of a .pth with several state dicts: which, such as model_ema.")
    number("num_frames", None, "Frames of a clip, where the weights do not tell.", lower_bound=1)
    flags.DEFINE_list("image_size", None, "Height,width in pixels, or one number for both.")
    for name in ("num_heads", "decoder_num_heads", "sampler_num_heads"):
        number(name, None, "Attention heads, where the weights do not tell.", lower_bound=1)
    real = functools.partial(flags.DEFINE_float, lower_bound=0.0, upper_bound=1.0)
    real("mask_ratio", None, "Share of masked tokens; the authors', if not given.")
    real("norm_epsilon", None, "Of the layer norms; the authors', if not given.")
    number("sampling_rate", None, "Video frames from one clip frame to the next.", lower_bound=1)
    samplings = list(FIELDS["data.frame_sampling"].choices)
    flags.DEFINE_enum("frame_sampling", None, samplings, "How a clip's frames are chosen.")
    text("pretrained_vit", None, "Of AutoMAE: the checkpoint of the image MAE that it reads.")
    number("num_classes", None, "Make a classifier: its classes.", 1, upper_bound=MOST_CLASSES)
    number("seed", 0, "Of what starts fresh in a classifier.", 0, upper_bound=2**32 - 1)
    text("label_names", None, "A file with one class name per line.")
    text("license", None, "Of the weights, to be kept with them, such as cc-by-nc-4.0.")
    number("to_num_frames", None, "Interpolate position tables to so many frames.", lower_bound=1)
    flags.DEFINE_list("to_image_size", None, "Interpolate position tables to height,width.")


def main(argv: Sequence[str]) -> None:
    """Reads, checks, converts, and says what was done."""
    del argv
    values = flags.FLAGS
    output = Path(values.output)
    check_new(output)
    imported = convert(values)
    with whole(output) as temporary:
        pretrained.save(
            temporary,
            imported.variables,
            imported.config,
            imported.step,
            imported.label_names,
            imported.license,
        )
    for remark in (*imported.clip_remarks, *imported.remarks):
        print(f"note: {remark}")
    print(f"license: {imported.license or 'unknown; give --license where you know it'}")
    print(output)


def convert(values: Any) -> Imported:
    """Returns the imported model, as the flags describe it."""
    source = with_options(sources.read(values.source, values.key), values)
    # Of this file: what is known of the frozen ViT's licence stays beside it.
    source = dataclasses.replace(source, license=values.license or source.license)
    if values.pretrained_vit:
        source = with_vit(source, values.pretrained_vit)
    imported = imports.convert(source)
    if values.to_num_frames or values.to_image_size:
        size = image_size(values.to_image_size, "to_image_size")
        imported = resizing.resize(imported, values.to_num_frames, size)
    if values.num_classes:
        imported = into_classifier(imported, values.num_classes, values.seed)
    elif imported.kind == "encoder":
        raise encoder_alone(values.source, imported)
    if values.label_names:
        if imported.kind != "classifier":
            raise UserError(
                f"--label_names={values.label_names} names classes, and the model has none: give "
                "--num_classes, or leave it out"
            )
        imported = imports.with_label_names(imported, label_names(Path(values.label_names)))
    return imported


def encoder_alone(source: str, imported: Imported) -> UserError:
    """Returns the error that an encoder without a decoder is no model, and says what it can be."""
    message = (
        f"{source} holds an encoder alone, without what pretraining needs: give --num_classes to "
        "make a classifier of it"
    )
    if imported.dialect.is_image:
        message += (
            ", or give it as --pretrained_vit in importing a finished AutoMAE; to train one "
            "(masking.options.pretrained), import an image MAE with its decoder, such as Hugging "
            "Face's facebook/vit-mae-base"
        )
    return UserError(message)


def with_options(source: Source, values: Any) -> Source:
    """Returns the source with what the flags say of its model.

    Raises:
      UserError: where the source says so itself, or something else.
    """
    options = {name: getattr(values, name) for name in OPTIONS}
    options["image_size"] = image_size(values.image_size, "image_size")
    given = {name: value for name, value in options.items() if value is not None}
    if given and source.description is not None:
        names = ", ".join(f"--{name}" for name in given)
        raise UserError(
            f"{values.source} describes its model itself: leave {names} out "
            "(--to_num_frames and --to_image_size change the size)"
        )
    for name, value in given.items():
        found = getattr(source.options, name)
        if found not in (None, value):
            raise UserError(
                f"{values.source} says that {name} is {found}, not {value}: leave --{name} out"
            )
    return dataclasses.replace(source, options=dataclasses.replace(source.options, **given))


def image_size(words: list[str] | None, flag: str) -> tuple[int, int] | None:
    """Returns height and width from a flag."""
    if words is None:
        return None
    given = f"--{flag}={','.join(words)}"
    try:
        height, width = (int(word) for word in (words * 2 if len(words) == 1 else words))
    except ValueError as error:
        raise UserError(f"{given} should be height,width in pixels, such as 224,224") from error
    if min(height, width) < 1:
        raise UserError(f"{given} should be positive: height,width in pixels, such as 224,224")
    return height, width


def with_vit(source: Source, path: str) -> Source:
    """Returns the source with the encoder of an image MAE beside it, and under its licence too.

    What the MAE's file says of it goes along: it is checked when the model is inferred.

    Raises:
      UserError: where the source is no AutoMAE, or has the encoder already, or ``path`` is another
        model.
    """
    if not any(name.startswith(GENERATOR) for name in source.state):
        raise UserError(f"the source is no AutoMAE: leave --pretrained_vit={path} out")
    if any(name.startswith(VIT) for name in source.state):
        raise UserError(f"the source has a frozen ViT already: leave --pretrained_vit={path} out")
    image_mae = sources.read(path)
    system, kind = architecture.detect(image_mae.state)
    if system != "mae" or kind == "classifier":
        raise UserError(
            f"--pretrained_vit={path} holds a model of {system} ({kind}): AutoMAE's frozen ViT is "
            "the encoder of a pretrained image MAE; give its checkpoint"
        )
    encoder = {
        name: array
        for name, array in image_mae.state.items()
        if not name.startswith(("decoder_", "mask_token"))
    }
    state = {**source.state, **{VIT + name: array for name, array in encoder.items()}}
    license = licenses.together(source.license, image_mae.license)
    options = dataclasses.replace(source.options, vit=imports.encoder_options(image_mae))
    return dataclasses.replace(source, state=state, options=options, license=license)


def label_names(path: Path) -> tuple[str, ...]:
    """Returns the names in a file with one per line."""
    try:
        return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    except (OSError, ValueError) as error:
        raise UserError(f"--label_names={path} cannot be read: {error}") from error
