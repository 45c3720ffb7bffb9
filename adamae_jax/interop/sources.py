"""Reads a model that others stored: weights under the authors' names, and what stands beside."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adamae_jax import pretrained
from adamae_jax.errors import UserError
from adamae_jax.interop import huggingface, huggingface_files, safetensors_files, torch_files
from adamae_jax.interop.given import Given
from adamae_jax.interop.huggingface import Facts, Kind
from adamae_jax.interop.huggingface_facts import FC_NORM_EPSILON
from adamae_jax.interop.safetensors_files import StateDict
from adamae_jax.interop.systems import DISCRIMINATOR, VIT

# What our own exports add: the content of model.json as a string, and in a Hugging Face directory
# the weights that its classes have no place for.
DESCRIPTION = "adamae_jax"
MASKING_FILE, DESCRIPTION_FILE = "adamae_jax_masking.safetensors", "adamae_jax.json"
MODEL_CARD, CONFIG_DIGEST = "README.md", "config_sha256"


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
    if not path.exists():
        raise UserError(f"{path} does not exist: give a file of weights, or a directory of them")
    is_torch = not path.is_dir() and path.suffix != ".safetensors"
    if key is not None and not is_torch:
        raise UserError(f"--key={key} is for PyTorch checkpoints, and {path} is none: leave it out")
    if path.name == pretrained.MODEL_ARRAYS and (path.parent / pretrained.MODEL_JSON).is_file():
        _check_foreign(path.parent)
    if path.is_dir():
        _check_foreign(path)
        return _read_hugging_face(path)
    if not is_torch:
        state = without_duplicates(safetensors_files.read(path))
        metadata = safetensors_files.read_metadata(path)
        description = _parse(metadata.get(DESCRIPTION), path)
        return _described(Source(state, license=metadata.get("license", "")), description)
    checkpoint = torch_files.read_checkpoint(path, key=key, beside=(DISCRIMINATOR[:-1], VIT[:-1]))
    state = dict(checkpoint.state)
    for name, arrays in checkpoint.beside.items():
        state |= {f"{name}.{part}": array for part, array in arrays.items()}
    return _described(
        Source(without_duplicates(state)), _parse(checkpoint.texts.get(DESCRIPTION), path)
    )


def is_hugging_face(path: Path) -> bool:
    """Whether a directory is a Hugging Face model: its ``config.json`` names a class."""
    config = path / huggingface.CONFIG
    return config.is_file() and "architectures" in huggingface_files.read_json(config)


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
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: what it says of the model is no JSON ({error})") from error
    if not isinstance(description, dict):
        raise UserError(f"{path}: what it says of the model is no JSON object")
    return description


def _described(source: Source, description: Mapping[str, Any] | None) -> Source:
    if description is None:
        return source
    names, license = description.get("label_names", []), description.get("license", "")
    is_text = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not is_text or not isinstance(license, str):
        raise UserError("the description of the model is damaged: license and label names are text")
    return dataclasses.replace(
        source,
        description=description,
        label_names=tuple(names),
        license=license or source.license,
    )


def _check_foreign(directory: Path) -> None:
    """Raises a `UserError` for a directory of our own."""
    ours = (directory / pretrained.MODEL_JSON, directory / pretrained.CONFIG_JSON)
    if ours[0].is_file() or (ours[1].is_file() and not is_hugging_face(directory)):
        what = "model directory" if ours[0].is_file() else "run"
        raise UserError(
            f"{directory} is a {what} of this package, which every job reads as it is: import is "
            "for the files of others"
        )


def _read_hugging_face(directory: Path) -> Source:
    model = huggingface.read(directory)
    facts, state = model.facts, dict(model.state)
    masking = directory / MASKING_FILE
    if masking.is_file():
        state |= safetensors_files.read(masking, strip_prefixes=False)
    names = () if is_placeholder(facts.label_names) else facts.label_names
    given = given_of(model.kind, facts)
    source = Source(without_duplicates(state), given, names, _card_license(directory))
    described = directory / DESCRIPTION_FILE
    description = _parse(_text(described), described)
    if description is not None:
        if description.get(CONFIG_DIGEST) != config_digest(directory):
            raise UserError(
                f"{directory / huggingface.CONFIG} is not the one that {described.name} was "
                f"written beside: remove {described}, to import what transformers says of the model"
            )
        return _described(source, description)
    return source


def given_of(kind: Kind, facts: Facts) -> Given:
    """What a Hugging Face directory says beside the weights."""
    pixels = None
    if facts.pixel_mean is not None and facts.pixel_std is not None:
        pixels = (facts.pixel_mean, facts.pixel_std)
    normalized = "tubelet" if kind == "mae_pretraining" else "channel"
    last = FC_NORM_EPSILON if kind == "videomae_pretraining" else facts.norm_epsilon
    return Given(
        num_frames=facts.num_frames,
        image_size=facts.image_size,
        num_heads=facts.encoder.num_heads,
        decoder_num_heads=None if facts.decoder is None else facts.decoder.num_heads,
        mask_ratio=facts.mask_ratio,
        norm_epsilon=facts.norm_epsilon,
        decoder_norm_epsilon=last,
        classifier_norm_epsilon=facts.classifier_norm_epsilon,
        pixels=pixels,
        normalize_targets=normalized if facts.norm_pix_loss else "none",
    )


def config_digest(directory: Path) -> str:
    """Of ``config.json``: where transformers saves over our export, our description is stale."""
    return hashlib.sha256((directory / huggingface.CONFIG).read_bytes()).hexdigest()


def decoder_remarks(kind: Kind, norm_epsilon: float) -> tuple[str, ...]:
    """What one layer norm of theirs, whose epsilon no config changes, does otherwise.

    `VideoMAEForPreTraining` makes its decoder's last norm with PyTorch's default, as
    `VideoMAEForVideoClassification` its ``fc_norm``; the authors have one for all norms.
    """
    if kind != "videomae_pretraining" or math.isclose(norm_epsilon, FC_NORM_EPSILON):
        return ()
    return (
        f"{huggingface.CLASSES[kind]} has the epsilon {FC_NORM_EPSILON:g} in decoder.norm, this "
        f"model {norm_epsilon:g}: its predictions differ slightly",
    )


def placeholders(num_classes: int) -> tuple[str, ...]:
    """The names that Hugging Face gives to classes without names."""
    return tuple(f"LABEL_{label}" for label in range(num_classes))


def is_placeholder(names: tuple[str, ...]) -> bool:
    """Whether these names say nothing."""
    return names == placeholders(len(names))


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _card_license(directory: Path) -> str:
    """The licence that a model card names in its front matter; "" where it names none."""
    text = _text(directory / MODEL_CARD) or ""
    front = re.match(r"---[ \t]*\n(.*?)\n---", text, re.DOTALL)
    lines = front[1].splitlines() if front else []
    fields = dict(re.findall(r"^(license(?:_name)?):[ \t]*(\S.*?)[ \t]*$", "\n".join(lines), re.M))
    license, name = (_scalar(fields.get(field, "")) for field in ("license", "license_name"))
    # "other" is followed by a name of the authors' own.
    return name or license if license == "other" else license


def _scalar(text: str) -> str:
    """One line of YAML: in double quotes as JSON has it, in single ones or in none."""
    if double := re.match(r'"(?:[^"\\]|\\.)*"', text):
        try:
            return str(json.loads(double[0]))
        except ValueError:  # escapes that YAML has and JSON has not
            return double[0][1:-1]
    if single := re.match(r"'((?:[^']|'')*)'", text):
        return single[1].replace("''", "'")
    return re.sub(r"(?:^|\s+)#.*", "", text)
