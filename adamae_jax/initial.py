"""What a run begins with instead of random numbers: weights of a run or model, or of others.

``init_from`` in a config names them. Only parameters are taken, and the state of a masking network
that is taken; the step and the optimiser start fresh. What a masking strategy holds frozen is read
here too, from the directory that its options name.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from adamae_jax import config as configs
from adamae_jax import experiment, frozen, licenses, pretrained
from adamae_jax.classification import Classification
from adamae_jax.errors import UserError
from adamae_jax.interop import resizing
from adamae_jax.interop.exports import NOT_COMPUTED
from adamae_jax.interop.systems import dialect_of
from adamae_jax.models import positions
from adamae_jax.pretraining import Pretraining
from adamae_jax.probing import Probing
from adamae_jax.stored import Stored, read_source
from adamae_jax.task import Task

AUTOENCODER, MASKING, STATE = "params/autoencoder/", "params/masking/", "state/"
PRETRAINED, ENCODER = f"{AUTOENCODER}encoder/", "params/encoder/"
DECODER, NORM, HEAD = f"{AUTOENCODER}decoder/", "params/norm/", "params/head/"
FROZEN = "frozen/encoder/"
FIXED = ("sincos_1d", "sincos_2d")
# What all take from a pretrained encoder; of its last norm, see `_keeps_norm`.
TAKEN = ("embedding", "class_token", "positions", "transformer")
# Fields of the decoder, of which an encoder alone and a classifier say nothing.
OF_DECODER = (
    *("model.decoder.", "model.decoder_norm_epsilon", "model.projection_bias"),
    *("model.predicted_frames", "objective.normalize_targets", "objective.target_pixels"),
)
# Fields that change what the same arrays compute: another value is allowed, and said.
SAID = ("norm_epsilon", "pixel_mean", "pixel_std", "normalize_targets", "target_pixels")


@dataclasses.dataclass(frozen=True)
class Initial:
    """What a run begins with.

    Attributes:
      variables: ``params``, ``state`` and ``frozen``, nested as by `Task.init`, with what was taken
        alone; empty where the config names nothing.
      license: of what was taken; "" where none is known.
      report: a table of what was taken and what starts fresh, for people.
    """

    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    license: str = ""
    report: str = ""


def read(task: Task, config: ConfigDict) -> Initial:
    """Reads what a run begins with: what ``init_from`` names, and what its strategy holds frozen.

    Raises:
      UserError: where either cannot be read, or does not fit.
    """
    begun = init_from(task, config)
    held = frozen.read(task) if isinstance(task, Pretraining) else frozen.Frozen()
    if held.variables is None:
        return begun
    variables = {**begun.variables, "frozen": held.variables}
    return Initial(variables, licenses.of_parts(held, begun), begun.report)


def init_from(task: Task, config: ConfigDict) -> Initial:
    """Reads what a config's ``init_from`` names, as far as a task takes it.

    Pretraining takes the autoencoder and, where the strategy is the same, the masking network. A
    classifier takes the encoder of a pretrained model, as the authors do, or all of a classifier.
    Probes take the encoder of either, with its last norm, to hold it frozen.
    Position tables are interpolated to the grid of the run's clips.

    Args:
      task: what is trained.
      config: that of the run.

    Raises:
      UserError: where the source cannot be read, does not fit the task, or is not finite.
    """
    if not config.init_from:
        return Initial()
    stored = read_source(config.init_from)
    taken, lines = take(stored, task, config)
    license = f", license {stored.license}" if stored.license else ""
    report = [f"init_from={stored.what}{license}", *lines, "step, optimiser: fresh"]
    variables = traverse_util.unflatten_dict(taken, sep="/")
    return Initial(variables, stored.license, "\n  ".join(report))


def take(stored: Stored, task: Task, config: ConfigDict) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns what a task takes of a source, by path, and what became of each part, for people.

    Raises:
      UserError: where the source does not fit the task.
    """
    fresh = fresh_parts(stored, task, config)
    tree = jax.eval_shape(task.init, jax.random.key(0))
    if not isinstance(task, Probing):
        del tree["frozen"]  # a strategy reads what it holds frozen itself
    shapes = pretrained.flatten(tree)
    wanted = {
        name: tuple(leaf.shape)
        for name, leaf in shapes.items()
        if not name.startswith(tuple(fresh))
    }
    renamed, left = rename(stored, task, config)
    old, new = (experiment.geometry(each).grid for each in (stored.config, config))
    fitted = resizing.resize_tables(renamed, old, new)
    differing = different_fields(stored, task, config)
    check_same_model(fitted, wanted, differing, config.init_from)
    taken = {name: np.asarray(fitted[name]) for name in wanted}
    changed = [name for name in wanted if fitted[name] is not renamed[name]]
    remarks = [f"interpolated from a grid of {old} to {new}: {name}" for name in changed]
    remarks += [
        f"{name} is {here!r} here, and was {there!r} there"
        for name, (there, here) in differing.items()
        if name.endswith(SAID) or name.startswith(("masking.", "classifier."))
    ]
    remarks += [f"left in the source: {', '.join(left)}"] if left else []
    sizes = {name: leaf.size for name, leaf in shapes.items()}
    return taken, [*table(taken, fresh, sizes), *remarks]


def fresh_parts(stored: Stored, task: Task, config: ConfigDict) -> dict[str, str]:
    """Returns the beginnings of paths that are not taken, each with the reason.

    Raises:
      UserError: where a source does not serve a task, or a classifier has other classes.
    """
    source, other = config.init_from, stored.config
    if isinstance(task, Probing):
        return dict.fromkeys(("params/", "state/"), "probes of what is taken")
    if not isinstance(task, Classification):
        if stored.kind == "classifier":
            raise UserError(
                f"init_from={source} is a classifier, and pretraining goes on from a pretrained "
                "model: give the one that the classifier was made of"
            )
        fresh = {DECODER: "the source is an encoder alone"} if stored.kind == "encoder" else {}
        if not _same_masking(stored, config):
            there = "none" if stored.kind == "encoder" else repr(other.masking.name)
            fresh |= dict.fromkeys((MASKING, STATE), f"the source's masking is {there}")
        return fresh
    if stored.kind != "classifier":
        is_fresh = not _keeps_norm(stored, config)
        fresh = {NORM: "as the authors fine-tune"} if is_fresh else {}
        return fresh | {HEAD: "the source is no classifier"}
    if config.classifier.fresh_head:
        return {HEAD: "classifier.fresh_head"}
    there, here = (each.classifier.num_classes for each in (other, config))
    if there != here:
        raise UserError(
            f"init_from={source} tells {there} classes apart, and classifier.num_classes is "
            f"{here}: for a head that starts fresh, give --config.classifier.fresh_head=True"
        )
    return {}


def _same_masking(stored: Stored, config: ConfigDict) -> bool:
    return stored.kind == "pretraining" and stored.config.masking.name == config.masking.name


def _keeps_norm(stored: Stored, config: ConfigDict) -> bool:
    """Whether the authors' names have a classifier take the encoder's last norm for its own."""
    dialect = dialect_of(stored.config.model.positions, experiment.geometry(stored.config))
    return dialect.classifier_norms.get(config.classifier.pooling) == "norm"


def rename(
    stored: Stored, task: Task, config: ConfigDict
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns what a source has for a task, under the task's paths, and the parts that are left."""
    to_classifier = isinstance(task, Classification)
    name_of = _name_in_classifier if to_classifier else _name_in_pretraining
    if isinstance(task, Probing):
        name_of = _name_in_probing
    renamed, left = dict[str, np.ndarray](), set[str]()
    for path, array in stored.arrays.items():
        if path.startswith("frozen/"):
            continue
        name = name_of(path, stored, config)
        if name is None:
            left.add(_group(path))
        else:
            renamed[name] = array
    if to_classifier and _trains_fixed(stored.config.model.positions, config.model.positions):
        renamed[f"{ENCODER}positions/table"] = _fixed_table(stored.config)
    return renamed, sorted(left)


def _trains_fixed(there: str, here: str) -> bool:
    """Whether a table is trained that was fixed, as MAE's is in fine-tuning."""
    return there in FIXED and here == "learned"


def _name_in_pretraining(path: str, stored: Stored, config: ConfigDict) -> str | None:
    is_masking = path.startswith((MASKING, STATE))
    return None if is_masking and not _same_masking(stored, config) else path


def _name_in_classifier(path: str, stored: Stored, config: ConfigDict) -> str | None:
    if stored.kind == "classifier":
        return None if path.startswith(HEAD) and config.classifier.fresh_head else path
    if not path.startswith(PRETRAINED):
        return None
    part = path.removeprefix(PRETRAINED)
    if part.startswith(TAKEN):
        return f"{ENCODER}{part}"
    return f"params/{part}" if part.startswith("norm/") and _keeps_norm(stored, config) else None


def _name_in_probing(path: str, stored: Stored, config: ConfigDict) -> str | None:
    del config
    parts = (ENCODER, "params/") if stored.kind == "classifier" else (PRETRAINED,)
    part = next((path.removeprefix(each) for each in parts if path.startswith(each)), "")
    return f"{FROZEN}{part}" if part.startswith((*TAKEN, "norm/")) else None


def _fixed_table(config: ConfigDict) -> np.ndarray:
    """Returns a fixed table to be trained from now on, with the row of the class token."""
    (time, height, width), model = experiment.geometry(config).grid, config.model
    if model.positions == "sincos_1d":
        rows = positions.sincos_1d(time * height * width, model.encoder.width)
    else:
        rows = positions.sincos_2d(height, width, model.encoder.width)
    extra = np.zeros((int(model.class_token != "none"), rows.shape[1]), rows.dtype)
    return np.concatenate([extra, rows])


def different_fields(stored: Stored, task: Task, config: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Returns fields of what is taken that are another in the source, with both values."""
    to_classifier, compared = not isinstance(task, Pretraining), ["model.", "objective.pixel"]
    if not to_classifier:
        compared.append("objective.")
    if not to_classifier and _same_masking(stored, config):
        compared.append("masking.options.")
    if stored.kind == "classifier":
        compared += ["classifier.pooling", "classifier.skip_first_patch", "classifier.norm_epsilon"]
    passed_over = [*NOT_COMPUTED, "model.drop_path"]
    if to_classifier or stored.kind == "encoder":
        passed_over += OF_DECODER
    there, here = configs.flatten(stored.config), configs.flatten(config)
    return {
        name: (there.get(name), here[name])
        for name in here
        if name.startswith(tuple(compared))
        and not name.startswith(tuple(passed_over))
        and there.get(name) != here[name]
    }


def check_same_model(
    found: Mapping[str, np.ndarray],
    wanted: Mapping[str, tuple[int, ...]],
    differing: Mapping[str, tuple[Any, Any]],
    source: str,
) -> None:
    """Raises a `UserError` where a source is another model than the one that is trained."""
    shapes = {name: array.shape for name, array in found.items()}
    wrong = sorted(
        name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name)
    )
    # Fixed tables are no arrays.
    kinds = differing.get("model.positions")
    unseen = ["model.positions"] if kinds and not _trains_fixed(*kinds) else []
    if not wrong and not unseen:
        return
    reason = ""
    if wrong:
        name = wrong[0]
        reason = (
            f" ({len(wrong)} arrays differ, first {name}: {shapes.get(name, 'none')} there, "
            f"{wanted.get(name, 'none')} here)"
        )
    parts = ("model.", "masking.")
    shaping = [name for name in differing if name.startswith(parts) and not name.endswith(SAID)]
    said = " ".join(
        f"--config.{name}={_text(differing[name][0])}" for name in (shaping if wrong else unseen)
    )
    raise UserError(
        f"init_from={source} is another model than this config's{reason}: "
        + (f"set {said}" if said else "choose the config that it was trained with")
    )


def _text(value: Any) -> str:
    return str(value).replace(" ", "") or "''"


def table(
    taken: Mapping[str, np.ndarray], fresh: Mapping[str, str], sizes: Mapping[str, int]
) -> list[str]:
    """Returns the lines of a table: parts of the model, their values, taken or fresh and why."""
    rows: dict[tuple[str, str], list[int]] = {}
    for name, size in sizes.items():
        reason = next((why for part, why in fresh.items() if name.startswith(part)), "")
        origin = "taken" if name in taken else f"fresh: {reason}"
        rows.setdefault((_group(name), origin), []).append(size)
    return [
        f"{group:<24} {len(values):>4} arrays {sum(values):>13,} values  {origin}"
        for (group, origin), values in rows.items()
    ]


def _group(path: str) -> str:
    """Returns the part of a model that an array is in, such as ``autoencoder/encoder``."""
    collection, first, *rest = path.split("/")
    if collection != "params":
        return collection
    return f"{first}/{rest[0]}" if first in ("autoencoder", "encoder", "masking") else first
