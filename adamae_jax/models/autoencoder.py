"""The masked autoencoder that every system shares: tokens, encoder, decoder.

Which tokens are visible is somebody else's business (`adamae_jax.masking`): the autoencoder is
handed indices.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Num

from adamae_jax.errors import UserError
from adamae_jax.models import initializers, positions
from adamae_jax.models.transformer import ExampleKeys, LayerNorm, Transformer, TransformerSpec
from adamae_jax.models.tubelets import ClipGeometry, TubeletEmbedding

# Products of the compute type, summed and handed on in float32; so the gradient comes back in it.
_FLOAT32_OUTPUT = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)

# Width, depth and heads of the encoder, then of the decoder (VideoMAE's table; AdaMAE is its B).
SIZES = {
    "S": ((384, 12, 6), (192, 4, 3)),
    "B": ((768, 12, 12), (384, 4, 6)),
    "L": ((1024, 24, 16), (512, 12, 8)),
    "H": ((1280, 32, 16), (640, 12, 8)),
}


def gather_tokens(tokens: Num[Array, "b n d"], indices: Int[Array, "b k"]) -> Num[Array, "b k d"]:
    """Picks each example's tokens at its indices."""
    return jnp.take_along_axis(tokens, indices[:, :, None], axis=1)


def scale_tokens(
    tokens: Float[Array, "b n d"], scale: Float[Array, "b n"]
) -> Float[Array, "b n d"]:
    """``s * x + stop_gradient(1 - s) * x``: the same values, a gradient for the scale (AutoMAE)."""
    scale = scale[:, :, None].astype(tokens.dtype)
    return scale * tokens + jax.lax.stop_gradient(1.0 - scale) * tokens


class Autoencoder(nn.Module):
    """Tubelet embedding, ViT encoder over visible tokens, ViT decoder over all of them.

    With AdaMAE's and VideoMAE's choices: fixed 1-D sine-cosine positions, no class token, a
    projection between encoder and decoder without bias, and predictions for the tokens that are
    asked for only.

    Attributes:
      geometry: how clips are cut into tokens.
      encoder: the encoder's blocks.
      decoder: the decoder's blocks.

    Raises:
      UserError: where heads do not divide a width.
    """

    geometry: ClipGeometry
    encoder: TransformerSpec
    decoder: TransformerSpec

    def __post_init__(self) -> None:
        for name, spec in (("encoder", self.encoder), ("decoder", self.decoder)):
            if spec.num_heads < 1 or spec.width % spec.num_heads:
                raise UserError(
                    f"{name} width {spec.width} is not a multiple of its num_heads "
                    f"{spec.num_heads}: choose heads that divide the width"
                )
        super().__post_init__()

    def setup(self) -> None:
        """Declares the rooms of the model."""
        encoder, decoder = self.encoder, self.decoder
        self.embedding = TubeletEmbedding(self.geometry, encoder.width, encoder.dtype)
        self.encoder_blocks = Transformer(encoder, name="encoder")
        self.encoder_norm = LayerNorm(encoder.norm_epsilon, encoder.dtype)
        self.encoder_to_decoder = nn.Dense(
            decoder.width,
            use_bias=False,
            kernel_init=initializers.uniform_fan_in(encoder.width),
            dtype=decoder.dtype,
        )
        self.mask_token = self.param(
            "mask_token", initializers.clipped_normal(0.02), (decoder.width,)
        )
        self.decoder_blocks = Transformer(decoder, name="decoder")
        self.decoder_norm = LayerNorm(decoder.norm_epsilon, decoder.dtype)
        self.decoder_head = nn.Dense(
            self.geometry.tubelet_values,
            kernel_init=initializers.xavier_uniform(),
            dtype=decoder.dtype,
            dot_general=_FLOAT32_OUTPUT,  # predictions are not rounded before the loss
        )

    def tokenize(self, video: Float[Array, "b T H W C"]) -> Float[Array, "b n d"]:
        """Normalised pixels to tokens, without positions."""
        return self.embedding(video)

    def add_positions(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Adds each token's place in the clip."""
        table = positions.sincos_1d(self.geometry.num_tokens, self.encoder.width)
        return tokens + jnp.asarray(table)

    def encode(
        self,
        tokens: Float[Array, "b n d"],
        visible: Int[Array, "b v"],
        *,
        visible_valid: Bool[Array, "b v"] | None = None,
        token_scale: Float[Array, "b n"] | None = None,
        keys: ExampleKeys | None = None,
    ) -> Float[Array, "b v d"]:
        """Encodes the visible tokens.

        Args:
          tokens: all tokens, with positions.
          visible: indices of the tokens that the encoder sees.
          visible_valid: false where an entry of ``visible`` is padding.
          token_scale: see `scale_tokens`.
          keys: one key per example for dropout.
        """
        if token_scale is not None:
            tokens = scale_tokens(tokens, token_scale)
        seen = gather_tokens(tokens, visible)
        return self.encoder_norm(self.encoder_blocks(seen, key_valid=visible_valid, keys=keys))

    def decode(
        self,
        latents: Float[Array, "b v d"],
        visible: Int[Array, "b v"],
        queries: Int[Array, "b m"],
        *,
        visible_valid: Bool[Array, "b v"] | None = None,
        keys: ExampleKeys | None = None,
    ) -> Float[Array, "b m p"]:
        """Predicts the tubelets at ``queries`` from the encoder's latents, in float32."""
        table = jnp.asarray(positions.sincos_1d(self.geometry.num_tokens, self.decoder.width))
        seen = self.encoder_to_decoder(latents) + table[visible]
        asked = self.mask_token + table[queries]
        key_valid = None
        if visible_valid is not None:
            key_valid = jnp.concatenate([visible_valid, jnp.ones(queries.shape, bool)], axis=1)
        x = jnp.concatenate([seen, asked], axis=1)
        x = self.decoder_blocks(x, key_valid=key_valid, keys=keys)[:, visible.shape[1] :]
        return self.decoder_head(self.decoder_norm(x))

    def features(self, video: Float[Array, "b T H W C"]) -> Float[Array, "b n d"]:
        """The encoder's latents of all tokens of normalised clips, in float32."""
        tokens = self.add_positions(self.tokenize(video))
        latents = self.encoder_norm(self.encoder_blocks(tokens))
        return latents.astype(jnp.float32)

    def __call__(
        self,
        video: Float[Array, "b T H W C"],
        visible: Int[Array, "b v"],
        masked: Int[Array, "b m"],
    ) -> Float[Array, "b m p"]:
        """Encodes and decodes under a given mask: the path that touches every parameter."""
        tokens = self.add_positions(self.tokenize(video))
        return self.decode(self.encode(tokens, visible), visible, masked)
