"""From a stored model to ours: architecture, variables, and what was assumed on the way."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from adamae_jax import experiment, pretrained
from adamae_jax.errors import UserError
from adamae_jax.interop import architecture, authors, huggingface
from adamae_jax.interop.sources import Source
from adamae_jax.interop.systems import Dialect, Kind, dialect_of
from adamae_jax.interop.tables import Table
from adamae_jax.interop.weight_reader import ImportOptions

ENCODER = "params/autoencoder/encoder"


@dataclasses.dataclass(frozen=True)
class Imported:
    """A model in our form.

    Attributes:
      kind: which part of a system it is; an encoder alone is no model yet, but can become a
        classifier.
      variables: as `adamae_jax.pretrained.save` takes them.
      config: the experiment it would be.
      step: updates that it was trained for, where known.
      label_names: of the classes, where known.
      license: where known.
      remarks: what the user should know.
      clip_remarks: likewise, how clips are cut.
      options: what was known beside the weights; it goes before a classifier's recipe too.
    """

    kind: Kind
    variables: dict[str, Any]
    config: ConfigDict
    step: int
    label_names: tuple[str, ...]
    license: str
    remarks: tuple[str, ...]
    clip_remarks: tuple[str, ...] = ()
    options: ImportOptions = dataclasses.field(default_factory=ImportOptions)

    @property
    def dialect(self) -> Dialect:
        """The dialect that its weights would be exported in."""
        return dialect_of(self.config.model.positions, experiment.geometry(self.config))


def table_of(config: ConfigDict, kind: Kind | None = None) -> Table:
    """Returns the table of all of a model's variables, or of its encoder alone."""
    if kind == "encoder":
        model = experiment.autoencoder(config)
        dialect = dialect_of(model.positions, model.geometry)
        return authors.encoder_table(model.encoder_definition, dialect).under(ENCODER)
    if config.classifier.num_classes:
        return authors.classifier_table(experiment.classifier(config)).under("params")
    return authors.pretraining_table(experiment.pretraining(config))


def convert(source: Source) -> Imported:
    """Returns the model that a source holds, every tensor accounted for.

    Raises:
      UserError: where the model is unknown, something has to be given, tensors do not fit, or
        values are not finite.
    """
    step, remarks, clip_remarks = 0, tuple[str, ...](), tuple[str, ...]()
    if source.description is not None:
        config, step, table, shapes = _described_model(source.description)
        kind: Kind = "classifier" if config.classifier.num_classes else "pretraining"
    else:
        inferred = architecture.infer(source.state, source.options)
        kind, config = inferred.kind, inferred.config
        remarks, clip_remarks = inferred.remarks, inferred.clip_remarks
        if source.hugging_face is not None:
            found = source.hugging_face
            huggingface.check_config(found.config, found.kind, config)
        table, shapes = table_of(config, kind), pretrained.expected_shapes(config)
    check_finite(source.state)
    variables = _with_state(table.from_authors(source.state, shapes), config, shapes)
    imported = Imported(
        *(kind, variables, config, step, (), source.license, remarks, clip_remarks, source.options)
    )
    return with_label_names(imported, source.label_names)


def _with_state(
    variables: dict[str, Any], config: ConfigDict, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """Returns variables with the state that no author keeps, such as a mean of rewards, fresh."""
    if "state" in variables or not any(name.startswith("state/") for name in shapes):
        return variables
    task = experiment.pretraining(config)
    state = jax.jit(lambda key: task.init(key)["state"])(jax.random.key(0))
    return {**variables, "state": jax.tree.map(np.asarray, state)}


def check_finite(state: Mapping[str, np.ndarray]) -> None:
    """Raises a `UserError` where weights are NaN or infinite."""
    wrong = [name for name, array in state.items() if not np.isfinite(array).all()]
    if wrong:
        listed = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if wrong[5:] else "")
        raise UserError(
            f"{len(wrong)} of {len(state)} arrays hold values that are NaN or infinite: {listed}; "
            "training diverged before they were saved: take an earlier checkpoint"
        )


def with_label_names(imported: Imported, names: tuple[str, ...]) -> Imported:
    """Returns the model with names of its classes; () where they are not known.

    Raises:
      UserError: where a classifier has another number of classes.
    """
    classes = imported.config.classifier.num_classes
    if names and classes and len(names) != classes:
        raise UserError(f"there are {len(names)} label names for {classes} classes: give as many")
    return dataclasses.replace(imported, label_names=names)


def _described_model(
    description: Mapping[str, Any],
) -> tuple[ConfigDict, int, Table, dict[str, tuple[int, ...]]]:
    """Returns config, step, names and shapes of a file that this package wrote."""
    try:
        config, step = pretrained.described_config(description), description.get("step", 0)
        if not isinstance(step, int):
            raise TypeError(f"step is {step!r}")
        return config, step, table_of(config), pretrained.expected_shapes(config)
    except pretrained.DAMAGE as error:
        raise UserError(
            f"the file's description of the model is damaged ({type(error).__name__}: {error})"
        ) from error


def encoder_options(source: Source) -> ImportOptions:
    """Returns what a source says of its encoder beside the weights.

    Raises:
      UserError: where its description is damaged.
    """
    if source.description is None:
        return source.options
    config = _described_model(source.description)[0]
    return ImportOptions(
        num_heads=config.model.encoder.num_heads,
        norm_epsilon=config.model.norm_epsilon,
        pixels=(tuple(config.objective.pixel_mean), tuple(config.objective.pixel_std)),
    )
