"""Adaptive masking: a sampling network chooses the visible tokens (AdaMAE, arXiv 2211.09120)."""

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from adamae_jax.errors import UserError
from adamae_jax.masking import base
from adamae_jax.masking.distribution import (
    clamped_log_probs,
    draw_in_order,
    draw_log_prob,
    entropy_share,
)
from adamae_jax.models import initializers
from adamae_jax.models.dense import Dense
from adamae_jax.models.transformer import ExampleKeys, Transformer, TransformerSpec
from adamae_jax.models.tubelets import Grid

Network = Literal["attention", "mlp"]
Credit = Literal["tokens", "draw"]
Baseline = Literal["none", "clip", "running"]
Reward = Literal["masked", "visible"]

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
      temperature: tokens are drawn from ``softmax(logits / temperature)``: below 1 the draw is
        sharper than what the sampling loss has learned. That loss takes the log-probabilities of
        the tokens from ``softmax(logits)``; at a temperature of their own they would find the same
        distribution again, and the draw would be no sharper.
      entropy_weight: weight of the loss ``(H / log N - entropy_target)^2``, where ``H`` is the
        entropy of the distribution that tokens are drawn from; 0: none.
      entropy_target: the share of ``log N`` that the entropy is pulled to.
      credit: whose log-probability a reward raises. "tokens": the rewarded token's own. "draw":
        that of the whole ordered draw, over the number of draws, which makes the sampling loss an
        unbiased policy gradient, times that constant, of the clip's mean reward.
      reward: whose errors are the reward. "masked": those of the masked tokens. "visible": those
        of the visible ones. These are then decoded too, from mask tokens in their places, with
        weight 0 in the reconstruction loss.
      baseline: what is subtracted from the reward. "clip": its mean over the clip. "running": its
        mean over the last updates, which is part of the strategy's state.
      baseline_decay: how much of the running mean is left after an update (a microbatch).
    """

    network: Network = "attention"
    width: int = 0
    depth: int = 1
    num_heads: int = 8
    dropout: float = 0.1
    norm_epsilon: float = 1e-5
    temperature: float = 1.0
    entropy_weight: float = 0.0
    entropy_target: float = 1.0
    credit: Credit = "tokens"
    reward: Reward = "masked"
    baseline: Baseline = "none"
    baseline_decay: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {"network": Network, "credit": Credit, "reward": Reward, "baseline": Baseline}
        for name, literal in choices.items():
            if getattr(self, name) not in get_args(literal):
                raise UserError(
                    f"masking.options.{name} {getattr(self, name)!r} is unknown: use "
                    + " or ".join(repr(choice) for choice in get_args(literal))
                )
        for name, lowest in (("width", 0), ("depth", 1), ("num_heads", 1)):
            if getattr(self, name) < lowest:
                raise UserError(
                    f"masking.options.{name} is {getattr(self, name)}: it must be at least {lowest}"
                )
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"masking.options.dropout {self.dropout} is outside [0, 1)")
        if not self.temperature > 0.0:
            raise UserError(
                f"masking.options.temperature is {self.temperature}: it must be above 0; below 1 "
                "the draw is sharper"
            )
        if not self.entropy_weight >= 0.0:
            raise UserError(
                f"masking.options.entropy_weight is {self.entropy_weight}: it must be at least 0"
            )
        if not 0.0 <= self.entropy_target <= 1.0:
            raise UserError(
                f"masking.options.entropy_target {self.entropy_target} is outside [0, 1]: give the "
                "share of log N, the entropy of an even distribution"
            )
        if not 0.0 <= self.baseline_decay < 1.0:
            raise UserError(
                f"masking.options.baseline_decay {self.baseline_decay} is outside [0, 1)"
            )
        if self.credit == "draw" and self.baseline == "clip":
            raise UserError(
                "masking.options.baseline 'clip' leaves nothing of the clip's mean reward, which "
                "is what credit 'draw' goes by: use 'running' or 'none'"
            )

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
        params = {"params": module.init(key, inputs.tokens, None)["params"]}
        if self.baseline != "running":
            return params
        zero = jnp.zeros((), jnp.float32)
        return {**params, "state": {"reward_mean": zero, "reward_weight": zero}}

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
        self, variables: base.Variables, inputs: base.MaskInputs, keys: ExampleKeys, train: bool
    ) -> base.TokenMask:
        """Draws the visible tokens from the network's distribution."""

        def purpose(number: int) -> ExampleKeys:
            return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)

        logits = self.logits(variables, inputs, purpose(_DROPOUT) if train else None)
        drawn_from = logits / self.temperature
        # The draw is from P itself; only the loss sees the clamp.
        order = draw_in_order(
            purpose(_DRAW), jax.nn.log_softmax(drawn_from, axis=-1), self.num_visible(inputs.grid)
        )
        mask = base.TokenMask(
            **base.mask_from_visible(base.marks(order, logits.shape[1]), order.shape[1]),
            log_probs=clamped_log_probs(jax.nn.softmax(drawn_from, axis=-1)),
            state=variables.get("state"),
        )
        return self._with_options(mask, logits, order)

    def _with_options(
        self, mask: base.TokenMask, logits: Float[Array, "b n"], order: Int[Array, "b v"]
    ) -> base.TokenMask:
        """Adds what the released code does not have."""
        drawn_from = logits / self.temperature
        if self.credit == "draw":
            each = draw_log_prob(drawn_from, order) / order.shape[1]
            mask = mask.replace(credit=jnp.broadcast_to(each[:, None], logits.shape))
        elif self.temperature != 1.0:
            mask = mask.replace(credit=clamped_log_probs(jax.nn.softmax(logits, axis=-1)))
        if self.entropy_weight:
            distance = entropy_share(drawn_from) - self.entropy_target
            mask = mask.replace(aux={"entropy": self.entropy_weight * jnp.square(distance)})
        if self.reward == "visible":
            hidden = 1.0 - base.marks(order, logits.shape[1])
            every = jnp.broadcast_to(jnp.arange(logits.shape[1]), logits.shape)
            mask = mask.replace(decode=every, decode_weight=hidden)
        return mask

    def rewards(
        self, mask: base.TokenMask, token_error: Float[Array, "b k"]
    ) -> tuple[Float[Array, "b k"], Float[Array, "b k"] | None, Any]:
        """Errors of the masked or of the visible tokens, less the baseline."""
        reward, weight, state = super().rewards(mask, token_error)
        if self.reward == "visible":
            assert weight is not None  # `_with_options` gives the visible tokens 0
            weight = 1.0 - weight
        if self.baseline == "clip":
            return reward - base.weighted_mean(reward, weight)[:, None], weight, state
        if self.baseline == "running":
            weights = jnp.ones_like(reward) if weight is None else weight
            mean = base.weighted_mean(reward.reshape(1, -1), weights.reshape(1, -1))[0]
            past, seen = state["reward_mean"], state["reward_weight"]
            # At first there is no past: the batch stands in for it.
            level = jnp.where(seen > 0, past / jnp.where(seen > 0, seen, 1.0), mean)
            keep, new = self.baseline_decay, 1.0 - self.baseline_decay
            state = {"reward_mean": keep * past + new * mean, "reward_weight": keep * seen + new}
            return reward - level, weight, state
        return reward, weight, state
