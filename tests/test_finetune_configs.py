"""The fine-tuning recipes: every number that a reader would compare with paper and scripts."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from adamae_jax import experiment, initial
from adamae_jax.classification import Classification
from adamae_jax.mixing import Mixing
from adamae_jax.stored import Stored
from adamae_jax.training.optimizers import decay_mask
from tests import recipes
from tests.helpers import named
from tests.recipes import resolved


class Expected(NamedTuple):
    """What a recipe of some size has to come to.

    Attributes:
      batch: clips in an update.
      repeats: of each video.
      group: clips that mix among themselves.
      steps: in all.
      warmup: of them.
      rates: of the top layer at step 100, at the peak, half-way and at the end.
      encoder: its parameters.
      layer_decay: of the rates.
      drop_path: of the last block.
      head_dropout: in front of the head.
    """

    batch: int
    repeats: int
    group: int
    steps: int
    warmup: int
    rates: tuple[float, float, float, float]
    encoder: int
    layer_decay: float = 0.75
    drop_path: float = 0.1
    head_dropout: float = 0.0


# Encoders without their last norm, which a classifier of VideoMAE has not.
S, B, L, H = 21_879_168, 86_225_664, 303_858_688, 631_604_480
# fmt: off
K400_S = Expected(768, 2, 24, 93_900, 3_130, (2.39693e-5, 7.5e-4, 3.96011e-4, 1.5e-6), S)
K400_L = Expected(256, 2, 4, 65_730, 9_390, (1.06508e-5, 1e-3, 6.29595e-4, 5e-7), L)
K400_H = Expected(1024, 2, 16, 23_450, 2_345, (8.53242e-5, 2e-3, 1.18191e-3, 2e-5), H,
                  0.75, 0.2, 0.5)
SSV2_S = Expected(768, 2, 24, 17_560, 2_195, (6.83683e-5, 1.5e-3, 9.17474e-4, 1.5e-6), S, 0.7)
SSV2_L = Expected(384, 2, 12, 17_580, 4_395, (8.53437e-6, 3.75e-4, 2.81438e-4, 7.5e-7), L,
                  0.75, 0.2)
SSV2_H = Expected(256, 2, 8, 26_380, 6_595, (3.79133e-6, 2.5e-4, 1.87625e-4, 5e-7), H, 0.8, 0.2)
UCF101 = Expected(256, 2, 32, 7_400, 370, (6.77507e-5, 2.5e-4, 1.37616e-4, 5e-6), B,
                  0.7, 0.2, 0.5)
HMDB51 = Expected(256, 2, 32, 1_350, 135, (3.73134e-4, 5e-4, 2.95478e-4, 5e-6), B, 0.7, 0.2, 0.5)
MAE_B = Expected(1024, 1, 32, 125_100, 6_255, (3.19795e-5, 2e-3, 1.08304e-3, 1e-6), 85_797_120,
                 0.65)
MAE_L = Expected(1024, 1, 32, 62_550, 6_255, (6.39591e-5, 4e-3, 2.34771e-3, 1e-6), 303_299_584,
                 0.75, 0.2)

RECIPES: dict[str, Expected] = {
    "videomae_k400_finetune:S": K400_S,
    "videomae_k400_finetune": Expected(
        768, 2, 12, 46_950, 3_130, (2.39693e-5, 7.5e-4, 4.17653e-4, 1.5e-6), B),
    "videomae_k400_finetune:L": K400_L,
    "videomae_k400_finetune:H": K400_H,
    "videomae_ssv2_finetune:S": SSV2_S,
    "videomae_ssv2_finetune": Expected(
        768, 2, 12, 13_170, 2_195, (3.41841e-5, 7.5e-4, 4.91400e-4, 1.5e-6), B),
    "videomae_ssv2_finetune:L": SSV2_L,
    "videomae_ssv2_finetune:H": SSV2_H,
    **{f"videomae_ucf101_finetune{size}": UCF101._replace(encoder=encoder)
       for size, encoder in {":S": S, "": B, ":L": L, ":H": H}.items()},
    **{f"videomae_hmdb51_finetune{size}": HMDB51._replace(encoder=encoder)
       for size, encoder in {":S": S, "": B, ":L": L, ":H": H}.items()},
    "adamae_k400_finetune:S": K400_S,
    "adamae_k400_finetune": Expected(
        512, 1, 8, 46_900, 2_345, (8.53242e-5, 2e-3, 1.08350e-3, 2e-6), B),
    "adamae_k400_finetune:L": K400_L,
    "adamae_k400_finetune:H": K400_H,
    "adamae_ssv2_finetune:S": SSV2_S,
    "adamae_ssv2_finetune": Expected(
        512, 1, 8, 16_450, 1_645, (6.08273e-5, 1e-3, 5.87650e-4, 2e-6), B),
    "adamae_ssv2_finetune:L": SSV2_L,
    "adamae_ssv2_finetune:H": SSV2_H,
    **{f"adamae_ucf101_finetune{size}": UCF101._replace(encoder=encoder)
       for size, encoder in {":S": S, "": B, ":L": L, ":H": H}.items()},
    **{f"adamae_hmdb51_finetune{size}": HMDB51._replace(encoder=encoder)
       for size, encoder in {":S": S, "": B, ":L": L, ":H": H}.items()},
    "mae_st_k400_finetune": Expected(
        512, 2, 4, 70_425, 4_695, (1.02258e-4, 4.8e-3, 2.66922e-3, 1e-6), 86_393_088,
        0.65, 0.1, 0.3),
    "mae_st_k400_finetune:L": Expected(
        512, 2, 4, 46_950, 4_695, (1.02258e-4, 4.8e-3, 2.81717e-3, 1e-6), 304_094_208,
        0.75, 0.2, 0.3),
    "mae_st_k400_finetune:H": Expected(
        256, 1, 2, 70_425, 4_695, (1.02258e-4, 4.8e-3, 2.67588e-3, 1.6e-5), 631_909_120,
        0.8, 0.2, 0.5),
    "mae_imagenet_finetune": MAE_B,
    "mae_imagenet_finetune:L": MAE_L,
    "mae_imagenet_finetune:H": MAE_L._replace(group=16, encoder=630_762_240, drop_path=0.3),
    "automae_imagenet_finetune": MAE_B._replace(group=64),
}
# fmt: on
CLASSES = {"k400": 400, "ssv2": 174, "ucf101": 101, "hmdb51": 51, "imagenet": 1000}


class Recipe(NamedTuple):
    """A recipe's resolved config, its task, and the shapes of its parameters."""

    name: str
    expected: Expected
    config: ConfigDict
    task: Classification
    shapes: Any

    @property
    def system(self) -> str:
        """The name before its dataset's."""
        return self.name.partition("_finetune")[0].rpartition("_")[0]


@pytest.fixture(params=list(RECIPES), scope="module")
def recipe(request: pytest.FixtureRequest) -> Recipe:
    config = resolved(request.param)
    task = experiment.classification(config)
    shapes = jax.eval_shape(task.init, jax.random.key(0))["params"]
    return Recipe(request.param, RECIPES[request.param], config, task, shapes)


def test_length_and_rates(recipe: Recipe) -> None:
    expected, config = recipe.expected, recipe.config
    found = (config.batch_size, config.data.repeats, config.steps, config.optimizer.warmup_steps)
    assert found == (expected.batch, expected.repeats, expected.steps, expected.warmup)
    rate = experiment.optimizers(config, recipe.task)["model"].learning_rate
    at = (100, expected.warmup - 1, expected.steps // 2, expected.steps)
    found_rates = [float(rate(jnp.asarray(step))) for step in at]
    np.testing.assert_allclose(found_rates, expected.rates, rtol=2e-5)
    epoch = expected.steps // config.epochs
    assert (config.eval_every, config.checkpoint_every) == (epoch, epoch)
    assert (config.pictures_every, config.eval.num_examples) == (0, 0)


def test_optimizer(recipe: Recipe) -> None:
    options = recipe.config.optimizer
    assert (options.b1, options.b2, options.eps) == (0.9, 0.999, 1e-8)
    clipping = 5.0 if recipe.system == "mae_st" else 0.0
    assert (options.weight_decay, options.clip_grad_norm) == (0.05, clipping)


def test_rates_of_the_layers(recipe: Recipe) -> None:
    scales = experiment.optimizers(recipe.config, recipe.task)["model"].scales
    assert scales is not None
    found = named(scales(recipe.shapes))
    decay, depth = recipe.expected.layer_decay, recipe.task.model.spec.depth
    lowest = {name for name in found if not name.startswith(("encoder/transformer/", *TOP))}
    assert all(found[name] == pytest.approx(decay ** (depth + 1)) for name in lowest)
    assert {float(found[name]) for name in TOP} == {1.0}
    blocks = found["encoder/transformer/blocks/mlp/fc1/bias"].ravel()
    np.testing.assert_allclose(blocks, decay ** (depth - np.arange(depth)), rtol=1e-5)


TOP = ("norm/scale", "norm/bias", "head/kernel", "head/bias")
BLOCKS = ("attention/projection/kernel", "attention/qkv_kernel", "mlp/fc1/kernel", "mlp/fc2/kernel")
KERNELS = {
    *(f"encoder/transformer/blocks/{name}" for name in BLOCKS),
    *("encoder/embedding/projection/kernel", "head/kernel"),
}
NOT_DECAYED = {  # besides biases and norms
    "mae_st": {"class_token", "spatial", "temporal"},
    "mae": {"class_token", "table"},
    "automae": {"class_token", "table"},
}


def test_decay(recipe: Recipe) -> None:
    """The whole set of decayed parameters: kernels alone, unlike in pretraining."""
    decayed = named(decay_mask(recipe.shapes, tuple(recipe.config.optimizer.decay)))
    assert {path for path, decays in decayed.items() if decays} == KERNELS
    spared = {path.rpartition("/")[2] for path, decays in decayed.items() if not decays}
    assert spared == {"bias", "qkv_bias", "scale"} | NOT_DECAYED.get(recipe.system, set())


def test_model(recipe: Recipe) -> None:
    expected, model = recipe.expected, recipe.task.model
    dataset = recipe.name.partition("_finetune")[0].rpartition("_")[2]
    images = dataset == "imagenet"
    side = 16 if recipe.name == "mae_imagenet_finetune:H" else 14
    assert model.geometry.grid == ((1, side, side) if images else (8, 14, 14))
    assert model.num_classes == CLASSES[dataset]
    assert (model.pooling, model.skip_first_patch, model.norm_epsilon) == ("mean", False, 1e-6)
    assert (model.spec.drop_path, model.head_dropout) == (expected.drop_path, expected.head_dropout)
    dtype = "float32" if recipe.system == "mae_st" else "bfloat16"
    assert model.spec.dtype == jnp.dtype(dtype)
    encoder = jax.tree.leaves(recipe.shapes["encoder"])
    assert sum(leaf.size for leaf in encoder) == expected.encoder


def test_regularisation(recipe: Recipe) -> None:
    task = recipe.task
    assert task.mixing == Mixing(0.8, 1.0, 1.0, 0.5, recipe.expected.group)
    assert (task.erasing, task.label_smoothing, task.class_weights) == (0.25, 0.1, ())
    plain = recipe.system == "mae_st"
    assert task.objective.pixel_mean == ((0.45,) * 3 if plain else (0.485, 0.456, 0.406))
    assert task.objective.pixel_std == ((0.225,) * 3 if plain else (0.229, 0.224, 0.225))


RAND_AUGMENT = {"mae_st": "rand-m7-mstd0.5-inc1", "mae": "rand-m9-mstd0.5-inc1"}
RAND_AUGMENT["automae"] = RAND_AUGMENT["mae"]


def test_clips(recipe: Recipe) -> None:
    spec = experiment.clip_spec(recipe.config)
    assert (spec.crop, spec.crop_area, spec.crop_aspect) == (
        *("random_resized", (0.08, 1.0), (3 / 4, 4 / 3)),
    )
    images = "imagenet" in recipe.name
    assert spec.interpolation == ("bicubic" if images else "bilinear_without_antialias")
    assert spec.horizontal_flip == ("ssv2" not in recipe.name)
    views = {"mae": "1x1", "automae": "1x1", "mae_st": "10x3"}.get(recipe.system, "5x3")
    expected_views = "2x3" if "ssv2" in recipe.name else views
    assert recipe.config.eval.test_views == expected_views
    assert spec.rand_augment == RAND_AUGMENT.get(recipe.system, "rand-m7-n4-mstd0.5-inc1")
    of_videomae = recipe.system in ("videomae", "adamae")
    assert spec.shared_frames == (of_videomae and recipe.expected.repeats == 2)


# In the middle of a video: frames, and which are taken.
# fmt: off
STRETCHED = [
    (240, [88, 92, 96, 100, 105, 109, 113, 117, 122, 126, 130, 134, 139, 143, 147, 151]),
    (64, [0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 46, 51, 55, 59, 63]),
    (20, [0, 5, 10, 15, *[19] * 12]),
]
BY_TWO = [
    (240, [104, 106, 108, 110, 112, 114, 116, 118, 121, 123, 125, 127, 129, 131, 133, 135]),
]
SEGMENTS = [(240, list(range(7, 240, 15)))]
SCALED = [
    (240, [88, 92, 96, 100, 104, 109, 113, 117, 121, 125, 130, 134, 138, 142, 146, 151]),
]
FRAMES: dict[str, list[tuple[int, list[int]]]] = {
    "k400": STRETCHED, "ucf101": STRETCHED, "hmdb51": BY_TWO, "ssv2": SEGMENTS,
    "imagenet": [(1, [0])],
}
# fmt: on


@pytest.mark.parametrize("name", recipes.names("finetune"))
def test_frames(name: str) -> None:
    dataset = name.removesuffix("_finetune").rpartition("_")[2]
    spec = experiment.clip_spec(resolved(name))
    for count, expected in SCALED if name.startswith("mae_st") else FRAMES[dataset]:
        assert recipes.frames_in_the_middle(spec, count, 30.0) == expected, count


PRETRAINED = {  # what a recipe begins from, where that has another name
    "adamae_ucf101_finetune": "adamae_k400", "adamae_hmdb51_finetune": "adamae_k400",
    "videomae_hmdb51_finetune": "videomae_k400", "finetune_demo": "adamae_demo",
}  # fmt: skip


@pytest.mark.parametrize("name", [*recipes.names("finetune"), "finetune_demo"])
def test_it_begins_from_its_pretraining(name: str) -> None:
    """Array by array; and nothing that arrays do not tell differs, but MAE's table is trained."""
    before = PRETRAINED.get(name, name.removesuffix("_finetune"))
    pretraining, config = resolved(before), resolved(name)
    if name == "finetune_demo":
        config.classifier.num_classes = 8
    task = experiment.classification(config)
    arrays, wanted = (
        {f"params/{path}": leaf for path, leaf in named(tree["params"]).items()}
        for tree in (
            jax.eval_shape(each.init, jax.random.key(0))
            for each in (experiment.pretraining(pretraining), task)
        )
    )
    stored = Stored(before, "pretraining", arrays, pretraining, "")
    renamed, _ = initial.rename(stored, task, config)
    fresh = tuple(initial.fresh_parts(stored, task, config))
    assert {path: array.shape for path, array in renamed.items()} == {
        path: leaf.shape for path, leaf in wanted.items() if not path.startswith(fresh)
    }
    differing = initial.different_fields(stored, task, config).keys()
    trained = {"model.positions"} if "mae_imagenet" in name else set()
    assert differing - {"model.drop_path", "model.initialization"} == trained


def test_the_demo_leaves_its_labels_true() -> None:
    """They are directions of motion, which mirroring, turning and mixing would change."""
    config = resolved("finetune_demo")
    assert (config.batch_size, config.steps, config.optimizer.layer_decay) == (32, 1500, 1.0)
    assert (config.data.horizontal_flip, config.data.rand_augment) == (False, "")
    assert (config.augment.mixup, config.augment.cutmix, config.augment.erasing) == (0, 0, 0)
    assert config.classifier.num_classes == 0  # the dataset's


def test_every_recipe_is_tested() -> None:
    assert set(recipes.names("finetune")) == {name.partition(":")[0] for name in RECIPES}
