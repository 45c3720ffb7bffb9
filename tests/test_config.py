"""The table of fields and the tree that is made of it: defaults, checks, storage, the docs page."""

import json
import math
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from ml_collections import ConfigDict

from adamae_jax import config as config_lib
from adamae_jax import masking
from adamae_jax.data.clips import CROPS, FRAME_SAMPLINGS, INTERPOLATIONS
from adamae_jax.errors import UserError
from adamae_jax.fields import FIELDS
from adamae_jax.models.transformer import TransformerSpec
from adamae_jax.pretraining import Objective

ROOT = Path(__file__).parent.parent


def config(**changes: object) -> ConfigDict:
    """The default config with some fields set, by their paths."""
    own = config_lib.default_config()
    own.update_from_flattened_dict(changes)
    return own


def test_the_defaults_are_the_released_recipe() -> None:
    own = config()
    assert {name for name in config_lib.flatten(own) if ".options." not in name} == set(FIELDS)
    config_lib.set_size(own.model, "B")
    config_lib.set_family(own.model, "videomae")
    assert own.to_dict() == config().to_dict()
    assert own.masking.options.to_dict() == masking.option_defaults("adaptive")
    config_lib.check_fields(own)
    with pytest.raises(AttributeError):
        own.optimizer.lr = 4


def test_choices_are_those_of_the_code() -> None:
    hints, spec = get_type_hints(Objective), get_type_hints(TransformerSpec)
    for name, choices in {
        "data.crop": CROPS,
        "data.frame_sampling": FRAME_SAMPLINGS,
        "data.interpolation": INTERPOLATIONS,
        "objective.loss": get_args(hints["loss"]),
        "objective.normalize_targets": get_args(hints["normalize_targets"]),
        "objective.target_pixels": get_args(hints["target_pixels"]),
        "model.attention_bias": get_args(spec["attention_bias"]),
        "model.attention": get_args(spec["attention_implementation"]),
    }.items():
        assert set(FIELDS[name].choices) == set(choices), name


@pytest.mark.parametrize(("size", "heads"), [("S", 6), ("L", 16), ("H", 16), ("g", 16)])
def test_sizes_are_set_as_a_whole(size: str, heads: int) -> None:
    own = config()
    own.model.mlp_ratio = 3.0
    config_lib.set_size(own.model, size)
    assert own.model.encoder.num_heads == heads
    assert own.model.encoder.width == config_lib.SIZES[size][0][0]
    assert own.model.decoder.depth == config_lib.SIZES[size][1][1]
    hidden = [
        int(part.width * own.model.mlp_ratio) for part in (own.model.encoder, own.model.decoder)
    ]
    if size == "g":
        assert hidden == [6144, 2234]
    else:
        assert hidden[0] == 4 * own.model.encoder.width


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("batch_size", 0, "a whole number, at least 1"),
        ("steps", 2**31, "a whole number, at least 0 and at most 2147483647"),
        ("seed", 2**32, "a whole number, .* at most 4294967295"),
        ("seed", True, "a whole number"),
        ("optimizer.warmup_steps", -1, "a whole number, at least 0"),
        ("optimizer.warmup_epochs", math.nan, "a finite number, at least 0"),
        ("optimizer.b2", 1.0, "a finite number, at least 0 and below 1"),
        ("model.norm_epsilon", math.inf, "a finite number"),
        ("model.projection_bias", 1, "True or False"),
        ("data.dir", None, "a text"),
        ("data.crop", "random", "one of 'multi_scale_corner', 'random_resized', "),
        ("data.image_size", (48.5, 48.5), "1 or 2 whole numbers, at least 1"),
        ("data.image_size", (8, 0), "1 or 2 whole numbers"),
        ("data.image_size", (1, 2, 3), "1 or 2 whole numbers"),
        ("data.image_size", 112, "1 or 2 whole numbers"),
        ("data.crop_area", ("a", "b"), "2 finite numbers, above 0 and at most 1"),
        ("data.crop_aspect", (0.5, None), "2 finite numbers, above 0"),
        ("objective.pixel_mean", (0.5,), "3 finite numbers"),
        ("objective.pixel_std", (1.0, 0.0, 1.0), "3 finite numbers, above 0"),
        ("optimizer.decay", (3,), "a list of texts"),
        ("probe.kinds", ("linear", "knn"), "one or more of 'linear', 'attentive'"),
        ("probe.kinds", "linear", "one or more of 'linear', 'attentive'"),
        ("probe.kinds", (), "one or more of"),
        ("probe.rates", (1.0, 0.0), "different finite numbers, above 0"),
        ("probe.rates", (1.0, 1.0), "different finite numbers, above 0"),
    ],
)
def test_a_wrong_value_is_one_clear_line(name: str, value: Any, expected: str) -> None:
    with pytest.raises(UserError, match=rf"^{name} is .*: it must be {expected}"):
        FIELDS[name].check(name, value)


def test_options_of_a_strategy_are_finite() -> None:
    with pytest.raises(UserError, match="masking.options.dropout is nan: it must be a finite"):
        config_lib.check_fields(config(**{"masking.options.dropout": math.nan}))


def test_derived_fields_are_filled_in() -> None:
    own = config(batch_size=2048, epochs=800, **{"optimizer.warmup_epochs": 40.0})
    own.data.image_size = (112,)
    resolved = config_lib.resolve(own, num_examples=168_913)
    assert resolved.data.num_examples == 168_913
    assert resolved.steps == 800 * 82
    assert resolved.optimizer.warmup_steps == 40 * 82
    assert resolved.eval.batch_size == 2048
    assert resolved.data.image_size == (112, 112)
    assert (own.steps, own.data.num_examples, own.eval.batch_size) == (0, 0, 0)
    assert config_lib.resolve(resolved, num_examples=0).to_dict() == resolved.to_dict()


def test_steps_come_before_epochs_and_the_dataset_before_the_recipe() -> None:
    own = config(steps=10, epochs=3, batch_size=4, **{"data.num_examples": 100})
    own.optimizer.warmup_steps, own.optimizer.warmup_epochs = 2, 50.0
    own.eval.batch_size = 8
    resolved = config_lib.resolve(own, num_examples=999)
    assert (resolved.steps, resolved.optimizer.warmup_steps) == (10, 2)
    assert (resolved.data.num_examples, resolved.eval.batch_size) == (999, 8)
    assert config_lib.resolve(own, num_examples=0).data.num_examples == 100


def test_a_dataset_smaller_than_a_batch_has_one_step_an_epoch() -> None:
    assert config_lib.resolve(config(epochs=3, batch_size=64), num_examples=10).steps == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "steps is 0 and epochs is 0: .*--config.steps"),
        ({"epochs": 2**30}, "steps is 107374182400: it must be a whole number, .*at most"),
        ({"steps": 5, "optimizer.warmup_steps": 5}, "steps 5 are not more than the warm-up's 5"),
    ],
)
def test_lengths_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_lib.resolve(config(**changes), num_examples=25_600)


@pytest.mark.parametrize(
    ("own", "given", "warmup"),
    [
        ({"steps": 500, "optimizer.warmup_steps": 40}, {"steps": 20}, 1),
        ({"steps": 500, "optimizer.warmup_steps": 40}, {"steps": 1}, 0),
        ({"steps": 500, "optimizer.warmup_steps": 40}, {"steps": 5000}, 40),
        ({"steps": 500, "optimizer.warmup_steps": 40}, {"steps": 0, "epochs": 1}, 8),
        ({"epochs": 800, "optimizer.warmup_epochs": 40.0}, {"epochs": 80}, 400),
        ({"epochs": 800, "optimizer.warmup_epochs": 40.0}, {"steps": 20}, 1),
        (
            {"steps": 500, "optimizer.warmup_steps": 40},
            {"steps": 100, "optimizer.warmup_steps": 30},
            30,
        ),
    ],
)
def test_a_shorter_run_has_a_shorter_warmup(
    own: dict[str, Any], given: dict[str, Any], warmup: int
) -> None:
    """In proportion, unless the command line says otherwise; a run that goes on keeps its own."""
    file = config_lib.flatten(config(**own))
    recipe = {name: file[name] for name in given}
    made = config(**{**own, **given})
    found = config_lib.resolve(made, 25_600, recipe)
    assert found.optimizer.warmup_steps == warmup


@pytest.mark.parametrize("steps", [20, 400, 500, 800])
def test_a_run_that_goes_on_keeps_its_warmup(steps: int) -> None:
    """Whether it becomes shorter or longer: it may be over, or half done."""
    run = config(steps=20, **{"optimizer.warmup_steps": 3})
    made, file = config(steps=steps, **{"optimizer.warmup_steps": 40}), {"steps": 500}
    assert config_lib.resolve(made, 100, file, run).optimizer.warmup_steps == 3
    given = {**file, "optimizer.warmup_steps": 40}
    made.optimizer.warmup_steps = 4
    assert config_lib.resolve(made, 100, given, run).optimizer.warmup_steps == 4


@pytest.mark.parametrize("name", masking.names())
def test_stored_configs_come_back_whole(name: str) -> None:
    own = config(steps=10, **{"mesh.fsdp": 2, "optimizer.decay": ("kernel$",)})
    with own.unlocked():
        own.masking = config_lib.masking_config(name, 0.8)
    text = config_lib.to_json(config_lib.resolve(own, num_examples=100))
    back = config_lib.from_json(text)
    assert back.to_dict() == config_lib.resolve(own, num_examples=100).to_dict()
    assert config_lib.to_json(back) == text
    assert '\n  "batch_size": 256' in text and text.endswith("}\n")
    with pytest.raises(AttributeError):
        back.bach_size = 4


def test_what_belongs_to_a_model_makes_a_config_again() -> None:
    own = config(steps=5, **{"data.num_frames": 8, "data.dir": "x", "model.layer_scale": 0.5})
    part = config_lib.model_part(own)
    assert set(part) == {"data", "model", "masking", "objective", "classifier"}
    assert "num_workers" not in part["data"]
    back = config_lib.from_json(json.dumps(part))
    assert (back.data.num_frames, back.data.dir, back.model.layer_scale) == (8, "x", 0.5)
    assert (back.steps, back.masking) == (0, own.masking)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("optimizer", "momentum"), 1, "does not fit this version.*momentum"),
        (("masking", "options", "heads"), 1, "does not fit this version.*heads"),
        (("batch_size",), "many", "does not fit this version.*batch_size"),
        (("masking", "name"), "tubes", r"masking.name 'tubes' is unknown"),
        (("masking",), {}, r"does not fit this version.*name"),
        (("data", "dir"), None, "does not fit this version: data.dir is null"),
    ],
)
def test_stored_configs_that_do_not_fit_are_named(
    path: tuple[str, ...], value: object, words: str
) -> None:
    stored = json.loads(config_lib.to_json(config()))
    place = stored
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(UserError, match=words):
        config_lib.from_json(json.dumps(stored))


def test_options_of_a_strategy_are_its_own() -> None:
    own = config_lib.masking_config("adaptive", 0.9, depth=2)
    assert (own.options.depth, own.options.num_heads) == (2, 8)
    with pytest.raises(UserError, match="masking 'tube' has no option 'depth': it has none"):
        config_lib.masking_config("tube", 0.9, depth=2)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("data.num_frames", ""),
        ("masking.options.anything", ""),
        ("batch_sise", "config has no field 'batch_sise': did you mean 'batch_size'?"),
        ("optimizer.lr", "config.optimizer has no field 'lr': did you mean 'learning_rate'?"),
        ("lr", "config has no field 'lr': did you mean 'config.optimizer.learning_rate'?"),
        ("data.batch_size", "config.data has no field 'batch_size': did you mean 'config.batch_s"),
        ("mesh.model", "config.mesh has no field 'model': it has data, fsdp, tensor"),
        (
            "masking",
            "config.masking is a group of fields, and each strategy has options of its own",
        ),
        ("model", "config.model is a group of fields: set one of them, such as config.model."),
        ("nothing.here", "config.nothing has no field 'here': docs/config.md lists all fields"),
    ],
)
def test_misspelled_fields_get_a_hint(path: str, message: str) -> None:
    found = config_lib.unknown_field(path)
    assert found.startswith(message) and bool(found) == bool(message)


def test_the_page_in_docs_is_that_of_the_table() -> None:
    """Otherwise: python -m adamae_jax.config > docs/config.md."""
    assert (ROOT / "docs" / "config.md").read_text() == config_lib.page()


def test_epochs_beside_steps_are_not_passed_over_in_silence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = config_lib.default_config()
    config.steps, config.epochs = 30, 2
    with caplog.at_level("INFO", "absl"):
        assert config_lib.resolve(config, 1000).steps == 30
    assert "steps 30 is set, so epochs 2 does not count" in caplog.text
    with pytest.raises(UserError, match=r"epochs is 2, .* where steps is 30: .*--config.steps=0"):
        config_lib.resolve(config, 1000, {"epochs": 0})
