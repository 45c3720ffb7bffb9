"""The decoder that every system shares: latents to tubelets."""

from typing import Literal, get_args

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from adamae_jax.models.dense import Dense
from adamae_jax.models.encoder import prepend
from adamae_jax.models.positions import PositionKind, Positions
from adamae_jax.models.transformer import ExampleKeys, LayerNorm, Transformer, TransformerSpec
from adamae_jax.models.tubelets import Grid

ClassToken = Literal["none", "shared", "separate"]
CLASS_TOKENS: tuple[str, ...] = get_args(ClassToken)


class Decoder(nn.Module):
    """A projection, mask tokens, positions, class token, blocks, a norm and a linear head.

    Attributes:
      grid: tokens along time, height and width.
      spec: the blocks.
      values: what is predicted for each token.
      positions: see `Positions`.
      class_token: "none"; "shared": the encoder's goes on through the decoder (MAE); "separate":
        the encoder's is dropped and the decoder has one of its own (MAE-ST).
      projection_bias: whether the projection from the encoder's width has a bias.
      norm_epsilon: of the norm in front of the head; the blocks' where None.
    """

    grid: Grid
    spec: TransformerSpec
    values: int
    positions: PositionKind = "sincos_1d"
    class_token: ClassToken = "none"
    projection_bias: bool = False
    norm_epsilon: float | None = None

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "b l d"],
        visible: Int[Array, "b v"],
        queries: Int[Array, "b m"],
        *,
        visible_valid: Bool[Array, "b v"] | None = None,
        keys: ExampleKeys | None = None,
        predict_visible: bool = False,
    ) -> Float[Array, "b k p"]:
        """Predicts the tubelets at ``queries``, in float32.

        Args:
          latents: the encoder's, with the class token's in front where it has one.
          visible: where the latents come from.
          queries: which tokens are asked for.
          visible_valid: false where an entry of ``visible`` is padding.
          keys: one key per example for dropout.
          predict_visible: predict the visible tokens too, and put them in front.
        """
        spec, init = self.spec, self.spec.init
        has_class = self.class_token != "none"
        if self.class_token == "separate":
            latents = latents[:, 1:]
        x = Dense(
            spec.width,
            use_bias=self.projection_bias,
            kernel_init=init.projection,
            dtype=spec.dtype,
            name="projection",
        )(latents)
        table, class_row = Positions(
            self.positions, self.grid, spec.width, has_class, init.token, name="positions"
        )()
        mask_token = self.param("mask_token", init.token, (spec.width,))
        first = x[:, :0]
        if self.class_token == "shared":
            first, x = x[:, :1] + class_row, x[:, 1:]
        seen, asked = x + table[visible], mask_token + table[queries]
        x = jnp.concatenate([first, seen, asked], axis=1)
        key_valid = None
        if visible_valid is not None:
            sure = jnp.ones_like(visible_valid, shape=(len(x), 1))
            parts = [sure[:, : first.shape[1]], visible_valid, jnp.ones(queries.shape, bool)]
            key_valid = jnp.concatenate(parts, axis=1)
        if self.class_token == "separate":
            own = self.param("class_token", init.token, (spec.width,))
            x, key_valid = prepend(own + class_row, x, key_valid)
        x = Transformer(spec, name="transformer")(x, key_valid=key_valid, keys=keys)
        x = x[:, int(has_class) + (0 if predict_visible else visible.shape[1]) :]
        epsilon = spec.norm_epsilon if self.norm_epsilon is None else self.norm_epsilon
        x = LayerNorm(epsilon, spec.dtype, name="norm")(x)
        return Dense(
            self.values,
            kernel_init=init.dense,
            dtype=spec.dtype,
            output_dtype=jnp.float32,  # predictions are not rounded before the loss
            name="head",
        )(x)
