"""The classifier that pretrained encoders are fine-tuned in."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from adamae_jax.models.encoder import Encoder
from adamae_jax.models.positions import PositionKind
from adamae_jax.models.transformer import (
    ExampleDropout,
    ExampleKeys,
    LayerNorm,
    TransformerSpec,
)
from adamae_jax.models.tubelets import ClipGeometry

# Of which tokens the head sees the latent.
Pooling = Literal["mean", "first"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
HEAD_DRAW = 0x4EAD  # folded into the keys, so that the head's dropout is not a block's


class Classifier(nn.Module):
    """An encoder over all tokens, their mean or the first of them, a norm, and a linear head.

    The class token, where there is one, is not in the mean (VideoMAE, MAE-ST, and MAE with global
    pooling). It is what "first" takes (MAE without global pooling, as ViT); where there is none,
    that is the first patch, which has seen the others (VideoMAE without mean pooling).

    Attributes:
      geometry: how clips are cut into tokens.
      spec: the encoder's blocks.
      num_classes: outputs of the head.
      positions: see `Positions`.
      class_token: whether a learned token stands in front of the others.
      norm_epsilon: of the norm in front of the head.
      pooling: "mean" of all patches, or the "first" token alone.
      skip_first_patch: leave the first patch out of the mean: what MAE-ST's released classifier
        does where it has no class token to leave out.
      head_scale: factor on the head's start.
      head_dropout: rate in front of the head, in training.
    """

    geometry: ClipGeometry
    spec: TransformerSpec
    num_classes: int
    positions: PositionKind = "sincos_1d"
    class_token: bool = False
    norm_epsilon: float = 1e-6
    pooling: Pooling = "mean"
    skip_first_patch: bool = False
    head_scale: float = 1e-3
    head_dropout: float = 0.0

    def setup(self) -> None:
        """Declares encoder, norm, dropout and head."""
        self.encoder = Encoder(
            self.geometry, self.spec, self.positions, self.class_token, final_norm=False
        )
        self.norm = LayerNorm(self.norm_epsilon)
        self.dropout = ExampleDropout(self.head_dropout)

        def scaled(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
            return self.head_scale * self.spec.init.dense(key, shape, dtype)

        self.head = nn.Dense(self.num_classes, kernel_init=scaled)

    def features(self, video: Float[Array, "b T H W C"]) -> Float[Array, "b n d"]:
        """The encoder's latents of all tokens of normalised clips, before pooling and norm."""
        return self.encoder(video)[:, int(self.class_token) :].astype(jnp.float32)

    def __call__(
        self, video: Float[Array, "b T H W C"], keys: ExampleKeys | None = None
    ) -> Float[Array, "b k"]:
        """The classes' logits of normalised clips, in float32.

        Args:
          video: the clips.
          keys: one per example for dropout and drop-path; None turns both off.
        """
        latents = self.encoder(video, keys)
        if self.pooling == "first":
            pooled = latents[:, 0]
        else:
            pooled = latents[:, int(self.class_token or self.skip_first_patch) :].mean(axis=1)
        features = self.norm(pooled)[:, None]
        if keys is not None:
            keys = jax.vmap(lambda key: jax.random.fold_in(key, HEAD_DRAW))(keys)
        return self.head(self.dropout(features, keys)[:, 0])
