"""The train step: a pure function of state and batch, the same for every masking strategy."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Num, UInt8

from adamae_jax.errors import UserError
from adamae_jax.masking.base import TokenMask
from adamae_jax.models.transformer import ExampleKeys
from adamae_jax.models.tubelets import ClipGeometry, pool_to_tokens
from adamae_jax.objectives import Outcome, Pretraining
from adamae_jax.training.mesh import batch_sharding, replicated
from adamae_jax.training.optimizers import Optimizer
from adamae_jax.training.state import ADVERSARY, MODEL, TrainState, merge_params, split_params

# video uint8 [B, T, H, W, C], slot int32 [B] (the video's place in the global batch), where videos
# are repeated repeat int32 [B] and, where the dataset has masks, foreground uint8 [B, T, h, w];
# replaced int32 [B] counts damaged records.
Batch = Mapping[str, Array]
CONTEXT = "context"  # what is added to a batch: see `MaskingStrategy.context`
Metrics = dict[str, Num[Array, ""]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def example_keys(
    seed: int,
    step: Int[Array, ""],
    slot: Int[Array, "b"],
    repeat: Int[Array, "b"] | None = None,
) -> ExampleKeys:
    """One key per clip: a function of seed, step, the video's place in the global batch and repeat.

    Never of host, device, worker or microbatch.
    """
    base = jax.random.fold_in(jax.random.key(seed), step)
    if repeat is None:
        repeat = jnp.zeros_like(slot)
    return jax.vmap(lambda s, r: jax.random.fold_in(jax.random.fold_in(base, s), r))(slot, repeat)


def foreground_tokens(foreground: Array, geometry: ClipGeometry) -> Bool[Array, "b n"]:
    """The tokens of which at least half is foreground, from uint8 coverage ``[B, T, h, w]``."""
    coverage = pool_to_tokens(foreground.astype(jnp.float32) / 255.0, geometry)
    return coverage >= 0.5


def motion_tokens(video: UInt8[Array, "b T H W C"], geometry: ClipGeometry) -> Bool[Array, "b n"]:
    """The quarter of the tokens with the largest change from frame to frame.

    Stands in for the foreground where a dataset has no masks; of images there is none.
    """
    if video.shape[1] == 1:  # images do not move
        return jnp.zeros((len(video), geometry.num_tokens), bool)
    frames = video.astype(jnp.float32)
    # The first frame has none before it: it takes its successor's change.
    frames = jnp.concatenate([frames[:, 1:2], frames], axis=1)
    change = jnp.abs(jnp.diff(frames, axis=1)).mean(-1)
    pooled = pool_to_tokens(change, geometry)
    _, largest = jax.lax.top_k(pooled, max(1, geometry.num_tokens // 4))
    return jax.vmap(lambda row: jnp.zeros(geometry.num_tokens, bool).at[row].set(True))(largest)


def marked_tokens(batch: Batch, geometry: ClipGeometry) -> Bool[Array, "b n"]:
    """The tokens that a good sampler is expected to prefer: foreground, else motion."""
    if "foreground" in batch:
        return foreground_tokens(batch["foreground"], geometry)
    return motion_tokens(batch["video"], geometry)


def visible_share(is_marked: Bool[Array, "b n"], mask: TokenMask) -> Float[Array, "b"]:
    """The share of an example's visible tokens that is marked."""
    marked = jnp.take_along_axis(is_marked, mask.visible, axis=1).astype(jnp.float32)
    valid = jnp.ones_like(marked) if mask.visible_valid is None else mask.visible_valid
    return (marked * valid).sum(-1) / jnp.maximum(valid.sum(-1), 1)


def diagnostics(outcome: Outcome, batch: Batch, geometry: ClipGeometry) -> dict[str, Array]:
    """Per-example figures that say how the masks look; all are averaged over the batch."""
    figures: dict[str, Array] = {}
    if outcome.mask.log_probs is not None:
        log_probs = outcome.mask.log_probs
        probs = jnp.exp(log_probs)
        figures["sampling_entropy"] = -(probs * log_probs).sum(-1)
        figures["sampling_max_probability"] = probs.max(-1)
        figures["sampling_effective_size"] = 1.0 / jnp.square(probs).sum(-1)
    if "foreground" in batch or geometry.num_frames > 1:  # of images alone nothing is known
        is_marked = marked_tokens(batch, geometry)
        figures["foreground_visible"] = visible_share(is_marked, outcome.mask)
        figures["foreground"] = is_marked.astype(jnp.float32).mean(-1)
    return figures


def microbatches(batch: Batch, count: int) -> Batch:
    """Adds a leading axis of microbatches; each takes every ``count``-th example.

    Interleaved, so that a batch sharded over devices is split without moving anything.
    """
    return jax.tree.map(
        lambda a: jnp.swapaxes(a.reshape(a.shape[0] // count, count, *a.shape[1:]), 0, 1), batch
    )


def accumulate(
    gradients: Callable[[Any, Batch], tuple[Any, Any, dict[str, Array]]],
    state: Any,
    batch: Batch,
    count: int,
) -> tuple[Any, Any, dict[str, Array]]:
    """Means of gradients and figures over microbatches, in sequence.

    Args:
      gradients: ``(state, microbatch) -> (gradients, new state, per-example figures)``.
      state: what is handed from one microbatch to the next.
      batch: the whole batch.
      count: number of microbatches.
    """

    def mean(figures: dict[str, Array]) -> dict[str, Array]:
        return {name: values.mean() for name, values in figures.items()}

    if count == 1:
        grads, state, figures = gradients(state, batch)
        return grads, state, mean(figures)

    def body(carry: tuple[Any, Any], part: Batch) -> tuple[tuple[Any, Any], dict[str, Array]]:
        total, state = carry
        grads, state, figures = gradients(state, part)
        return (jax.tree.map(lambda t, g: t + g / count, total, grads), state), figures

    parts = microbatches(batch, count)
    first = jax.tree.map(lambda a: a[0], parts)
    shapes = jax.eval_shape(gradients, state, first)[0]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (grads, state), figures = jax.lax.scan(body, (zeros, state), parts)
    return grads, state, mean(figures)


@dataclasses.dataclass(frozen=True)
class _Updates:
    """The two updates of a step; each gives the new state, whether it is finite, and figures."""

    pretraining: Pretraining
    optimizers: Mapping[str, Optimizer]
    seed: int
    accumulation: int

    @property
    def adversary_name(self) -> str | None:
        return self.pretraining.strategy.adversary

    def keys(self, step: Int[Array, ""], batch: Batch) -> ExampleKeys:
        """The keys of a batch's clips."""
        return example_keys(self.seed, step, batch["slot"], batch.get("repeat"))

    def with_context(self, state: TrainState, batch: Batch) -> Batch:
        """Adds what the strategy can say of the clips before anything is updated."""
        count = self.accumulation

        def context(video: Array) -> Any:
            return self.pretraining.context(state.frozen, video)

        if self.pretraining.strategy.adversary is None:
            return batch  # one update: it computes what it needs
        parts = jax.lax.map(context, microbatches({"video": batch["video"]}, count)["video"])
        if not jax.tree.leaves(parts):
            return batch
        joined = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1).reshape(-1, *a.shape[2:]), parts)
        return {**batch, CONTEXT: joined}

    def adversary(self, state: TrainState, batch: Batch) -> tuple[TrainState, Array, Metrics]:
        """Updates the strategy's adversary, with the model held still."""
        params, adversary = split_params(state.params, self.adversary_name)

        def gradients(model_state: Any, part: Batch) -> tuple[Any, Any, dict[str, Array]]:
            def loss(adversary: Any) -> tuple[Array, Any]:
                merged = merge_params(params, self.adversary_name, adversary)
                variables = {"params": merged, "state": model_state, "frozen": state.frozen}
                keys = self.keys(state.step, part)
                per_example, new_state = self.pretraining.adversary_loss(
                    variables, part["video"], keys, True, part.get(CONTEXT)
                )
                kept = model_state if new_state is None else new_state
                return per_example.mean(), (kept, per_example)

            grads, (new_state, per_example) = jax.grad(loss, has_aux=True)(adversary)
            return grads, new_state, {"loss_adversary": per_example}

        grads, model_state, metrics = accumulate(
            gradients, state.model_state, batch, self.accumulation
        )
        metrics["grad_norm_adversary"] = optax.tree.norm(grads)
        adversary, opt_state = self.optimizers[ADVERSARY].update(
            grads, state.opt_state[ADVERSARY], adversary, state.step
        )
        state = state.replace(
            params=merge_params(params, self.adversary_name, adversary),
            opt_state={**state.opt_state, ADVERSARY: opt_state},
            model_state=model_state,
        )
        finite = jnp.isfinite(metrics["loss_adversary"] + metrics["grad_norm_adversary"])
        return state, finite, metrics

    def model(self, state: TrainState, batch: Batch) -> tuple[TrainState, Array, Metrics]:
        """Updates the autoencoder and the rest of the strategy, with the adversary held still."""
        params, adversary = split_params(state.params, self.adversary_name)

        def gradients(model_state: Any, part: Batch) -> tuple[Any, Any, dict[str, Array]]:
            def loss(params: Any) -> tuple[Array, Outcome]:
                merged = merge_params(params, self.adversary_name, adversary)
                variables = {"params": merged, "state": model_state, "frozen": state.frozen}
                keys = self.keys(state.step, part)
                outcome = self.pretraining.forward(
                    variables, part["video"], keys, True, part.get(CONTEXT)
                )
                return outcome.loss.mean(), outcome

            grads, outcome = jax.grad(loss, has_aux=True)(params)
            new_state = outcome.mask.state
            figures = {"loss": outcome.loss, **outcome.terms}
            figures |= diagnostics(outcome, part, self.pretraining.model.geometry)
            return grads, model_state if new_state is None else new_state, figures

        grads, model_state, metrics = accumulate(
            gradients, state.model_state, batch, self.accumulation
        )
        metrics["grad_norm"] = optax.tree.norm(grads)
        metrics["grad_norm_masking"] = optax.tree.norm(grads["masking"])
        metrics["learning_rate"] = self.optimizers[MODEL].learning_rate(state.step)
        params, opt_state = self.optimizers[MODEL].update(
            grads, state.opt_state[MODEL], params, state.step
        )
        state = state.replace(
            params=merge_params(params, self.adversary_name, adversary),
            opt_state={**state.opt_state, MODEL: opt_state},
            model_state=model_state,
        )
        return state, jnp.isfinite(metrics["loss"] + metrics["grad_norm"]), metrics


def make_train_step(
    pretraining: Pretraining,
    optimizers: Mapping[str, Optimizer],
    *,
    seed: int,
    accumulation: int = 1,
) -> TrainStep:
    """Builds the step.

    An adversary, where the strategy has one, is updated first; then the model and the rest of the
    strategy's parameters, with a fresh draw. An update that is not finite is skipped as a whole:
    the step still counts, and so do data and schedule.

    Args:
      pretraining: what is trained.
      optimizers: `MODEL` and, where the strategy has an adversary, `ADVERSARY`.
      seed: of all that is random in the step.
      accumulation: microbatches per update.

    Raises:
      UserError: where an optimiser is missing.
    """
    adversary = pretraining.strategy.adversary
    needed = {MODEL} | ({ADVERSARY} if adversary else set())
    if not needed <= set(optimizers):
        raise UserError(f"optimisers {sorted(optimizers)} are given, {sorted(needed)} are needed")
    updates = _Updates(pretraining, optimizers, seed, accumulation)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        metrics: Metrics = {}
        batch = updates.with_context(state, batch)
        updated, finite = state, jnp.asarray(True)
        if adversary is not None:
            updated, finite, metrics = updates.adversary(updated, batch)
        updated, model_finite, model_metrics = updates.model(updated, batch)
        finite = jnp.logical_and(finite, model_finite)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        counters = {
            "skipped": state.counters["skipped"] + jnp.logical_not(finite),
            "replaced": state.counters["replaced"] + batch.get("replaced", jnp.zeros(1)).sum(),
        }
        counters = {name: value.astype(jnp.int32) for name, value in counters.items()}
        metrics |= {**model_metrics, **counters}
        if "foreground" in metrics:
            visible, share = metrics.pop("foreground_visible"), metrics.pop("foreground")
            metrics["foreground_lift"] = visible / share
        return kept.replace(step=state.step + 1, counters=counters), metrics

    return train_step


def jit_train_step(train_step: TrainStep, mesh: Mesh) -> Any:
    """Compiles the step once, with explicit shardings; the state is donated."""
    return jax.jit(
        train_step,
        in_shardings=(replicated(mesh), batch_sharding(mesh)),
        out_shardings=(replicated(mesh), replicated(mesh)),
        donate_argnums=0,
    )
