"""The encoder that every system shares: tubelets to tokens to latents."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Num

from adamae_jax.models.positions import PositionKind, Positions
from adamae_jax.models.transformer import (
    FIRST_TOKEN,
    ExampleKeys,
    LayerNorm,
    Transformer,
    TransformerSpec,
)
from adamae_jax.models.tubelets import ClipGeometry, TubeletEmbedding


def gather_tokens(tokens: Num[Array, "b n d"], indices: Int[Array, "b k"]) -> Num[Array, "b k d"]:
    """Picks each example's tokens at its indices."""
    return jnp.take_along_axis(tokens, indices[:, :, None], axis=1)


def scale_tokens(
    tokens: Float[Array, "b n d"], scale: Float[Array, "b n"]
) -> Float[Array, "b n d"]:
    """``s * x + stop_gradient(1 - s) * x``: the same values, a gradient for the scale (AutoMAE)."""
    scale = scale[:, :, None].astype(tokens.dtype)
    return scale * tokens + jax.lax.stop_gradient(1.0 - scale) * tokens


def prepend(
    row: Float[Array, "d"], tokens: Float[Array, "b n d"], valid: Bool[Array, "b n"] | None
) -> tuple[Float[Array, "b m d"], Bool[Array, "b m"] | None]:
    """Puts one token in front of every example's, and in front of their validity."""
    first = jnp.broadcast_to(row, (len(tokens), 1, row.shape[-1])).astype(tokens.dtype)
    tokens = jnp.concatenate([first, tokens], axis=1)
    if valid is not None:
        valid = jnp.concatenate([jnp.ones((len(valid), 1), bool), valid], axis=1)
    return tokens, valid


class Encoder(nn.Module):
    """Tubelet embedding, positions, class token, blocks and a norm.

    Attributes:
      geometry: how clips are cut into tokens.
      spec: the blocks.
      positions: see `Positions`.
      class_token: whether a learned token stands in front of the others.
      final_norm: whether latents are normalised; a classifier pools before its norm.
    """

    geometry: ClipGeometry
    spec: TransformerSpec
    positions: PositionKind = "sincos_1d"
    class_token: bool = False
    final_norm: bool = True

    def setup(self) -> None:
        """Declares the rooms of the encoder."""
        spec, init = self.spec, self.spec.init
        self.embedding = TubeletEmbedding(self.geometry, spec.width, init.embedding, spec.dtype)
        self.position_table = Positions(
            self.positions,
            self.geometry.grid,
            spec.width,
            self.class_token,
            init.token,
            name="positions",
        )
        if self.class_token:
            self.class_vector = self.param("class_token", init.token, (spec.width,))
        self.transformer = Transformer(spec)
        if self.final_norm:
            self.norm = LayerNorm(spec.norm_epsilon, spec.dtype)

    def tokenize(self, video: Float[Array, "b T H W C"]) -> Float[Array, "b n d"]:
        """Normalised pixels to tokens, without positions."""
        return self.embedding(video)

    def add_positions(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Adds each token's place in the clip."""
        return tokens + self.position_table()[0]

    def encode(
        self,
        tokens: Float[Array, "b n d"],
        visible: Int[Array, "b v"] | None = None,
        *,
        visible_valid: Bool[Array, "b v"] | None = None,
        token_scale: Float[Array, "b n"] | None = None,
        keys: ExampleKeys | None = None,
    ) -> Float[Array, "b l d"]:
        """Latents of the class token, where there is one, and of the visible tokens after it.

        Args:
          tokens: all tokens, with positions.
          visible: indices of the tokens that are seen; all where None.
          visible_valid: false where an entry of ``visible`` is padding.
          token_scale: see `scale_tokens`.
          keys: one key per example for dropout.
        """
        if token_scale is not None:
            tokens = scale_tokens(tokens, token_scale)
        seen = tokens if visible is None else gather_tokens(tokens, visible)
        if self.class_token:
            row = self.class_vector + self.position_table()[1]
            seen, visible_valid = prepend(row, seen, visible_valid)
        latents = self.transformer(seen, key_valid=visible_valid, keys=keys)
        return self.norm(latents) if self.final_norm else latents

    def __call__(
        self, video: Float[Array, "b T H W C"], keys: ExampleKeys | None = None
    ) -> Float[Array, "b l d"]:
        """Latents of whole normalised clips; ``keys`` as in `encode`."""
        return self.encode(self.add_positions(self.tokenize(video)), keys=keys)


def class_attention(
    encoder: Encoder, params: Any, video: Float[Array, "b T H W C"]
) -> Float[Array, "b h n"]:
    """The softmaxed attention of the class token to each tubelet in the last block, per head.

    The class token's own column is dropped; what is left is not normalised again (AutoMAE).
    """
    _, state = encoder.apply({"params": params}, video, mutable=["intermediates"])
    blocks = state["intermediates"]["transformer"]["blocks"]
    return blocks["attention"][FIRST_TOKEN][0][-1][:, :, 1:]
