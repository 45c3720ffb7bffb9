"""One step of each system on every kind of mesh: the same masks and losses, the work divided."""

import dataclasses
import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Int

from adamae_jax.fields import MESH_RULES
from adamae_jax.masking import MaskingStrategy, adaptive, adversarial, dual, frame, random, tube
from adamae_jax.models.autoencoder import Autoencoder
from adamae_jax.models.transformer import ExampleKeys, TransformerSpec
from adamae_jax.models.tubelets import ClipGeometry
from adamae_jax.pretraining import (
    MASKING_DRAW,
    Objective,
    Pretraining,
    masking_variables,
    normalize_pixels,
)
from adamae_jax.task import Batch, example_keys, fold
from adamae_jax.training import evaluation, partitioning
from adamae_jax.training.optimizers import Optimizer, adamw, warmup_cosine
from adamae_jax.training.state import TrainState, create_state
from adamae_jax.training.step import jit_train_step, make_train_step
from tests import helpers
from tests.masking.test_adversarial import converged

BATCH, SEED = 24, 7  # no parameter has 24 rows
VIDEO = ClipGeometry(num_frames=4, image_size=(16, 16), tubelet_size=2, patch_size=4)
IMAGE = ClipGeometry(num_frames=1, image_size=(24, 24), tubelet_size=1, patch_size=2)
ENCODER, DECODER = TransformerSpec(32, 2, 4), TransformerSpec(16, 2, 2)
MESHES: dict[str, dict[str, int]] = {
    "8x1x1": {"data": 8},
    "2x4x1": {"data": 2, "fsdp": 4},
    "1x8x1": {"data": 1, "fsdp": 8},
    "2x2x2": {"data": 2, "fsdp": 2, "tensor": 2},
}


def task_of(strategy: MaskingStrategy, geometry: ClipGeometry = VIDEO, **model: Any) -> Pretraining:
    return Pretraining(Autoencoder(geometry, ENCODER, DECODER, **model), strategy, Objective())


SYSTEMS = {
    "adamae": task_of(adaptive.Strategy(mask_ratio=0.75)),
    "videomae": task_of(tube.Strategy(mask_ratio=0.75)),
    "videomae_v2": task_of(dual.Strategy(mask_ratio=0.75, decoder_mask_ratio=0.25)),
    "mae_st": task_of(
        random.Strategy(mask_ratio=0.75),
        positions="separable",
        class_token="separate",
        projection_bias=True,
        predicted_frames=2,
    ),
    "mae": task_of(
        random.Strategy(mask_ratio=0.75), IMAGE, positions="sincos_2d", class_token="shared"
    ),
    "automae": task_of(
        adversarial.Strategy(mask_ratio=0.75, vit_width=16, vit_depth=1, vit_num_heads=2),
        IMAGE,
        positions="sincos_2d",
        class_token="shared",
    ),
    "frame": task_of(frame.Strategy(mask_ratio=0.5)),
}


def optimizers(task: Pretraining) -> dict[str, Optimizer]:
    """AdamW at a rate that lets differences between meshes stay small."""
    schedule = warmup_cosine(1e-3, 1e-4, 2, 30)
    own = adamw(schedule, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05, decay=("kernel$",))
    return dict.fromkeys(task.groups, own)


def initial_state(task: Pretraining) -> TrainState:
    """Random parameters on the host."""
    shapes = jax.eval_shape(lambda: create_state(task, optimizers(task), 0))
    found = helpers.variables(task)
    if "discriminator" in found["params"]["masking"]:
        found["state"] = converged(found["params"]["masking"]["discriminator"])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return zeros.replace(params=found["params"], frozen=found["frozen"], model_state=found["state"])


class Trained(NamedTuple):
    """Some steps on a mesh.

    Attributes:
      program: the compiled step's HLO.
      flops: of the program, on one device.
      masks: the visible tokens of the first step.
      state: after the last step.
      history: the metrics of each step.
    """

    program: str
    flops: float
    masks: np.ndarray
    state: TrainState
    history: list[dict[str, float]]


def visible_tokens(
    task: Pretraining, variables: Any, batch: Batch, keys: ExampleKeys
) -> Int[Array, "b v"]:
    """What the strategy draws in a step with these keys."""
    pixels = normalize_pixels(batch["video"], task.objective)
    inputs, _ = task.mask_inputs(variables["params"]["autoencoder"], pixels)
    rng = fold(keys, MASKING_DRAW)
    return task.strategy(masking_variables(variables), inputs, rng, True).visible


def train(task: Pretraining, sizes: dict[str, int], steps: int = 20) -> Trained:
    """Compiles the step for a mesh, and runs it."""
    devices = int(np.prod(list(sizes.values())))
    mesh = partitioning.create_mesh(sizes, jax.devices()[:devices])
    state = initial_state(task)
    shardings = partitioning.state_sharding(state, mesh, MESH_RULES)
    state = jax.device_put(state, shardings)
    batches = [
        partitioning.put_batch(helpers.batch(BATCH, seed, task.model.geometry), mesh)
        for seed in range(steps)
    ]
    keys = example_keys(SEED, 0, batches[0]["slot"])
    masks = jax.jit(functools.partial(visible_tokens, task))(state.variables, batches[0], keys)
    step = jit_train_step(make_train_step(task, optimizers(task), seed=SEED), mesh, shardings)
    compiled = step.lower(state, batches[0]).compile()
    history = []
    for batch in batches:
        state, metrics = compiled(state, batch)
        history.append({name: float(value) for name, value in metrics.items()})
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    return Trained(
        compiled.as_text(), compiled.cost_analysis()["flops"], np.asarray(masks), state, history
    )


@functools.cache
def on_one_device(system: str) -> Trained:
    """What every mesh is compared with."""
    return train(SYSTEMS[system], {"data": 1})


def bytes_held(tree: Any) -> int:
    """The bytes of a tree on the first device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def gathered_rows(program: str) -> set[int]:
    """The first dimension of every array that the program gathers."""
    return {int(rows) for rows in re.findall(r"= \w+\[(\d+)[^=]* all-gather", program)}


# Each takes half a minute to compile: CI has them all.
QUICK = {("adamae", "8x1x1"), ("adamae", "2x2x2"), ("automae", "2x2x2")}
CASES = [
    pytest.param(system, mesh, marks=[] if (system, mesh) in QUICK else pytest.mark.full)
    for system in SYSTEMS
    for mesh in MESHES
]


def test_an_evaluation_is_divided_too() -> None:
    """Without `on_mesh`, fsdp's devices would each do three times as much."""
    task = dataclasses.replace(SYSTEMS["adamae"], random_draws=1)
    state, numbers = initial_state(task), np.arange(BATCH, dtype=np.int32)
    held_out = {
        **helpers.batch(BATCH, 0, task.model.geometry),
        "example_index": numbers,
        "valid": numbers >= 0,
        "unreadable": numbers < 0,
    }

    def compiled(sizes: dict[str, int], devices: int) -> Any:
        mesh = partitioning.create_mesh(sizes, jax.devices()[:devices])
        shardings = partitioning.state_sharding(state, mesh, MESH_RULES)
        sums: Any = evaluation.compile_sums(task, mesh, SEED)
        variables = jax.device_put(state, shardings).variables
        return sums.lower(variables, partitioning.put_batch(held_out, mesh)).compile()

    alone, found = compiled({"data": 1}, 1), compiled(MESHES["1x8x1"], 8)
    assert BATCH not in gathered_rows(found.as_text())
    assert found.cost_analysis()["flops"] <= 1.3 / 8 * alone.cost_analysis()["flops"]


@pytest.mark.parametrize(("system", "mesh"), CASES)
def test_a_mesh_divides_the_work_and_changes_nothing(system: str, mesh: str) -> None:
    sizes = MESHES[mesh]
    alone, found = on_one_device(system), train(SYSTEMS[system], sizes)
    np.testing.assert_array_equal(found.masks, alone.masks)
    # Sums over devices are taken in another order: 1e-7 of a float32 at first. Adam divides
    # gradients by their size, so that the smallest ones may come to differ in sign, and over 20
    # updates a clip's mask may change where two tokens are drawn nearly alike.
    for number, (ours, theirs) in enumerate(zip(found.history, alone.history, strict=True)):
        tolerance = 2e-5 if number == 0 else 2e-2
        for name in ("loss", "loss_reconstruction"):
            assert ours[name] == pytest.approx(theirs[name], rel=tolerance), (name, number)
    # Every token of the whole batch, or of a microbatch of it, would have as many rows.
    assert BATCH not in gathered_rows(found.program)
    assert found.flops <= 1.3 / 8 * alone.flops
    split = sizes.get("fsdp", 1) * sizes.get("tensor", 1)
    for part in (found.state.params["autoencoder"], found.state.opt_state["model"]):
        whole = sum(leaf.nbytes for leaf in jax.tree.leaves(part))
        # Biases and norms are whole everywhere: 15% of these tiny models.
        assert bytes_held(part) <= whole / split + (0.15 * whole if split > 1 else 0)
