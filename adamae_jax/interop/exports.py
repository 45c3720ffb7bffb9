"""From our models to other people's files.

Under the authors' names there is one of the authors' models, or no export. What the weights do not
say stands in the description beside them.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from adamae_jax import experiment, pretrained
from adamae_jax.config import FAMILIES
from adamae_jax.errors import UserError
from adamae_jax.fields import FIELDS
from adamae_jax.interop import authors, files, huggingface
from adamae_jax.interop.files import StateDict
from adamae_jax.interop.huggingface import CLASSES, ClassKind
from adamae_jax.interop.huggingface_weights import KEEPING_BIASES, LOSING_BIASES
from adamae_jax.interop.imports import table_of
from adamae_jax.interop.sources import (
    CONFIG_DIGEST,
    DESCRIPTION,
    DESCRIPTION_FILE,
    MASKING_FILE,
    MODEL_CARD,
    config_digest,
    model_card,
)
from adamae_jax.interop.systems import DISCRIMINATOR, SYSTEMS, VIT, Dialect, dialect_of
from adamae_jax.pretrained import Finetuned, Loaded, Pretrained

# Fields that change no number, or by rounding only: how a model starts and is executed, and where
# what it holds frozen came from.
NOT_COMPUTED = (
    *(f"model.{name}" for name in ("initialization", "dtype", "gradient_dtype", "remat")),
    *("model.unroll", "model.attention"),
    "masking.options.pretrained",
    *("masking.mask_ratio_start", "masking.mask_ratio_stages"),
    # How a classifier is trained; what it is belongs to the model.
    *(name for name, field in FIELDS.items() if field.classifier and not field.model),
)


def to_authors(loaded: Loaded) -> StateDict:
    """Returns all weights under the authors' names.

    Raises:
      UserError: for a model that the authors' code does not have.
    """
    check(loaded)
    tree = jax.tree.map(np.asarray, dict(loaded.variables))
    if isinstance(loaded, Pretrained) and loaded.task.strategy.adversary is None:
        # What a strategy remembers of its training, such as a mean of rewards. An adversary's state
        # is a part of its network, and has names.
        tree.pop("state", None)
    parts = {name: part for name, part in tree.items() if jax.tree.leaves(part)}
    return table_of(loaded.config).to_authors(parts)


def description_of(loaded: Loaded) -> dict[str, Any]:
    """Returns what ``model.json`` says, to go beside the weights."""
    return pretrained.describe(loaded.config, loaded.step, loaded.label_names, loaded.license)


def write_authors(loaded: Loaded, path: Path) -> list[str]:
    """Writes a ``.safetensors`` file or, else, a PyTorch checkpoint.

    AutoMAE's discriminator and frozen ViT, which the authors keep in files of their own, have
    places of their own in a PyTorch checkpoint, and prefixes in a ``.safetensors`` file.

    Returns:
      Remarks for the user.

    Raises:
      UserError: for a model that the authors' code does not have, or where the file cannot be
        written.
    """
    state, description = to_authors(loaded), json.dumps(description_of(loaded))
    remarks = [description_remark(path.name)]
    if path.suffix == ".safetensors":
        license = {"license": loaded.license} if loaded.license else {}
        files.write_safetensors(path, state, {DESCRIPTION: description, **license})
        return remarks
    groups: dict[str, StateDict] = {}
    for prefix in (DISCRIMINATOR, VIT):
        names = [name for name in state if name.startswith(prefix)]
        if names:
            groups[prefix[:-1]] = {name.removeprefix(prefix): state.pop(name) for name in names}
    files.write_torch(path, state, {**groups, DESCRIPTION: description})
    return remarks + [f"{name} has a place of its own in the file" for name in groups]


def write_hugging_face(loaded: Loaded, directory: Path) -> list[str]:
    """Writes a directory for `from_pretrained` of transformers.

    What their classes have no place for, the sampler of AdaMAE or AutoMAE's networks, goes into
    `MASKING_FILE`.

    Returns:
      Remarks for the user.

    Raises:
      UserError: where no class of theirs is this model, or a file cannot be written.
    """
    kind, state = class_of(loaded), to_authors(loaded)
    beside: StateDict = {}
    if isinstance(loaded, Pretrained):
        names = authors.masking_table(loaded.task).names
        beside = {name: state.pop(name) for name in names}
    huggingface.write(directory, kind, state, loaded.config, loaded.label_names)
    remarks = [*_class_remarks(kind, loaded), description_remark(DESCRIPTION_FILE)]
    if beside:
        files.write_safetensors(directory / MASKING_FILE, beside)
        remarks.append(f"{CLASSES[kind]} has no place for {MASKING_FILE}: it is beside")
    description = {**description_of(loaded), CONFIG_DIGEST: config_digest(directory)}
    files.write_file(directory / DESCRIPTION_FILE, (json.dumps(description) + "\n").encode())
    files.write_file(directory / MODEL_CARD, model_card(loaded.license).encode())
    return remarks


def description_remark(place: str) -> str:
    """Returns what the user should know of the description beside the weights."""
    return (
        f"{place} holds the model's description, by which an import knows it: keep it with the "
        "weights, of which alone an import has to be told sizes (--num_heads, --image_size, ...) "
        "and takes loss, masks and epsilons for the authors'"
    )


# Which models the authors have.


def check(loaded: Loaded) -> None:
    """Raises a `UserError` for a model that no author has: there are no names for it."""
    config = loaded.config
    dialect = dialect_of(config.model.positions, experiment.geometry(config))
    own = _classifier_fields if isinstance(loaded, Finetuned) else _pretraining_fields
    foreign = [
        f"{name}={experiment.field(config, name)!r}"
        for name, has in {**_shared_fields(config, dialect), **own(loaded, dialect)}.items()
        if not has
    ]
    if foreign:
        raise UserError(
            f"the code of {dialect.family}'s authors, whose names go with model.positions="
            f"{config.model.positions!r}, has no model with {', '.join(foreign)}: there are no "
            "names to export it under; `adamae_jax.load` reads it as it is"
        )


def _shared_fields(config: ConfigDict, dialect: Dialect) -> dict[str, bool]:
    """Returns fields of every model, and whether a dialect's authors have their values."""
    model, clip, family = config.model, experiment.geometry(config), FAMILIES[dialect.family]
    return {
        "model.class_token": model.class_token in (family["class_token"], *dialect.class_tokens),
        "model.attention_bias": model.attention_bias in (family["attention_bias"], ""),
        "model.layer_scale": dialect.has_layer_scale or not model.layer_scale,
        "model.tubelet_size": not dialect.is_image or clip.tubelet_size == 1,
        "data.num_frames": not dialect.is_image or clip.num_frames == 1,
    }


def _pretraining_fields(loaded: Loaded, dialect: Dialect) -> dict[str, bool]:
    model, masking = loaded.config.model, loaded.config.masking
    has_weights = bool(jax.tree.leaves(loaded.variables["params"].get("masking", {})))
    is_system = any(
        (system.dialect, system.masking) == (dialect, masking.name) for system in SYSTEMS.values()
    )
    is_fixed = not dialect.trains_positions or model.positions == dialect.positions[0]
    return {
        "model.projection_bias": (
            model.projection_bias == FAMILIES[dialect.family]["projection_bias"]
        ),
        "model.predicted_frames": dialect.predicts_fewer_frames or not model.predicted_frames,
        "model.positions": is_fixed,
        "masking.name": is_system or not has_weights,
    }


def _classifier_fields(loaded: Loaded, dialect: Dialect) -> dict[str, bool]:
    classifier = loaded.config.classifier
    has_class = loaded.config.model.class_token != "none"
    return {
        "classifier.pooling": classifier.pooling in dialect.classifier_norms,
        "classifier.skip_first_patch": (
            has_class or classifier.skip_first_patch == dialect.skips_first_patch
        ),
    }


# Hugging Face's classes.


def class_of(loaded: Loaded) -> ClassKind:
    """Returns the class of theirs that is this model.

    Raises:
      UserError: where there is none.
    """
    model, is_classifier = loaded.model, isinstance(loaded, Finetuned)
    family = dialect_of(model.positions, model.geometry).family
    kinds: dict[tuple[str, bool], ClassKind] = {
        ("videomae", False): "videomae_pretraining",
        ("videomae", True): "videomae_classifier",
        ("mae", False): "mae_pretraining",
    }
    kind = kinds.get((family, is_classifier))
    missing = ""
    if kind is None:
        what = "classifier" if is_classifier else "pretraining model"
        missing = f"a {what} of the family {family!r} (model.positions={model.positions!r})"
    elif loaded.config.model.layer_scale:
        missing = "blocks with LayerScale (model.layer_scale)"
    if kind is None or missing:
        raise UserError(
            f"Hugging Face has no class for {missing}: it has {', '.join(CLASSES.values())}; "
            "export --format=authors"
        )
    return kind


def _class_remarks(kind: ClassKind, loaded: Loaded) -> list[str]:
    """Returns what their class computes otherwise, whatever its config says."""
    config, name, remarks = loaded.config, CLASSES[kind], []
    is_classifier, is_image = kind == "videomae_classifier", kind == "mae_pretraining"
    if not is_image and config.model.attention_bias:
        remarks.append(
            f"transformers {LOSING_BIASES} loads {name} without its query and value biases, with a "
            f"warning only: use another ({KEEPING_BIASES} are right)"
        )
    objective, pooling = config.objective, config.classifier.pooling
    theirs = huggingface.last_norm_epsilon(kind, config.model.norm_epsilon, pooling)
    own = config.classifier.norm_epsilon if is_classifier else config.model.decoder_norm_epsilon
    if own != theirs:
        norm = {"mean": "fc_norm", "first": "videomae.layernorm"}[pooling]
        norm, what = (norm, "logits") if is_classifier else ("the decoder's norm", "predictions")
        remarks.append(
            f"{name} has the epsilon {theirs:g} in {norm}, this model {own:g}: its {what} differ "
            "slightly"
        )
    if not is_classifier:
        expected = {
            "loss": "mse",
            "normalize_targets": "tubelet" if is_image else "channel",
            "target_pixels": "normalized" if is_image else "unit",
        }
        if objective.normalize_targets == "none":  # which their config can say
            del expected["normalize_targets"]
        wrong = [
            f"{field} {objective[field]!r}"
            for field in expected
            if objective[field] != expected[field]
        ]
        if wrong:
            remarks.append(
                f"{name} has no {', '.join(wrong)}: its loss differs, its predictions do not"
            )
    # Targets that are normalized per patch and channel do not show how pixels were normalized.
    statistics = (tuple(objective.pixel_mean), tuple(objective.pixel_std))
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    is_plain = objective.normalize_targets == "none"
    if kind == "videomae_pretraining" and is_plain and statistics != imagenet:
        remarks.append(
            f"{name} takes its targets as if pixels were normalized with ImageNet's mean and "
            "standard deviation, and this model's were not: its loss differs, its predictions do "
            "not"
        )
    height, width = experiment.image_size(config)
    if height != width:
        remarks.append(
            f"the image processor resizes frames to {height} x {width}, for it cannot cut out what "
            "is not square: their shapes change"
        )
    return remarks
