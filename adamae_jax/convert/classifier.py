"""A classifier of imported weights, which takes of them what a fine-tuning run would begin with."""

import dataclasses

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from adamae_jax import experiment, initial, pretrained
from adamae_jax.config import FAMILIES
from adamae_jax.errors import UserError
from adamae_jax.interop.architecture import apply_recipe
from adamae_jax.interop.imports import Imported
from adamae_jax.interop.systems import classifier_system
from adamae_jax.stored import Stored


def into_classifier(imported: Imported, num_classes: int, seed: int) -> Imported:
    """Returns a classifier with a pretrained encoder; its head, and mostly its norm, start fresh.

    Args:
      imported: a model of pretraining, or its encoder alone.
      num_classes: outputs of the head.
      seed: of what starts fresh.

    Raises:
      UserError: where the model already is a classifier, or the options for how clips are cut do
        not fit the recipe for so many classes.
    """
    if imported.config.classifier.num_classes:
        raise UserError("the model is a classifier already: leave --num_classes out")
    config, clip_remarks = _classifier_config(imported, num_classes)
    task, arrays = experiment.classification(config), pretrained.flatten(imported.variables)
    stored = Stored("", imported.kind, arrays, imported.config, imported.license)
    taken, remarks = initial.take(stored, task, config)

    @jax.jit
    def start(key: Key[Array, ""]) -> dict[str, Array]:
        leaves = pretrained.flatten(task.init(key))
        return {name: leaf for name, leaf in leaves.items() if name not in taken}

    fresh = jax.tree.map(np.asarray, start(jax.random.key(seed)))
    return dataclasses.replace(
        imported,
        kind="classifier",
        variables=traverse_util.unflatten_dict({**taken, **fresh}, sep="/"),
        config=config,
        label_names=(),
        remarks=(*imported.remarks, *remarks),
        clip_remarks=tuple(clip_remarks),
    )


def _classifier_config(imported: Imported, num_classes: int) -> tuple[ConfigDict, list[str]]:
    """Returns the config with which the authors fine-tune, and remarks on how clips are cut."""
    new, dialect = imported.config.copy_and_resolve_references(), imported.dialect
    with new.unlocked():
        new.classifier.num_classes = num_classes
        new.model.initialization = "classifier"  # what starts fresh, starts as in fine-tuning
        if dialect.trains_positions:
            new.model.positions = "learned"
        new.classifier.norm_epsilon = new.model.norm_epsilon
        new.classifier.pooling = "mean"
        has_class = new.model.class_token != "none"
        if has_class:  # of a classifier, all kinds are the same
            new.model.class_token = FAMILIES[dialect.family]["class_token"]
        new.classifier.skip_first_patch = dialect.skips_first_patch and not has_class
        recipe = classifier_system(dialect).recipe_of(num_classes)
        clip_remarks = apply_recipe(recipe, new.data, imported.options)
    return new, clip_remarks
