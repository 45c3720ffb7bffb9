"""From a stored model to ours: architecture, variables, and what was assumed on the way."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array
from ml_collections import ConfigDict

from adamae_jax import experiment, pretrained
from adamae_jax.errors import UserError
from adamae_jax.interop import architecture, authors, resizing
from adamae_jax.interop.dialects import Dialect, dialect_of
from adamae_jax.interop.given import Given, Kind
from adamae_jax.interop.sources import Source
from adamae_jax.interop.systems import classifier_system
from adamae_jax.interop.tables import Table

ENCODER = "params/autoencoder/encoder"


@dataclasses.dataclass(frozen=True)
class Imported:
    """A model in our form.

    Attributes:
      kind: which part of a system it is; an encoder alone is no model yet (`into_classifier`).
      variables: as `adamae_jax.pretrained.save` takes them.
      config: the experiment it would be.
      step: updates that it was trained for, where known.
      label_names: of the classes, where known.
      license: where known.
      remarks: what the user should know.
      clips: likewise, of how clips are cut: a classifier's are cut otherwise.
      given: what was known beside the weights; it goes before the recipe of a classifier too.
    """

    kind: Kind
    variables: dict[str, Any]
    config: ConfigDict
    step: int
    label_names: tuple[str, ...]
    license: str
    remarks: tuple[str, ...]
    clips: tuple[str, ...] = ()
    given: Given = dataclasses.field(default_factory=Given)


def table_of(config: ConfigDict, kind: Kind | None = None) -> Table:
    """The names of all of a model's variables, or of its encoder alone."""
    if kind == "encoder":
        model = experiment.autoencoder(config)
        dialect = dialect_of(model.positions, model.geometry)
        return authors.encoder_table(model.encoder_definition, dialect).under(ENCODER)
    if config.classifier.num_classes:
        return authors.classifier_table(experiment.classifier(config)).under("params")
    return authors.pretraining_table(experiment.pretraining(config))


def convert(source: Source) -> Imported:
    """The model that a source holds, every tensor accounted for.

    Raises:
      UserError: where the model is unknown, something has to be given, or tensors do not fit.
    """
    if source.description is not None:
        config, step, table, shapes = _described(source.description)
        kind: Kind = "classifier" if config.classifier.num_classes else "pretraining"
        remarks: tuple[str, ...] = ()
        clips: tuple[str, ...] = ()
    else:
        inferred = architecture.infer(source.state, source.given)
        kind, config, step = inferred.kind, inferred.config, 0
        remarks, clips = inferred.remarks, inferred.clips
        table, shapes = table_of(config, kind), pretrained.expected_shapes(config)
    variables = table.from_authors(source.state, shapes)
    imported = Imported(
        *(kind, variables, config, step, (), source.license, remarks),
        clips=clips,
        given=source.given,
    )
    return with_label_names(imported, source.label_names)


def with_label_names(imported: Imported, names: tuple[str, ...]) -> Imported:
    """The same model with names of its classes; () where they are not known.

    Raises:
      UserError: where a classifier has another number of classes.
    """
    classes = imported.config.classifier.num_classes
    if names and classes and len(names) != classes:
        raise UserError(f"there are {len(names)} label names for {classes} classes: give as many")
    return dataclasses.replace(imported, label_names=names)


def _described(description: Any) -> tuple[ConfigDict, int, Table, dict[str, tuple[int, ...]]]:
    """Config, step, names and shapes of a file that this package wrote, and others may damage."""
    try:
        config, step = pretrained.described_config(description), description.get("step", 0)
        if not isinstance(step, int):
            raise TypeError(f"step is {step!r}")
        return config, step, table_of(config), pretrained.expected_shapes(config)
    except pretrained.DAMAGE as error:
        raise UserError(
            f"the file's description of the model is damaged ({type(error).__name__}: {error})"
        ) from error


def _dialect(imported: Imported) -> Dialect:
    config = imported.config
    return dialect_of(config.model.positions, experiment.geometry(config))


def is_image(imported: Imported) -> bool:
    """Whether it is a model of single images."""
    return _dialect(imported).is_image


def said_of_encoder(source: Source) -> Given:
    """What a source says of its encoder beside the weights, in either of the forms that do.

    Raises:
      UserError: where its description is damaged.
    """
    if source.description is None:
        return source.given
    config = _described(source.description)[0]
    return Given(
        num_heads=config.model.encoder.num_heads,
        norm_epsilon=config.model.norm_epsilon,
        pixels=(tuple(config.objective.pixel_mean), tuple(config.objective.pixel_std)),
    )


def resize(
    imported: Imported, num_frames: int | None, image_size: tuple[int, int] | None
) -> Imported:
    """The same model for clips of another size: its learned position tables are interpolated.

    Raises:
      UserError: where the size does not fit the tubelets, or an image should have several frames.
    """
    if num_frames not in (None, 1) and is_image(imported):
        raise UserError(f"--to_num_frames={num_frames}: the model is one of images; leave it out")
    config = resizing.resized_config(imported.config, num_frames, image_size)
    old, new = (experiment.geometry(each).grid for each in (imported.config, config))
    flat = pretrained.flatten(imported.variables)
    resized = resizing.resize_tables(flat, old, new)
    changed = sorted(name for name in flat if resized[name] is not flat[name])
    said = [f"{', '.join(changed)} interpolated"] if changed else []
    if config.model.positions.startswith("sincos"):
        said.append("fixed ones computed anew")
    remark = f"position tables from a grid of {old} to {new}: {', '.join(said)}"
    return dataclasses.replace(
        imported,
        variables=traverse_util.unflatten_dict(resized, sep="/"),
        config=config,
        remarks=(*imported.remarks, remark) if old != new else imported.remarks,
    )


# What a classifier takes from pretraining; the encoder's last norm only under MAE-ST's names,
# whose classifier calls its own norm the same.
TAKEN = ("embedding", "class_token", "positions", "transformer")


def into_classifier(imported: Imported, num_classes: int, seed: int) -> Imported:
    """A classifier with a pretrained encoder; what has no pretrained weights starts fresh.

    Args:
      imported: a model of pretraining, or its encoder alone.
      num_classes: outputs of the head.
      seed: of what starts fresh.

    Raises:
      UserError: where the model already is a classifier, or what is given of how clips are cut
        says nothing of how they are for so many classes.
    """
    if imported.config.classifier.num_classes:
        raise UserError("the model is a classifier already: leave --num_classes out")
    dialect = _dialect(imported)
    config, clips = _classifier_config(imported, num_classes, dialect)
    encoder = dict(imported.variables["params"]["autoencoder"]["encoder"])
    fixed_positions = dialect.trains_positions and "positions" not in encoder
    if fixed_positions:
        encoder["positions"] = {"table": _fixed_table(imported.config, dialect)}
    taken = {name: encoder[name] for name in TAKEN if name in encoder}
    params = {**_fresh(config, seed), "encoder": taken}
    if dialect.keeps_norm:
        params["norm"] = encoder["norm"]
    remarks = _transfer(imported.variables, params, dialect.keeps_norm)
    if fixed_positions:
        remarks.append("encoder/positions: trained from now on, from the fixed table")
    return dataclasses.replace(
        imported,
        kind="classifier",
        variables={"params": params},
        config=config,
        label_names=(),
        remarks=(*imported.remarks, *remarks),
        clips=tuple(clips),
    )


def _classifier_config(
    imported: Imported, num_classes: int, dialect: Dialect
) -> tuple[ConfigDict, list[str]]:
    """As the authors fine-tune such a model, and what is to be said of its clips."""
    new = imported.config.copy_and_resolve_references()
    with new.unlocked():
        new.classifier.num_classes = num_classes
        new.model.initialization = "classifier"  # what starts fresh, starts as in fine-tuning
        if dialect.trains_positions:
            new.model.positions = "learned"
        new.classifier.norm_epsilon = new.model.norm_epsilon
        new.classifier.pooling = "mean"
        has_class = new.model.class_token != "none"
        new.classifier.skip_first_patch = dialect.drops_first_token and not has_class
        recipe = classifier_system(dialect).recipe_of(num_classes)
        clips = recipe.apply(new.data, imported.given)
    return new, clips


def _fresh(config: ConfigDict, seed: int) -> dict[str, Any]:
    """Initial norm and head of a classifier; its encoder, asked for by no one, is not computed."""
    classifier = experiment.classifier(config)
    clip = jnp.zeros((1, *classifier.geometry.clip_shape))

    @jax.jit
    def start(key: Array) -> dict[str, Any]:
        params = classifier.init(key, clip)["params"]
        return {name: params[name] for name in ("norm", "head")}

    return jax.tree.map(np.asarray, start(jax.random.key(seed)))


def _transfer(variables: Any, params: Any, norm_taken: bool) -> list[str]:
    """What became of the parts of a pretrained model, in the words of its parameters."""
    encoder = variables["params"]["autoencoder"]["encoder"]
    taken = [f"encoder/{name}" for name in params["encoder"] if name in encoder]
    parts = [name for name in variables["params"]["autoencoder"] if name != "encoder"]
    left = ["encoder/norm"] * (not norm_taken) + parts
    left += ["masking"] * bool(jax.tree.leaves(variables["params"].get("masking", {})))
    remarks = [
        f"taken from pretraining: {', '.join(taken + ['encoder/norm'] * norm_taken)}",
        f"fresh: {'head' if norm_taken else 'head, norm'}",
    ]
    return remarks + [f"left out: {', '.join(left)}"] * bool(left)


def _fixed_table(config: ConfigDict, dialect: Dialect) -> np.ndarray:
    """An image MAE's fixed position table, with the class token's row."""
    model = experiment.autoencoder(config)
    (row,) = authors.encoder_table(model.encoder_definition, dialect).constants
    return row.value[0]
