"""Reads a model that others stored: weights under the authors' names, and what is said beside them.

A source is a PyTorch checkpoint, a ``.safetensors`` file or a Hugging Face directory. Those that
this package wrote also have a description, the content of ``model.json``.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from adamae_jax import licenses, pretrained
from adamae_jax.data import storage
from adamae_jax.errors import UserError
from adamae_jax.interop import files, huggingface
from adamae_jax.interop.files import StateDict
from adamae_jax.interop.huggingface import HuggingFaceModel
from adamae_jax.interop.systems import DISCRIMINATOR, VIT
from adamae_jax.interop.weight_reader import ImportOptions
from adamae_jax.training.files import AnyPath

# Where our exports keep the description: a string in a file, a file in a Hugging Face directory,
# beside the weights that its classes have no place for.
DESCRIPTION = "adamae_jax"
DESCRIPTION_FILE, MASKING_FILE = "adamae_jax.json", "adamae_jax_masking.safetensors"
MODEL_CARD, CONFIG_DIGEST = "README.md", "config_sha256"


@dataclasses.dataclass(frozen=True)
class Source:
    """A stored model.

    Attributes:
      state: the weights under the authors' names; what the authors keep in other files has
        prefixes: ``discriminator.`` and ``pretrained_vit.``.
      options: what the files say beside the weights.
      label_names: of a classifier's classes, where they are known.
      license: where it is known; "" otherwise.
      description: the content of ``model.json``, in files that this package wrote.
      hugging_face: what a Hugging Face directory holds, where it is one.
    """

    state: StateDict
    options: ImportOptions = dataclasses.field(default_factory=ImportOptions)
    label_names: tuple[str, ...] = ()
    license: str = ""
    description: Mapping[str, Any] | None = None
    hugging_face: HuggingFaceModel | None = None


def read(path: str | AnyPath, key: str | None = None) -> Source:
    """Reads a ``.safetensors`` file, a Hugging Face directory or, else, a PyTorch checkpoint.

    Args:
      path: the file or directory.
      key: of a PyTorch checkpoint with several state dicts, the one to read.

    Raises:
      UserError: where it cannot be read.
    """
    if storage.is_remote(path):
        raise UserError(
            f"{path} holds no run and no model directory of ours, and weights of others are read "
            "from local disks only: copy them to one"
        )
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: give a file of weights, or a directory of them")
    is_torch = not path.is_dir() and path.suffix != ".safetensors"
    if key is not None and not is_torch:
        raise UserError(f"--key={key} is for PyTorch checkpoints, and {path} is none: leave it out")
    _check_foreign(path if path.is_dir() or path.name != pretrained.MODEL_ARRAYS else path.parent)
    if path.is_dir():
        return _read_hugging_face(path)
    if not is_torch:
        state = files.strip_prefixes(files.read_safetensors(path))
        texts = files.read_metadata(path)
    else:
        checkpoint = files.read_torch(path, key, beside=(DISCRIMINATOR[:-1], VIT[:-1]))
        state, texts = files.strip_prefixes(checkpoint.state), dict(checkpoint.texts)
        for name, arrays in checkpoint.beside.items():
            stripped = files.strip_prefixes(arrays)
            state |= {f"{name}.{part}": array for part, array in stripped.items()}
    state, options = _with_mae_st_names(_without_second_names(state))
    source = Source(state, options, license=texts.get("license", ""))
    return _with_description(source, texts.get(DESCRIPTION), path)


def is_hugging_face(path: AnyPath) -> bool:
    """Returns whether a local directory is one: its ``config.json`` names a class."""
    config = path / huggingface.CONFIG
    return (
        isinstance(config, Path) and config.is_file() and "architectures" in files.read_json(config)
    )


def config_digest(directory: Path) -> str:
    """Returns the digest of a Hugging Face directory's ``config.json``.

    Where it is not the one that our export wrote, transformers has saved another model there.
    """
    return hashlib.sha256((directory / huggingface.CONFIG).read_bytes()).hexdigest()


def _without_second_names(state: StateDict) -> StateDict:
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


def _with_mae_st_names(state: StateDict) -> tuple[StateDict, ImportOptions]:
    """Renames MAE-ST's published checkpoints of pretraining as their authors' released code does.

    They were trained with SlowFast's code (slowfast/models/masked.py, head_helper.py). Its decoder
    has one position table over all tokens, one head for 64 channels, and the encoder's class token.
    The encoder's tables become one too: their sum.
    """
    blocks, projection = "pred_head.transforms.0.", "pred_head.projections.0."
    if f"{projection}weight" not in state:
        return state, ImportOptions()
    matches = (re.match(r"pred_head\.transforms\.0\.(\d+)\.", name) for name in state)
    last = max((int(match[1]) for match in matches if match), default=0)
    norm = f"{blocks}{last}."  # after the last block
    renamed: StateDict = {}
    for name, array in state.items():
        for old, new in ((norm, "decoder_norm."), (projection, "decoder_pred.")):
            name = name.replace(old, new)
        renamed[name.replace(blocks, "decoder_blocks.")] = array
    spatial, temporal = (renamed.pop(f"pos_embed_{axis}", None) for axis in ("spatial", "temporal"))
    if spatial is not None and temporal is not None:
        try:
            table = temporal[0, :, None] + spatial[0, None]
        except (IndexError, ValueError) as error:
            shapes = f"{spatial.shape} and {temporal.shape}"
            raise UserError(f"pos_embed_spatial and pos_embed_temporal are {shapes}") from error
        table = table.reshape(1, -1, table.shape[-1])
        first = renamed.pop("pos_embed_class", table[:, :0])
        renamed["pos_embed"] = np.concatenate([first, table], axis=1)
    decoder_width = len(renamed.get("decoder_norm.weight", ()))
    return renamed, ImportOptions(decoder_num_heads=max(1, decoder_width // 64))


def _with_description(source: Source, text: str | None, path: Path) -> Source:
    """Returns the source with the description that a file of ours holds, if it holds one."""
    if text is None:
        return source
    try:
        description = json.loads(text)
        names, license = description.get("label_names", []), description.get("license", "")
        if not isinstance(license, str) or not all(isinstance(name, str) for name in names):
            raise TypeError("license and label names should be text")
    except pretrained.DAMAGE as error:
        raise UserError(f"{path}: the description of the model is damaged ({error})") from error
    return dataclasses.replace(
        source,
        description=description,
        label_names=tuple(names),
        license=license or source.license,
    )


def _check_foreign(directory: Path) -> None:
    """Raises a `UserError` for a directory of our own."""
    is_model = (directory / pretrained.MODEL_JSON).is_file()
    is_run = (directory / pretrained.CONFIG_JSON).is_file() and not is_hugging_face(directory)
    if directory.is_dir() and (is_model or is_run):
        raise UserError(
            f"{directory} is a {'model directory' if is_model else 'run'} of this package, which "
            "every job reads as it is, and import is for the files of others: to train on, a "
            f"classifier too, give pretrain, finetune or probe --config.init_from={directory}"
        )


def _read_hugging_face(directory: Path) -> Source:
    model = huggingface.read(directory)
    state, masking = dict(model.state), directory / MASKING_FILE
    if masking.is_file():
        state |= files.read_safetensors(masking)
    source = Source(
        *(state, model.options, model.label_names, _card_license(directory)), hugging_face=model
    )
    path = directory / DESCRIPTION_FILE
    described = _with_description(source, path.read_text() if path.is_file() else None, path)
    digest = (described.description or {}).get(CONFIG_DIGEST)
    if described.description is not None and digest != config_digest(directory):
        raise UserError(
            f"{directory / huggingface.CONFIG} is not the one that {path.name} was written beside: "
            f"remove {path}, to import what transformers says of the model"
        )
    return described


def _card_license(directory: Path) -> str:
    """Returns the licence that a model card names in its front matter; "" where it names none."""
    card = directory / MODEL_CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = re.match(r"---[ \t]*\n(.*?)\n---", text, re.DOTALL)
    try:
        fields = yaml.safe_load(front[1]) if front else None
    except (yaml.YAMLError, ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        return ""
    # Only text: a list may hold itself, or others many times over.
    found = (fields.get(field) for field in ("license", "license_name"))
    license, name = (value if isinstance(value, str) else "" for value in found)
    # "other" is followed by a name of the authors' own.
    license = name or license if license == "other" else license
    return "" if license == licenses.UNKNOWN else license


def model_card(license: str) -> str:
    """Returns a model card with a licence, under the identifiers that their hub knows."""
    fields = {"license": license or licenses.UNKNOWN}
    if not re.fullmatch(r"[a-z0-9.-]*", license):
        fields = {"license": "other", "license_name": license}
    return (
        f"---\n{yaml.safe_dump({**fields, 'library_name': 'transformers'}, sort_keys=False)}---\n"
    )
