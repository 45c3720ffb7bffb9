"""Reads a model that others stored: weights under the authors' names, and what stands beside."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adamae_jax.errors import UserError
from adamae_jax.interop import huggingface, safetensors_files, torch_files
from adamae_jax.interop.architecture import DISCRIMINATOR, VIT, Given
from adamae_jax.interop.safetensors_files import StateDict

# What our own exports add: the content of model.json as a string, and in a Hugging Face directory
# the weights that its classes have no place for.
DESCRIPTION = "adamae_jax"
MASKING_FILE, DESCRIPTION_FILE = "adamae_jax_masking.safetensors", "adamae_jax.json"
MODEL_CARD = "README.md"


@dataclasses.dataclass(frozen=True)
class Source:
    """A stored model.

    Attributes:
      state: the weights under the authors' names; what the authors keep in other files has
        prefixes: ``discriminator.`` and ``pretrained_vit.``.
      given: what the files say beside the weights.
      label_names: of a classifier's classes, where they are known.
      license: where it is known.
      description: the content of ``model.json``, in files that this package wrote.
    """

    state: StateDict
    given: Given = dataclasses.field(default_factory=Given)
    label_names: tuple[str, ...] = ()
    license: str = ""
    description: Mapping[str, Any] | None = None


def read(path: str | Path, key: str | None = None) -> Source:
    """Reads a ``.safetensors`` file, a Hugging Face directory or, else, a PyTorch checkpoint.

    Args:
      path: the file or directory.
      key: of a PyTorch checkpoint with several state dicts, the one to read.

    Raises:
      UserError: where it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return _read_hugging_face(path)
    if path.suffix == ".safetensors":
        metadata = safetensors_files.read_metadata(path)
        state = without_duplicates(safetensors_files.read(path))
        description = _parse(metadata.get(DESCRIPTION), path)
        return _described(Source(state, license=metadata.get("license", "")), description)
    checkpoint = torch_files.read_checkpoint(path, key=key, beside=(DISCRIMINATOR[:-1], VIT[:-1]))
    state = dict(checkpoint.state)
    for name, arrays in checkpoint.beside.items():
        state |= {f"{name}.{part}": array for part, array in arrays.items()}
    return _described(
        Source(without_duplicates(state)), _parse(checkpoint.texts.get(DESCRIPTION), path)
    )


def without_duplicates(state: StateDict) -> StateDict:
    """Leaves out the second name that AutoMAE's discriminator has for its first convolution.

    Raises:
      UserError: where the two are not the same.
    """
    prefix = f"{DISCRIMINATOR}features."
    kept = {name: array for name, array in state.items() if not name.startswith(prefix)}
    for name in state.keys() - kept.keys():
        first = f"{DISCRIMINATOR}conv1.{name.removeprefix(prefix)}"
        if first not in state or state[first].tobytes() != state[name].tobytes():
            raise UserError(f"{name} should be a second name of {first}, and is another array")
    return kept


def _parse(text: str | None, path: Path) -> Mapping[str, Any] | None:
    """The description in a file; None where there is none."""
    if text is None:
        return None
    try:
        description = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: what it says of the model is no JSON ({error})") from error
    if not isinstance(description, dict):
        raise UserError(f"{path}: what it says of the model is no JSON object")
    return description


def _described(source: Source, description: Mapping[str, Any] | None) -> Source:
    if description is None:
        return source
    names = description.get("label_names", ())
    license = description.get("license", "")
    if not isinstance(license, str) or not all(isinstance(name, str) for name in names):
        raise UserError("the description of the model is damaged: license and label names are text")
    return dataclasses.replace(
        source,
        description=description,
        label_names=tuple(names) or source.label_names,
        license=license or source.license,
    )


def _read_hugging_face(directory: Path) -> Source:
    model = huggingface.read(directory)
    facts, state = model.facts, dict(model.state)
    is_classifier = facts.decoder is None
    if is_classifier and not facts.use_mean_pooling:
        raise UserError(
            f"{directory} classifies by the first token (use_mean_pooling is false): only the mean "
            "over tokens is supported"
        )
    masking = directory / MASKING_FILE
    if masking.is_file():
        state |= safetensors_files.read(masking, strip_prefixes=False)
    pixels = None
    if facts.pixel_mean is not None and facts.pixel_std is not None:
        pixels = (facts.pixel_mean, facts.pixel_std)
    normalized = "tubelet" if model.kind == "mae_pretraining" else "channel"
    given = Given(
        num_frames=facts.num_frames,
        image_size=facts.image_size,
        num_heads=facts.encoder.num_heads,
        decoder_num_heads=None if facts.decoder is None else facts.decoder.num_heads,
        mask_ratio=facts.mask_ratio,
        norm_epsilon=facts.norm_epsilon,
        classifier_norm_epsilon=facts.classifier_norm_epsilon,
        pixels=pixels,
        normalize_targets=normalized if facts.norm_pix_loss else "none",
    )
    source = Source(without_duplicates(state), given, facts.label_names, _card_license(directory))
    described = directory / DESCRIPTION_FILE
    return _described(source, _parse(_text(described), described))


def _text(path: Path) -> str | None:
    try:
        return path.read_text() if path.is_file() else None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _card_license(directory: Path) -> str:
    """The licence that a model card names in its front matter; "" where it names none."""
    text = _text(directory / MODEL_CARD) or ""
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:\s*(\S+)\s*$", front[1], re.MULTILINE) if front else None
    return found[1] if found else ""
