"""The authors' recipes: every number that a reader would compare with paper and scripts."""

import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from adamae_jax import experiment
from adamae_jax.data.crops import choose_box
from adamae_jax.errors import UserError
from adamae_jax.pretraining import Pretraining
from adamae_jax.training.optimizers import decay_mask
from adamae_jax.training.state import select_group
from tests import recipes, test_finetune_configs
from tests.helpers import named
from tests.recipes import module, resolved


class Expected(NamedTuple):
    """What a recipe of some size has to come to."""

    batch: int  # clips in an update
    steps: int
    warmup: int
    rates: dict[int, float]  # by step
    visible: int
    encoder: int  # parameters
    dtype: str = "bfloat16"


def rates(*at_1000_50000_and_half: float, peak: float, last: float, steps: int, warmup: int) -> Any:
    """The written-out rates, with the steps that they belong to."""
    at = (0, 1000, 50_000, steps // 2, warmup - 1, warmup, steps)
    return dict(zip(at, (0.0, *at_1000_50000_and_half, peak, peak, last), strict=True))


# Encoders of VideoMAE and AdaMAE.
S, B, L, H = 21_879_936, 86_227_200, 303_860_736, 631_607_040
G = 1_011_610_752  # VideoMAE V2's
# Those of MAE-ST also have biases of the keys, a class token and position tables.
MAE_ST = {"B": 86_394_624, "L": 304_096_256, "H": 631_911_680}
MAE_B = 85_647_360

# fmt: off
ADAMAE_K400: dict[str, Any] = {"steps": 93_600, "warmup": 4_680, "visible": 78, "rates": rates(
    2.56465e-4, 6.22987e-4, 6.86244e-4, peak=1.2e-3, last=8e-5, steps=93_600, warmup=4_680)}
ADAMAE_SSV2: dict[str, Any] = {"steps": 65_600, "warmup": 3_280, "visible": 78, "rates": rates(
    3.65965e-4, 2.44420e-4, 6.86244e-4, peak=1.2e-3, last=8e-5, steps=65_600, warmup=3_280)}
# Of the two VideoMAE datasets, what belongs to 1,024 clips in an update.
K400_1024: dict[str, Any] = {"steps": 374_400, "warmup": 9_360, "visible": 160, "rates": rates(
    6.41094e-5, 5.83048e-4, 3.31274e-4, peak=6e-4, last=4e-5, steps=374_400, warmup=9_360)}
SSV2_1024: dict[str, Any] = {"steps": 393_600, "warmup": 6_560, "visible": 160, "rates": rates(
    9.14774e-5, 5.82774e-4, 3.27454e-4, peak=6e-4, last=4e-5, steps=393_600, warmup=6_560)}
UCF101: dict[str, Any] = {"steps": 156_800, "warmup": 1_960, "visible": 392, "rates": rates(
    1.14855e-4, 1.77304e-4, 1.18412e-4, peak=2.25e-4, last=7.5e-6, steps=156_800, warmup=1_960)}
HYBRID_2048: dict[str, Any] = {"steps": 197_700, "warmup": 19_770}
MAE_ST_400: dict[str, Any] = {"steps": 375_600, "warmup": 56_340, "visible": 156,
    "dtype": "float32", "rates": rates(
    2.83995e-5, 1.41998e-3, 1.01893e-3, peak=1.6e-3, last=0.0, steps=375_600, warmup=56_340)}
IMAGENET = Expected(4096, 249_600, 12_480, rates(
    1.92323e-4, 2.25476e-3, 1.29910e-3, peak=2.4e-3, last=0.0, steps=249_600, warmup=12_480),
    49, MAE_B)

RECIPES: dict[str, Expected] = {
    "adamae_k400:S": Expected(2048, encoder=S, **ADAMAE_K400),
    "adamae_k400": Expected(2048, encoder=B, **ADAMAE_K400),
    "adamae_k400:L": Expected(2048, encoder=L, **ADAMAE_K400),
    "adamae_k400:H": Expected(2048, encoder=H, **ADAMAE_K400),
    "adamae_ssv2:S": Expected(2048, encoder=S, **ADAMAE_SSV2),
    "adamae_ssv2": Expected(2048, encoder=B, **ADAMAE_SSV2),
    "adamae_ssv2:L": Expected(2048, encoder=L, **ADAMAE_SSV2),
    "adamae_ssv2:H": Expected(2048, encoder=H, **ADAMAE_SSV2),
    "videomae_k400:S": Expected(1024, encoder=S, **K400_1024),
    "videomae_k400": Expected(2048, 187_200, 4_680, rates(
        2.56465e-4, 1.03809e-3, 6.62549e-4, peak=1.2e-3, last=8e-5, steps=187_200, warmup=4_680),
        160, B),
    "videomae_k400:L": Expected(512, 750_400, 18_760, rates(
        1.59923e-5, 2.98742e-4, 1.65637e-4, peak=3e-4, last=2e-5, steps=750_400, warmup=18_760),
        160, L),
    "videomae_k400:H": Expected(1024, encoder=H, **K400_1024),
    "videomae_ssv2:S": Expected(1024, encoder=S, **SSV2_1024),
    "videomae_ssv2": Expected(2048, 196_800, 3_280, rates(
        3.65965e-4, 1.04651e-3, 6.54907e-4, peak=1.2e-3, last=8e-5, steps=196_800, warmup=3_280),
        160, B),
    "videomae_ssv2:L": Expected(512, 789_600, 13_160, rates(
        2.27981e-5, 2.98448e-4, 1.63727e-4, peak=3e-4, last=2e-5, steps=789_600, warmup=13_160),
        160, L),
    "videomae_ssv2:H": Expected(1024, encoder=H, **SSV2_1024),
    "videomae_ucf101:S": Expected(192, encoder=S, **UCF101),
    "videomae_ucf101": Expected(192, encoder=B, **UCF101),
    "videomae_ucf101:L": Expected(192, encoder=L, **UCF101),
    "videomae_ucf101:H": Expected(192, encoder=H, **UCF101),
    "videomae_v2_hybrid": Expected(4096, 263_600, 26_360, rates(
        1.51751e-4, 3.90377e-3, 2.36382e-3, peak=4e-3, last=4e-5, steps=263_600, warmup=26_360),
        160, B),
    "videomae_v2_hybrid:L": Expected(6144, 263_400, 26_340, rates(
        2.27799e-4, 5.85520e-3, 3.54574e-3, peak=6e-3, last=6e-5, steps=263_400, warmup=26_340),
        160, L),
    "videomae_v2_hybrid:H": Expected(8192, visible=160, encoder=H, rates=rates(
        4.04674e-4, 7.44918e-3, 4.72765e-3, peak=8e-3, last=8e-5, steps=197_700, warmup=19_770),
        **HYBRID_2048),
    "videomae_v2_hybrid:g": Expected(8192, visible=208, encoder=G, rates=rates(
        2.42804e-4, 4.47174e-3, 2.84981e-3, peak=4.8e-3, last=8e-5, steps=197_700, warmup=19_770),
        **HYBRID_2048),
    "mae_st_k400": Expected(1024, 187_800, 56_340, rates(
        2.83995e-5, 1.41998e-3, 1.29879e-3, peak=1.6e-3, last=0.0, steps=187_800, warmup=56_340),
        156, MAE_ST["B"], "float32"),
    "mae_st_k400:L": Expected(1024, encoder=MAE_ST["L"], **MAE_ST_400),
    "mae_st_k400:H": Expected(1024, encoder=MAE_ST["H"], **MAE_ST_400),
    "mae_imagenet": IMAGENET,
    "automae_imagenet": IMAGENET,
}
# fmt: on
SIZED = [name for name in recipes.ALL if hasattr(module(name), "EXTRAPOLATED")]


class Recipe(NamedTuple):
    """A recipe's resolved config, its task, and the shapes of its parameters."""

    name: str
    config: ConfigDict
    task: Pretraining
    shapes: Any


@pytest.fixture(params=list(RECIPES), scope="module")
def recipe(request: pytest.FixtureRequest) -> Recipe:
    config = resolved(request.param)
    task = experiment.pretraining(config)
    shapes = jax.eval_shape(task.init, jax.random.key(0))["params"]
    return Recipe(request.param, config, task, shapes)


def test_length_and_rates(recipe: Recipe) -> None:
    expected, config = RECIPES[recipe.name], recipe.config
    found = (config.batch_size, config.steps, config.optimizer.warmup_steps)
    assert found == (expected.batch, expected.steps, expected.warmup)
    rate = experiment.optimizers(config, recipe.task)["model"].learning_rate
    found_rates = [float(rate(jnp.asarray(step))) for step in expected.rates]
    np.testing.assert_allclose(found_rates, list(expected.rates.values()), rtol=2e-5, atol=1e-12)


def test_optimizer(recipe: Recipe) -> None:
    optimizer = recipe.config.optimizer
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.95, 1e-8)
    clipped = recipe.name.startswith("mae_st") or recipe.name == "videomae_v2_hybrid:g"
    clipping = 0.02 if clipped else 0.0
    assert (optimizer.weight_decay, optimizer.clip_grad_norm) == (0.05, clipping)


def test_model(recipe: Recipe) -> None:
    expected, task = RECIPES[recipe.name], recipe.task
    model = task.model
    images = "imagenet" in recipe.name
    side = 16 if expected.encoder == G else 14
    assert model.geometry.grid == (1 if images else 8, side, side)
    assert task.strategy.num_visible(model.geometry.grid) == expected.visible
    assert model.encoder_spec.dtype == jnp.dtype(expected.dtype)
    frames = {"mae_st": 8}.get(recipe.name[:6], 1 if images else 16)
    assert model.target_geometry.num_frames == frames
    encoder = jax.tree.leaves(recipe.shapes["autoencoder"]["encoder"])
    assert sum(leaf.size for leaf in encoder) == expected.encoder


DECODERS = {
    "adamae_k400": (384, 4, 6), "adamae_ssv2:L": (512, 4, 8), "adamae_k400:H": (640, 4, 8),
    "adamae_ssv2:S": (192, 4, 3),
    "videomae_k400:S": (192, 4, 3), "videomae_ssv2": (384, 4, 6),
    "videomae_k400:L": (512, 12, 8), "videomae_ucf101:H": (640, 12, 8),
    "videomae_v2_hybrid": (384, 4, 6), "videomae_v2_hybrid:L": (512, 4, 8),
    "videomae_v2_hybrid:H": (512, 4, 8), "videomae_v2_hybrid:g": (512, 4, 8),
    "mae_st_k400": (512, 4, 16), "mae_st_k400:H": (512, 4, 16),
    "mae_imagenet": (512, 8, 16), "automae_imagenet": (512, 8, 16),
}  # fmt: skip


@pytest.mark.parametrize("name", list(DECODERS))
def test_decoder(name: str) -> None:
    spec = experiment.pretraining(resolved(name)).model.decoder_spec
    assert (spec.width, spec.depth, spec.num_heads) == DECODERS[name]


BLOCKS = ("attention/projection/kernel", "attention/qkv_kernel", "mlp/fc1/kernel", "mlp/fc2/kernel")
KERNELS = {
    *(f"{half}/transformer/blocks/{name}" for half in ("encoder", "decoder") for name in BLOCKS),
    *("encoder/embedding/projection/kernel", "decoder/projection/kernel", "decoder/head/kernel"),
}
TOKENS = {"encoder/class_token", "decoder/mask_token"}
TABLES = {
    f"{half}/positions/{name}"
    for half in ("encoder", "decoder")
    for name in ("spatial", "temporal", "class_token")
}
SAMPLER = {
    *(f"masking/transformer/blocks/{name}" for name in BLOCKS),
    *("masking/position_table", "masking/head/kernel"),
}
DECAYED: dict[str, set[str]] = {
    "adamae": KERNELS | SAMPLER,
    "videomae": KERNELS,
    "videomae_v2": KERNELS,
    "mae_st": KERNELS | TOKENS | TABLES | {"decoder/class_token"},
    "mae": KERNELS | TOKENS,
    "automae": KERNELS | TOKENS | {f"masking/generator/conv{i}/kernel" for i in (1, 2)},
}


def test_decay(recipe: Recipe) -> None:
    """The whole set of decayed parameters; all others are biases, norms and VideoMAE's token."""
    method = recipe.name.rpartition("_")[0]
    own = select_group(recipe.shapes, recipe.task, "model")
    decayed = named(decay_mask(own, tuple(recipe.config.optimizer.decay)))
    found = {path.removeprefix("autoencoder/") for path, decays in decayed.items() if decays}
    assert found == DECAYED[method]
    spared = {path.rpartition("/")[2] for path, decays in decayed.items() if not decays}
    token = {"mask_token"} if method in ("adamae", "videomae", "videomae_v2") else set()
    assert spared == {"bias", "qkv_bias", "scale"} | token


def test_objective(recipe: Recipe) -> None:
    name, objective = recipe.name, recipe.task.objective
    channels = name.startswith(("adamae", "videomae"))
    assert objective.normalize_targets == ("channel" if channels else "tubelet")
    assert objective.target_pixels == ("unit" if channels else "normalized")
    plain = name.startswith("mae_st")
    assert objective.pixel_mean == ((0.45,) * 3 if plain else (0.485, 0.456, 0.406))
    assert objective.pixel_std == ((0.225,) * 3 if plain else (0.229, 0.224, 0.225))
    assert objective.sampling_loss_weight == 1e-4


def test_masking() -> None:
    assert dict(resolved("adamae_k400").masking.options) == {
        "network": "attention", "width": 0, "depth": 1, "num_heads": 8, "dropout": 0.1,
        "norm_epsilon": 1e-5,
        # Sampling and its reward as released.
        "temperature": 1.0, "credit": "tokens", "reward": "masked", "baseline": "none",
        "baseline_decay": 0.99, "entropy_weight": 0.0, "entropy_target": 1.0,
    }  # fmt: skip
    assert dict(resolved("automae_imagenet").masking.options) == {
        "pretrained": "", "vit_width": 768, "vit_depth": 12, "vit_num_heads": 12,
        "vit_norm_epsilon": 1e-6, "mask_factor": 0.5, "adversarial_weight": 0.2, "gumbel_tau": 1.0,
    }  # fmt: skip
    names = {name.partition(":")[0]: resolved(name).masking.name for name in RECIPES}
    kinds = {
        "adamae": "adaptive",
        "videomae": "tube",
        "videomae_v2": "dual",
        "automae": "adversarial",
    }
    assert names == {name: kinds.get(name.rpartition("_")[0], "random") for name in names}
    assert dict(resolved("videomae_v2_hybrid").masking.options) == {"decoder_mask_ratio": 0.5}
    weights = {"seen": 4.0, "masked": 0.25, "tiny": 4.0}
    for argument, weight in weights.items():
        assert dict(module("oracle_demo").get_config(argument).masking.options) == {
            "foreground_weight": weight
        }
    assert dict(module("budget_demo").get_config().masking.options) == {
        "information": "motion", "least": 0.5, "most": 2.0,
    }  # fmt: skip
    assert dict(module("semmae_demo").get_config().masking.options) == {
        "pretrained": "", "vit_width": 128, "vit_depth": 3, "vit_num_heads": 4,
        "vit_norm_epsilon": 1e-6, "parts": 6, "iterations": 10, "whole_start": 0.0,
        "whole_end": 1.0,
    }  # fmt: skip


def test_four_crops_of_the_same_frames() -> None:
    """VideoMAE V2's samples of a video; its rates are for videos."""
    config = resolved("videomae_v2_hybrid:g")
    assert (config.data.repeats, config.data.shared_frames) == (4, True)
    assert config.optimizer.rate_counts == "videos"
    assert (config.model.mlp_ratio, config.model.remat) == (48 / 11, "full")


# In the middle of a video: frames, rate, and which are taken.
# fmt: off
DENSE_4 = [
    (240, 25.0, list(range(88, 152, 4))),
    (64, 25.0, list(range(0, 64, 4))),
    (20, 25.0, [0, 4, 8, 12] + 12 * [16]),
    (1, 25.0, 16 * [0]),
]
DENSE_2 = [
    (240, 12.0, list(range(104, 136, 2))),
    (40, 12.0, list(range(4, 36, 2))),
    (20, 12.0, [0, 2, 4, 6, 8, 10, 12, 14, 16] + 7 * [18]),
]
SCALED = [
    (240, 30.0, [88, 92, 96, 100, 104, 109, 113, 117, 121, 125, 130, 134, 138, 142, 146, 151]),
    (240, 25.0, [93, 96, 99, 103, 106, 110, 113, 117, 120, 124, 127, 131, 134, 138, 141, 145]),
    (240, 29.97, [88, 92, 96, 100, 104, 108, 113, 117, 121, 125, 129, 134, 138, 142, 146, 150]),
    (20, 30.0, [0, 4, 8, 12, 16] + 11 * [19]),
]
FRAMES: dict[str, list[tuple[int, float, list[int]]]] = {
    "adamae_k400": DENSE_4, "videomae_k400": DENSE_4, "videomae_ucf101": DENSE_4,
    "videomae_v2_hybrid": DENSE_4,
    "adamae_ssv2": DENSE_2, "videomae_ssv2": DENSE_2, "mae_st_k400": SCALED,
    "mae_imagenet": [(1, 0.0, [0])], "automae_imagenet": [(1, 0.0, [0])],
}
# Height and width of a frame, and the boxes (left, top, width, height): the middle one, then those
# of the first seeds.
CORNERS = {
    (240, 320): [(40, 0, 240, 240), (140, 80, 180, 158), (0, 28, 180, 210), (0, 40, 180, 158)],
    (256, 340): [(42, 0, 256, 256), (148, 88, 192, 168), (0, 32, 192, 224), (0, 44, 192, 168)],
}
HALF_OR_MORE = {
    (240, 320): [(40, 0, 240, 240), (119, 1, 174, 230), (6, 1, 274, 212), (92, 3, 208, 233)],
    (256, 900): [(322, 0, 256, 256), (279, 0, 341, 256), (279, 0, 341, 256)],
}
A_FIFTH_OR_MORE = {
    (375, 500): [(62, 0, 375, 375), (259, 23, 182, 240), (16, 2, 385, 297), (195, 33, 261, 294)],
    (64, 500): [(218, 0, 64, 64), (207, 0, 85, 64)],
}
# fmt: on
BOXES: dict[str, dict[tuple[int, int], list[tuple[int, int, int, int]]]] = {
    **{name: CORNERS for name in FRAMES if name.startswith(("adamae", "videomae"))},
    "mae_st_k400": HALF_OR_MORE,
    **{name: A_FIFTH_OR_MORE for name in FRAMES if name.endswith("imagenet")},
}


@pytest.mark.parametrize("name", list(FRAMES))
def test_frames(name: str) -> None:
    spec = experiment.clip_spec(resolved(name))
    for count, rate, expected in FRAMES[name]:
        assert recipes.frames_in_the_middle(spec, count, rate) == expected, (count, rate)


@pytest.mark.parametrize("name", list(BOXES))
def test_crops(name: str) -> None:
    spec = experiment.clip_spec(resolved(name))
    assert spec.horizontal_flip == (not name.startswith(("adamae", "videomae")))
    kinds = {"imagenet": "bicubic", "mae_st": "bilinear_without_antialias"}
    kind = next((kinds[part] for part in kinds if part in name), "bilinear")
    assert spec.interpolation == kind
    for frame_size, expected in BOXES[name].items():
        rngs = [None, *map(np.random.default_rng, range(len(expected) - 1))]
        ranges = {"area": spec.crop_area, "aspect": spec.crop_aspect}
        found = [choose_box(spec.crop, frame_size, (224, 224), rng, **ranges) for rng in rngs]
        assert found == expected


def test_every_recipe_is_tested() -> None:
    tested = {name.partition(":")[0] for name in RECIPES}
    assert set(recipes.names("pretraining")) == tested == set(FRAMES)


@pytest.mark.parametrize("name", SIZED)
def test_sizes_beyond_the_authors_are_marked(name: str, caplog: pytest.LogCaptureFixture) -> None:
    recipe = module(name)
    sizes = {*recipe.PUBLISHED, *recipe.EXTRAPOLATED}
    keys = [*RECIPES, *test_finetune_configs.RECIPES]
    assert sizes == {key.partition(":")[2] or "B" for key in keys if key.partition(":")[0] == name}
    text = " ".join((recipe.__doc__ or "").split())
    assert ("extrapolated" in text) == bool(recipe.EXTRAPOLATED)
    assert ("All of it is extrapolated" in text) == (not recipe.PUBLISHED)
    for size in sizes:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "absl"):
            recipe.get_config(size)
        assert (f"{name}.py:{size} is extrapolated" in caplog.text) == (size in recipe.EXTRAPOLATED)
        assert ("published no script" in caplog.text) == (not recipe.PUBLISHED)


COMPARISON = ("comparison_demo", "comparison_finetune_demo", "comparison_probe_demo")


@pytest.mark.parametrize("name", sorted(set(recipes.ALL) - set(COMPARISON)))
def test_every_config_takes_a_size(name: str) -> None:
    """The demos their own, and those of the published models; a wrong one names those there are."""
    get_config = module(name).get_config
    with pytest.raises(UserError, match=r"use one of (tiny|S|B|L|adaptive)\b"):
        get_config("XL")
    demo, one_size = name.endswith("_demo"), name.startswith(("automae", "semmae"))
    assert get_config("tiny" if demo else "B").to_dict() == get_config().to_dict()
    if demo and not one_size:
        config = get_config("S")
        assert config.model.encoder.width == 384
        if name == "finetune_demo":
            config.classifier.num_classes = 8
            experiment.classification(config)
        elif name == "probe_demo":
            config.classifier.num_classes = 8
            experiment.probing(config)
        else:
            experiment.pretraining(config)
