"""Small classifiers on the latents of an encoder that is not trained, in float32."""

import functools
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from adamae_jax.models.transformer import LayerNorm

ProbeKind = Literal["linear", "attentive", "change"]
PROBE_KINDS: tuple[ProbeKind, ...] = get_args(ProbeKind)

# MAE's linear probe: features are normalised over the batch, without a learned scale. The running
# mean and variance are what a head is evaluated with.
BatchNorm = functools.partial(
    nn.BatchNorm,
    momentum=0.9,
    epsilon=1e-6,
    use_scale=False,
    use_bias=False,
    use_fast_variance=False,
)


class LinearProbe(nn.Module):
    """A linear layer on one vector per clip (MAE's head, behind `BatchNorm`).

    Of what the vector is depends on the kind of probe: see `adamae_jax.probing`.

    Attributes:
      num_classes: outputs.
    """

    num_classes: int

    @nn.compact
    def __call__(self, features: Float[Array, "b d"]) -> Float[Array, "b k"]:
        """The classes' logits."""
        init = nn.initializers.normal(0.01)
        return nn.Dense(self.num_classes, kernel_init=init, name="head")(features)


class AttentiveProbe(nn.Module):
    """A learned query that attends to all tokens, an MLP, and a linear layer (V-JEPA's).

    Attributes:
      num_classes: outputs.
      num_heads: of the attention; divides the width of the tokens.
      mlp_ratio: hidden width of the MLP over that of the tokens.
    """

    num_classes: int
    num_heads: int
    mlp_ratio: float = 4.0

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b k"]:
        """The classes' logits."""
        batch, count, width = tokens.shape
        init = nn.initializers.truncated_normal(0.02)
        # Those whose outputs are added up start smaller, by the root of how many there are.
        last = nn.initializers.truncated_normal(0.02 / math.sqrt(2.0))
        heads = (self.num_heads, width // self.num_heads)
        query = self.param("query", init, (width,))
        seen = LayerNorm(1e-5, name="norm1")(tokens)
        queries = nn.Dense(width, kernel_init=init, name="query_projection")(query)
        keys_values = nn.Dense(2 * width, kernel_init=init, name="key_value_projection")(seen)
        keys_values = keys_values.reshape(batch, count, 2, *heads)
        mixed = jax.nn.dot_product_attention(
            jnp.broadcast_to(queries.reshape(heads), (batch, 1, *heads)),
            keys_values[:, :, 0],
            keys_values[:, :, 1],
        ).reshape(batch, width)
        x = query + nn.Dense(width, kernel_init=last, name="projection")(mixed)
        y = LayerNorm(1e-5, name="norm2")(x)
        y = nn.Dense(int(width * self.mlp_ratio), kernel_init=init, name="fc1")(y)
        y = nn.Dense(width, kernel_init=last, name="fc2")(nn.gelu(y, approximate=False))
        return nn.Dense(self.num_classes, kernel_init=init, name="head")(x + y)
