"""From clips, predictions and masks to losses: what pretraining minimises."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Key, UInt8

from adamae_jax.diagnostics import (
    foreground_share,
    marked_tokens,
    mask_figures,
    random_visible_share,
    visible_share,
)
from adamae_jax.errors import UserError
from adamae_jax.masking.base import MaskingStrategy, MaskInputs, TokenMask, weighted_mean
from adamae_jax.masking.decoding import ALL_DECODED, Decoding
from adamae_jax.models.autoencoder import Autoencoder
from adamae_jax.models.transformer import ExampleKeys
from adamae_jax.targets import Objective, normalize_pixels, targets_at, token_errors
from adamae_jax.task import MODEL, PROGRESS, Batch, Task, TaskLoss, Variables, fold
from adamae_jax.task import microbatches as split_batch

ADVERSARY = "adversary"  # the group of a strategy's adversary
# In a prepared batch: see `MaskingStrategy.context` and `share`; in a batch that is evaluated.
CONTEXT, VALID = "context", "valid"
# What a purpose folds into an example's key.
MASKING_DRAW, ADVERSARY_DRAW, DECODING_DRAW = 0, 1, 2


class ForwardOutput(struct.PyTreeNode):
    """Predictions and losses of a batch of clips.

    Attributes:
      loss: the total that is minimised, per example.
      weight: of each example in the update's mean (`adamae_jax.task.TaskLoss`).
      terms: its parts, per example: ``loss_reconstruction``, and where the strategy has them
        ``loss_sampling`` (before its weight) and the strategy's own.
      mask: the strategy's answer.
      predictions: predicted tubelets at ``mask.queries``.
      targets: what they should have been.
      token_error: error of each prediction.
    """

    loss: Float[Array, "b"]
    weight: Float[Array, "b"]
    terms: dict[str, Float[Array, "b"]]
    mask: TokenMask
    predictions: Float[Array, "b k p"]
    targets: Float[Array, "b k p"]
    token_error: Float[Array, "b k"]


def sampling_loss(
    log_probs: Float[Array, "b n"],
    queries: Int[Array, "b k"],
    reward: Float[Array, "b k"],
    weights: Float[Array, "b k"] | None = None,
) -> Float[Array, "b"]:
    """AdaMAE's ``L_S``: minus the mean of ``log P_i * stop_gradient(err_i)`` over decoded tokens.

    Minimising it raises the probability of the tokens that reconstruct badly; the error is the
    reward, so nothing flows into the autoencoder's blocks. A strategy may credit other
    log-probabilities (`TokenMask.credit`) with other rewards (`MaskingStrategy.rewards`).
    """
    chosen = jnp.take_along_axis(log_probs, queries, axis=1)
    return -weighted_mean(chosen * jax.lax.stop_gradient(reward), weights)


@dataclasses.dataclass(frozen=True)
class Pretraining(Task):
    """The task of pretraining: one masked autoencoder, one masking strategy, one objective.

    Attributes:
      model: the autoencoder.
      strategy: which tokens it sees.
      objective: how it is judged.
      random_draws: random masks per clip that evaluation compares the strategy's with.
      decoding: which of the masked tokens are decoded.
      earlier: strategies of the parts of the training before the last, where the mask ratio
        changes.
      logs_mask_ratio: whether it is among the metrics, as in such parts.
    """

    model: Autoencoder
    strategy: MaskingStrategy
    objective: Objective
    random_draws: int = 64
    decoding: Decoding = ALL_DECODED
    earlier: tuple[MaskingStrategy, ...] = ()
    logs_mask_ratio: bool = False

    name = "pretraining"
    headline = "loss_reconstruction"

    @property
    def groups(self) -> tuple[str, ...]:
        """An adversary, where the strategy has one, is updated before the model."""
        return (MODEL,) if self.strategy.adversary is None else (ADVERSARY, MODEL)

    @property
    def stages(self) -> tuple["Pretraining", ...]:
        """One for each mask ratio."""
        if not self.earlier:
            return (self,)
        return tuple(
            dataclasses.replace(self, strategy=one, earlier=(), logs_mask_ratio=True)
            for one in (*self.earlier, self.strategy)
        )

    def group_of(self, path: str) -> str:
        """The strategy names the parameters of its adversary."""
        own = f"masking/{self.strategy.adversary}/"
        return ADVERSARY if path.startswith(own) else MODEL

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Initial variables: ``params`` and, where the strategy has them, ``state``, ``frozen``."""
        geometry = self.model.geometry
        model_key, mask_key = jax.random.split(key)
        video = jnp.zeros((1, *geometry.clip_shape), jnp.float32)
        count = self.strategy.num_visible(geometry.grid)
        order = jnp.arange(geometry.num_tokens)[None]
        params = self.model.init(model_key, video, order[:, :count], order[:, count:])["params"]
        inputs = self.mask_inputs(params, video)[0]
        masking = self.strategy.init(mask_key, inputs)
        return {
            "params": {"autoencoder": params, "masking": masking.get("params", {})},
            "state": masking.get("state", {}),
            "frozen": masking.get("frozen", {}),
        }

    def mask_inputs(
        self, params: Any, video: Float[Array, "b T H W C"], **known: Any
    ) -> tuple[MaskInputs, Float[Array, "b n d"]]:
        """What the strategy sees, and the tokens with positions.

        Args:
          params: the autoencoder's.
          video: normalised pixels.
          known: further fields of `MaskInputs`.
        """
        tokens = self.model.apply({"params": params}, video, method="tokenize")
        placed = self.model.apply({"params": params}, tokens, method="add_positions")
        seen = placed if self.strategy.sees_positions else tokens
        return self._inputs(video, seen, **known), placed

    def prepare(
        self, variables: Variables, batch: Batch, keys: ExampleKeys, microbatches: int
    ) -> Batch:
        """Adds what the strategy can say of the clips before an adversary's update and the model's,
        or has to know of the whole batch.

        Elsewhere it computes what it needs.
        """
        del keys
        if self.strategy.adversary is None and not self.strategy.sees_batch:
            return batch
        parts = jax.lax.map(
            lambda video: self.context(variables["frozen"], video),
            split_batch({"video": batch["video"]}, microbatches)["video"],
        )
        if parts is None:
            return batch
        joined = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1).reshape(-1, *a.shape[2:]), parts)
        return {**batch, CONTEXT: self.strategy.share(joined, self.model.geometry.grid)}

    def loss(
        self, group: str, variables: Variables, batch: Batch, keys: ExampleKeys, train: bool
    ) -> TaskLoss:
        """The adversary's loss, or that of the autoencoder and the rest of the strategy."""
        video = batch["video"]
        known = self.known(batch)
        if group == ADVERSARY:
            loss, state = self.adversary_loss(variables, video, keys, train, **known)
            return TaskLoss(loss, jnp.ones_like(loss), {}, state)
        output = self.forward(variables, video, keys, train, **known)
        figures = output.terms | mask_figures(output.mask, batch, self.model.geometry)
        state = variables["state"] if output.mask.state is None else output.mask.state
        return TaskLoss(output.loss, output.weight, figures, state)

    def evaluate(
        self, variables: Variables, batch: Batch, keys: ExampleKeys
    ) -> dict[str, Float[Array, "b"]]:
        """The losses, and how often marked tokens are visible, under random masks too.

        Here each clip counts alike, whatever its decoded tokens weigh.
        """
        output = self.forward(variables, batch["video"], keys, False, **self.known(batch))
        marked = marked_tokens(batch, self.model.geometry)
        shares = {
            "foreground": marked.astype(jnp.float32).mean(-1),
            "foreground_visible": visible_share(marked, output.mask),
            "foreground_visible_random": random_visible_share(
                marked, self.model.geometry.grid, self.strategy.mask_ratio, keys, self.random_draws
            ),
        }
        return output.terms | shares

    def features(self, variables: Variables, batch: Batch) -> Float[Array, "b d"]:
        """The mean of the latents of all tokens, of length one."""
        pixels = normalize_pixels(batch["video"], self.objective)
        params = {"params": variables["params"]["autoencoder"]}
        latents = self.model.apply(params, pixels, method="features").mean(1)
        return latents / jnp.linalg.norm(latents, axis=-1, keepdims=True)

    def summarize(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Foreground lift: how much more often a visible token is marked than any token is.

        And the mask ratio, where it changes in training.
        """
        metrics = dict(means)
        if self.logs_mask_ratio:
            metrics["mask_ratio"] = jnp.float32(self.strategy.mask_ratio)
        share = metrics.pop("foreground", None)
        for kind in ("", "_random"):
            visible = metrics.pop(f"foreground_visible{kind}", None)
            if visible is not None:
                metrics[f"foreground_lift{kind}"] = visible / share
        return metrics

    def known(self, batch: Mapping[str, Array | np.ndarray]) -> dict[str, Any]:
        """What the strategy may look at beside the clips, as further fields of `MaskInputs`."""
        known = {name: batch[name] for name in (CONTEXT, PROGRESS, VALID) if name in batch}
        if self.strategy.sees_foreground and "foreground" in batch:
            foreground = jnp.asarray(batch["foreground"])
            known["foreground"] = foreground_share(foreground, self.model.geometry)
        return known

    def context(self, frozen: Any, video: UInt8[Array, "b T H W C"]) -> Any:
        """What the strategy can say of clips before anything is updated; None for most."""
        pixels = normalize_pixels(video, self.objective)
        no_tokens = jnp.zeros((len(video), 0, 0))
        return self.strategy.context(frozen, self._inputs(pixels, no_tokens))

    def _inputs(self, video: Array, tokens: Array, **known: Any) -> MaskInputs:
        """What a strategy may look at, and how its networks are computed: as the encoder is."""
        spec = self.model.encoder_spec
        return MaskInputs(
            video,
            tokens,
            self.model.geometry.grid,
            spec.dtype,
            spec.attention_implementation,
            **known,
        )

    def forward(
        self,
        variables: Variables,
        video: UInt8[Array, "b T H W C"],
        keys: ExampleKeys,
        train: bool,
        **known: Any,
    ) -> ForwardOutput:
        """Masks, encodes, decodes and judges a batch of clips.

        Args:
          variables: ``params`` with ``autoencoder`` and ``masking``, ``state``, ``frozen``.
          video: pixels.
          keys: one key per example.
          train: turns the strategy's dropout on.
          known: further fields of `MaskInputs`, as `known` gives them.
        """
        params = variables["params"]["autoencoder"]
        pixels = normalize_pixels(video, self.objective)
        inputs, placed = self.mask_inputs(params, pixels, **known)
        mask = self.strategy(masking_variables(variables), inputs, fold(keys, MASKING_DRAW), train)
        self._check_numbers(mask)
        mask = self.decoding(mask, fold(keys, DECODING_DRAW), inputs.grid)
        return self.reconstruct(params, video, placed, mask)

    def _check_numbers(self, mask: TokenMask) -> None:
        """Meets a strategy whose masks have other numbers of tokens than it says."""
        grid = self.model.geometry.grid
        visible = self.strategy.num_visible(grid)
        expected = (visible, self.strategy.num_masked(grid))
        # Where some are padding, their number is the strategy's own affair.
        seen = mask.visible.shape[1] if mask.visible_valid is None else visible
        found = (seen, mask.masked.shape[1])
        if found != expected:
            raise UserError(
                "the masking strategy gave {} visible and {} masked tokens, where its "
                "num_visible() leaves {} and {}: all tokens are one or the other "
                "(docs/masking.md)".format(*found, *expected)
            )

    def reconstruct(
        self,
        params: Any,
        video: UInt8[Array, "b T H W C"],
        placed: Float[Array, "b n d"],
        mask: TokenMask,
    ) -> ForwardOutput:
        """Encodes, decodes and judges under a given mask."""
        model = self.model
        latents = model.apply(
            {"params": params},
            placed,
            mask.visible,
            visible_valid=mask.visible_valid,
            token_scale=mask.token_scale,
            method="encode",
        )
        predictions = model.apply(
            {"params": params},
            latents,
            mask.visible,
            mask.queries,
            visible_valid=mask.visible_valid,
            method="decode",
        )
        targets = targets_at(video, mask.queries, model, self.objective)
        return self.judge(predictions, targets, mask)

    def judge(
        self, predictions: Float[Array, "b k p"], targets: Float[Array, "b k p"], mask: TokenMask
    ) -> ForwardOutput:
        """Predictions and targets to losses."""
        errors = token_errors(predictions, targets, self.objective.loss)
        weights = jax.lax.stop_gradient(mask.decode_weight)
        terms = {"loss_reconstruction": weighted_mean(errors, weights)}
        total = terms["loss_reconstruction"]
        weight = jnp.ones_like(total) if weights is None else weights.mean(-1)
        if mask.log_probs is not None:
            credit = mask.log_probs if mask.credit is None else mask.credit
            reward, reward_weights, state = self.strategy.rewards(
                mask.replace(decode_weight=weights), jax.lax.stop_gradient(errors)
            )
            mask = mask.replace(state=state)
            terms["loss_sampling"] = sampling_loss(credit, mask.queries, reward, reward_weights)
            total = total + self.objective.sampling_loss_weight * terms["loss_sampling"]
        for name, value in mask.aux.items():
            terms[f"loss_{name}"] = value
            total = total + value
        return ForwardOutput(total, weight, terms, mask, predictions, targets, errors)

    def adversary_loss(
        self,
        variables: Variables,
        video: UInt8[Array, "b T H W C"],
        keys: ExampleKeys,
        train: bool,
        **known: Any,
    ) -> tuple[Float[Array, "b"], Any]:
        """The strategy's adversary loss, with a draw of its own."""
        params = variables["params"]["autoencoder"]
        pixels = normalize_pixels(video, self.objective)
        inputs, _ = self.mask_inputs(params, pixels, **known)
        return self.strategy.adversary_loss(
            masking_variables(variables), inputs, fold(keys, ADVERSARY_DRAW), train
        )


def masking_variables(variables: Variables) -> Variables:
    """The strategy's share of the variables."""
    return {
        "params": variables["params"]["masking"],
        "state": variables.get("state", {}),
        "frozen": variables.get("frozen", {}),
    }
