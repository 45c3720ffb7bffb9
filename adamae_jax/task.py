"""What a run trains: all that the trainer and the train step know of a model.

Pretraining (`adamae_jax.pretraining`), classification (`adamae_jax.classification`) and probing
(`adamae_jax.probing`) are tasks.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key, Num

from adamae_jax.models.transformer import ExampleKeys

# Arrays with the batch axis first, as `adamae_jax.data.batches` makes them:
#   video          uint8 [B, T, H, W, C]
#   slot           int32 [B], the video's place in the global batch
#   example_index  int32 [B], the record's number in its split
#   label          int32 [B], -1 where it is unknown
#   foreground     uint8 [B, T, h, w], 0 to 255, where the dataset has masks
# in training: repeat int32 [B] (which clip of its video), replaced, bad_record, damage int32 [B],
# and from the train step: progress float32 [B], steps done over the steps of the run;
# in evaluation: valid bool [B] (false for filling), unreadable bool [B].
Batch = Mapping[str, Array]
# {"params": ..., "state": ..., "frozen": ...}; see `adamae_jax.training.state.TrainState`.
Variables = Mapping[str, Any]
MODEL = "model"  # the group of parameters whose loss is the task's
PROGRESS = "progress"  # in a batch: see above


class TaskLoss(struct.PyTreeNode):
    """What a task says of the examples of a batch.

    Attributes:
      loss: to be minimised: the sum of ``loss * weight`` over the update, divided by the sum of
        ``weight``.
      weight: of each example; no gradient flows through it.
      figures: whatever else is worth logging, averaged in the same way.
      state: the variables' new ``state``.
    """

    loss: Float[Array, "b"]
    weight: Float[Array, "b"]
    figures: dict[str, Num[Array, "b"]]
    state: Any


class Task:
    """The base of every task. A task is immutable; what changes is in the variables.

    Attributes:
      name: is recorded in checkpoints, so that `adamae_jax.load` knows what they hold.
      headline: the figure that tells best how training goes.
      trains_features: whether training changes `features`; where it does not, one look is enough.
    """

    name: ClassVar[str]
    headline: ClassVar[str] = "loss"
    trains_features: ClassVar[bool] = True

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of parameters that have an optimiser each, in the order of updates.

        The last one's loss is the task's.
        """
        return (MODEL,)

    @property
    def stages(self) -> tuple["Task", ...]:
        """What is trained one after the other, for equal parts of the run: a program for each.

        They share groups and variables, and differ in what a program is compiled for, such as how
        many tokens are seen. All that is not training is this task's.
        """
        return (self,)

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Returns initial variables: ``params``, ``state`` and ``frozen``, nested dicts."""
        raise NotImplementedError

    def group_of(self, path: str) -> str:
        """Returns the group of a parameter, such as ``encoder/norm/scale``."""
        del path
        return self.groups[-1]

    def prepare(
        self, variables: Variables, batch: Batch, keys: ExampleKeys, microbatches: int
    ) -> Batch:
        """Returns the batch with what has to be known before it is cut into microbatches.

        Called once in an update, on the whole batch: the place for whatever looks across examples,
        or serves several groups.
        """
        del variables, keys, microbatches
        return batch

    def loss(
        self, group: str, variables: Variables, batch: Batch, keys: ExampleKeys, train: bool
    ) -> TaskLoss:
        """Returns the loss that a group of parameters minimises, with all others held still.

        Args:
          group: one of ``groups``.
          variables: those of all groups; groups before this one are updated already.
          batch: a microbatch of what `prepare` gave.
          keys: one random key per example.
          train: turns dropout and the like on.
        """
        raise NotImplementedError

    def evaluate(
        self, variables: Variables, batch: Batch, keys: ExampleKeys
    ) -> dict[str, Float[Array, "b"]]:
        """Returns figures of held-out examples, to be averaged over them.

        In those called ``accuracy...``, examples that cannot be read count as wrong; else they are
        left out.
        """
        raise NotImplementedError

    def features(self, variables: Variables, batch: Batch) -> Float[Array, "b d"]:
        """Returns one vector of length one per example, for nearest neighbours."""
        raise NotImplementedError

    def summarize(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Returns metrics from averaged figures, such as the quotient of two of them.

        What it does not know, it hands on.
        """
        return dict(means)


def example_keys(
    seed: int,
    step: Int[Array, ""] | int,
    slot: Int[Array, "b"],
    repeat: Int[Array, "b"] | None = None,
) -> ExampleKeys:
    """Returns one key per clip: a function of seed, step, place in the global batch and repeat.

    Never of host, device, worker or microbatch.
    """
    base = jax.random.fold_in(jax.random.key(seed), step)
    if repeat is None:
        repeat = jnp.zeros_like(slot)
    return jax.vmap(lambda s, r: jax.random.fold_in(jax.random.fold_in(base, s), r))(slot, repeat)


def fold(keys: ExampleKeys, number: int | Int[Array, ""]) -> ExampleKeys:
    """Folds a number, such as a purpose, into every example's key."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def microbatches(batch: Batch, count: int) -> Batch:
    """Returns the batch with a leading axis of microbatches; each takes every ``count``-th example.

    Interleaved, so that a batch that is split over devices stays where it is.
    """
    return jax.tree.map(
        lambda a: jnp.swapaxes(a.reshape(a.shape[0] // count, count, *a.shape[1:]), 0, 1), batch
    )
