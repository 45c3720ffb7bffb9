"""Pictures of clips: what they show, where, and for which strategies."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from adamae_jax import masking, pictures
from adamae_jax.errors import UserError
from adamae_jax.masking import base
from adamae_jax.pretraining import ForwardOutput, Objective, Pretraining
from adamae_jax.training.partitioning import create_mesh, replicated
from tests import helpers

GRID = helpers.GEOMETRY.grid
NAMES = ["adaptive", "random", "tube", "frame"]


def computed(pretraining: Pretraining, count: int = 2) -> tuple[pictures.Panels, ForwardOutput]:
    """Panels, and what the model answers to the same clips and keys."""
    variables = jax.jit(pretraining.init)(jax.random.key(0))
    video, keys = helpers.clips(count), helpers.example_keys(count)
    panels = pictures.compute(pretraining, variables, video, keys)
    forward = jax.jit(pretraining.forward, static_argnums=3)
    return panels, forward(variables, jnp.asarray(video), keys, False)


def per_token(values: np.ndarray) -> np.ndarray:
    """Maps over the grid as ``[b, n, ...]``."""
    return values.reshape(len(values), -1, *values.shape[4:])


@dataclasses.dataclass(frozen=True)
class Perfect(Pretraining):
    """Predicts exactly what was asked for."""

    def reconstruct(self, *args: Any) -> ForwardOutput:
        outcome = super().reconstruct(*args)
        return self.judge(outcome.targets, outcome.targets, outcome.mask)


@dataclasses.dataclass(frozen=True)
class Partial(base.MaskingStrategy):
    """Shows tokens 0 and 1, the second as padding, and asks for three of the others."""

    def num_visible(self, grid: Any) -> int:
        return 2

    def __call__(self, variables: Any, inputs: Any, keys: Any, train: bool) -> base.TokenMask:
        batch, tokens = inputs.tokens.shape[:2]
        order = jnp.broadcast_to(jnp.arange(tokens), (batch, tokens))
        valid = jnp.broadcast_to(jnp.array([True, False]), (batch, 2))
        return base.TokenMask(order[:, :2], order[:, 2:], visible_valid=valid, decode=order[:, 5:8])


@pytest.mark.parametrize("name", NAMES)
def test_panels_show_what_the_model_did(name: str) -> None:
    panels, outcome = computed(helpers.pretraining(masking.create(name, 0.75, {})))
    visible, error = per_token(panels["visible"]), per_token(panels["error"])
    np.testing.assert_array_equal(panels["predicted"], ~panels["visible"])
    for row in range(2):
        assert set(np.flatnonzero(visible[row])) == set(np.asarray(outcome.mask.visible[row]))
        drawn, video = (panels[name][row] / 1.0 for name in ("reconstruction", "video"))
        squares = np.square(drawn - video).reshape(4, 2, 2, 4, 3, 4, 3).mean((1, 3, 5, 6))
        # What is drawn is rounded, and cut off at black and white.
        seen = ((drawn > 0) & (drawn < 255)).reshape(4, 2, 2, 4, 3, 4, 3).all((1, 3, 5, 6)).ravel()
        np.testing.assert_allclose(error[row][seen], np.sqrt(squares).ravel()[seen], atol=0.5)
        assert seen.any()
    assert not error[visible].any()
    assert ("probability" in panels) == (name == "adaptive")
    if name == "adaptive":
        np.testing.assert_allclose(panels["probability"].sum((1, 2, 3)), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    "objective",
    [Objective(), Objective(loss="l1", normalize_targets="none")],
    ids=["mse", "raw l1"],
)
def test_perfect_predictions_give_the_input_back(objective: Objective) -> None:
    tiny = helpers.pretraining(None, objective)
    panels, _ = computed(Perfect(tiny.model, tiny.strategy, tiny.objective))
    np.testing.assert_array_equal(panels["reconstruction"], panels["video"])
    assert panels["error"].max() < 1e-2


def test_a_mesh_is_told_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels cannot be computed on several devices without it; the pictures are the same."""
    tiny = helpers.pretraining(masking.create("random", 0.75, {}))
    variables, video, keys = helpers.variables(tiny), helpers.clips(2), helpers.example_keys(2)
    expected = pictures.compute(tiny, variables, video, keys)
    seen, forward = [], Pretraining.forward

    def spy(self: Pretraining, *arguments: Any, **options: Any) -> ForwardOutput:
        seen.append(jax.sharding.get_abstract_mesh())
        return forward(self, *arguments, **options)

    monkeypatch.setattr(Pretraining, "forward", spy)
    mesh = create_mesh({"data": 2, "fsdp": 4})
    lying = jax.device_put(variables, replicated(mesh))
    found = pictures.compute(tiny, lying, video, keys, mesh)
    assert seen == [mesh.abstract_mesh]
    for name, panel in expected.items():
        np.testing.assert_allclose(found[name], panel, rtol=1e-4, atol=1)  # of 255 grey levels


def test_a_flat_background_has_no_error() -> None:
    """In normalised values its grain of one grey level is as much as a texture."""
    tiny = helpers.pretraining()
    variables = helpers.variables(tiny)
    video = np.random.default_rng(0).integers(100, 102, (1, *helpers.GEOMETRY.clip_shape), np.uint8)
    video[:, :, :4] = helpers.clips(1)[:, :, :4]
    error = pictures.compute(tiny, variables, video, helpers.example_keys(1))["error"][0]
    assert error[:, 1].max() < 2 < 20 < error[:, 0].max()


def test_predictions_are_drawn_and_visible_tokens_copied() -> None:
    panels, _ = computed(helpers.pretraining())
    visible = pictures.spread(panels["visible"][0], panels["video"].shape[1:4])
    video, guess = panels["video"][0], panels["reconstruction"][0]
    np.testing.assert_array_equal(guess[visible], video[visible])
    assert (guess[~visible] != video[~visible]).mean() > 0.5


def test_tokens_not_asked_for_are_grey_and_padding_is_not_visible() -> None:
    panels, _ = computed(helpers.pretraining(Partial(0.5)))
    visible, predicted = per_token(panels["visible"])[0], per_token(panels["predicted"])[0]
    assert np.flatnonzero(visible).tolist() == [0]
    assert np.flatnonzero(predicted).tolist() == [5, 6, 7]
    shown = pictures.spread(panels["visible"][0] | panels["predicted"][0], (8, 8, 12))
    assert (panels["reconstruction"][0][~shown] == pictures.HIDDEN).all()


def test_visible_tokens_that_are_decoded_too_are_shown_as_they_are() -> None:
    @dataclasses.dataclass(frozen=True)
    class Everything(Partial):
        def __call__(self, *arguments: Any) -> base.TokenMask:
            mask = super().__call__(*arguments)
            order = jnp.concatenate([mask.visible, mask.masked], axis=1)
            return mask.replace(decode=order, visible_valid=None)

    panels, _ = computed(helpers.pretraining(Everything(0.5)))
    np.testing.assert_array_equal(panels["predicted"], ~panels["visible"])
    assert per_token(panels["visible"])[0].sum() == 2
    shown = pictures.spread(panels["visible"][0], (8, 8, 12))
    np.testing.assert_array_equal(panels["reconstruction"][0][shown], panels["video"][0][shown])


def made_up(
    frames: int = 4, size: tuple[int, int] = (16, 24), channels: int = 3
) -> pictures.Panels:
    """Panels of two clips without a model: a grid of 4 x 4 x 6 patches, tubelets of 2 frames."""
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (2, frames, *size, channels), np.uint8)
    grid = (2, frames // 2, 4, 6)
    visible = rng.random(grid) < 0.3
    return {
        "video": video,
        "reconstruction": 255 - video,
        "visible": visible,
        "predicted": ~visible,
        "error": rng.random(grid, np.float32),
        "probability": rng.random(grid, np.float32),
    }


def test_colours_grow_lighter_with_the_value() -> None:
    colours = pictures.colour_map(np.linspace(0, 1, 256)).astype(float)
    lightness = colours @ [0.299, 0.587, 0.114]
    assert (np.diff(lightness) > -1).all()
    assert lightness[0] < 20
    assert lightness[-1] > 230
    np.testing.assert_array_equal(pictures.colour_map(np.array([-3.0, 7.0])), colours[[0, -1]])


def test_spread_gives_every_pixel_its_token() -> None:
    tokens = np.arange(2 * 2 * 3).reshape(2, 2, 3)
    expected = tokens.repeat(2, axis=0).repeat(4, axis=1).repeat(5, axis=2)
    np.testing.assert_array_equal(pictures.spread(tokens, (4, 8, 15)), expected)


def test_borders_surround_visible_tokens_only() -> None:
    visible = np.array([[[True, False]]])
    border = pictures.borders(visible, (1, 4, 8))[0]
    assert border[:, :4].sum() == 12
    assert not border[1:3, 1:3].any()
    assert not border[:, 4:].any()


def test_a_heat_map_stands_not_finite_values() -> None:
    colours, largest = pictures.heat_map(np.array([1.0, np.nan, np.inf, 4.0]))
    assert largest == 4.0
    np.testing.assert_array_equal(colours[1], colours[2])
    assert pictures.heat_map(np.zeros(3))[1] == 0.0


def test_panels_are_drawn_from_their_arrays() -> None:
    clip = pictures.clips(made_up())[0]
    panels = {panel.title: panel.frames for panel in pictures.draw_panels(clip, (16, 24))}
    assert list(panels) == [
        "input",
        "masked input",
        "reconstruction",
        "error in pixels",
        "sampling probability",
        "visible tokens",
    ]
    visible = pictures.spread(clip["visible"], (4, 16, 24))
    np.testing.assert_array_equal(panels["input"], clip["video"])
    np.testing.assert_array_equal(panels["masked input"][visible], clip["video"][visible])
    assert (panels["masked input"][~visible] == pictures.HIDDEN).all()
    np.testing.assert_array_equal(panels["reconstruction"], clip["reconstruction"])
    assert (panels["error in pixels"][visible] == pictures.HIDDEN).all()
    likeliest = np.unravel_index(clip["probability"].argmax(), clip["probability"].shape)
    lightest = pictures.spread(clip["probability"], (4, 16, 24)) == clip["probability"][likeliest]
    assert (panels["sampling probability"][lightest] == pictures.COLOURS[-1]).all()
    np.testing.assert_array_equal(panels["visible tokens"][~visible], clip["video"][~visible] // 3)


def test_small_clips_grow_by_whole_factors() -> None:
    clip = pictures.clips(made_up())[0]
    picture = pictures.strip(clip)
    top, left = pictures.HEADER_HEIGHT + pictures.GAP, pictures.CAPTION_WIDTH + pictures.GAP
    factor = ((pictures.STRIP_WIDTH - pictures.CAPTION_WIDTH) // 4 - pictures.GAP) // 24
    assert factor > 1
    first = picture[top : top + 16 * factor, left : left + 24 * factor]
    expected = clip["video"][0].repeat(factor, axis=0).repeat(factor, axis=1)
    np.testing.assert_array_equal(first, expected)


@pytest.mark.parametrize("size", [(224, 224), (48, 48), (64, 1024)])
@pytest.mark.parametrize("frames", [16, 64])
def test_pictures_keep_their_width(frames: int, size: tuple[int, int]) -> None:
    clip = {name: values[0] for name, values in made_up(frames, (8, 12)).items()}
    clip["video"] = np.zeros((frames, *size, 3), np.uint8)
    clip["reconstruction"] = clip["video"]
    still = pictures.strip(clip)
    assert 800 < still.shape[1] <= pictures.STRIP_WIDTH
    # Frames are left out rather than drawn too small to be read.
    assert still.shape[0] > 6 * pictures.SMALLEST_FRAME * min(1, size[0] / size[1])
    moving = pictures.animation(clip)
    assert len(moving) == frames
    assert 500 < moving.shape[2] <= pictures.ANIMATION_WIDTH


def test_without_a_distribution_its_panel_is_left_out() -> None:
    panels = made_up()
    with_it = pictures.strip(pictures.clips(panels)[0])
    del panels["probability"]
    without = pictures.strip(pictures.clips(panels)[0])
    assert without.shape[0] < with_it.shape[0]
    assert without.shape[1] == with_it.shape[1]


def test_grey_clips_are_drawn_and_others_refused() -> None:
    assert pictures.strip(pictures.clips(made_up(channels=1))[0]).shape[2] == 3
    with pytest.raises(UserError, match="2 channels"):
        pictures.strip(pictures.clips(made_up(channels=2))[0])


def test_files(tmp_path: Path) -> None:
    panels = made_up()
    written = pictures.save(panels, tmp_path / "new", "start")
    names = ["start_0.png", "start_0.gif", "start_1.png", "start_1.gif"]
    assert [path.name for path in written] == names
    clip = pictures.clips(panels)[1]
    np.testing.assert_array_equal(np.asarray(Image.open(written[2])), pictures.strip(clip))
    moving: Any = Image.open(written[3])
    assert moving.n_frames == 4
    assert moving.info["loop"] == 0  # for ever
    assert moving.info["duration"] == pictures.FRAME_MILLISECONDS
    moving.seek(3)
    drawn = np.asarray(moving.convert("RGB")).astype(float)
    assert np.abs(drawn - pictures.animation(clip)[3]).mean() < 24
