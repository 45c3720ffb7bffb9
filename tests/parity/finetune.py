"""VideoMAE's fine-tuning: mixed clips, soft targets, layer-wise rates and steps of its optimiser.

The steps are those of our own train step; only what is drawn at random is given.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamae_jax.classification import DRAW, Classification
from adamae_jax.interop import authors
from adamae_jax.interop.tables import Table
from adamae_jax.mixing import Mixing, cutmix_box
from adamae_jax.models.classifier import Classifier
from adamae_jax.pretraining import Objective
from adamae_jax.task import MODEL, Batch, example_keys
from adamae_jax.training.optimizers import Optimizer, adamw, decay_mask, layer_scales
from adamae_jax.training.state import create_state
from adamae_jax.training.step import make_train_step
from tests.parity.parts import Arrays, Comparison, Meta, geometry_of, load, named, section, spec_of

DECAY = ("kernel$",)
STEPS = 3


@dataclasses.dataclass(frozen=True)
class GivenMix(Classification):
    """The task with a mix that is given."""

    share: float = 1.0
    box: tuple[int, ...] = ()

    def prepare(self, variables: Any, batch: Any, keys: Any, microbatches: int) -> Batch:
        """As the task prepares a batch, with another draw."""
        count = len(keys)
        draw = (
            jnp.full(count, self.share),
            jnp.tile(jnp.asarray(self.box or (0, 0, 0, 0), jnp.int32), (count, 1)),
            jnp.full(count, bool(self.box)),
        )
        prepared = super().prepare(variables, batch, keys, microbatches)
        return {**prepared, **dict(zip(DRAW, draw, strict=True))}


def model_of(meta: Meta) -> Classifier:
    """The classifier of a file."""
    epsilon = meta["norm_eps"]
    return Classifier(
        geometry_of(meta), spec_of(meta, "encoder"), meta["num_classes"], norm_epsilon=epsilon
    )


def optimizer_of(meta: Meta) -> Optimizer:
    """The optimiser of a file, at its constant rate."""
    options = meta["optimizer"]
    return adamw(
        lambda step: jnp.asarray(options["base_lr"]),
        b1=options["betas"][0],
        b2=options["betas"][1],
        eps=options["eps"],
        weight_decay=options["weight_decay"],
        decay=DECAY,
        layer_decay=options["layer_decay"],
    )


def per_parameter(file: Arrays, meta: Meta, params: Any, table: Table) -> Comparison:
    """Layers, rates and decay of every parameter, each a number."""
    options = meta["optimizer"]
    decay = options["layer_decay"]
    scales = layer_scales(params, decay)
    marks = decay_mask(params, DECAY)
    layer = jax.tree.map(
        lambda scale: meta["encoder"]["depth"] + 1 - jnp.round(jnp.log(scale) / jnp.log(decay)),
        scales,
    )
    numbers = {
        "layer_id/": layer,
        "lr_scale/": scales,
        "weight_decay/": jax.tree.map(lambda mark: mark * options["weight_decay"], marks),
    }
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    for kind, tree in numbers.items():
        whole = jax.tree.map(lambda p, n: np.broadcast_to(np.asarray(n), p.shape), params, tree)
        arrays = table.gradients_to_authors(whole)
        theirs |= named(kind, section(file, kind))
        ours |= {
            f"{kind}{name}": np.float64(array.flat[0] if np.ptp(array) == 0 else np.nan)
            for name, array in arrays.items()
        }
    return ours, theirs


def half(
    file: Arrays, meta: Meta, name: str, params: Any, table: Table
) -> tuple[dict[str, Any], Arrays, Arrays]:
    """Outputs, gradients and changes of the parameters, for one way of mixing."""
    box = tuple(int(side) for side in file[f"{name}/input/box"]) if name == "cutmix" else ()
    task = GivenMix(
        model_of(meta),
        Objective(),
        mixing=Mixing(mixup=1.0),
        label_smoothing=meta["label_smoothing"],
        share=float(file[f"{name}/input/lam"]),
        box=box,
    )
    count = len(file["input/label"])
    batch = {
        "video": jnp.asarray(file["input/video_uint8"]),
        "label": jnp.asarray(file["input/label"], jnp.int32),
        "slot": jnp.arange(count),
    }
    keys = example_keys(0, 0, batch["slot"])
    variables = {"params": params, "state": {}, "frozen": {}}
    prepared = task.prepare(variables, batch, keys, 1)
    pixels, targets = task.inputs(prepared, keys)

    def mean_loss(params: Any) -> jax.Array:
        found = task.loss(MODEL, {**variables, "params": params}, prepared, keys, True)
        return (found.loss * found.weight).mean()

    loss, grads = jax.jit(jax.value_and_grad(mean_loss))(params)
    outputs = {
        "input/video": pixels,
        "input/target": targets,
        "output/logits": task.model.apply({"params": params}, pixels),
        "output/loss": loss,
    }
    if box:
        centre = jnp.asarray(file[f"{name}/input/centre"])
        found, share = cutmix_box(
            jnp.asarray(file[f"{name}/input/lam_drawn"]), centre, task.model.geometry.image_size
        )
        outputs |= {"input/box": found, "input/lam": share}
    optimizers = {MODEL: optimizer_of(meta)}
    state = create_state(task, optimizers, 0).replace(params=params)
    step: Callable[..., Any] = jax.jit(make_train_step(task, optimizers, seed=0))
    before = table.to_authors(jax.tree.map(np.asarray, params))
    losses: list[jax.Array] = []
    changes: dict[str, Any] = {}
    for number in range(1, STEPS + 1):
        state, metrics = step(state, batch)
        losses.append(metrics["loss"])
        after = table.to_authors(jax.tree.map(np.asarray, state.params))
        changes |= {f"after_{number}/{key}": after[key] - before[key] for key in after}
    outputs["output/losses"] = jnp.stack(losses)
    grads = table.gradients_to_authors(jax.tree.map(np.asarray, grads))
    prefix = f"{name}/"
    return named(prefix, outputs), named(f"{prefix}grads/", grads), named(prefix, changes)


def finetuning(file: Arrays, meta: Meta) -> tuple[Comparison, Comparison, Comparison]:
    """The halves that a file has: outputs, gradients, and the changes after one and three steps."""
    model = model_of(meta)
    table = authors.classifier_table(model)
    params = load(table, section(file, "weights/"))
    outputs, their_outputs = map(dict, per_parameter(file, meta, params, table))
    grads: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    their_grads: dict[str, Any] = {}
    their_changes: dict[str, Any] = {}
    for name in ("mixup", "cutmix"):
        if not section(file, f"{name}/"):
            continue
        of_half = half(file, meta, name, params, table)
        for ours, found in zip((outputs, grads, changes), of_half, strict=True):
            ours |= found
        for kind in ("input/video", "input/target", "input/box", "output/"):
            their_outputs |= named(f"{name}/{kind}", section(file, f"{name}/{kind}"))
        their_grads |= named(f"{name}/grads/", section(file, f"{name}/grads/"))
        for after in ("after_1/", "after_3/"):
            their_changes |= {
                f"{name}/{after}{key}": array - file[f"weights/{key}"]
                for key, array in section(file, f"{name}/{after}").items()
            }
    return (outputs, their_outputs), (grads, their_grads), (changes, their_changes)
