"""No choice of a config is lost unsaid on its way through other people's names."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from adamae_jax import experiment
from adamae_jax.config import flatten, masking_config, set_family
from adamae_jax.errors import UserError
from adamae_jax.interop import architecture, exports, imports, sources
from adamae_jax.interop.systems import SYSTEMS
from adamae_jax.interop.weight_reader import ImportOptions
from adamae_jax.pretrained import Finetuned, Loaded, Pretrained
from tests import helpers
from tests.interop.convert_cases import config_of, loaded

Case = tuple[str, bool]

# Other values of the fields; numbers and switches that are not here are changed a little.
VALUES: dict[str, tuple[Any, ...]] = {
    "model.encoder.num_heads": (4,),
    "model.decoder.num_heads": (1,),
    "model.mlp_ratio": (2.1,),
    "model.layer_scale": (0.1,),
    "model.predicted_frames": (0, 4),
    "model.positions": ("sincos_1d", "sincos_2d", "learned", "separable"),
    "model.class_token": ("none", "shared", "separate"),
    "model.attention_bias": ("", "qv", "qkv"),
    "classifier.pooling": ("mean", "first"),
    "objective.loss": ("l1",),
    "objective.normalize_targets": ("none", "channel", "tubelet"),
    "objective.target_pixels": ("unit", "normalized"),
    "masking.name": ("random", "tube", "dual", "adaptive", "adversarial"),
    "masking.mask_ratio": (0.6,),
    "masking.decode_order": ("cells", "sampler"),
    "masking.options.network": ("mlp",),
    "masking.options.width": (8, 16),  # the tokens' is 16
    "masking.options.num_heads": (2,),
    "masking.options.vit_width": (24,),
    "masking.options.vit_num_heads": (4,),
    "masking.options.baseline": ("clip", "running"),
    "masking.options.credit": ("draw",),
    "masking.options.reward": ("visible",),
}
# Sizes: test_architecture.py.
SIZES = re.compile(r"model\.(tubelet_size|patch_size|\w+\.(width|depth))|classifier\.num_classes")
# Where a message has other words for a field.
WORDS = {
    "masking.options.network": "sampler of attention blocks",
    "masking.options.width": "sampler of attention blocks",
    # They tell whose code it would be: foreign there is the rest of the model.
    "model.positions": (
        r"names go with model\.positions=|another model, of (.*, )?model\.positions |"
        r"no class for .*\(model\.positions="
    ),
    # Which first token a classifier leaves out depends on both.
    "model.class_token": r"model with .*(class_token|skip_first_patch)=",
}
# Changing these changes no array.
SAME_ARRAYS = re.compile(
    r"model\.(decoder_)?norm_epsilon|model\.\w+\.num_heads|objective\.|masking\.(mask_ratio|decode_)|"
    r"classifier\.|masking\.options\.(dropout|\w*norm|mask_factor|adversarial|gumbel|num_heads|decoder_)"
)
CASES = [
    *((name, False) for name in ("videomae", "mae", "mae_st", "adamae", "automae")),
    *((name, True) for name in ("videomae", "mae_st_joint")),
]
# Beside their masking these are VideoMAE and MAE.
ONLY_MASKING = ("adamae", "automae")
# What a classifier has no use for: its config keeps whatever stands there.
UNUSED = re.compile(
    r"model\.(decoder|projection_bias|predicted_frames)|masking|"
    r"objective\.(loss|normalize|target|sampling)"
)


def flat(config: ConfigDict) -> dict[str, Any]:
    """The fields that say what a model is, by path."""
    parts = ("model.", "masking.", "objective.", "classifier.")
    return {
        name: value
        for name, value in flatten(config).items()
        if name.startswith(parts) and name not in exports.NOT_COMPUTED
    }


def changed(config: ConfigDict, field: str, value: Any) -> ConfigDict:
    """The config with one choice made otherwise."""
    new = config.copy_and_resolve_references()
    *path, name = field.split(".")
    options: dict[str, dict[str, Any]] = {
        "adaptive": {"num_heads": 2},
        "adversarial": {"vit_width": 16, "vit_depth": 1, "vit_num_heads": 2},
    }
    with new.unlocked():
        if field == "masking.name":
            new.masking = masking_config(value, config.masking.mask_ratio, **options.get(value, {}))
        else:
            experiment.field(new, ".".join(path))[name] = value
    return new


def other_values(field: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return (value + 1,)
    if isinstance(value, float):
        return (10 * value if value < 0.01 else value / 2,)
    assert isinstance(value, tuple | list), f"add {field} to VALUES"
    return (tuple(part / 2 for part in value),)


def built(config: ConfigDict, like: Loaded, same_arrays: bool) -> Loaded:
    """A model of a config, with the weights of another or new ones."""
    if not isinstance(like, Finetuned):
        task = experiment.pretraining(config)
        variables: Any = like.variables if same_arrays else helpers.variables(task)
        return Pretrained(variables, config, task, 0)
    classification = experiment.classification(config)
    if same_arrays:
        return Finetuned(like.variables, config, classification, 0)
    shapes = jax.eval_shape(classification.init, jax.random.key(0))
    return Finetuned(helpers.filled(shapes), config, classification, 0)


def variants(case: Case, field: str, check: Callable[[Loaded], Any]) -> Iterator[Loaded]:
    """The models of ours with the field's other values; what ``check`` refuses has any arrays."""
    original = loaded(*case)
    own = flat(original.config)[field]
    for value in VALUES.get(field) or other_values(field, own):
        config = changed(original.config, field, value)
        if flat(config) == flat(original.config):
            continue
        try:
            model = built(config, original, same_arrays=True)
        except UserError:
            continue  # no model of ours
        try:
            check(model)
            yield model if SAME_ARRAYS.match(field) else built(config, original, same_arrays=False)
        except UserError:
            yield model


def kept(field: str, found: ConfigDict, expected: ConfigDict) -> bool:
    """Whether a choice came back, or one that computes the same."""
    ours, theirs = (flat(config)[field] for config in (expected, found))
    is_classifier = bool(expected.classifier.num_classes)
    has_class = expected.model.class_token != "none"
    if field == "model.layer_scale":  # where it starts is not in the weights
        return bool(ours) == bool(theirs)
    if field == "model.mlp_ratio":
        widths = [
            expected.model[part].width for part in ("encoder", "decoder")[: 2 - is_classifier]
        ]
        return [int(width * ours) for width in widths] == [int(width * theirs) for width in widths]
    if field == "masking.options.width":
        return (ours or expected.model.encoder.width) == (theirs or found.model.encoder.width)
    if field == "model.predicted_frames":
        return (ours or expected.data.num_frames) == (theirs or expected.data.num_frames)
    if field == "model.class_token" and is_classifier:
        return (theirs != "none") == has_class
    if field == "classifier.skip_first_patch" and has_class:
        return True  # the first token is the class token
    return tuple(ours) == tuple(theirs) if isinstance(ours, tuple | list) else ours == theirs


def choices(cases: list[Case]) -> list[Any]:
    """Models with every field that they have a use for."""
    found = []
    for name, fine_tuned in cases:
        for field in flat(config_of(name, fine_tuned)):
            unused = UNUSED.match(field) if fine_tuned else field.startswith("classifier.")
            elsewhere = name in ONLY_MASKING and not field.startswith("masking.")
            if not (unused or elsewhere or SIZES.match(field)):
                label = f"{name}{' fine-tuned' * fine_tuned} {field}"
                found.append(pytest.param((name, fine_tuned), field, id=label))
    return found


def words(field: str) -> str:
    """How a message lists a field that has no place."""
    name = re.escape(field)
    listed = rf"(no model with|another model, of) (.*, )?{name}[= ]|no class for .*\({name}\)"
    return WORDS.get(field, listed)


@pytest.mark.parametrize(("case", "field"), choices(CASES))
def test_each_choice_is_in_the_weights_or_said_or_refused(case: Case, field: str) -> None:
    for model in variants(case, field, exports.check):
        try:
            state = exports.to_authors(model)
            remarks = exports.description_remarks(model, state, ImportOptions())
        except UserError as error:
            assert re.search(words(field), str(error))
            continue
        found = architecture.infer(state, exports.import_options(model)).config
        assert field in "".join(remarks) or kept(field, found, model.config), remarks
        exports.table_of(found).from_authors(state)  # the same names, all accounted for


def adaptive_images() -> ConfigDict:
    """AdaMAE on images."""
    return changed(config_of("mae"), "masking.name", "adaptive")


def adversarial_video() -> ConfigDict:
    """AutoMAE on video: VideoMAE's model, a frame of 12 x 12 patches."""
    config = config_of("automae")
    with config.unlocked():
        set_family(config.model, "videomae")
        config.data.num_frames, config.model.tubelet_size = 4, 2
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (adaptive_images(), "code of mae's authors.* no model with masking.name='adaptive'"),
        (adversarial_video(), "code of videomae's authors.* with masking.name='adversarial'"),
        (
            changed(config_of("mae"), "model.layer_scale", 0.1),
            r"code of mae's authors, whose names go with model.positions='sincos_2d', has no model "
            r"with model.layer_scale=0.1: there are no names to export it under; `adamae_jax.load`",
        ),
    ],
)
def test_what_no_author_has_is_refused_in_one_line(config: ConfigDict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        exports.to_authors(built(config, loaded("videomae"), same_arrays=False))


def test_what_only_the_description_says_is_told() -> None:
    config = changed(config_of("videomae"), "objective.loss", "l1")
    config = changed(config, "model.decoder_norm_epsilon", 1e-5)
    model = built(config, loaded("videomae"), same_arrays=True)
    assert exports.description_remarks(model, exports.to_authors(model), ImportOptions()) == [
        "without the description beside the weights, give --num_heads=2 --decoder_num_heads=3 "
        "--num_frames=4 --image_size=8,12 --mask_ratio=0.75",
        "even with these flags, only the description beside the weights says: "
        "model.decoder_norm_epsilon 1e-05 (otherwise 1e-06), objective.loss 'l1' (otherwise 'mse')",
    ]


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (False, "masking.name 'dual' (otherwise 'tube')"),
        (True, "masking.options.decoder_mask_ratio 0.25 (otherwise 0.5)"),
    ],
)
def test_two_masks_go_out_and_come_back(
    known: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VideoMAE V2: names are VideoMAE's, and sizes where they are published tell the masks."""
    if known:
        v2 = dataclasses.replace(SYSTEMS["videomae_v2"], sizes=(((16, 2), (12, 1)),))
        monkeypatch.setitem(SYSTEMS, "videomae_v2", v2)
    config = config_of("videomae")
    with config.unlocked():
        config.data.image_size = (8, 16)
        config.masking = masking_config("dual", 0.5, decoder_mask_ratio=0.25)
        config.masking.decode_ratio = 0.75
    task = experiment.pretraining(config)
    model = Pretrained(helpers.variables(task), config, task, 3)
    remarks = exports.write_authors(model, tmp_path / "v2.safetensors")
    assert said in remarks[-1]
    assert "masking.decode_ratio 0.75 (otherwise 1.0)" in remarks[-1]
    found = imports.convert(sources.read(tmp_path / "v2.safetensors"))
    assert found.config.masking.to_dict() == config.masking.to_dict()
    ours, theirs = (helpers.named(each) for each in (found.variables, model.variables))
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])


@pytest.mark.parametrize(
    ("name", "option", "value", "field"),
    [
        ("videomae", "num_heads", 4, "model.encoder.num_heads"),
        ("adamae", "sampler_num_heads", 2, "masking.options.num_heads"),
    ],
)
def test_weights_that_mean_another_network_are_refused(
    name: str, option: str, value: Any, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should a model pass the list of what authors have and come back as another."""
    model = loaded(name)
    wrong = dataclasses.replace(exports.import_options(model), **{option: value})
    monkeypatch.setattr(exports, "import_options", lambda _: wrong)
    with pytest.raises(UserError, match=f"another model, of {field} {value} for "):
        exports.description_remarks(model, exports.to_authors(model), ImportOptions())
