"""No choice of a config is lost unsaid on its way through other people's names."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from adamae_jax import experiment, masking
from adamae_jax.config import default_config, flatten, masking_config, set_family
from adamae_jax.errors import UserError
from adamae_jax.interop import architecture, exports, faithful, sources
from adamae_jax.interop.given import Given
from adamae_jax.interop.safetensors_files import StateDict
from adamae_jax.interop.systems import SYSTEMS
from adamae_jax.pretrained import Finetuned, Loaded, Pretrained
from tests import helpers
from tests.interop.convert_cases import HUGGING_FACE, MODELS, config_of, loaded

# For each field of the config that says what a model is, values beside the cases' own. A field
# that is not here fails a test below.
VALUES: dict[str, tuple[Any, ...]] = {
    "model.tubelet_size": (1,),
    "model.patch_size": (2,),
    "model.encoder.width": (24,),
    "model.encoder.depth": (3,),
    "model.encoder.num_heads": (4,),
    "model.decoder.width": (24,),
    "model.decoder.depth": (2,),
    "model.decoder.num_heads": (1,),
    "model.mlp_ratio": (2.1,),
    "model.norm_epsilon": (1e-5,),
    "model.decoder_norm_epsilon": (1e-5,),
    "model.layer_scale": (0.1,),
    "model.predicted_frames": (0, 4),
    "model.positions": ("sincos_1d", "sincos_2d", "learned", "separable"),
    "model.class_token": ("none", "shared", "separate"),
    "model.attention_bias": ("", "qv", "qkv"),
    "model.projection_bias": (False, True),
    "classifier.num_classes": (5,),
    "classifier.norm_epsilon": (1e-5,),
    "classifier.pooling": ("mean", "first"),
    "classifier.skip_first_patch": (False, True),
    "objective.loss": ("l1",),
    "objective.normalize_targets": ("none", "channel", "tubelet"),
    "objective.target_pixels": ("unit", "normalized"),
    "objective.sampling_loss_weight": (0.0,),
    "objective.pixel_mean": ((0.1, 0.2, 0.3),),
    "objective.pixel_std": ((0.1, 0.2, 0.3),),
    "masking.name": ("random", "tube", "adaptive", "adversarial"),
    "masking.mask_ratio": (0.6,),
    "masking.options.network": ("mlp",),
    "masking.options.width": (8, 16),  # the tokens' is 16
    "masking.options.depth": (1,),
    "masking.options.num_heads": (2,),
    "masking.options.dropout": (0.5,),
    "masking.options.norm_epsilon": (1e-3,),
    "masking.options.vit_width": (24,),
    "masking.options.vit_depth": (2,),
    "masking.options.vit_num_heads": (4,),
    "masking.options.vit_norm_epsilon": (1e-3,),
    "masking.options.mask_factor": (0.25,),
    "masking.options.adversarial_weight": (0.1,),
    "masking.options.gumbel_tau": (0.5,),
}
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
# The same, in the remarks of an export to a directory.
IN_DIRECTORIES = {
    "model.decoder_norm_epsilon": "epsilon 1e-05 in decoder.norm|decoder_norm_epsilon",
    "classifier.norm_epsilon": "in (fc_norm|videomae.layernorm)",
    "masking.mask_ratio": "give --mask_ratio=0.6",
}
# Changing these changes no array.
SAME_ARRAYS = (
    *("model.norm_epsilon", "model.decoder_norm_epsilon", "objective.", "masking.mask_ratio"),
    *("classifier.norm_epsilon", "classifier.pooling", "classifier.skip_first_patch"),
    "masking.options.dropout",
    *("masking.options.norm", "masking.options.vit_norm", "masking.options.mask_factor"),
    *("masking.options.adversarial_weight", "masking.options.gumbel_tau"),
)


def flat(config: ConfigDict) -> dict[str, Any]:
    """The fields that say what a model is, by path."""
    return {
        name: value
        for name, value in flatten(config).items()
        if name.startswith(("model.", "masking.", "objective.", "classifier."))
    }


def test_every_field_has_values() -> None:
    fields = set(flat(default_config())) - set(faithful.NOT_COMPUTED)
    names = {system.masking for system in SYSTEMS.values()}
    options = {option for name in names for option in masking.option_defaults(name)}
    fields |= {f"masking.options.{name}" for name in options} - set(faithful.NOT_COMPUTED)
    assert fields == set(VALUES)


def changed(config: ConfigDict, field: str, value: Any) -> ConfigDict:
    """The config with one choice made otherwise."""
    new = config.copy_and_resolve_references()
    *path, name = field.split(".")
    with new.unlocked():
        if field == "masking.name":
            options = {"num_heads": 2} if value == "adaptive" else {}
            vit = {"vit_width": 16, "vit_depth": 1, "vit_num_heads": 2}
            options = vit if value == "adversarial" else options
            new.masking = masking_config(value, config.masking.mask_ratio, **options)
        else:
            part = experiment.field(new, ".".join(path))
            part[name] = value
    return new


def built(config: ConfigDict, like: Loaded, same_arrays: bool) -> Loaded:
    """A model of a config, with the weights of another or new ones."""
    if not isinstance(like, Finetuned):
        task = experiment.pretraining(config)
        variables: Any = like.variables if same_arrays else helpers.variables(task)
        return Pretrained(variables, config, 0, pretraining=task)
    classifier = experiment.classifier(config)
    if same_arrays:
        return Finetuned(like.variables, config, 0, classifier=classifier)
    clip = jnp.zeros((1, *classifier.geometry.clip_shape))
    shapes = jax.eval_shape(classifier.init, jax.random.key(0), clip)
    return Finetuned(helpers.filled(shapes), config, 0, classifier=classifier)


def exported(model: Loaded) -> tuple[StateDict, list[str]]:
    state = exports.to_authors(model)
    return state, faithful.remarks(model, state)


def kept(field: str, found: ConfigDict, expected: ConfigDict) -> bool:
    """Whether a choice came back, or one that computes the same."""
    ours, theirs = (flat(config)[field] for config in (expected, found))
    has_class = expected.model.class_token != "none"
    if field == "model.layer_scale":  # where it starts is not in the weights
        return bool(ours) == bool(theirs)
    if field == "model.mlp_ratio":
        parts = ("encoder", "decoder")[: 1 if expected.classifier.num_classes else 2]
        widths = [expected.model[part].width for part in parts]
        return [int(width * ours) for width in widths] == [int(width * theirs) for width in widths]
    if field == "masking.options.width":
        return (ours or expected.model.encoder.width) == (theirs or found.model.encoder.width)
    if field == "model.predicted_frames":
        return (ours or expected.data.num_frames) == (theirs or expected.data.num_frames)
    if field == "model.class_token" and expected.classifier.num_classes:
        return (theirs != "none") == has_class
    if field == "classifier.skip_first_patch" and has_class:
        return True  # the first token is the class token
    return tuple(ours) == tuple(theirs) if isinstance(ours, tuple | list) else ours == theirs


# A field's other values make models like these two.
CASES = [case for case in MODELS if case[0] not in ("videomae_scaled", "mae_first")]
# Beside their masking these are VideoMAE and MAE.
ONLY_MASKING = (("adamae", False), ("automae", False))
# What a classifier has no use for: its config keeps whatever stands there.
UNUSED = (
    *("model.decoder", "model.projection_bias", "model.predicted_frames", "masking."),
    *("objective.loss", "objective.normalize", "objective.target", "objective.sampling"),
)


def choices(cases: Iterable[tuple[str, bool]]) -> list[Any]:
    """Models with every field that they have a use for."""
    found = []
    for name, fine_tuned in cases:
        for field in flat(config_of(name, fine_tuned)):
            unused = UNUSED if fine_tuned else ("classifier.",)
            elsewhere = (name, fine_tuned) in ONLY_MASKING and not field.startswith("masking.")
            if field in VALUES and not field.startswith(unused) and not elsewhere:
                label = f"{name}{' fine-tuned' * fine_tuned} {field}"
                found.append(pytest.param((name, fine_tuned), field, id=label))
    return found


@functools.cache
def variant(case: tuple[str, bool], field: str, value: Any, same_arrays: bool) -> Loaded | None:
    """The model with another value of a field; None where that is no other model of ours."""
    original = loaded(*case)
    config = changed(original.config, field, value)
    if flat(config) == flat(original.config):
        return None
    try:
        return built(config, original, same_arrays)
    except UserError:
        return None


def variants(
    case: tuple[str, bool], field: str, check: Callable[[Loaded], None]
) -> Iterator[Loaded]:
    """The model with the field's other values; what ``check`` refuses has another's arrays."""
    for value in VALUES[field]:
        model = variant(case, field, value, same_arrays=True)
        if model is None:
            continue
        try:
            check(model)
        except UserError:
            yield model
            continue
        found = variant(case, field, value, same_arrays=field.startswith(SAME_ARRAYS))
        assert found is not None
        yield found


def words(field: str) -> str:
    """How a message lists a field that has no place."""
    name = re.escape(field)
    listed = rf"(no model with|another model, of) (.*, )?{name}[= ]|no class for .*\({name}\)"
    return WORDS.get(field, listed)


@pytest.mark.parametrize(("case", "field"), choices(CASES))
def test_each_choice_is_in_the_weights_or_said_or_refused(
    case: tuple[str, bool], field: str
) -> None:
    for model in variants(case, field, faithful.check):
        try:
            state, remarks = exported(model)
        except UserError as error:
            assert re.search(words(field), str(error))
            continue
        found = architecture.infer(state, faithful.given_of(model, state)).config
        assert field in "".join(remarks) or kept(field, found, model.config), remarks
        exports.table_of(found).from_authors(state)  # the same names, all accounted for


def check_hugging_face(model: Loaded) -> None:
    faithful.check(model)
    exports.kind_of(model)


@pytest.mark.parametrize(
    ("case", "field"), choices(case for case in HUGGING_FACE if case[0] != "adamae")
)
def test_each_choice_is_in_a_directory_or_said_or_refused(
    tmp_path: Path, case: tuple[str, bool], field: str
) -> None:
    for number, model in enumerate(variants(case, field, check_hugging_face)):
        directory = tmp_path / str(number)
        try:
            remarks = exports.write_hugging_face(model, directory)
        except UserError as error:
            assert re.search(words(field), str(error))
            continue
        (directory / sources.DESCRIPTION_FILE).unlink()
        source = sources.read(directory)
        found = architecture.infer(source.state, source.given).config
        said = re.search(IN_DIRECTORIES.get(field, field), "".join(remarks))
        assert said or kept(field, found, model.config), remarks
        # Tube masking cannot mask the share that is assumed, of so few patches.
        found.masking.mask_ratio = model.config.masking.mask_ratio
        exports.table_of(found).from_authors(source.state)


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


LAYER_SCALE = changed(config_of("mae"), "model.layer_scale", 0.1)
FEWER_FRAMES = changed(config_of("videomae"), "model.predicted_frames", 2)
SKIPPED = changed(config_of("videomae", True), "classifier.skip_first_patch", True)
FIRST = changed(config_of("mae_st", True), "classifier.pooling", "first")
KEPT = changed(config_of("mae_st_joint", True), "classifier.skip_first_patch", False)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (adaptive_images(), "code of mae's authors.* no model with masking.name='adaptive'"),
        (adversarial_video(), "code of videomae's authors.* with masking.name='adversarial'"),
        (
            LAYER_SCALE,
            r"code of mae's authors, whose names go with model.positions='sincos_2d', has no model "
            r"with model.layer_scale=0.1: there are no names to export it under; `adamae_jax.load`",
        ),
        (FEWER_FRAMES, "has no model with model.predicted_frames=2: there"),
        (SKIPPED, "has no model with classifier.skip_first_patch=True: there"),
        (FIRST, "code of mae_st's authors.* has no model with classifier.pooling='first': there"),
        (KEPT, "has no model with classifier.skip_first_patch=False: there"),
    ],
)
def test_what_no_author_has_is_refused_in_one_line(config: ConfigDict, message: str) -> None:
    like = loaded("videomae", bool(config.classifier.num_classes))
    with pytest.raises(UserError, match=message):
        exports.to_authors(built(config, like, same_arrays=False))


def test_what_only_the_description_says_is_told() -> None:
    config = changed(config_of("videomae"), "objective.loss", "l1")
    config = changed(config, "model.decoder_norm_epsilon", 1e-5)
    _, remarks = exported(built(config, loaded("videomae"), same_arrays=True))
    assert remarks == [
        "without the description beside the weights, give --num_frames=4 --image_size=8,12 "
        "--num_heads=2 --decoder_num_heads=3 --mask_ratio=0.75",
        "even with these flags, only the description beside the weights says: "
        "model.decoder_norm_epsilon 1e-05 (otherwise 1e-06), objective.loss 'l1' (otherwise 'mse')",
    ]


@pytest.mark.parametrize(
    ("name", "beside", "message"),
    [
        ("videomae", Given(num_heads=4), "model.encoder.num_heads 4 for 2"),
        ("adamae", Given(sampler_num_heads=2), "masking.options.num_heads 2 for 4"),
    ],
)
def test_weights_that_mean_another_network_are_refused(
    name: str, beside: Given, message: str
) -> None:
    """Should a model pass the tables of what authors have and come back as another."""
    model = loaded(name)
    with pytest.raises(UserError, match=f"another model, of {message}"):
        faithful.remarks(model, exports.to_authors(model), beside)


@pytest.mark.parametrize(
    "option", ["network", "width", "depth", "num_heads", "vit_width", "vit_depth", "vit_num_heads"]
)
def test_a_network_inside_the_masking_is_never_only_told(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should an import one day read one of its options wrong."""
    model, field = loaded("automae" if "vit" in option else "adamae"), f"masking.options.{option}"
    state = exports.to_authors(model)
    found = architecture.infer(state, faithful.given_of(model, state))
    value: Any = "mlp" if option == "network" else 8
    wrong = dataclasses.replace(found, config=changed(found.config, field, value))
    monkeypatch.setattr(architecture, "infer", lambda *_: wrong)
    with pytest.raises(UserError, match=f"another model, of {field} {value!r} for "):
        faithful.remarks(model, state)


@pytest.mark.parametrize("field", VALUES)
def test_every_value_is_one_that_some_model_has(field: str) -> None:
    """Otherwise the tests above could pass without a look at it."""
    for value in VALUES[field]:
        cases = [case for case in MODELS if field in flat(loaded(*case).config)]
        assert any(variant(case, field, value, same_arrays=True) for case in cases), value
