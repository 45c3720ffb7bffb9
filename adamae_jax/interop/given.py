"""What is known of stored weights beside the weights themselves."""

import dataclasses
from typing import Literal

# What a state dict holds: a model of pretraining, a classifier, or the encoder of the former alone
# (as MAE's authors publish theirs).
Kind = Literal["pretraining", "classifier", "encoder"]


@dataclasses.dataclass(frozen=True)
class Given:
    """What a user says of a model, or a file beside its weights; None where nothing is said.

    Attributes:
      num_frames: frames of a clip.
      image_size: height and width in pixels.
      sampling_rate: of ``config.data``.
      frame_sampling: likewise.
      num_heads: attention heads of the encoder.
      decoder_num_heads: attention heads of the decoder.
      sampler_num_heads: attention heads of AdaMAE's sampling network.
      mask_ratio: share of tokens that is masked.
      norm_epsilon: of the layer norms.
      decoder_norm_epsilon: of the decoder's last norm.
      classifier_norm_epsilon: of a classifier's last norm.
      pixels: mean and standard deviation of the input's channels.
      normalize_targets: see `adamae_jax.objectives.Objective`.
      vit: of AutoMAE's frozen ViT, what is known of the image MAE that it comes from.
    """

    num_frames: int | None = None
    image_size: tuple[int, int] | None = None
    sampling_rate: int | None = None
    frame_sampling: str | None = None
    num_heads: int | None = None
    decoder_num_heads: int | None = None
    sampler_num_heads: int | None = None
    mask_ratio: float | None = None
    norm_epsilon: float | None = None
    decoder_norm_epsilon: float | None = None
    classifier_norm_epsilon: float | None = None
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    normalize_targets: str | None = None
    vit: "Given | None" = None
