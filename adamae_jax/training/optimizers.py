"""AdamW and LARS with the authors' decay groups, and their learning-rate schedule."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

# In the paths of a classifier's parameters: the stacked blocks, and what lies below them.
BLOCKS = "encoder/transformer/blocks/"
EMBEDDED = re.compile(r"^encoder/(embedding|positions|class_token)\b")
TRUST = 0.001  # LARS: a step over the norm of what it changes, at a rate of 1

Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A gradient transformation and a learning rate, which the step multiplies in.

    The rate is a function of the training step, not of the number of updates made, so that a
    skipped update still advances the schedule.

    Attributes:
      transform: gradients to directions of ascent.
      learning_rate: step to rate.
      scales: parameters to factors on the rate, in their shape or one that broadcasts to it; None
        for 1 everywhere.
    """

    transform: optax.GradientTransformation
    learning_rate: Schedule
    scales: Callable[[Any], Any] | None = None

    def update(
        self, grads: Any, state: optax.OptState, params: Any, step: Int[Array, ""]
    ) -> tuple[Any, optax.OptState]:
        """New parameters and optimiser state."""
        directions, state = self.transform.update(grads, state, params)
        rate = self.learning_rate(step)
        if self.scales is not None:
            directions = jax.tree.map(jnp.multiply, directions, self.scales(params))
        return jax.tree.map(lambda p, d: p - rate * d, params, directions), state


def warmup_cosine(peak: float, final: float, warmup_steps: int, steps: int) -> Schedule:
    """The schedule of VideoMAE's and AdaMAE's code; MAE's comes to the peak one step later.

    ``linspace(0, peak, warmup_steps)``, both ends included, then
    ``final + (peak - final) / 2 * (1 + cos(pi i / n))`` over the ``n`` steps that are left.

    Args:
      peak: rate at the end of the warm-up.
      final: rate that the cosine runs down to.
      warmup_steps: steps of warm-up.
      steps: all steps.
    """
    left = max(1, steps - warmup_steps)

    def rate(step: Int[Array, ""]) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.float32)
        rising = peak * step / max(1, warmup_steps - 1)
        done = (step - warmup_steps) / left
        falling = final + (peak - final) / 2 * (1 + jnp.cos(jnp.pi * done))
        return jnp.where(step < warmup_steps, rising, falling)

    return rate


def parameter_path(path: Sequence[Any]) -> str:
    """A parameter's name: its keys joined with "/"."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def decay_mask(params: Any, patterns: Sequence[str]) -> Any:
    """Marks the parameters that are decayed: those whose path matches one of the patterns."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(re.search(pattern, parameter_path(path)) for pattern in patterns),
        params,
    )


def layer_scales(params: Any, layer_decay: float) -> Any:
    """Returns layer-wise factors on the learning rate: ``layer_decay ** (depth + 1 - layer)``.

    Layer 0 is the embedding with what is added to it, layer ``i + 1`` is block ``i``, and layer
    ``depth + 1`` is all the rest, such as norm and head (BEiT's scheme, arXiv 2106.08254, which
    VideoMAE, MAE and MAE-ST took over).

    Args:
      params: of a classifier; blocks are stacked along the first axis.
      layer_decay: factor from each layer to the one below it.
    """
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    depth = max((len(leaf) for path, leaf in paths if BLOCKS in parameter_path(path)), default=0)

    def scale(path: Sequence[Any], leaf: Any) -> Float[Array, "..."]:
        name = parameter_path(path)
        if BLOCKS in name:
            below_top = depth - jnp.arange(depth, dtype=jnp.float32)
            return (layer_decay**below_top).reshape(depth, *(1,) * (leaf.ndim - 1))
        return jnp.asarray(layer_decay ** (depth + 1) if EMBEDDED.search(name) else 1.0)

    return jax.tree_util.tree_map_with_path(scale, params)


def adamw(
    learning_rate: Schedule,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    decay: Sequence[str],
    clip_grad_norm: float = 0.0,
    layer_decay: float = 1.0,
) -> Optimizer:
    """AdamW; decay is decoupled and scaled by the learning rate, as in PyTorch.

    Args:
      learning_rate: the schedule.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: strength of the decay.
      decay: regular expressions for the parameters that are decayed.
      clip_grad_norm: largest global gradient norm; 0 for no clipping.
      layer_decay: see `layer_scales`; 1 for one rate everywhere.
    """
    steps = [
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=lambda params: decay_mask(params, decay)),
    ]
    scales = functools.partial(layer_scales, layer_decay=layer_decay)
    return Optimizer(
        _clipped(steps, clip_grad_norm), learning_rate, None if layer_decay == 1.0 else scales
    )


def lars(
    learning_rate: Schedule,
    *,
    momentum: float,
    weight_decay: float,
    decay: Sequence[str],
    clip_grad_norm: float = 0.0,
) -> Optimizer:
    """LARS as MAE's linear probe has it: what has one dimension is left to plain momentum.

    Args:
      learning_rate: the schedule.
      momentum: decay of the sum of directions.
      weight_decay: strength of the decay, which is part of the gradient.
      decay: regular expressions for the parameters that are decayed.
      clip_grad_norm: largest global gradient norm; 0 for no clipping.
    """

    def several_dimensions(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    steps = [
        optax.add_decayed_weights(weight_decay, mask=lambda params: decay_mask(params, decay)),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=TRUST), several_dimensions),
        optax.trace(decay=momentum),
    ]
    return Optimizer(_clipped(steps, clip_grad_norm), learning_rate)


def _clipped(
    steps: Sequence[optax.GradientTransformation], norm: float
) -> optax.GradientTransformation:
    return optax.chain(*([optax.clip_by_global_norm(norm)] if norm > 0 else []), *steps)


def stacked(optimizer: Optimizer, factors: Sequence[float]) -> Optimizer:
    """Returns an optimiser of models that are trained side by side, each as if it were alone.

    Parameters are a dict of trees, each of as many models as there are factors, which are stacked
    along the first axis of every array. Norms, as for clipping and LARS, are those of one model.

    Args:
      optimizer: of one model.
      factors: on its rate, one for each along the first axis.
    """
    transform, factor = optimizer.transform, jnp.asarray(factors, jnp.float32)

    def init(params: Mapping[str, Any]) -> dict[str, Any]:
        return {name: jax.vmap(transform.init)(own) for name, own in params.items()}

    def update(
        grads: Mapping[str, Any], state: Mapping[str, Any], params: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        each = jax.vmap(transform.update)
        found = {name: each(own, state[name], params[name]) for name, own in grads.items()}
        directions, states = ({name: pair[i] for name, pair in found.items()} for i in (0, 1))
        return directions, states

    def scales(params: Any) -> Any:
        return jax.tree.map(lambda leaf: factor.reshape(-1, *(1,) * (leaf.ndim - 1)), params)

    return Optimizer(optax.GradientTransformation(init, update), optimizer.learning_rate, scales)
