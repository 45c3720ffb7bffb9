"""Exports a model: python -m adamae_jax.convert export --source=DIR --output=FILE.pth.

The source is a run or a model directory. Formats: "authors" (a state dict with the authors' names,
in a .pth, or in a .safetensors where the output is called so) and "huggingface" (a directory for
transformers' from_pretrained).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from adamae_jax import pretrained
from adamae_jax.convert.output import check_new, whole
from adamae_jax.errors import UserError
from adamae_jax.interop import exports, sources

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
SUFFIXES = (*TORCH_SUFFIXES, ".safetensors")


def define_flags() -> None:
    """Defines this command's options; importing the module does not."""
    text = flags.DEFINE_string
    text("source", None, "The workdir of a run, or a model directory.", required=True)
    text("output", None, "The file, or for huggingface the directory, to write.", required=True)
    flags.DEFINE_enum("format", "authors", ["authors", "huggingface"], "Whose form.")
    text("license", None, "Of weights that were trained here, such as apache-2.0.")
    flags.DEFINE_integer("step", None, "Checkpoint of the run; the newest, if not given.")


def main(argv: Sequence[str]) -> None:
    """Loads, writes, and says what was done."""
    del argv
    values = flags.FLAGS
    source, output = Path(values.source), Path(values.output)
    check_new(output)
    check_name(output, values.format)
    if source.is_file() or sources.is_hugging_face(source):
        raise UserError(
            f"--source={source} is a model in somebody else's form: import it first, and give the "
            "model directory, or the workdir of a run"
        )
    loaded = pretrained.load(source, step=values.step)
    if values.license:
        if loaded.license not in ("", values.license):
            raise UserError(
                f"--license={values.license}: {source} holds weights under the licence "
                f"{loaded.license}, which goes with them: leave --license out"
            )
        loaded = dataclasses.replace(loaded, license=values.license)
    with whole(output) as temporary:
        if values.format == "huggingface":
            remarks = exports.write_hugging_face(loaded, temporary)
        else:
            remarks = exports.write_authors(loaded, temporary)
    for remark in remarks:
        print(f"note: {remark}")
    print(f"license: {loaded.license or 'unknown; give --license for weights of your own'}")
    print(output)


def check_name(output: Path, form: str) -> None:
    """Raises a `UserError` where the output's name promises another form."""
    is_file = output.suffix in SUFFIXES
    if form == "huggingface" and is_file:
        raise UserError(f"--output={output} is called like a file: huggingface makes a directory")
    if form == "authors" and not is_file:
        raise UserError(
            f"--output={output} should be a file that ends in one of {', '.join(SUFFIXES)}: the "
            "last needs no PyTorch"
        )
