"""From our models to other people's files."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from adamae_jax import experiment, pretrained
from adamae_jax.errors import UserError
from adamae_jax.interop import authors, faithful, huggingface, safetensors_files, torch_files
from adamae_jax.interop.dialects import dialect_of
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
    given_of,
    placeholders,
)
from adamae_jax.interop.systems import DISCRIMINATOR, VIT
from adamae_jax.models.transformer import TransformerSpec
from adamae_jax.objectives import Objective
from adamae_jax.pretrained import Finetuned, Loaded, Pretrained

# Norms of Hugging Face's classes whose epsilon no config changes: remarks of their own say so.
NORMS: dict[Kind, tuple[str, ...]] = {
    "videomae_pretraining": ("model.decoder_norm_epsilon",),
    "videomae_classifier": ("classifier.norm_epsilon",),
    "mae_pretraining": (),
}


def to_authors(loaded: Loaded) -> StateDict:
    """All weights under the authors' names.

    Raises:
      UserError: for a model that the authors' code does not have.
    """
    faithful.check(loaded)
    tree = jax.tree.map(np.asarray, dict(loaded.variables))
    empty = [name for name in tree if not jax.tree.leaves(tree[name])]
    return table_of(loaded.config).to_authors(
        {name: part for name, part in tree.items() if name not in empty}
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
    remarks = faithful.remarks(loaded, state)
    if path.suffix == ".safetensors":
        metadata = {DESCRIPTION: description}
        if loaded.license:
            metadata["license"] = loaded.license
        safetensors_files.write(path, state, metadata)
        return remarks
    groups: dict[str, StateDict] = {}
    for prefix in (DISCRIMINATOR, VIT):
        names = [name for name in state if name.startswith(prefix)]
        if names:
            groups[prefix[:-1]] = {name.removeprefix(prefix): state.pop(name) for name in names}
    torch_files.write(path, state, {**groups, DESCRIPTION: description})
    return remarks + [f"{name} has a place of its own in the file" for name in groups]


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
    state, facts = to_authors(loaded), _facts(kind, loaded)
    remarks = [*decoder_remarks(kind, loaded.config.model.decoder_norm_epsilon)]
    remarks += _loss_remarks(kind, loaded)
    remarks += faithful.remarks(loaded, state, given_of(kind, facts), said=NORMS[kind])
    beside: Mapping[str, np.ndarray] = {}
    if isinstance(loaded, Pretrained):
        names = authors.masking_table(loaded.task).names
        beside = {name: state.pop(name) for name in names}
    remarks += huggingface.write(directory, kind, state, facts)
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
    family = dialect_of(model.positions, model.geometry).family
    kinds: dict[tuple[str, bool], Kind] = {
        ("videomae", False): "videomae_pretraining",
        ("videomae", True): "videomae_classifier",
        ("mae", False): "mae_pretraining",
    }
    kind = kinds.get((family, isinstance(loaded, Finetuned)))
    if kind is None:
        what = "classifier" if isinstance(loaded, Finetuned) else "pretraining model"
        raise _no_class(f"a {what} of the family {family!r} (model.positions={model.positions!r})")
    if loaded.config.model.layer_scale:
        raise _no_class("blocks with LayerScale (model.layer_scale)")
    return kind


def _no_class(what: str) -> UserError:
    classes = ", ".join(huggingface.CLASSES.values())
    return UserError(
        f"Hugging Face has no class for {what}: it has {classes}; export --format=authors"
    )


def _blocks(spec: TransformerSpec) -> Blocks:
    return Blocks(spec.width, spec.depth, spec.num_heads, int(spec.width * spec.mlp_ratio))


def _facts(kind: Kind, loaded: Loaded) -> Facts:
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
        mean_pooling=is_classifier and config.classifier.pooling == "mean",
        norm_pix_loss=objective.normalize_targets != "none",
        mask_ratio=config.masking.mask_ratio if kind == "mae_pretraining" else None,
        label_names=labels,
        pixel_mean=objective.pixel_mean,
        pixel_std=objective.pixel_std,
    )
