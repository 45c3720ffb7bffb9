"""VideoMAE and MAE in the directories that Hugging Face's transformers reads and writes.

Neither PyTorch nor transformers is needed, except to read weights in ``pytorch_model.bin``. The
weights have the authors' names here: those of MCG-NJU/VideoMAE (``encoder.blocks.0.attn.q_bias``,
for a classifier without ``encoder.``) and of facebookresearch/mae (``blocks.0.attn.qkv.bias``).
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from adamae_jax.errors import UserError
from adamae_jax.interop import huggingface_config, huggingface_files, huggingface_names
from adamae_jax.interop.huggingface_facts import CLASSES, Blocks, Facts, Kind, last_norm
from adamae_jax.interop.safetensors_files import StateDict

__all__ = ["CLASSES", "Blocks", "Facts", "HuggingFaceModel", "Kind", "read", "write"]

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
VIDEO_PROCESSOR = "video_preprocessor_config.json"  # of transformers 5

# With these `VideoMAEForPreTraining` undoes the normalization of its pixels, whatever it was.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class HuggingFaceModel:
    """What a directory holds.

    Attributes:
      kind: which of the three classes of `CLASSES`.
      state: the weights under the authors' names, in float32.
      facts: what the weights do not say.
    """

    kind: Kind
    state: StateDict
    facts: Facts


def read(directory: str | os.PathLike[str]) -> HuggingFaceModel:
    """Reads a directory that `save_pretrained` of transformers 4 or 5 wrote.

    Raises:
      UserError: where files are missing or damaged, the class is none of `CLASSES`, the config has
        what this package has no model for, or tensors are missing, left over or misshapen.
    """
    directory = Path(directory)
    place = directory / CONFIG
    if not place.is_file():
        raise UserError(
            f"{directory} holds no {CONFIG}: give the directory of a Hugging Face model, or a .pth "
            "or .safetensors file"
        )
    config = huggingface_files.read_json(place)
    kind = huggingface_config.read_kind(config, str(place))
    facts = huggingface_config.read_facts(config, kind, str(place))
    for name in (PROCESSOR, VIDEO_PROCESSOR):
        path = directory / name
        if path.is_file():
            mean, std = huggingface_config.read_pixels(
                huggingface_files.read_json(path), facts.num_channels, str(path)
            )
            facts = dataclasses.replace(facts, pixel_mean=mean, pixel_std=std)
            break
    tensors = huggingface_files.read_weights(directory)
    try:
        state = huggingface_names.from_hugging_face(tensors, kind, facts)
    except UserError as error:
        raise UserError(f"{directory}: {error}") from error
    return HuggingFaceModel(kind, state, facts)


def write(
    directory: str | os.PathLike[str],
    kind: Kind,
    state: Mapping[str, np.ndarray],
    facts: Facts,
) -> list[str]:
    """Writes a directory that `from_pretrained` of transformers 4 and 5 reads.

    Everything is checked before the first file is written; each file is replaced at once.

    Args:
      directory: made where it is missing.
      kind: the class to write for.
      state: the weights under the authors' names; all of them, and no others.
      facts: the rest, with the pixels' mean and standard deviation.

    Returns:
      Remarks for the user: where the class computes something else than the model did.

    Raises:
      UserError: where the class has no place for a weight (LayerScale, learned position tables)
        or a fact, or a file cannot be written.
    """
    directory = Path(directory)
    config = huggingface_config.config_fields(facts, kind)
    processor = huggingface_config.processor_fields(facts, kind)
    tensors = huggingface_names.to_hugging_face(state, kind, facts)
    huggingface_files.write_weights(directory, tensors)
    huggingface_files.write_json(directory / CONFIG, config)
    huggingface_files.write_json(directory / PROCESSOR, processor)
    return _remarks(kind, facts)


def _remarks(kind: Kind, facts: Facts) -> list[str]:
    """What their classes do otherwise, whatever the config says."""
    remarks = []
    epsilon = facts.classifier_norm_epsilon
    norm, theirs = last_norm(facts.mean_pooling, facts.norm_epsilon)
    if epsilon is not None and not math.isclose(epsilon, theirs):
        remarks.append(
            f"{CLASSES[kind]} has the epsilon {theirs:g} in {norm}, this model {epsilon:g}: its "
            "logits differ slightly"
        )
    pixels = (facts.pixel_mean, facts.pixel_std)
    # Targets that are normalized per patch and channel do not show it.
    if (
        kind == "videomae_pretraining"
        and not facts.norm_pix_loss
        and pixels != (_IMAGENET_MEAN, _IMAGENET_STD)
    ):
        remarks.append(
            f"{CLASSES[kind]} takes its targets as if pixels were normalized with ImageNet's mean "
            "and standard deviation, and this model's were not: its loss differs, its predictions "
            "do not"
        )
    if kind != "mae_pretraining" and facts.image_size[0] != facts.image_size[1]:
        remarks.append(
            "the image processor resizes frames to {} x {}, for it cannot cut out what is not "
            "square: their shapes change".format(*facts.image_size)
        )
    return remarks
