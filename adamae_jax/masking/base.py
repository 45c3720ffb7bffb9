"""What a masking strategy is: it says which tokens of a clip are seen and which are decoded.

A strategy is one file, in this package or elsewhere, with a class `Strategy`; its dataclass fields
are the options of ``config.masking.options``. Nothing outside the file has to know it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from adamae_jax.errors import UserError
from adamae_jax.models.attention import AttentionImplementation
from adamae_jax.models.encoder import Encoder
from adamae_jax.models.transformer import ExampleKeys
from adamae_jax.models.tubelets import Grid

# {"params": ..., "state": ..., "frozen": ...}, each where the strategy has it.
Variables = Mapping[str, Any]


class MaskInputs(struct.PyTreeNode):
    """What a strategy may look at.

    Attributes:
      video: normalised pixels.
      tokens: embedded tubelets, before or after positions (`MaskingStrategy.sees_positions`).
      grid: tokens along time, height and width.
      dtype: the type that the model's matmuls are computed in.
      attention_implementation: who computes the model's attention, and a strategy's own.
      context: what `MaskingStrategy.context` gave for these clips; None where it was not asked.
      progress: steps done over the steps of the run, from 0 and below 1; the same for all clips of
        a batch. Wherever nothing is trained it is 1: evaluation always sees the end of a schedule.
      foreground: the share of each token that is foreground, from 0 to 1, for strategies that
        look at it (`MaskingStrategy.sees_foreground`); None where the clips have no masks.
      valid: false for what only fills up a batch of held-out clips; None where all are clips.
    """

    video: Float[Array, "b T H W C"]
    tokens: Float[Array, "b n d"]
    grid: Grid = struct.field(pytree_node=False)
    dtype: DTypeLike = struct.field(pytree_node=False, default=jnp.float32)
    attention_implementation: AttentionImplementation = struct.field(
        pytree_node=False, default="auto"
    )
    context: Any = None
    progress: Float[Array, "b"] | float = 1.0
    foreground: Float[Array, "b n"] | None = None
    valid: Bool[Array, "b"] | None = None

    @property
    def execution(self) -> dict[str, Any]:
        """How a strategy's own networks are computed, as arguments of `TransformerSpec`."""
        return {
            "dtype": self.dtype,
            "attention_implementation": self.attention_implementation,
        }


class TokenMask(struct.PyTreeNode):
    """A strategy's answer. Indices are those of patch tokens, sorted.

    Attributes:
      visible: tokens that the encoder sees, `MaskingStrategy.num_visible` of them, and padding.
      masked: all others, `MaskingStrategy.num_masked` of them. Where clips see different numbers,
        padding of ``visible`` names the tokens that are in neither: not seen and not decoded.
      log_probs: log-probability of each token in the strategy's distribution; where given, the
        objective adds the sampling loss (`adamae_jax.pretraining.sampling_loss`).
      credit: the log-probability that a token's reward raises in the sampling loss; its own in
        ``log_probs`` where None.
      visible_valid: false where an entry of ``visible`` is padding.
      decode: the tokens to reconstruct, visible ones among them if the strategy wants; all of
        ``masked`` where None.
      decode_weight: weight of each of them in the reconstruction and sampling losses, at least 0;
        1 where None. The loss is one quotient over the update's whole batch: the sum of weighted
        errors over the sum of weights. No gradient flows through it.
      token_scale: multiplies tokens without changing their values, to carry a gradient to the
        strategy (`adamae_jax.models.encoder.scale_tokens`).
      aux: further losses, already weighted, to be minimised with the reconstruction loss; one
        value per example.
      state: the strategy's new state, where it has state.
    """

    visible: Int[Array, "b v"]
    masked: Int[Array, "b m"]
    log_probs: Float[Array, "b n"] | None = None
    credit: Float[Array, "b n"] | None = None
    visible_valid: Bool[Array, "b v"] | None = None
    decode: Int[Array, "b k"] | None = None
    decode_weight: Float[Array, "b k"] | None = None
    token_scale: Float[Array, "b n"] | None = None
    aux: Mapping[str, Float[Array, "b"]] = struct.field(default_factory=dict)
    state: Any = None

    @property
    def queries(self) -> Int[Array, "b k"]:
        """The tokens that are reconstructed."""
        return self.masked if self.decode is None else self.decode


@dataclasses.dataclass(frozen=True)
class MaskingStrategy:
    """The base of every strategy.

    Attributes:
      mask_ratio: the share of tokens that is masked, strictly between 0 and 1.
      sees_positions: whether ``MaskInputs.tokens`` carry positions.
      sees_foreground: whether the strategy looks at ``MaskInputs.foreground``; training then needs
        a dataset with foreground masks.
      sees_batch: whether a clip's mask depends on the clips beside it. What it has to know of them
        is then worked out once for the whole batch of an update (`context`, `share`).
      adversary: the key of the strategy's parameters that an optimiser of their own trains,
        against `adversary_loss`; None where there is no adversary.
    """

    mask_ratio: float
    sees_positions: ClassVar[bool] = False
    sees_foreground: ClassVar[bool] = False
    sees_batch: ClassVar[bool] = False
    adversary: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        if not 0.0 < self.mask_ratio < 1.0:
            raise UserError(
                f"mask_ratio {self.mask_ratio} is outside (0, 1): give the share of tokens to "
                "mask, such as 0.95"
            )

    def num_visible(self, grid: Grid) -> int:
        """``N_v``: the number of visible tokens, rounded as the authors do.

        Where clips see different numbers, their mean.
        """
        time, height, width = grid
        return int(time * height * width * (1 - self.mask_ratio))

    def num_masked(self, grid: Grid) -> int:
        """The number of tokens in ``TokenMask.masked``: all that are not visible."""
        time, height, width = grid
        return time * height * width - self.num_visible(grid)

    def check(self, grid: Grid, token_width: int) -> None:
        """Raises a `UserError` where the strategy does not fit the model.

        Here: where no token would be visible, or none masked.
        """
        del token_width
        time, height, width = grid
        tokens, visible = time * height * width, self.num_visible(grid)
        if not 0 < visible < tokens:
            kind = "visible" if visible <= 0 else "masked"
            raise UserError(
                f"mask_ratio {self.mask_ratio} leaves no {kind} token of the {tokens} in a grid of "
                f"{time} x {height} x {width}: choose another mask_ratio or a finer grid"
            )

    def frozen_source(self) -> str:
        """Where the encoder that the strategy holds frozen comes from: a run or model directory."""
        return ""

    def adopt(self, encoder: Encoder, params: Any, grid: Grid) -> Any:
        """The ``frozen`` variables, from the encoder in `frozen_source`.

        Raises:
          UserError: where it does not fit.
        """
        raise NotImplementedError

    def context(self, frozen: Any, inputs: MaskInputs) -> Any:
        """What depends on the pixels and frozen networks alone, an array or tree ``[b, ...]``.

        A step of a strategy with an adversary computes it once, for both updates, and that of one
        that `sees_batch` for the whole batch; elsewhere ``inputs.context`` is None, and the
        strategy computes what it needs.
        """
        del frozen, inputs
        return None

    def share(self, context: Any, grid: Grid, valid: Bool[Array, "b"] | None = None) -> Any:
        """What clips have to know of each other; here each keeps its own.

        Args:
          context: what `context` gave for a whole batch.
          grid: tokens along time, height and width.
          valid: as ``MaskInputs.valid``.

        Returns:
          What becomes ``inputs.context``, an array or tree ``[b, ...]`` too.
        """
        del grid, valid
        return context

    def init(self, key: Array, inputs: MaskInputs) -> Variables:
        """The strategy's initial variables."""
        del key, inputs
        return {}

    def __call__(
        self, variables: Variables, inputs: MaskInputs, keys: ExampleKeys, train: bool
    ) -> TokenMask:
        """Chooses the visible tokens, at random with one key per example."""
        raise NotImplementedError

    def rewards(
        self, mask: TokenMask, token_error: Float[Array, "b k"]
    ) -> tuple[Float[Array, "b k"], Float[Array, "b k"] | None, Any]:
        """What the draw has earned, where the strategy has a distribution.

        Here: each token's error, with its weight in the reconstruction loss.

        Args:
          mask: the strategy's answer.
          token_error: of the tokens in ``mask.queries``; no gradient flows through it.

        Returns:
          The reward of each of these tokens, its weight (at least 0; 1 where None) in the sampling
          loss, which is the clip's weighted mean, and the strategy's new state.
        """
        del self
        return token_error, mask.decode_weight, mask.state

    def adversary_loss(
        self, variables: Variables, inputs: MaskInputs, keys: ExampleKeys, train: bool
    ) -> tuple[Float[Array, "b"], Any]:
        """The adversary's loss per example and the strategy's new state.

        Minimised with respect to ``variables["params"][self.adversary]`` alone, before the model's
        own update of the same step.
        """
        raise NotImplementedError


def mask_from_visible(is_visible: Bool[Array, "b n"], num_visible: int) -> dict[str, Any]:
    """Sorted indices of visible and masked tokens, as `TokenMask` fields.

    Args:
      is_visible: exactly ``num_visible`` true in each row.
      num_visible: ``N_v``.
    """
    order = jnp.argsort(jnp.logical_not(is_visible), axis=-1, stable=True)
    return {"visible": order[:, :num_visible], "masked": order[:, num_visible:]}


def largest_first(values: Float[Array, "b n"], count: int) -> Int[Array, "b c"]:
    """Returns the places of the ``count`` largest values of each row, the largest first.

    Of equal ones, those that come first. By a sort, which stays on the devices that hold the rows:
    `jax.lax.top_k` gathers all rows.
    """
    return jnp.argsort(-values, axis=-1, stable=True)[:, :count]


def marks(places: Int[Array, "b c"], size: int) -> Bool[Array, "b n"]:
    """Marks some of the ``size`` places of each row."""
    return jax.vmap(lambda row: jnp.zeros(size, bool).at[row].set(True))(places)


def largest(values: Float[Array, "b n"], count: int) -> Bool[Array, "b n"]:
    """Marks the places that `largest_first` returns."""
    return marks(largest_first(values, count), values.shape[1])


def random_subset(keys: ExampleKeys, size: int, count: int) -> Bool[Array, "b n"]:
    """Marks ``count`` of ``size`` places, uniformly at random without replacement."""
    return largest(jax.vmap(lambda key: jax.random.uniform(key, (size,)))(keys), count)


def weighted_mean(
    values: Float[Array, "b k"], weights: Float[Array, "b k"] | None
) -> Float[Array, "b"]:
    """The mean over each example's tokens; 0 where all weigh nothing."""
    if weights is None:
        return values.mean(-1)
    return (values * weights).sum(-1) / jnp.maximum(weights.sum(-1), jnp.finfo(jnp.float32).tiny)
