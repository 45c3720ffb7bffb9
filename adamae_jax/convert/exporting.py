"""Exports a model: python -m adamae_jax.convert export --source=DIR --output=FILE.pth.

The source is a run or a model directory. Formats: "authors" (a state dict with the authors' names,
in a .pth, or in a .safetensors where the output is called so) and "huggingface" (a directory for
transformers' from_pretrained).
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from adamae_jax import pretrained
from adamae_jax.errors import UserError
from adamae_jax.interop import exports


def define_flags() -> None:
    """Defines this command's options; importing the module does not."""
    text = flags.DEFINE_string
    text("source", None, "The workdir of a run, or a model directory.", required=True)
    text("output", None, "The file, or for huggingface the directory, to write.", required=True)
    flags.DEFINE_enum("format", "authors", ["authors", "huggingface"], "Whose form.")
    flags.DEFINE_integer("step", None, "Checkpoint of the run; the newest, if not given.")


def main(argv: Sequence[str]) -> None:
    """Loads, writes, and says what was done."""
    del argv
    values = flags.FLAGS
    loaded = pretrained.load(values.source, step=values.step)
    output = Path(values.output)
    remarks: list[str] = []
    if values.format == "huggingface":
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UserError(f"--output={output} is there already: give a directory that is not")
        remarks = exports.write_hugging_face(loaded, output)
    else:
        if output.is_dir():
            raise UserError(f"--output={output} is a directory: give a .pth or .safetensors file")
        exports.write_authors(loaded, output)
    for remark in remarks:
        print(f"note: {remark}")
    if loaded.license:
        print(f"license: {loaded.license}")
    print(output)
