"""What there is to know of a model in Hugging Face's form, beside its weights."""

import dataclasses
from typing import Literal

Kind = Literal["videomae_pretraining", "videomae_classifier", "mae_pretraining"]

CLASSES: dict[Kind, str] = {
    "videomae_pretraining": "VideoMAEForPreTraining",
    "videomae_classifier": "VideoMAEForVideoClassification",
    "mae_pretraining": "ViTMAEForPreTraining",
}

# `VideoMAEForVideoClassification` makes its `fc_norm` with PyTorch's default, whatever the config.
FC_NORM_EPSILON = 1e-5


def last_norm(mean_pooling: bool, norm_epsilon: float) -> tuple[str, float]:
    """Name and epsilon of the norm in front of the head of `VideoMAEForVideoClassification`.

    Args:
      mean_pooling: as in `Facts`.
      norm_epsilon: likewise.
    """
    return ("fc_norm", FC_NORM_EPSILON) if mean_pooling else ("videomae.layernorm", norm_epsilon)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A stack of transformer blocks.

    Attributes:
      width: token width.
      depth: number of blocks.
      num_heads: attention heads.
      mlp_width: hidden width of the MLP.
    """

    width: int
    depth: int
    num_heads: int
    mlp_width: int


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the weights alone do not say.

    The activation is exact GELU, and there is no LayerScale.

    Attributes:
      image_size: height and width in pixels.
      patch_size: side of a patch in pixels.
      encoder: its blocks.
      decoder: its blocks; None for a classifier.
      num_channels: colours.
      num_frames: frames of a clip; 1 for images.
      tubelet_size: frames of a token; 1 for images.
      qkv_bias: whether queries and values (for images, keys too) have a bias.
      norm_epsilon: of all layer norms but a classifier's last.
      classifier_norm_epsilon: of a classifier's last norm; None without one.
      mean_pooling: whether a classifier's head sees the mean over all tokens, or the first alone;
        False without a classifier.
      norm_pix_loss: whether the targets are normalized per patch.
      mask_ratio: of `ViTMAEForPreTraining`; VideoMAE's config has no place for it: None.
      label_names: of a classifier's classes, by label.
      pixel_mean: per channel, of pixels in [0, 1]; None where a directory that was read does not
        say it.
      pixel_std: likewise.
    """

    image_size: tuple[int, int]
    patch_size: int
    encoder: Blocks
    decoder: Blocks | None
    num_channels: int = 3
    num_frames: int = 1
    tubelet_size: int = 1
    qkv_bias: bool = True
    norm_epsilon: float = 1e-6
    classifier_norm_epsilon: float | None = None
    mean_pooling: bool = False
    norm_pix_loss: bool = True
    mask_ratio: float | None = None
    label_names: tuple[str, ...] = ()
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of a clip or image, without a class token."""
        height, width = (side // self.patch_size for side in self.image_size)
        return self.num_frames // self.tubelet_size * height * width
