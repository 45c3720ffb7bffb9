"""Validation on held-out clips: reconstruction, and where the masks lie."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from adamae_jax.errors import UserError
from adamae_jax.masking.base import MaskInputs
from adamae_jax.masking.random import Strategy as RandomMasking
from adamae_jax.objectives import Pretraining, fold, normalize_pixels
from adamae_jax.training.mesh import batch_sharding, replicated
from adamae_jax.training.state import TrainState
from adamae_jax.training.step import Batch, example_keys, marked_tokens, visible_share

# Folded into the keys of validation, so that its draws are not those of training.
_HELD_OUT = 0x5EED

Sums = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Sums over held-out clips, one compiled program for all batches.

    Attributes:
      pretraining: what is evaluated.
      mesh: the devices; batches are sharded over its data axis.
      seed: of the draws.
      random_draws: random masks per clip for the lift of random masking, measured beside.
    """

    pretraining: Pretraining
    mesh: Mesh
    seed: int
    random_draws: int

    def compile(self) -> Callable[[Any, Batch], Sums]:
        """The jitted sums of one batch; its variables are handed in, not captured."""
        return jax.jit(
            self._sums,
            in_shardings=(replicated(self.mesh), batch_sharding(self.mesh)),
            out_shardings=replicated(self.mesh),
        )

    def _sums(self, variables: Any, batch: Batch) -> Sums:
        video, valid = batch["video"], batch["valid"].astype(jnp.float32)
        zero = jnp.zeros((), jnp.int32)
        keys = fold(example_keys(self.seed, zero, batch["example_index"]), _HELD_OUT)
        outcome = self.pretraining.forward(variables, video, keys, False)
        is_marked = marked_tokens(batch, self.pretraining.model.geometry)
        figures = {
            **outcome.terms,
            "marked": is_marked.astype(jnp.float32).mean(-1),
            "marked_visible": visible_share(is_marked, outcome.mask),
            "marked_visible_random": self._random_share(video, is_marked, keys),
        }
        sums = {name: (value * valid).sum() for name, value in figures.items()}
        unreadable = batch["unreadable"].astype(jnp.float32).sum()
        return {**sums, "count": valid.sum(), "unreadable": unreadable}

    def _random_share(self, video: Array, is_marked: Array, keys: Array) -> Float[Array, "b"]:
        """The share of marked tokens under random masks of the same ratio."""
        random = RandomMasking(self.pretraining.strategy.mask_ratio)
        grid = self.pretraining.model.geometry.grid
        pixels = normalize_pixels(video, self.pretraining.objective)
        inputs = MaskInputs(pixels, jnp.zeros((len(video), 0, 0)), grid)

        def share(draw: Array) -> Float[Array, "b"]:
            return visible_share(is_marked, random({}, inputs, fold(keys, 1 + draw), False))

        return jax.lax.map(share, jnp.arange(self.random_draws)).mean(0)


def run(
    sums_of: Callable[[Any, Batch], Sums],
    state: TrainState,
    batches: Iterable[Mapping[str, np.ndarray]],
    put: Callable[[Mapping[str, np.ndarray]], Batch],
) -> dict[str, float]:
    """Evaluates the state on held-out batches.

    Args:
      sums_of: from `Evaluator.compile`.
      state: the run.
      batches: this process's batches, with ``valid`` false where padded or ``unreadable``.
      put: hands a host's batch to the devices.

    Returns:
      Means over the clips: ``eval_loss_reconstruction`` and the like, ``foreground_lift``,
      ``foreground_lift_random`` (NaN where nothing is marked), and the numbers ``eval_examples``
      and ``eval_unreadable``.

    Raises:
      UserError: where not one clip can be read.
    """
    variables = {"params": state.params, "state": state.model_state, "frozen": state.frozen}
    totals: dict[str, float] = {}
    for batch in batches:
        for name, value in jax.device_get(sums_of(variables, put(batch))).items():
            totals[name] = totals.get(name, 0.0) + float(value)
    count = totals.pop("count", 0.0)
    if not count:
        raise UserError(
            "none of the held-out clips can be read: look at the warnings above, and make the "
            "dataset anew with `python -m adamae_jax.prepare`"
        )
    marked = totals.pop("marked", 0.0)
    visible = totals.pop("marked_visible", 0.0)
    random = totals.pop("marked_visible_random", 0.0)
    unreadable = totals.pop("unreadable", 0.0)
    figures = {f"eval_{name}": value / count for name, value in totals.items()}
    figures["eval_foreground_lift"] = visible / marked if marked else float("nan")
    figures["eval_foreground_lift_random"] = random / marked if marked else float("nan")
    figures["eval_examples"] = count
    figures["eval_unreadable"] = unreadable
    return figures


def check_count(found: int, expected: int) -> None:
    """Raises a `UserError` where an evaluation did not look at every clip once, over all processes.

    Args:
      found: clips that were read, and those that could not be.
      expected: clips that were to be evaluated.
    """
    if found != expected:
        raise UserError(
            f"an evaluation of {expected} clips has counted {found}: its figures are "
            "wrong; if several processes train, give all of them the same data, else report this "
            "as a fault of adamae_jax"
        )
