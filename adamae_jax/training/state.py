"""The train state: everything that a checkpoint has to hold."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int

from adamae_jax.objectives import Pretraining
from adamae_jax.training.optimizers import Optimizer

MODEL, ADVERSARY = "model", "adversary"  # the optimisers' names


class TrainState(struct.PyTreeNode):
    """A run at one step.

    Attributes:
      step: updates made or skipped so far.
      params: ``autoencoder`` and ``masking``.
      opt_state: state of each optimiser, by name.
      model_state: the strategy's state that is not trained, such as spectral-norm vectors.
      frozen: networks that are never trained.
      ema: averaged parameters, where kept.
      counters: since the start, ``skipped``: updates that were not finite; ``replaced``: clips
        that stood in for damaged records.
    """

    step: Int[Array, ""]
    params: dict[str, Any]
    opt_state: dict[str, Any]
    model_state: Any
    frozen: Any
    ema: Any
    counters: dict[str, Int[Array, ""]]


def split_params(params: Mapping[str, Any], adversary: str | None) -> tuple[Any, Any]:
    """The model's parameters and the adversary's (None where there is none)."""
    if adversary is None:
        return dict(params), None
    own = {name: tree for name, tree in params["masking"].items() if name != adversary}
    return {**params, "masking": own}, params["masking"][adversary]


def merge_params(params: Mapping[str, Any], name: str | None, adversary: Any) -> dict[str, Any]:
    """The inverse of `split_params`."""
    if name is None:
        return dict(params)
    return {**params, "masking": {**params["masking"], name: adversary}}


def create_state(
    pretraining: Pretraining, optimizers: Mapping[str, Optimizer], seed: int
) -> TrainState:
    """The state before the first step; to be jitted."""
    variables = pretraining.init(jax.random.key(seed))
    params = variables["params"]
    model, adversary = split_params(params, pretraining.strategy.adversary)
    opt_state = {MODEL: optimizers[MODEL].transform.init(model)}
    if adversary is not None:
        opt_state[ADVERSARY] = optimizers[ADVERSARY].transform.init(adversary)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=opt_state,
        model_state=variables["state"],
        frozen=variables["frozen"],
        ema=None,
        counters={name: jnp.zeros((), jnp.int32) for name in ("skipped", "replaced")},
    )
