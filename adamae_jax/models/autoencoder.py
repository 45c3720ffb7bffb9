"""The masked autoencoder that every system shares.

Which tokens are visible is somebody else's business (`adamae_jax.masking`): the autoencoder is
handed indices.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Num

from adamae_jax.models.decoder import ClassToken, Decoder
from adamae_jax.models.encoder import Encoder
from adamae_jax.models.positions import PositionKind
from adamae_jax.models.transformer import ExampleKeys, TransformerSpec
from adamae_jax.models.tubelets import ClipGeometry

# Width, depth and heads of the encoder, then of the decoder: VideoMAE's table (AdaMAE is its B)
# and VideoMAE V2's g.
SIZES = {
    "S": ((384, 12, 6), (192, 4, 3)),
    "B": ((768, 12, 12), (384, 4, 6)),
    "L": ((1024, 24, 16), (512, 12, 8)),
    "H": ((1280, 32, 16), (640, 12, 8)),
    "g": ((1408, 40, 16), (512, 4, 8)),
}
MLP_RATIOS = {"g": 48 / 11}  # of the sizes that do not have 4


class Autoencoder(nn.Module):
    """An `Encoder` of visible tokens and a `Decoder` of masked ones.

    The defaults are AdaMAE's and VideoMAE's choices: fixed 1-D sine-cosine positions, no class
    token, a projection between encoder and decoder without bias.

    Attributes:
      geometry: how clips are cut into tokens.
      encoder_spec: the encoder's blocks.
      decoder_spec: the decoder's blocks.
      positions: of encoder and decoder; see `Positions`.
      class_token: see `Decoder`.
      projection_bias: see `Decoder`.
      decoder_norm_epsilon: see `Decoder`.
      predicted_frames: frames of a clip that are predicted, evenly spread (MAE-ST's ``pred_t``);
        0 for all.
    """

    geometry: ClipGeometry
    encoder_spec: TransformerSpec
    decoder_spec: TransformerSpec
    positions: PositionKind = "sincos_1d"
    class_token: ClassToken = "none"
    projection_bias: bool = False
    predicted_frames: int = 0
    decoder_norm_epsilon: float | None = None

    @property
    def encoder_definition(self) -> Encoder:
        """The encoder on its own; its parameters are those under ``encoder``."""
        has_class = self.class_token != "none"
        return Encoder(self.geometry, self.encoder_spec, self.positions, has_class, parent=None)

    @property
    def target_geometry(self) -> ClipGeometry:
        """How the frames that are predicted are cut; the grid is that of the clip."""
        return self.geometry.predicting(self.predicted_frames or self.geometry.num_frames)

    @property
    def target_frames(self) -> tuple[int, ...]:
        """Which frames are predicted: evenly spread from the first to the last, rounded down."""
        count, last = self.target_geometry.num_frames, self.geometry.num_frames - 1
        return tuple(i * last // max(1, count - 1) for i in range(count))

    def pick_target_frames(self, video: Num[Array, "b T H W C"]) -> Num[Array, "b t H W C"]:
        """The frames of clips that are predicted."""
        if not self.predicted_frames:
            return video
        return video[:, jnp.asarray(self.target_frames)]

    def setup(self) -> None:
        """Declares the two halves."""
        self.encoder = self.encoder_definition.clone(name="encoder")
        self.decoder = Decoder(
            self.geometry.grid,
            self.decoder_spec,
            self.target_geometry.tubelet_values,
            self.positions,
            self.class_token,
            self.projection_bias,
            self.decoder_norm_epsilon,
        )

    def tokenize(self, video: Float[Array, "b T H W C"]) -> Float[Array, "b n d"]:
        """Normalised pixels to tokens, without positions."""
        return self.encoder.tokenize(video)

    def add_positions(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Adds each token's place in the clip."""
        return self.encoder.add_positions(tokens)

    def encode(
        self,
        tokens: Float[Array, "b n d"],
        visible: Int[Array, "b v"],
        *,
        visible_valid: Bool[Array, "b v"] | None = None,
        token_scale: Float[Array, "b n"] | None = None,
        keys: ExampleKeys | None = None,
    ) -> Float[Array, "b l d"]:
        """Encodes the visible tokens; see `Encoder.encode`."""
        return self.encoder.encode(
            tokens, visible, visible_valid=visible_valid, token_scale=token_scale, keys=keys
        )

    def decode(
        self,
        latents: Float[Array, "b l d"],
        visible: Int[Array, "b v"],
        queries: Int[Array, "b m"],
        *,
        visible_valid: Bool[Array, "b v"] | None = None,
        keys: ExampleKeys | None = None,
        predict_visible: bool = False,
    ) -> Float[Array, "b k p"]:
        """Predicts the tubelets at ``queries`` from the encoder's latents; see `Decoder`."""
        return self.decoder(
            latents,
            visible,
            queries,
            visible_valid=visible_valid,
            keys=keys,
            predict_visible=predict_visible,
        )

    def features(self, video: Float[Array, "b T H W C"]) -> Float[Array, "b n d"]:
        """The encoder's latents of all tokens of normalised clips, in float32."""
        latents = self.encoder(video)
        return latents[:, int(self.class_token != "none") :].astype(jnp.float32)

    def __call__(
        self,
        video: Float[Array, "b T H W C"],
        visible: Int[Array, "b v"],
        masked: Int[Array, "b m"],
    ) -> Float[Array, "b m p"]:
        """Encodes and decodes under a given mask: the path that touches every parameter."""
        tokens = self.add_positions(self.tokenize(video))
        return self.decode(self.encode(tokens, visible), visible, masked)
