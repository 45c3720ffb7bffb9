"""Tiny models of every system, pretrained and fine-tuned, and the convert jobs in this process."""

import dataclasses
import functools
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from adamae_jax import experiment, job, pretrained
from adamae_jax.config import default_config, masking_config, set_family
from adamae_jax.convert import exporting, importing
from adamae_jax.pretrained import Loaded
from tests import helpers
from tests.parity import reference_weights
from tests.parity.reference_weights import Shapes

LABELS = ("walking", "running", "resting")
LICENSE = "cc-by-nc-4.0"
STEP = 7


@dataclasses.dataclass(frozen=True)
class Case:
    """A tiny model.

    Attributes:
      family: of `adamae_jax.config.FAMILIES`.
      masking: the strategy.
      mask_ratio: the authors', so that it need not be given.
      clip: frames, height and width.
      tubelet: frames and side of a token.
      model: fields of ``config.model`` beside the family's.
      options: of the masking.
      hugging_face: whether there is a class for it.
      pooling: of the classifier.
      given: what an import has to be told, as flags.
    """

    family: str
    masking: str
    mask_ratio: float
    clip: tuple[int, int, int]
    tubelet: tuple[int, int] = (2, 4)
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    hugging_face: bool = False
    pooling: str = "mean"
    given: tuple[str, ...] = ()


HEADS = ("--num_heads=2", "--decoder_num_heads=3")
CLIP = ("--num_frames=4", "--image_size=8,12")
VIT = {"vit_width": 16, "vit_depth": 1, "vit_num_heads": 2}
CASES = {
    "adamae": Case(
        *("videomae", "adaptive", 0.95, (8, 16, 24)),
        hugging_face=True,
        options={"depth": 2, "num_heads": 4},
        given=(*HEADS, "--image_size=16,24", "--sampler_num_heads=4"),
    ),
    "videomae": Case(
        *("videomae", "tube", 0.9, (4, 8, 12)),
        hugging_face=True,
        given=(*HEADS, *CLIP, "--mask_ratio=0.75"),
    ),
    "videomae_scaled": Case(
        *("videomae", "tube", 0.9, (4, 8, 12)),
        model={"layer_scale": 1.0},
        given=(*HEADS, *CLIP, "--mask_ratio=0.75"),
    ),
    "mae_st": Case(
        *("mae_st", "random", 0.9, (8, 16, 24)),
        model={"predicted_frames": 4},
        given=(*HEADS, "--image_size=16,24"),
    ),
    "mae_st_joint": Case(
        *("mae_st", "random", 0.9, (4, 16, 24)),
        model={"positions": "learned", "class_token": "none"},
        given=(*HEADS, "--image_size=16,24"),
    ),
    "mae": Case("mae", "random", 0.75, (1, 8, 8), (1, 4), hugging_face=True, given=HEADS),
    "automae": Case(
        *("mae", "adversarial", 0.75, (1, 48, 48), (1, 4)),
        options=VIT,
        given=("--decoder_num_heads=3",),
    ),
}
# Tube masking needs more patches than the tiny frame has to mask 90% of them.
CASES["videomae"] = dataclasses.replace(CASES["videomae"], mask_ratio=0.75)
CASES["videomae_scaled"] = dataclasses.replace(CASES["videomae_scaled"], mask_ratio=0.75)
# Classifiers of the first token: VideoMAE's is a patch, MAE's the class token.
FIRST_TOKEN = ("videomae_first", "mae_first")
for _name in FIRST_TOKEN:
    CASES[_name] = dataclasses.replace(CASES[_name.removesuffix("_first")], pooling="first")

# A classifier has the name of its pretraining; AdaMAE's is VideoMAE's, AutoMAE's is MAE's.
CLASSIFIERS = ("videomae", "videomae_scaled", "mae_st", "mae_st_joint", "mae", *FIRST_TOKEN)
MODELS = [(name, False) for name in CASES if name not in FIRST_TOKEN]
MODELS += [(name, True) for name in CLASSIFIERS]
HUGGING_FACE = [
    (name, fine_tuned)
    for name, fine_tuned in MODELS
    if CASES[name].hugging_face and not (fine_tuned and CASES[name].family == "mae")
]


def config_of(name: str, fine_tuned: bool = False) -> ConfigDict:
    """The experiment of a tiny model."""
    case, config = CASES[name], default_config()
    with config.unlocked():
        config.data.num_frames, *size = case.clip
        config.data.image_size = tuple(size)
        model = config.model
        set_family(model, case.family)
        model.tubelet_size, model.patch_size = case.tubelet
        model.encoder.update({"width": 16, "depth": 2, "num_heads": 2})
        if not fine_tuned:  # of what a classifier has not, the config keeps the defaults
            model.decoder.update({"width": 12, "depth": 1, "num_heads": 3})
            config.masking = masking_config(case.masking, case.mask_ratio, **case.options)
        model.update(case.model)
        if case.family != "videomae":
            config.objective.normalize_targets = "tubelet"
            config.objective.target_pixels = "normalized"
        if case.family == "mae_st":
            config.objective.pixel_mean, config.objective.pixel_std = (0.45,) * 3, (0.225,) * 3
        if fine_tuned:
            model.predicted_frames = 0
            config.classifier.num_classes = len(LABELS)
            config.classifier.pooling = case.pooling
            config.classifier.skip_first_patch = name == "mae_st_joint"
            if case.family == "mae":
                model.positions = "learned"
    return config


def changed(config: ConfigDict, **fields: Any) -> ConfigDict:
    """The config with fields set otherwise, two _ for a dot; of masking, all options are new."""
    new = config.copy_and_resolve_references()
    with new.unlocked():
        if name := fields.pop("masking__name", None):
            new.masking = masking_config(name, new.masking.mask_ratio)
        new.update_from_flattened_dict({name.replace("__", "."): v for name, v in fields.items()})
    return new


@functools.cache
def loaded(name: str, fine_tuned: bool = False) -> Loaded:
    """A tiny model with random weights."""
    config = config_of(name, fine_tuned)
    if fine_tuned:
        classifier = experiment.classifier(config)
        clip = jnp.zeros((1, *classifier.geometry.clip_shape))
        shapes = jax.eval_shape(classifier.init, jax.random.key(0), clip)
        tree: Any = helpers.filled(shapes, seed=1)
    else:
        tree = helpers.variables(experiment.pretraining(config), seed=2)
        # Spectral norms whose vectors are all zero could change places unseen.
        tree["state"] = helpers.filled(tree["state"], seed=3)
    labels = LABELS if fine_tuned else ()
    return pretrained.build(tree, config, STEP, labels, LICENSE, name)


def written(directory: Path, name: str, fine_tuned: bool = False) -> Path:
    """The same as a model directory."""
    model = loaded(name, fine_tuned)
    pretrained.save(
        directory, model.variables, model.config, model.step, model.label_names, model.license
    )
    return directory


def shapes_of(name: str, fine_tuned: bool = False) -> Shapes:
    """The authors' names and shapes, written down apart from the package."""
    case = CASES[name]
    frames, height, width = case.clip
    meta: dict[str, Any] = {
        **{"image_size": (height, width), "patch_size": case.tubelet[1]},
        "encoder": {"dim": 16, "depth": 2},
        "decoder": {"dim": 12, "depth": 1},
        "num_classes": len(LABELS),
    }
    if case.family != "mae":
        meta |= {"num_frames": frames, "tubelet_size": case.tubelet[0]}
    if case.family == "mae_st":
        separable = name == "mae_st"
        meta |= {"separable_pos_embed": separable, "cls_token": separable}
        meta |= {"predicted_frames": 4} if separable else {}
    if case.family == "videomae":
        style = "scaled" if name == "videomae_scaled" else "qv"
        shapes = reference_weights.videomae_shapes(meta, style)
    else:
        shapes = reference_weights.mae_shapes(meta)
    if fine_tuned:
        classifier = reference_weights.classifier_shapes(meta, shapes)
        # MAE's names for its classifier are those of VideoMAE's.
        wanted = "norm" if case.family == "mae_st" or case.pooling == "first" else "fc_norm"
        return {
            (re.sub(r"^(fc_)?norm\.", f"{wanted}.", name)): shape
            for name, shape in classifier.items()
        }
    if name == "adamae":
        shapes |= reference_weights.sampler_shapes({**meta, "sampler": {"depth": 2}})
    return shapes | (automae_shapes(meta) if name == "automae" else {})


def automae_shapes(meta: dict[str, Any]) -> Shapes:
    """AutoMAE's three networks."""
    vit = reference_weights.mae_shapes({**meta, "encoder": {"dim": 16, "depth": 1}})
    encoder = {k: v for k, v in vit.items() if not k.startswith(("decoder_", "mask_token"))}
    return {
        **reference_weights.generator_shapes(heads=2),
        **{f"pretrained_vit.{name}": shape for name, shape in encoder.items()},
        **{
            f"discriminator.{name}": shape
            for name, shape in reference_weights.discriminator_shapes().items()
        },
        **{f"discriminator.conv{i}.0.weight_u": (size,) for i, size in ((1, 16), (2, 32), (3, 1))},
        **{f"discriminator.conv{i}.0.weight_v": (n,) for i, n in ((1, 16), (2, 256), (3, 288))},
    }


def run(module: ModuleType, *arguments: str) -> None:
    """A job's ``main`` in this process, its flags defined for this once."""
    before = set(flags.FLAGS)
    getattr(module, "define_flags", job.define_flags)()  # those that train share theirs
    try:
        module.main(flags.FLAGS(["job", *arguments]))
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)


def export(source: Path, output: Path, *arguments: str) -> Path:
    """``convert export``."""
    run(exporting, f"--source={source}", f"--output={output}", *arguments)
    return output


def bring(source: Path, output: Path, *arguments: str) -> Path:
    """``convert import``."""
    run(importing, f"--source={source}", f"--output={output}", *arguments)
    return output


def given(name: str, fine_tuned: bool = False) -> tuple[str, ...]:
    """The flags that an import of a file of the authors' needs."""
    only_pretraining = ("--decoder_num_heads", "--mask_ratio", "--sampler_num_heads")
    words = CASES[name].given
    return tuple(word for word in words if not (fine_tuned and word.startswith(only_pretraining)))


def assert_same_model(found: Loaded, expected: Loaded) -> None:
    """The same class, architecture and bits."""
    assert type(found) is type(expected)
    assert_same_config(found.config, expected.config)
    ours, theirs = (pretrained.flatten(dict(each.variables)) for each in (found, expected))
    assert_same_arrays(ours, theirs)


def assert_same_config(found: ConfigDict, expected: ConfigDict) -> None:
    """The same in all that makes up a model."""
    parts = ["model", "objective", "classifier"]
    parts += ["masking"] * (not expected.classifier.num_classes)
    for part in parts:
        assert found[part].to_dict() == expected[part].to_dict(), part
    assert experiment.geometry(found) == experiment.geometry(expected)


def assert_same_arrays(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same names, shapes, types and bits."""
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, strict=True, err_msg=name)
