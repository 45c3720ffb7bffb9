"""From a config to what it describes, and every wrong value met before anything is compiled."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from adamae_jax import config as config_lib
from adamae_jax import experiment
from adamae_jax.errors import UserError
from adamae_jax.masking import adaptive, tube
from adamae_jax.task import Task
from tests import helpers


def config(**changes: Any) -> ConfigDict:
    """The default config with some fields set, by their paths."""
    own = config_lib.default_config()
    own.update_from_flattened_dict(changes)
    return own


def test_the_default_is_the_released_model() -> None:
    task = experiment.pretraining(config())
    assert task.model.geometry.grid == (8, 14, 14)
    assert isinstance(task.strategy, adaptive.Strategy)
    assert task.strategy.num_visible(task.model.geometry.grid) == 78
    shapes = jax.eval_shape(task.init, jax.random.key(0))["params"]
    named = {name: leaf.shape for name, leaf in helpers.named(shapes).items()}
    assert named["masking/position_table"] == (1568, 768)
    assert named["autoencoder/encoder/transformer/blocks/attention/qkv_kernel"] == (
        12,
        768,
        3,
        12,
        64,
    )
    assert named["autoencoder/decoder/transformer/blocks/mlp/fc1/kernel"] == (4, 384, 1536)
    assert named["autoencoder/decoder/head/kernel"] == (384, 1536)
    # A block of width d: norms 4d, attention 4d^2 + d + the q and v biases 2d, MLP 8d^2 + 5d.
    blocks = {"encoder": (12, 768), "decoder": (4, 384)}
    for name, (depth, d) in blocks.items():
        stack = jax.tree.leaves(shapes["autoencoder"][name]["transformer"])
        assert sum(leaf.size for leaf in stack) == depth * (12 * d * d + 12 * d)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_a_classifiers_pooling_arrives(pooling: str) -> None:
    own = config(**{"classifier.num_classes": 5, "classifier.pooling": pooling})
    assert experiment.classifier(own).pooling == pooling


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier.num_classes": 0}, "classifier.num_classes is 0: a classifier needs"),
        (
            {"classifier.pooling": "first", "classifier.skip_first_patch": True},
            "skip_first_patch leaves a patch out of the mean, and with classifier.pooling 'first'",
        ),
    ],
)
def test_what_is_no_classifier_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        experiment.classifier(config(**{"classifier.num_classes": 5, **changes}))


def test_every_field_of_the_model_arrives() -> None:
    own = config(
        **{
            "data.num_frames": 6,
            "data.image_size": (8, 12),
            "model.tubelet_size": 3,
            "model.patch_size": 4,
            "model.encoder.width": 16,
            "model.encoder.depth": 3,
            "model.encoder.num_heads": 2,
            "model.mlp_ratio": 2.0,
            "model.dtype": "bfloat16",
            "model.gradient_dtype": "compute",
            "model.remat": "elementwise",
            "model.unroll": 2,
            "masking.mask_ratio": 0.5,
            "masking.options.depth": 2,
            "objective.loss": "l1",
            "objective.normalize_targets": "none",
            "objective.sampling_loss_weight": 0.5,
        }
    )
    task = experiment.pretraining(own)
    encoder, decoder = task.model.encoder_spec, task.model.decoder_spec
    assert task.model.geometry.clip_shape == (6, 8, 12, 3)
    assert task.model.geometry.grid == (2, 2, 3)
    assert (encoder.width, encoder.depth, encoder.num_heads) == (16, 3, 2)
    assert (decoder.width, decoder.depth, decoder.num_heads) == (384, 4, 6)
    for spec in (encoder, decoder):
        assert (spec.mlp_ratio, spec.remat, spec.unroll) == (2.0, "elementwise", 2)
        assert spec.dtype == spec.gradient_dtype == jnp.bfloat16
        assert (spec.attention_bias, spec.norm_epsilon, spec.dropout) == ("qv", 1e-6, 0.0)
    assert task.strategy == adaptive.Strategy(mask_ratio=0.5, depth=2)
    assert (task.objective.loss, task.objective.normalize_targets) == ("l1", "none")
    assert task.objective.sampling_loss_weight == 0.5


@pytest.mark.parametrize(("given", "size"), [((8, 12), (8, 12)), ((16,), (16, 16))])
def test_image_sizes(given: Any, size: tuple[int, int]) -> None:
    own = config(**{"data.image_size": given})
    experiment.check(own)
    assert experiment.image_size(own) == size


def test_a_strategy_is_one_config_away() -> None:
    own = config_lib.default_config()
    with own.unlocked():
        own.masking = config_lib.masking_config("tube", 0.9)
    assert experiment.pretraining(own).strategy == tube.Strategy(mask_ratio=0.9)


@pytest.mark.parametrize(
    ("start", "stages", "ratios"),
    [
        (0.0, 3, [0.9]),
        (0.9, 3, [0.9]),  # from 0.9 to 0.9
        (0.7, 3, [0.7, 0.8, 0.9]),
        (0.95, 2, [0.95, 0.9]),
        (0.5, 4, [0.5, 0.6333, 0.7667, 0.9]),
    ],
)
def test_a_mask_ratio_changes_evenly(start: float, stages: int, ratios: list[float]) -> None:
    own = config_lib.default_config()
    with own.unlocked():
        own.masking = config_lib.masking_config("tube", 0.9)
    own.masking.mask_ratio_start, own.masking.mask_ratio_stages = start, stages
    task = experiment.pretraining(own)
    assert [stage.strategy for stage in task.stages] == [
        tube.Strategy(mask_ratio=ratio) for ratio in ratios
    ]
    assert task.strategy.mask_ratio == 0.9 and not task.stages[0].earlier


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective.loss": "huber"}, "objective.loss is 'huber': it must be one of 'mse', 'l1'"),
        ({"masking.mask_ratio": 0.9999}, "mask_ratio 0.9999 leaves no visible token of the 1568"),
        ({"masking.mask_ratio": 1e-17}, "mask_ratio 1e-17 leaves no masked token of the 1568"),
        ({"masking.mask_ratio_start": 0.9999}, "mask_ratio 0.9999 leaves no visible token"),
        ({"masking.mask_ratio_start": 1.0}, "masking.mask_ratio_start is 1.0: it must be"),
        ({"masking.mask_ratio_stages": 1}, "masking.mask_ratio_stages is 1: it must be"),
        ({"masking.name": "tubes"}, "masking.name 'tubes' is unknown"),
        ({"masking.name": "tube"}, "masking.options.[a-z_]+ is unknown to masking 'tube'"),
        ({"masking.options.network": "conv"}, "masking.options.network 'conv' is unknown"),
        ({"masking.options.num_heads": 7}, "masking.options.num_heads 7 does not divide .* 768"),
        ({"masking.options.num_heads": 0}, "masking.options.num_heads is 0: it must be at least 1"),
        ({"masking.options.depth": -1}, "masking.options.depth is -1"),
        ({"masking.options.width": -8}, "masking.options.width is -8"),
        ({"masking.options.dropout": 1.0}, "masking.options.dropout 1.0 is outside"),
        ({"masking.options.dropout": -0.1}, r"masking.options.dropout -0.1 is outside \[0, 1\)"),
        ({"data.image_size": (224, 230)}, "image width 230 .* patch_size 16"),
        ({"data.num_frames": 15}, "num_frames 15 .* tubelet_size 2"),
        ({"model.encoder.num_heads": 7}, "model.encoder: width 768 .* num_heads 7"),
        ({"optimizer.decay": ("(",)}, r"optimizer.decay has '\(', which is no regular expression"),
        ({"optimizer.accumulation": 3}, "batch_size 256 .* optimizer.accumulation 3"),
        ({"data.repeats": 3}, "batch_size 256 .* data.repeats 3"),
        (
            {"optimizer.learning_rate": 1e-6},
            "optimizer.learning_rate 1e-06 is below optimizer.min_learning_rate 1e-05",
        ),
        ({"classifier.num_classes": 5}, "classifier.num_classes is 5: it does not belong to this"),
    ],
)
def test_wrong_values_are_one_clear_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        experiment.pretraining(config(**changes))
    assert "\n" not in str(caught.value)


def test_learning_rates_grow_with_the_batch() -> None:
    """The released recipe: 1.5e-4 and 1e-5 for 256 clips, at 2048."""
    own = config(batch_size=2048, steps=800)
    own.optimizer.warmup_steps = 41
    rate = experiment.optimizers(own, experiment.pretraining(own))["model"].learning_rate
    assert float(rate(jnp.asarray(0))) == 0.0
    assert float(rate(jnp.asarray(40))) == pytest.approx(1.2e-3, rel=1e-5)
    halfway = float(rate(jnp.asarray(41 + (800 - 41) // 2)))
    assert halfway == pytest.approx((1.2e-3 + 8e-5) / 2, rel=1e-2)
    assert float(rate(jnp.asarray(799))) == pytest.approx(8e-5, rel=1e-3)


class TwoGroups(Task):
    """A task with an adversary."""

    groups = ("adversary", "model")


def test_the_options_of_adamw_arrive() -> None:
    """One update of two parameters, from what AdamW's first step has to be."""
    own = config(steps=10, batch_size=256)
    own.update_from_flattened_dict(
        {
            "optimizer.learning_rate": 0.1,
            "optimizer.min_learning_rate": 0.1,
            "optimizer.weight_decay": 0.5,
            "optimizer.eps": 1.0,
            "optimizer.clip_grad_norm": 1.0,
        }
    )
    params = {"a": {"kernel": jnp.asarray([2.0])}, "b": {"bias": jnp.asarray([2.0])}}
    grads = jax.tree.map(lambda p: jnp.full_like(p, 30.0), params)
    both = experiment.optimizers(own, TwoGroups())
    clipped = 1 / np.sqrt(2)
    for name, expected in (
        (
            "model",
            (2 - 0.1 * (clipped / (clipped + 1) + 0.5 * 2), 2 - 0.1 * clipped / (clipped + 1)),
        ),
        ("adversary", (2 - 0.1 * 30 / 31, 2 - 0.1 * 30 / 31)),
    ):
        optimizer = both[name]
        updated, _ = optimizer.update(
            grads, optimizer.transform.init(params), params, jnp.asarray(0)
        )
        found = (float(updated["a"]["kernel"][0]), float(updated["b"]["bias"][0]))
        assert found == pytest.approx(expected, rel=1e-5), name
