"""From our models to other people's files."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from adamae_jax import experiment, pretrained
from adamae_jax.config import FAMILIES
from adamae_jax.errors import UserError
from adamae_jax.interop import authors, huggingface, safetensors_files, torch_files
from adamae_jax.interop.architecture import DISCRIMINATOR, VIT
from adamae_jax.interop.huggingface import Blocks, Facts, Kind
from adamae_jax.interop.imports import table_of
from adamae_jax.interop.safetensors_files import StateDict, replace_file
from adamae_jax.interop.sources import (
    CONFIG_DIGEST,
    DESCRIPTION,
    DESCRIPTION_FILE,
    MASKING_FILE,
    MODEL_CARD,
    config_digest,
    decoder_remarks,
    placeholders,
)
from adamae_jax.models.transformer import TransformerSpec
from adamae_jax.objectives import Objective
from adamae_jax.pretrained import Finetuned, Loaded, Pretrained

# What the authors' code can do beside what they published.
_ALSO: dict[tuple[str, str], tuple[Any, ...]] = {
    ("videomae", "attention_bias"): ("",),
    ("mae", "attention_bias"): ("",),
    ("mae_st", "attention_bias"): ("",),
    ("mae_st", "class_token"): ("none",),
}


def to_authors(loaded: Loaded) -> StateDict:
    """All weights under the authors' names.

    Raises:
      UserError: for a model that the authors' code does not have.
    """
    _check_family(loaded.config)
    tree = jax.tree.map(np.asarray, dict(loaded.variables))
    empty = [name for name in tree if not jax.tree.leaves(tree[name])]
    return table_of(loaded.config).to_authors(
        {name: part for name, part in tree.items() if name not in empty}
    )


def _check_family(config: ConfigDict) -> None:
    """Raises a `UserError` for a mixture of families, for which nobody has names."""
    model = config.model
    dialect = authors.dialect_of(model.positions, experiment.geometry(config))
    foreign = [
        f"model.{field}={getattr(model, field)!r}"
        for field, value in FAMILIES[dialect].items()
        if field in ("class_token", "attention_bias", "projection_bias")
        and getattr(model, field) not in (value, *_ALSO.get((dialect, field), ()))
    ]
    if foreign:
        raise UserError(
            f"the authors' code has no model with model.positions={model.positions!r} and "
            f"{', '.join(foreign)}: there are no names to export it under"
        )


def description_of(loaded: Loaded) -> str:
    """What ``model.json`` says, to go beside the weights."""
    return json.dumps(
        pretrained.describe(loaded.config, loaded.step, loaded.label_names, loaded.license)
    )


def write_authors(loaded: Loaded, path: Path) -> list[str]:
    """Writes a ``.safetensors`` file or, else, a PyTorch checkpoint.

    What the authors keep in files of their own is in PyTorch's under names of its own, in the other
    under prefixes: AutoMAE's discriminator and its frozen ViT.

    Returns:
      Remarks for the user.

    Raises:
      UserError: for a model that the authors' code does not have, or where the file cannot be
        written.
    """
    state, description = to_authors(loaded), description_of(loaded)
    if path.suffix == ".safetensors":
        metadata = {DESCRIPTION: description}
        if loaded.license:
            metadata["license"] = loaded.license
        safetensors_files.write(path, state, metadata)
        return []
    groups: dict[str, StateDict] = {}
    for prefix in (DISCRIMINATOR, VIT):
        names = [name for name in state if name.startswith(prefix)]
        if names:
            groups[prefix[:-1]] = {name.removeprefix(prefix): state.pop(name) for name in names}
    torch_files.write(path, state, {**groups, DESCRIPTION: description})
    return [f"{name} has a place of its own in the file" for name in groups]


def write_hugging_face(loaded: Loaded, directory: Path) -> list[str]:
    """Writes a directory for `from_pretrained`; see `huggingface.write`.

    What their classes have no place for, the sampler of AdaMAE or AutoMAE's networks, goes into
    `sources.MASKING_FILE` beside.

    Returns:
      Remarks for the user.

    Raises:
      UserError: where no class of theirs is this model, or a file cannot be written.
    """
    kind = kind_of(loaded)
    state = to_authors(loaded)
    remarks = [*decoder_remarks(kind, loaded.config.model.decoder_norm_epsilon)]
    remarks += _loss_remarks(kind, loaded)
    beside: Mapping[str, np.ndarray] = {}
    if isinstance(loaded, Pretrained):
        names = authors.masking_table(loaded.pretraining).names
        beside = {name: state.pop(name) for name in names}
    remarks += huggingface.write(directory, kind, state, _facts(loaded))
    if beside:
        safetensors_files.write(directory / MASKING_FILE, beside)
        remarks.append(f"{huggingface.CLASSES[kind]} has no place for {MASKING_FILE}: it is beside")
    description = {**json.loads(description_of(loaded)), CONFIG_DIGEST: config_digest(directory)}
    replace_file(directory / DESCRIPTION_FILE, (json.dumps(description) + "\n").encode())
    if loaded.license:
        replace_file(directory / MODEL_CARD, _card(loaded.license).encode())
    return remarks


def _card(license: str) -> str:
    """A model card with the licence, under the identifiers that their hub knows."""
    fields = f"license: {license}"
    if not re.fullmatch(r"[a-z0-9.-]+", license):
        fields = f"license: other\nlicense_name: {json.dumps(license)}"
    return f"---\n{fields}\nlibrary_name: transformers\n---\n"


def _loss_remarks(kind: Kind, loaded: Loaded) -> list[str]:
    """Where the loss that a class computes is another than the model's."""
    if isinstance(loaded, Finetuned):
        return []
    own, image = experiment.objective(loaded.config), kind == "mae_pretraining"
    theirs = Objective(
        normalize_targets="tubelet" if image else "channel",
        target_pixels="normalized" if image else "unit",
    )
    fields = ["loss", "normalize_targets", "target_pixels"]
    if own.normalize_targets == "none":
        fields.remove("normalize_targets")  # which their configs can say
    wrong = [name for name in fields if getattr(own, name) != getattr(theirs, name)]
    if not wrong:
        return []
    said = ", ".join(f"{name} {getattr(own, name)!r}" for name in wrong)
    return [f"{huggingface.CLASSES[kind]} has no {said}: its loss differs, its predictions do not"]


def kind_of(loaded: Loaded) -> Kind:
    """The class of theirs that is this model.

    Raises:
      UserError: where there is none.
    """
    model = loaded.model
    dialect = authors.dialect_of(model.positions, model.geometry)
    kinds: dict[tuple[str, bool], Kind] = {
        ("videomae", False): "videomae_pretraining",
        ("videomae", True): "videomae_classifier",
        ("mae", False): "mae_pretraining",
    }
    kind = kinds.get((dialect, isinstance(loaded, Finetuned)))
    if kind is None:
        what = "classifier" if isinstance(loaded, Finetuned) else "pretraining model"
        raise UserError(
            f"Hugging Face has no class for a {what} of the family {dialect!r}: it has "
            f"{', '.join(huggingface.CLASSES.values())}; export --format=authors"
        )
    return kind


def _blocks(spec: TransformerSpec) -> Blocks:
    return Blocks(spec.width, spec.depth, spec.num_heads, int(spec.width * spec.mlp_ratio))


def _facts(loaded: Loaded) -> Facts:
    config, clip = loaded.config, loaded.model.geometry
    objective = experiment.objective(config)
    is_classifier = isinstance(loaded, Finetuned)
    model, labels = config.model, loaded.label_names
    if is_classifier and not labels:
        labels = placeholders(config.classifier.num_classes)
    return Facts(
        image_size=clip.image_size,
        patch_size=clip.patch_size,
        encoder=_blocks(experiment.transformer_spec(config, "encoder")),
        decoder=None if is_classifier else _blocks(experiment.transformer_spec(config, "decoder")),
        num_channels=clip.channels,
        num_frames=clip.num_frames,
        tubelet_size=clip.tubelet_size,
        qkv_bias=bool(model.attention_bias),
        norm_epsilon=model.norm_epsilon,
        classifier_norm_epsilon=config.classifier.norm_epsilon if is_classifier else None,
        use_mean_pooling=is_classifier,
        norm_pix_loss=objective.normalize_targets != "none",
        mask_ratio=None if is_classifier else config.masking.mask_ratio,
        label_names=labels,
        pixel_mean=objective.pixel_mean,
        pixel_std=objective.pixel_std,
    )
