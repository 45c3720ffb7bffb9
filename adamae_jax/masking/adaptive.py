"""Adaptive masking: a sampling network chooses the visible tokens (AdaMAE, arXiv 2211.09120)."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from adamae_jax.errors import UserError
from adamae_jax.masking import base
from adamae_jax.models import initializers
from adamae_jax.models.dense import Dense
from adamae_jax.models.transformer import ExampleKeys, Transformer, TransformerSpec
from adamae_jax.models.tubelets import Grid

# Where PyTorch's Categorical clamps probabilities: float32's epsilon from 0 and from 1.
PROBABILITY_FLOOR = float(jnp.finfo(jnp.float32).eps)

# What a purpose folds into an example's key; two purposes never share randomness.
_DRAW, _DROPOUT = 0, 1


class SamplingNetwork(nn.Module):
    """Tokens to logits: positions of its own, transformer blocks, one linear layer, no norm.

    Attributes:
      spec: the shape of the blocks; a width other than the tokens' adds a linear layer in front.
    """

    spec: TransformerSpec

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b n d"], keys: ExampleKeys | None
    ) -> Float[Array, "b n"]:
        """Returns float32 logits; ``keys`` turn dropout on."""
        spec, init = self.spec, initializers.xavier_uniform()
        table = self.param("position_table", nn.initializers.zeros, tokens.shape[1:])
        x = tokens + table
        if spec.width != x.shape[-1]:
            x = Dense(spec.width, kernel_init=init, dtype=spec.dtype, name="projection")(x)
        x = Transformer(spec, name="transformer")(x, keys=keys)
        return Dense(1, kernel_init=init, dtype=jnp.float32, name="head")(x)[..., 0]


def sample_without_replacement(
    rng: ExampleKeys, log_probs: Float[Array, "b n"], count: int
) -> Bool[Array, "b n"]:
    """Draws ``count`` places of each row from ``Categorical(exp(log_probs))``, none twice.

    Gumbel noise is added to the log-probabilities and the largest ``count`` are taken, which has
    exactly the distribution of drawing one after the other without replacement.
    """

    noise = jax.vmap(lambda key: jax.random.gumbel(key, log_probs.shape[1:]))(rng)
    return base.largest(log_probs + noise, count)


def clamped_log_probs(probabilities: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """``log P`` with P clamped to [eps, 1 - eps]; no gradient where the clamp acts."""
    return jnp.log(jnp.clip(probabilities, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR))


@dataclasses.dataclass(frozen=True)
class Strategy(base.MaskingStrategy):
    """AdaMAE's sampler; the defaults are the released code's.

    The network computes in the model's type; the distribution itself is float32.

    Attributes:
      network: "attention" for transformer blocks, "mlp" for blocks without attention.
      width: width of the blocks; 0 takes the tokens' width.
      depth: number of blocks.
      num_heads: attention heads; must divide the width.
      dropout: rate inside the blocks, in training.
      norm_epsilon: epsilon of the layer norms.
    """

    network: Literal["attention", "mlp"] = "attention"
    width: int = 0
    depth: int = 1
    num_heads: int = 8
    dropout: float = 0.1
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network not in ("attention", "mlp"):
            raise UserError(
                f"masking.options.network {self.network!r} is unknown: use 'attention' or 'mlp'"
            )
        for name, lowest in (("width", 0), ("depth", 1), ("num_heads", 1)):
            if getattr(self, name) < lowest:
                raise UserError(
                    f"masking.options.{name} is {getattr(self, name)}: it must be at least {lowest}"
                )
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"masking.options.dropout {self.dropout} is outside [0, 1)")

    def check(self, grid: Grid, token_width: int) -> None:
        """Raises a `UserError` also where the heads do not divide the sampler's width."""
        super().check(grid, token_width)
        self.module(token_width)

    def module(self, token_width: int, **execution: Any) -> SamplingNetwork:
        """The sampling network for tokens of a given width; see `MaskInputs.execution`."""
        width = self.width or token_width
        if width % self.num_heads:
            raise UserError(
                f"masking.options.num_heads {self.num_heads} does not divide the sampler's width "
                f"{width}: choose heads that divide it"
            )
        return SamplingNetwork(
            TransformerSpec(
                width=width,
                depth=self.depth,
                num_heads=self.num_heads,
                attention_bias="",
                norm_epsilon=self.norm_epsilon,
                dropout=self.dropout,
                attention=self.network == "attention",
                **execution,
            )
        )

    def init(self, key: Array, inputs: base.MaskInputs) -> base.Variables:
        """Initialises the sampling network."""
        module = self.module(inputs.tokens.shape[-1], **inputs.execution)
        return {"params": module.init(key, inputs.tokens, None)["params"]}

    def logits(
        self, variables: base.Variables, inputs: base.MaskInputs, keys: ExampleKeys | None
    ) -> Float[Array, "b n"]:
        """The sampling network's answer in float32; its softmax is ``P``."""
        module = self.module(inputs.tokens.shape[-1], **inputs.execution)
        return module.apply({"params": variables["params"]}, inputs.tokens, keys)

    def probabilities(
        self, variables: base.Variables, inputs: base.MaskInputs, keys: ExampleKeys | None
    ) -> Float[Array, "b n"]:
        """``P``: each clip's distribution over its tokens."""
        return jax.nn.softmax(self.logits(variables, inputs, keys), axis=-1)

    def __call__(
        self, variables: base.Variables, inputs: base.MaskInputs, rng: ExampleKeys, train: bool
    ) -> base.TokenMask:
        """Draws the visible tokens from the network's distribution."""

        def purpose(number: int) -> ExampleKeys:
            return jax.vmap(lambda key: jax.random.fold_in(key, number))(rng)

        logits = self.logits(variables, inputs, purpose(_DROPOUT) if train else None)
        count = self.num_visible(inputs.grid)
        # The draw is from P itself; only the loss sees the clamp.
        is_visible = sample_without_replacement(
            purpose(_DRAW), jax.nn.log_softmax(logits, axis=-1), count
        )
        return base.TokenMask(
            **base.mask_from_visible(is_visible, count),
            log_probs=clamped_log_probs(jax.nn.softmax(logits, axis=-1)),
        )
