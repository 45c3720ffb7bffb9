"""The tree of config fields: derived values, storage, and what it says of mistakes."""

import json

import pytest
from ml_collections import ConfigDict

from adamae_jax import config as config_lib
from adamae_jax import masking
from adamae_jax.errors import UserError


def config(**changes: object) -> ConfigDict:
    """The default config with some fields set."""
    own = config_lib.default_config()
    own.update_from_flattened_dict(changes)
    return own


def test_the_defaults_are_the_released_recipe() -> None:
    own = config()
    encoder, decoder = own.model.encoder, own.model.decoder
    assert (encoder.width, encoder.depth, encoder.num_heads) == (768, 12, 12)
    assert (decoder.width, decoder.depth, decoder.num_heads) == (384, 4, 6)
    assert (own.masking.name, own.masking.mask_ratio) == ("adaptive", 0.95)
    assert own.masking.options.to_dict() == masking.option_defaults("adaptive")
    optimizer = own.optimizer
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.95, 1e-8)
    assert (optimizer.learning_rate, optimizer.min_learning_rate) == (1.5e-4, 1e-5)
    assert (optimizer.weight_decay, optimizer.clip_grad_norm) == (0.05, 0.0)
    assert own.objective.sampling_loss_weight == 1e-4


def test_by_default_little_damage_and_little_silence_are_borne() -> None:
    data = config().data
    assert (data.max_bad_fraction, data.timeout_s) == (0.01, 300.0)


def test_unknown_fields_are_refused() -> None:
    own = config()
    with pytest.raises(AttributeError):
        own.bach_size = 4
    with pytest.raises(AttributeError):
        own.optimizer.lr = 4
    with pytest.raises(TypeError):
        own.batch_size = "many"


@pytest.mark.parametrize(("size", "heads"), [("S", 6), ("L", 16), ("H", 16)])
def test_sizes_are_set_as_a_whole(size: str, heads: int) -> None:
    own = config()
    config_lib.set_size(own.model, size)
    assert own.model.encoder.num_heads == heads
    assert own.model.encoder.width == config_lib.SIZES[size][0][0]
    assert own.model.decoder.depth == config_lib.SIZES[size][1][1]


def test_steps_and_warm_up_are_derived_from_epochs() -> None:
    own = config(batch_size=2048, epochs=800)
    own.optimizer.warmup_epochs = 40.0
    resolved = config_lib.resolve(own, num_examples=168_913)
    assert resolved.data.num_examples == 168_913
    assert resolved.steps == 800 * 82
    assert resolved.optimizer.warmup_steps == 40 * 82
    assert resolved.eval.batch_size == 2048
    assert (own.steps, own.data.num_examples, own.eval.batch_size) == (0, 0, 0)
    with pytest.raises(AttributeError):
        resolved.bach_size = 4


def test_steps_come_before_epochs_and_the_dataset_before_the_recipe() -> None:
    own = config(steps=10, epochs=3, batch_size=4)
    own.optimizer.warmup_steps = 2
    own.optimizer.warmup_epochs = 50.0
    own.data.num_examples = 100
    own.eval.batch_size = 8
    resolved = config_lib.resolve(own, num_examples=999)
    assert (resolved.steps, resolved.optimizer.warmup_steps) == (10, 2)
    assert (resolved.data.num_examples, resolved.eval.batch_size) == (999, 8)
    assert config_lib.resolve(own, num_examples=0).data.num_examples == 100


def test_a_dataset_smaller_than_a_batch_has_one_step_an_epoch() -> None:
    assert config_lib.resolve(config(epochs=3, batch_size=64), num_examples=10).steps == 3


def test_how_long_to_train_must_be_said() -> None:
    with pytest.raises(UserError, match=r"steps is 0 and epochs is 0: .*--config.steps"):
        config_lib.resolve(config(), num_examples=100)


def test_resolving_twice_changes_nothing() -> None:
    once = config_lib.resolve(config(epochs=3, batch_size=4), num_examples=100)
    assert config_lib.resolve(once, num_examples=0).to_dict() == once.to_dict()


@pytest.mark.parametrize("name", masking.names())
def test_stored_configs_come_back_whole(name: str) -> None:
    own = config(steps=10)
    with own.unlocked():
        own.masking = config_lib.masking_config(name, 0.8)
        own.mesh = ConfigDict({"data": -1, "model": 2})
    own.data.image_size = (32, 48)
    own.optimizer.decay = ("kernel$",)
    resolved = config_lib.resolve(own, num_examples=100)
    back = config_lib.from_json(config_lib.to_json(resolved))
    assert back.to_dict() == resolved.to_dict()
    assert back.data.image_size == (32, 48)
    assert config_lib.to_json(back) == config_lib.to_json(resolved)
    with pytest.raises(AttributeError):
        back.bach_size = 4


def test_stored_configs_are_readable_json() -> None:
    text = config_lib.to_json(config())
    assert json.loads(text)["masking"]["mask_ratio"] == 0.95
    assert text.endswith("}\n")
    assert '\n  "batch_size": 256' in text


def test_fields_that_a_stored_config_lacks_have_their_defaults() -> None:
    stored = json.loads(config_lib.to_json(config(steps=5)))
    del stored["model"]["remat"]
    del stored["masking"]["options"]["dropout"]
    back = config_lib.from_json(json.dumps(stored))
    assert (back.steps, back.model.remat, back.masking.options.dropout) == (5, False, 0.1)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("surprise",), 1, "does not fit this version.*surprise"),
        (("optimizer", "momentum"), 1, "does not fit this version.*momentum"),
        (("masking", "options", "heads"), 1, "does not fit this version.*heads"),
        (("batch_size",), "many", "does not fit this version.*batch_size"),
        (("masking", "name"), "tubes", r"masking.name 'tubes' is unknown"),
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


def test_stored_configs_without_their_parts_are_named() -> None:
    stored = json.loads(config_lib.to_json(config()))
    del stored["masking"]
    with pytest.raises(UserError, match=r"does not fit this version.*masking"):
        config_lib.from_json(json.dumps(stored))


def test_options_of_a_strategy_are_its_own() -> None:
    own = config_lib.masking_config("adaptive", 0.9, depth=2)
    assert (own.options.depth, own.options.num_heads) == (2, 8)
    assert config_lib.masking_config("tube", 0.9).options.to_dict() == {}
    with pytest.raises(UserError, match="masking 'tube' has no option 'depth'"):
        config_lib.masking_config("tube", 0.9, depth=2)
