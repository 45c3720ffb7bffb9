"""Validation: sums over clips, padding, and the lift of adaptive and random masks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax.diagnostics import motion_tokens
from adamae_jax.masking import MaskInputs, TokenMask, base
from adamae_jax.masking import random as random_masking
from adamae_jax.masking.base import Variables
from adamae_jax.models.transformer import ExampleKeys
from adamae_jax.models.tubelets import ClipGeometry
from adamae_jax.pretraining import Pretraining
from adamae_jax.task import MODEL, Task
from adamae_jax.training import evaluation
from adamae_jax.training.optimizers import adamw
from adamae_jax.training.partitioning import create_mesh
from adamae_jax.training.state import TrainState, create_state
from tests import helpers

CLIPS = 16


@pytest.fixture(scope="module")
def pretraining() -> Pretraining:
    return helpers.pretraining()


@pytest.fixture(scope="module")
def state(pretraining: Pretraining) -> TrainState:
    optimizer = adamw(
        lambda step: jnp.float32(0), b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0, decay=()
    )
    return create_state(pretraining, {MODEL: optimizer}, seed=0)


def batches(order: np.ndarray, size: int, **arrays: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Held-out clips in some order, in batches, the last one filled up with clip 0."""
    found = []
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        valid = np.arange(size) < len(chosen)
        chosen = np.concatenate([chosen, np.zeros(size - len(chosen), int)])
        batch = {name: values[chosen] for name, values in arrays.items()}
        found.append(
            {
                **batch,
                "example_index": chosen.astype(np.int32),
                "valid": valid,
                "unreadable": ~valid & False,
            }
        )
    return found


def evaluate(
    pretraining: Pretraining, state: TrainState, data: Any, draws: int = 2
) -> dict[str, float]:
    mesh = create_mesh({"data": -1})
    task = dataclasses.replace(pretraining, random_draws=draws)
    sums = evaluation.compile_sums(task, mesh, seed=0)
    return evaluation.run(task, sums, state.variables, data, mesh)


def clips() -> dict[str, np.ndarray]:
    """Random clips whose left half is foreground."""
    video = helpers.clips(CLIPS)
    foreground = np.zeros((CLIPS, 8, 2, 3), np.uint8)
    foreground[:, :, 0, :] = 255
    return {"video": video, "foreground": foreground}


def test_order_and_padding_change_nothing(pretraining: Pretraining, state: TrainState) -> None:
    arrays = clips()
    ordered = evaluate(pretraining, state, batches(np.arange(CLIPS), 8, **arrays))
    shuffled = np.random.default_rng(0).permutation(CLIPS)
    padded = evaluate(pretraining, state, batches(shuffled, 24, **arrays))
    assert ordered["eval_examples"] == padded["eval_examples"] == CLIPS
    for name, value in ordered.items():
        assert padded[name] == pytest.approx(value, rel=1e-5), name


def test_random_masks_have_a_lift_of_one(pretraining: Pretraining, state: TrainState) -> None:
    strategy = random_masking.Strategy(mask_ratio=0.75)
    random = Pretraining(pretraining.model, strategy, pretraining.objective)
    figures = evaluate(random, state, batches(np.arange(CLIPS), 16, **clips()), draws=400)
    assert figures["eval_foreground_lift_random"] == pytest.approx(1.0, abs=0.03)
    # One draw a clip: no more can be said of the strategy's own.
    assert figures["eval_foreground_lift"] == pytest.approx(1.0, abs=0.4)


def test_a_sampler_that_prefers_the_foreground_has_a_lift(
    pretraining: Pretraining, state: TrainState
) -> None:
    """The sampler's own position table is turned towards the upper half by hand."""
    params = jax.tree.map(jnp.zeros_like, state.params["masking"])
    table = params["position_table"]
    upper = jnp.arange(len(table)) % 6 < 3
    params["position_table"] = table.at[:, 0].set(jnp.where(upper, 3.0, -3.0))
    params["head"]["kernel"] = params["head"]["kernel"].at[0, 0].set(1.0)
    turned = state.replace(params={**state.params, "masking": params})
    # Tokens are small beside the table: their own first channel is switched off.
    figures = evaluate(pretraining, turned, batches(np.arange(CLIPS), 16, **clips()))
    assert figures["eval_foreground_lift"] > 1.7


def test_without_masks_motion_is_marked() -> None:
    geometry = helpers.GEOMETRY
    video = np.full((1, *geometry.clip_shape), 100, np.uint8)
    video[0, ::2, 4:, 8:] = 200  # the last of the six columns flickers in every time step
    marked = np.asarray(motion_tokens(jnp.asarray(video), geometry)).reshape(4, 2, 3)
    assert marked.sum() == 6
    assert marked[:, 1, 2].all()


def test_motion_of_a_clip_of_one_frame_is_none() -> None:
    geometry = ClipGeometry(num_frames=1, image_size=(8, 8), tubelet_size=1, patch_size=4)
    video = jnp.asarray(helpers.clips(2, geometry=geometry))
    assert np.asarray(motion_tokens(video, geometry)).sum(-1).tolist() == [0, 0]


def test_nothing_marked_is_no_number(pretraining: Pretraining, state: TrainState) -> None:
    arrays = clips()
    arrays["foreground"] = np.zeros_like(arrays["foreground"])
    figures = evaluate(pretraining, state, batches(np.arange(CLIPS), 16, **arrays))
    assert np.isnan(figures["eval_foreground_lift"])


class Guessing(Task):
    """A task that is right about every clip that it sees."""

    def evaluate(self, variables: Any, batch: Any, keys: Any) -> dict[str, Any]:
        ones = jnp.ones(len(batch["example_index"]))
        return {"loss": 2 * ones, "accuracy": ones, "accuracy_top5": ones}


def test_a_clip_that_cannot_be_read_is_wrong_in_accuracies_alone() -> None:
    """Beside two that can; what fills the batch does not count."""
    mesh, numbers = create_mesh({"data": -1}), np.arange(8, dtype=np.int32)
    batch = {"example_index": numbers, "valid": numbers < 2, "unreadable": numbers == 2}
    sums = evaluation.compile_sums(Guessing(), mesh, seed=0)
    assert evaluation.run(Guessing(), sums, {}, [batch], mesh) == {
        "eval_loss": 2.0,
        "eval_accuracy": pytest.approx(2 / 3),
        "eval_accuracy_top5": pytest.approx(2 / 3),
        "eval_examples": 2.0,
        "eval_unreadable": 1.0,
    }


@dataclasses.dataclass(frozen=True)
class Late(base.MaskingStrategy):
    """Its auxiliary loss is how far training has come."""

    def __call__(
        self, variables: Variables, inputs: MaskInputs, keys: ExampleKeys, train: bool
    ) -> TokenMask:
        marks = base.random_subset(keys, inputs.tokens.shape[1], 6)
        progress = jnp.broadcast_to(jnp.asarray(inputs.progress), len(keys))
        return TokenMask(**base.mask_from_visible(marks, 6), aux={"progress": progress})


def test_progress_is_one_where_nothing_is_trained(state: TrainState) -> None:
    """In training it is steps over steps: see test_contract."""
    task = helpers.pretraining(Late(mask_ratio=0.75))
    without = state.replace(params={**state.params, "masking": {}})
    figures = evaluate(task, without, batches(np.arange(CLIPS), 16, **clips()))
    assert figures["eval_loss_progress"] == 1.0
