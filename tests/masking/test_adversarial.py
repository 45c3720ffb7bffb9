"""Adversarial masking: the generator's choice and its gradient, the frozen ViT."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax.errors import UserError
from adamae_jax.interop import authors
from adamae_jax.masking import TokenMask, adversarial
from adamae_jax.models.autoencoder import Autoencoder
from adamae_jax.models.encoder import Encoder, scale_tokens
from adamae_jax.models.mask_networks import MaskGenerator
from adamae_jax.models.transformer import TransformerSpec
from adamae_jax.models.tubelets import ClipGeometry
from adamae_jax.pretraining import (
    MASKING_DRAW,
    Objective,
    Pretraining,
    fold,
    masking_variables,
    normalize_pixels,
)
from tests import helpers
from tests.masking.test_base import assert_partition

GOLDEN = Path(__file__).parent.parent / "golden" / "automae.npz"
# Two time steps of 12 x 13 patches, the smallest grid there is, of 2 x 2 pixels.
CLIP = ClipGeometry(num_frames=4, image_size=(24, 26), tubelet_size=2, patch_size=2)
GRID, FRAME = CLIP.grid, 156
STRATEGY = adversarial.Strategy(mask_ratio=0.75, vit_width=12, vit_depth=2, vit_num_heads=3)
TASK = Pretraining(
    Autoencoder(CLIP, TransformerSpec(8, 1, 2), TransformerSpec(8, 1, 2)), STRATEGY, Objective()
)
VIDEO = jnp.asarray(helpers.clips(4, geometry=CLIP))
KEYS = helpers.example_keys(4)


def converged(kernels: Any) -> Any:
    """The state of a discriminator whose power iterations have converged."""

    def vectors(kernel: Any) -> Any:
        matrix = np.moveaxis(np.asarray(kernel), -1, 0).reshape(kernel.shape[-1], -1)
        left, _, right = np.linalg.svd(matrix, full_matrices=False)
        found = {"u": left[:, 0], "v": right[0].reshape(kernel.shape[:-1])}
        return {"singular_vectors": jax.tree.map(jnp.asarray, found)}

    return {name: vectors(layer["kernel"]) for name, layer in kernels.items()}


def variables_of(task: Pretraining) -> dict[str, Any]:
    """Random variables, but for the singular vectors; the generator's taste is strong."""
    variables = helpers.variables(task)
    masking = variables["params"]["masking"]
    masking["generator"] = jax.tree.map(lambda a: 5 * a, masking["generator"])
    return {**variables, "state": converged(masking["discriminator"])}


@pytest.fixture(scope="module")
def variables() -> dict[str, Any]:
    """Random variables of the tiny model."""
    return variables_of(TASK)


@jax.jit
def drawn(variables: Any, video: jax.Array, keys: jax.Array) -> TokenMask:
    """The strategy's answer in training."""
    pixels = normalize_pixels(video, TASK.objective)
    inputs, _ = TASK.mask_inputs(variables["params"]["autoencoder"], pixels)
    return STRATEGY(masking_variables(variables), inputs, keys, True)


@pytest.mark.parametrize(
    ("grid", "ratio", "visible"),
    [((2, 14, 14), 0.75, 98), ((4, 12, 13), 0.9, 60), ((1, 16, 16), 0.75, 64)],
)
def test_visible_patches_are_counted_in_each_frame(
    grid: tuple[int, int, int], ratio: float, visible: int
) -> None:
    assert adversarial.Strategy(mask_ratio=ratio).num_visible(grid) == visible


def by_frame(indices: jax.Array) -> np.ndarray:
    """Marks of the tokens at some indices, ``[b, steps, patches]``."""
    marks = np.zeros((len(indices), GRID[0] * FRAME), bool)
    np.put_along_axis(marks, np.asarray(indices), True, axis=1)
    return marks.reshape(-1, GRID[0], FRAME)


def test_a_mask_is_a_partition_with_as_many_visible_patches_in_every_frame(
    variables: dict[str, Any],
) -> None:
    mask = drawn(variables, VIDEO, KEYS)
    assert_partition(mask, GRID, 2 * 39)
    assert (by_frame(mask.visible).sum(2) == 39).all()


def test_the_choice_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    soft = rng.dirichlet([1.0] * FRAME, 4).astype(np.float32)
    uniform = rng.random((4, FRAME), np.float32)
    noise, visible = STRATEGY.select(jnp.asarray(soft), jnp.asarray(uniform), GRID)
    assert noise.shape == visible.shape == (2, 2 * FRAME)
    for frame in range(4):
        expected = uniform[frame].copy()
        expected[np.argsort(-soft[frame])[:39]] += 0.5
        place = slice(frame % 2 * FRAME, (frame % 2 + 1) * FRAME)
        np.testing.assert_allclose(noise[frame // 2, place], expected, rtol=1e-6)
        marks = np.asarray(visible[frame // 2, place])
        assert set(np.flatnonzero(marks)) == set(np.argsort(expected)[:39])


@pytest.mark.parametrize(("factor", "least", "most"), [(0.5, 0.0, 0.001), (0.0, 0.15, 0.35)])
def test_patches_that_are_picked_are_masked_nearly_always(
    factor: float, least: float, most: float
) -> None:
    strategy = dataclasses.replace(STRATEGY, mask_factor=factor)
    rng = np.random.default_rng(1)
    soft = rng.dirichlet([1.0] * FRAME, 40).astype(np.float32)
    uniform = rng.random((40, FRAME), np.float32)
    _, visible = strategy.select(jnp.asarray(soft), jnp.asarray(uniform), (1, 12, 13))
    picked = np.argsort(-soft, axis=1)[:, :39]
    seen = np.take_along_axis(np.asarray(visible), picked, axis=1).mean()
    assert least <= seen <= most


def test_masks_belong_to_the_example_s_key_and_clip_alone(variables: dict[str, Any]) -> None:
    whole = drawn(variables, VIDEO, KEYS)
    order = jnp.asarray([2, 0, 3, 1])
    turned = drawn(variables, VIDEO[order], KEYS[order])
    np.testing.assert_array_equal(turned.visible, whole.visible[order])
    half = drawn(variables, VIDEO[:2], KEYS[:2])
    np.testing.assert_array_equal(half.visible, whole.visible[:2])
    np.testing.assert_allclose(half.aux["generator"], whole.aux["generator"][:2], rtol=1e-4)
    others = drawn(variables, VIDEO, helpers.example_keys(4, seed=1))
    assert (by_frame(others.visible) != by_frame(whole.visible)).any(2).all()


def test_every_frame_of_a_video_is_masked_on_its_own(variables: dict[str, Any]) -> None:
    still = jnp.broadcast_to(VIDEO[:, :1], VIDEO.shape)
    marks = by_frame(drawn(variables, still, KEYS).visible)
    assert (marks[:, 0] != marks[:, 1]).any(1).all()  # a draw of its own
    # The scale holds the generator's choice; it follows the middle frame of the tubelets alone.
    scale = np.asarray(drawn(variables, VIDEO, KEYS).token_scale).reshape(4, 2, FRAME)
    for frame, affected in ((0, []), (1, [0]), (2, []), (3, [1])):
        other = VIDEO.at[:, frame].set(255 - VIDEO[:, frame])
        found = np.asarray(drawn(variables, other, KEYS).token_scale).reshape(4, 2, FRAME)
        changed = (found != scale).any(2)
        assert changed.all(0).tolist() == changed.any(0).tolist()
        assert np.flatnonzero(changed[0]).tolist() == affected


def test_attention_that_is_given_is_not_computed_again(variables: dict[str, Any]) -> None:
    masking = masking_variables(variables)
    pixels = normalize_pixels(VIDEO, TASK.objective)

    @jax.jit
    def compute(masking: Any) -> Any:
        maps = TASK.context(masking["frozen"], VIDEO)
        inputs, _ = TASK.mask_inputs(variables["params"]["autoencoder"], pixels, context=maps)
        without_vit = {**masking, "frozen": {}}
        return maps, STRATEGY(without_vit, inputs, KEYS, True)

    maps, mask = compute(masking)
    assert maps.shape == (4, 2, 3, FRAME)
    expected = drawn(variables, VIDEO, KEYS)
    np.testing.assert_array_equal(mask.visible, expected.visible)
    np.testing.assert_allclose(mask.token_scale, expected.token_scale, rtol=1e-6)


def test_what_it_adds_to_the_loss_is_the_weighted_distance_from_one(
    variables: dict[str, Any],
) -> None:
    weights = masking_variables(variables)
    pixels = normalize_pixels(VIDEO, TASK.objective)
    inputs, _ = TASK.mask_inputs(variables["params"]["autoencoder"], pixels)
    gumbel = jnp.zeros((8, FRAME))

    @jax.jit
    def compute(weights: Any) -> Any:
        soft = STRATEGY.mask_probabilities(weights, inputs, gumbel)
        evaluated, kept = STRATEGY.scores(weights, soft, GRID, False)
        trained, new = STRATEGY.scores(weights, soft, GRID, True)
        return soft, evaluated, kept, trained, new

    soft, evaluated, kept, trained, new = compute(weights)
    np.testing.assert_allclose(soft.sum(1), 1.0, rtol=1e-5)
    assert evaluated.shape == (8, 1, 1)
    np.testing.assert_allclose(trained, evaluated, rtol=1e-3, atol=1e-5)  # converged before
    jax.tree.map(np.testing.assert_array_equal, kept, weights["state"])
    assert set(new) == set(kept)
    per_clip = adversarial.per_clip(evaluated, 1.0, GRID)
    expected = np.square(np.asarray(evaluated) - 1.0).reshape(4, 2).mean(1)
    np.testing.assert_allclose(per_clip, expected, rtol=1e-5)


def test_the_two_passes_of_a_step_draw_apart(variables: dict[str, Any]) -> None:
    seen: list[jax.Array] = []

    class Spy(adversarial.Strategy):
        def mask_probabilities(self, variables: Any, inputs: Any, gumbel: Any) -> Any:
            seen.append(gumbel)
            return super().mask_probabilities(variables, inputs, gumbel)

    spy = Spy(**dataclasses.asdict(STRATEGY))
    task = dataclasses.replace(TASK, strategy=spy)

    @jax.jit
    def both(variables: Any) -> list[jax.Array]:
        task.adversary_loss(variables, VIDEO, KEYS, True)
        task.forward(variables, VIDEO, KEYS, True)
        return list(seen)

    of_adversary, of_model = (np.asarray(draw) for draw in both(variables))
    assert of_adversary.shape == of_model.shape == (8, FRAME)
    assert len(np.unique([*of_adversary.ravel(), *of_model.ravel()])) > 0.99 * 16 * FRAME
    # Gumbel noise has this mean and this spread.
    assert of_model.mean() == pytest.approx(0.5772, abs=0.1)
    assert of_model.std() == pytest.approx(math.pi / 6**0.5, abs=0.1)


def test_the_gradient_is_straight_through_and_by_way_of_visible_tokens(
    variables: dict[str, Any],
) -> None:
    params, pixels = variables["params"], normalize_pixels(VIDEO, TASK.objective)
    inputs, placed = TASK.mask_inputs(params["autoencoder"], pixels)
    own_keys = fold(KEYS, MASKING_DRAW)
    mask = drawn(variables, VIDEO, own_keys)
    assert np.asarray(mask.token_scale).max() > 1.2
    scaled = scale_tokens(placed, mask.token_scale)
    np.testing.assert_allclose(scaled, placed, rtol=1e-5, atol=1e-5)

    def of_scale(scale: jax.Array) -> jax.Array:
        own = mask.replace(token_scale=scale)
        outcome = TASK.reconstruct(params["autoencoder"], VIDEO, placed, own)
        return outcome.terms["loss_reconstruction"].mean()

    def of_parameters(masking: Any) -> jax.Array:
        given = {**variables, "params": {**params, "masking": masking}}
        outcome = TASK.forward(given, VIDEO, KEYS, True)
        return outcome.terms["loss_reconstruction"].mean()

    def of_soft_mask(masking: Any, towards_scale: jax.Array) -> jax.Array:
        keys = adversarial.frame_keys(own_keys, GRID[0])
        gumbel = adversarial.draw(keys, adversarial._GUMBEL, "gumbel", (FRAME,))
        weights = {**masking_variables(variables), "params": masking}
        soft = STRATEGY.mask_probabilities(weights, inputs, gumbel)
        return (STRATEGY.mask_factor * soft.reshape(4, -1) * towards_scale).sum()

    @jax.jit
    def compute(masking: Any) -> Any:
        towards_scale = jax.grad(of_scale)(mask.token_scale)
        by_hand = jax.grad(of_soft_mask)(masking, towards_scale)
        return towards_scale, jax.grad(of_parameters)(masking), by_hand

    towards_scale, whole, by_hand = compute(params["masking"])
    seen = by_frame(mask.visible).reshape(4, -1)
    assert (np.asarray(towards_scale)[~seen] == 0).all()
    assert (np.asarray(towards_scale)[seen] != 0).mean() > 0.99
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(whole["discriminator"]))
    for name in ("conv1", "conv2"):
        found, expected = (np.asarray(g["generator"][name]["kernel"]) for g in (whole, by_hand))
        assert np.abs(expected).max() > 1e-8
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_the_adversary_s_loss_reaches_the_discriminator_alone(variables: dict[str, Any]) -> None:
    def loss(params: Any) -> jax.Array:
        given = {**variables, "params": params}
        return TASK.adversary_loss(given, VIDEO, KEYS, True)[0].mean()

    grads = helpers.named(jax.jit(jax.grad(loss))(variables["params"]))
    for name, grad in grads.items():
        assert np.any(grad) == name.startswith("masking/discriminator/"), name


@pytest.mark.parametrize("clip", [CLIP, ClipGeometry(1, (24, 26), 1, 2)], ids=["video", "image"])
def test_the_frozen_vit_has_the_shapes_of_an_image_mae_s_encoder(clip: ClipGeometry) -> None:
    task = dataclasses.replace(TASK, model=dataclasses.replace(TASK.model, geometry=clip))
    frozen = jax.eval_shape(task.init, jax.random.key(0))["frozen"]
    image = ClipGeometry(1, (24, 26), 1, 2)
    spec = TransformerSpec(12, 2, 3, attention_bias="qkv", initialization="mae")
    mae = Autoencoder(image, spec, spec, "sincos_2d", "shared", projection_bias=True)
    order = jnp.arange(FRAME)[None]
    shapes = jax.eval_shape(
        mae.init, jax.random.key(0), jnp.zeros((1, *image.clip_shape)), order[:, :9], order[:, 9:]
    )
    assert frozen == {"vit": shapes["params"]["encoder"]}


def image_encoder(**changes: Any) -> Encoder:
    """What fits `STRATEGY` and `CLIP`, with some choices changed."""
    image = ClipGeometry(1, (24, 26), 1, 2)
    whole = Encoder(image, TransformerSpec(12, 2, 3, attention_bias="qkv"), "sincos_2d", True)
    return dataclasses.replace(whole, **changes)


def test_an_image_mae_is_adopted() -> None:
    params = {"norm": np.ones(3)}
    assert STRATEGY.adopt(image_encoder(), params, GRID) == {"vit": params}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": TransformerSpec(16, 2, 4)}, "set .*vit_width=16, .*vit_num_heads=4$"),
        ({"spec": TransformerSpec(12, 1, 3)}, "the image MAE some/dir .*: set .*vit_depth=1$"),
        ({"spec": TransformerSpec(12, 2, 3, norm_epsilon=1e-5)}, "set .*vit_norm_epsilon=1e-05$"),
        ({"positions": "learned"}, "some/dir is no image MAE: it has positions 'learned' and a "),
        ({"class_token": False}, "positions 'sincos_2d' and no class token"),
        ({"geometry": ClipGeometry(1, (28, 26), 1, 2)}, r"into \(14, 13\) .* into \(12, 13\)"),
    ],
)
def test_another_model_is_not_adopted(changes: dict[str, Any], message: str) -> None:
    strategy = dataclasses.replace(STRATEGY, pretrained="some/dir")
    with pytest.raises(UserError, match=message):
        strategy.adopt(image_encoder(**changes), {}, GRID)


def test_the_source_must_be_given() -> None:
    assert dataclasses.replace(STRATEGY, pretrained="some/dir").frozen_source() == "some/dir"
    with pytest.raises(UserError, match=r"masking.options.pretrained is empty: .*=DIR"):
        STRATEGY.frozen_source()


@pytest.mark.parametrize(
    ("changes", "grid", "message"),
    [
        ({}, (1, 11, 14), "at least 12 x 12 patches, not 11 x 14: choose a smaller"),
        ({}, (1, 14, 11), "not 14 x 11"),
        ({"gumbel_tau": 0.0}, GRID, "gumbel_tau 0.0 must be positive"),
        ({"gumbel_tau": math.nan}, GRID, "gumbel_tau nan must be positive"),
        ({"vit_num_heads": 5}, GRID, r"masking.options.vit_\*: width 12 .* num_heads 5"),
        ({"mask_ratio": 0.999}, GRID, "leaves no visible token of the 312"),
    ],
)
def test_what_does_not_fit_is_named(
    changes: dict[str, Any], grid: tuple[int, int, int], message: str
) -> None:
    STRATEGY.check(GRID, 8)
    with pytest.raises(UserError, match=message):
        dataclasses.replace(STRATEGY, **changes).check(grid, 8)


def test_from_attention_to_verdict_as_the_authors_code_computed_it() -> None:
    with np.load(GOLDEN) as archive:
        file = {name: archive[name] for name in archive.files}

    def weights(prefix: str) -> dict[str, np.ndarray]:
        return {n.removeprefix(prefix): file[n] for n in file if n.startswith(prefix)}

    kernels, vectors = authors.discriminator_tables()
    generator = authors.generator_table().from_authors(weights("model/weights/"))
    discriminator = kernels.from_authors(weights("discriminator/weights/"))
    state = vectors.from_authors(weights("discriminator/buffers/"))
    maps = np.moveaxis(file["output/attention"].reshape(2, 12, 14, 14), 1, -1)
    logs = MaskGenerator().apply({"params": generator}, jnp.asarray(maps))
    soft = jax.nn.softmax(logs + file["input/gumbel"])
    np.testing.assert_allclose(soft, file["output/mask_probability"], rtol=1e-4)
    grid = (1, 14, 14)
    _, visible = STRATEGY.select(soft, jnp.asarray(file["input/noise"]), grid)
    np.testing.assert_array_equal(1 - np.asarray(visible), file["output/mask"])

    def losses(params: Any) -> Any:
        held = {"params": {"discriminator": params}, "state": state}
        real = jnp.asarray(file["input/real_mask"].reshape(2, -1))
        total, _ = STRATEGY.discriminate(held, real, soft, grid, False)
        return total.mean(), STRATEGY.scores(held, soft, grid, False)[0]

    (total, scores), grads = jax.jit(jax.value_and_grad(losses, has_aux=True))(discriminator)
    parts = [float(file[f"output/loss_discriminator_{kind}"]) for kind in ("real", "fake")]
    assert total == pytest.approx(sum(parts), rel=1e-5)
    fooling = adversarial.per_clip(scores, 1.0, grid).mean()
    assert fooling == pytest.approx(float(file["output/loss_generator"]), rel=1e-5)
    for name, grad in kernels.gradients_to_authors(jax.tree.map(np.asarray, grads)).items():
        theirs = file[f"discriminator/grads/{name}"]
        assert np.linalg.norm(grad - theirs) <= 1e-4 * np.linalg.norm(theirs), name
