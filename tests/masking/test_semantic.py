"""Masks by parts: the clusters, and how many tokens of each are masked when, by hand."""

import dataclasses
import functools
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from adamae_jax import masking
from adamae_jax.errors import UserError
from adamae_jax.masking import TokenMask
from adamae_jax.masking.semantic import (
    Strategy,
    clusters,
    directions,
    mixed_shares,
    places_in_parts,
)
from adamae_jax.models.autoencoder import Autoencoder
from adamae_jax.models.transformer import TransformerSpec
from adamae_jax.models.tubelets import ClipGeometry
from adamae_jax.pretraining import Objective, Pretraining, masking_variables, normalize_pixels
from adamae_jax.task import PROGRESS
from tests import helpers
from tests.masking.test_base import assert_partition

STRATEGY = Strategy(mask_ratio=0.75, vit_width=12, vit_depth=2, vit_num_heads=3, parts=4)


def test_clusters_are_found_and_nothing_is_drawn() -> None:
    rng = np.random.default_rng(0)
    centres = np.asarray([[4.0, 0, 0], [0, 4, 0], [0, 0, 4]])
    labels = rng.permutation(np.repeat([0, 1, 2], [20, 9, 4]))
    points = jnp.asarray(centres[labels] + 0.3 * rng.normal(size=(33, 3)), jnp.float32)
    found = np.asarray(clusters(points, 3, 5))
    assert {tuple(np.flatnonzero(found == part)) for part in range(3)} == {
        tuple(np.flatnonzero(labels == part)) for part in range(3)
    }
    # The first centre is farthest from the mean of all, the second farthest from the first.
    far = np.argmax(np.square(points - points.mean(0)).sum(1))
    second = np.argmax(np.square(points - points[far]).sum(1))
    assert (found[far], found[second]) == (0, 1)


def test_centres_move_to_their_means() -> None:
    """On a line: the first centres are 20 and 0, with 10 halfway; the means 15.25 and 7.2."""
    points = jnp.asarray([[20.0], [0], [9], [9], [9], [9], [10.5]])
    assert clusters(points, 2, 1).tolist() == [0, 1, 1, 1, 1, 1, 1]


def test_points_that_are_all_alike_are_one_part() -> None:
    found = clusters(directions(jnp.ones((1, 7, 3)))[0], 3, 4)
    assert found.tolist() == [0] * 7


def test_directions_leave_out_what_all_tokens_share() -> None:
    features = jnp.asarray([[[5.0, 7.0], [5, 9], [8, 8], [2, 8]]])
    expected = [[0, -1], [0, 1], [1, 0], [-1, 0]]
    np.testing.assert_allclose(directions(features)[0], expected, atol=1e-6)


SIZES = jnp.asarray([[6, 2, 8, 0]])  # 16 tokens, of which 12 are masked
ORDER = jnp.asarray([[0.3, 0.9, 0.1, 0.5]])  # the second part is masked first, then none, the first


@pytest.mark.parametrize(
    ("whole", "shares"),
    [
        (0.0, [4.5, 1.5, 6, 0]),  # three quarters of each
        (1.0, [6, 2, 4, 0]),  # two whole parts, and of the third what is missing
        (0.5, [5.25, 1.75, 5, 0]),
    ],
)
def test_parts_lose_a_portion_or_all(whole: float, shares: list[float]) -> None:
    found = mixed_shares(SIZES, ORDER, jnp.asarray([whole]), 12)
    np.testing.assert_allclose(found[0], shares, rtol=1e-6)


def test_places_count_within_each_part() -> None:
    labels = jnp.asarray([[2, 0, 2, 0, 2]])
    noise = jnp.asarray([[0.9, 0.8, 0.1, 0.2, 0.5]])
    assert places_in_parts(labels, jnp.asarray([[2, 0, 3]]), noise).tolist() == [[2, 1, 0, 0, 1]]


select = jax.jit(STRATEGY.select, static_argnums=3)


def masked_of(labels: np.ndarray, whole: float, masked: int, count: int, seed: int = 0) -> Any:
    """Marks of the masked tokens in many clips with the same parts."""
    keys = helpers.example_keys(count, seed)
    rows = jnp.tile(jnp.asarray(labels), (count, 1))
    return np.asarray(select(rows, jnp.full(count, whole), keys, masked))


LABELS = np.repeat([0, 1, 2], [6, 2, 8])


def test_at_first_every_part_loses_the_same_portion() -> None:
    marks = masked_of(LABELS, 0.0, 12, 400)
    numbers = np.stack([marks[:, part == LABELS].sum(1) for part in range(3)], 1)
    assert {tuple(row) for row in numbers.tolist()} == {(5, 1, 6), (4, 2, 6)}
    for part in range(3):  # any of its tokens
        times = marks[:, part == LABELS].mean(0)
        np.testing.assert_allclose(times, times.mean(), atol=5 * 0.5 / 20)


def test_in_the_end_whole_parts_are_masked() -> None:
    marks = masked_of(LABELS, 1.0, 12, 400)
    numbers = np.stack([marks[:, part == LABELS].sum(1) for part in range(3)], 1)
    found, times = np.unique(numbers, axis=0, return_counts=True)
    # The last part in the order keeps what is seen, and of the smallest also the one before it.
    expected = {(2, 2, 8): 1 / 3, (6, 2, 4): 1 / 3, (6, 0, 6): 1 / 6, (4, 0, 8): 1 / 6}
    assert {tuple(row) for row in found.tolist()} == set(expected)
    for row, number in zip(found.tolist(), times, strict=True):
        assert abs(number / 400 - expected[tuple(row)]) < 0.12


@hypothesis.given(
    labels=st.lists(st.integers(0, 3), min_size=20, max_size=20),
    whole=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
@hypothesis.settings(max_examples=100)
def test_any_parts_leave_as_many_visible(labels: list[int], whole: float, seed: int) -> None:
    rows = np.asarray(labels)
    for marks in masked_of(rows, whole, 13, 3, seed):
        assert marks.sum() == 13


# Two time steps of 4 x 5 patches of 2 x 2 pixels: 40 tokens, of which 10 are seen.
CLIP = ClipGeometry(num_frames=4, image_size=(8, 10), tubelet_size=2, patch_size=2)
TASK = Pretraining(
    Autoencoder(CLIP, TransformerSpec(8, 1, 2), TransformerSpec(8, 1, 2)), STRATEGY, Objective()
)
VIDEO = jnp.asarray(helpers.clips(4, geometry=CLIP))
KEYS = helpers.example_keys(4)


@pytest.fixture(scope="module")
def variables() -> dict[str, Any]:
    """Random variables of the tiny model."""
    return helpers.variables(TASK)


@jax.jit
def drawn(variables: Any, video: Any, keys: Any, progress: Any) -> tuple[TokenMask, Any]:
    """The strategy's answer in training, and the parts."""
    pixels = normalize_pixels(video, TASK.objective)
    known = {PROGRESS: jnp.full(len(video), progress)}
    inputs, _ = TASK.mask_inputs(variables["params"]["autoencoder"], pixels, **known)
    own = masking_variables(variables)
    features = directions(STRATEGY.features(own["frozen"], inputs))
    labels = jax.vmap(lambda rows: clusters(rows, 4, STRATEGY.iterations))(features)
    return STRATEGY(own, inputs, keys, True), labels


def test_progress_goes_from_a_portion_to_whole_parts(variables: dict[str, Any]) -> None:
    visible_parts = []
    for progress in (0.0, 0.5, 1.0):
        mask, labels = drawn(variables, VIDEO, KEYS, progress)
        assert_partition(mask, CLIP.grid, 10)
        seen = np.take_along_axis(np.asarray(labels), np.asarray(mask.visible), axis=1)
        numbers = np.stack([np.bincount(row, minlength=4) for row in seen])
        sizes = np.stack([np.bincount(row, minlength=4) for row in np.asarray(labels)])
        if progress == 0.0:
            assert (np.abs(numbers - sizes / 4) < 1).all()
        visible_parts.append((numbers > 0).sum())
        if progress == 1.0:  # one part is cut at most: all others are seen or masked as a whole
            assert (((numbers > 0) & (numbers < sizes)).sum(1) <= 1).all()
    assert visible_parts[0] > visible_parts[2] and visible_parts[1] >= visible_parts[2]


def test_the_weight_of_whole_parts_has_a_start_and_an_end(variables: dict[str, Any]) -> None:
    strategy = dataclasses.replace(STRATEGY, whole_start=0.25, whole_end=0.75)
    seen: list[Any] = []

    class Spy(Strategy):
        def select(self, labels: Any, whole: Any, *rest: Any) -> Any:
            seen.append(whole)
            return super().select(labels, whole, *rest)

    spy = Spy(**dataclasses.asdict(strategy))
    inputs, _ = TASK.mask_inputs(variables["params"]["autoencoder"], VIDEO / 255.0)
    own = masking_variables(variables)
    for progress in (0.0, 0.5, jnp.full(4, 1.0)):
        spy(own, inputs.replace(progress=progress), KEYS, True)
    assert [one.tolist() for one in seen] == [[0.25] * 4, [0.5] * 4, [0.75] * 4]


def test_masks_belong_to_the_clip_and_its_key_alone(variables: dict[str, Any]) -> None:
    whole, labels = drawn(variables, VIDEO, KEYS, 0.5)
    order = jnp.asarray([2, 0, 3, 1])
    turned, others = drawn(variables, VIDEO[order], KEYS[order], 0.5)
    np.testing.assert_array_equal(turned.visible, whole.visible[order])
    np.testing.assert_array_equal(others, labels[order])
    redrawn, same = drawn(variables, VIDEO, helpers.example_keys(4, seed=1), 0.5)
    np.testing.assert_array_equal(same, labels)
    assert (np.asarray(redrawn.visible) != np.asarray(whole.visible)).any(1).all()


def test_parts_follow_the_middle_frames_of_tubelets(variables: dict[str, Any]) -> None:
    @jax.jit
    def features(video: Any) -> Any:
        inputs, _ = TASK.mask_inputs(variables["params"]["autoencoder"], video / 255.0)
        return STRATEGY.features(variables["frozen"], inputs)

    plain = np.asarray(features(VIDEO))
    assert plain.shape == (4, 40, 12)
    for frame, steps in ((0, []), (1, [0]), (2, []), (3, [1])):
        found = np.asarray(features(VIDEO.at[:, frame].set(255 - VIDEO[:, frame])))
        changed = (found != plain).any(2).reshape(4, 2, 20)
        assert np.flatnonzero(changed.any((0, 2))).tolist() == steps


def test_gradients_are_finite_and_the_frozen_network_is_left_alone(
    variables: dict[str, Any],
) -> None:
    video = VIDEO.at[0].set(0)  # all patches alike but for their positions

    def loss(variables: Any) -> Any:
        return TASK.forward(variables, video, KEYS, True).loss.mean()

    allowed = {"params": variables["params"], "frozen": variables["frozen"], "state": {}}
    grads = helpers.named(jax.jit(jax.grad(loss))(allowed))
    for name, grad in grads.items():
        assert np.isfinite(grad).all(), name
        assert not (name.startswith("frozen") and np.any(grad)), name
    assert np.any(grads["params/autoencoder/encoder/norm/scale"])


def test_an_evaluation_sees_the_end_of_the_schedule(variables: dict[str, Any]) -> None:
    forward = jax.jit(functools.partial(TASK.forward, train=False))
    found = forward(variables, VIDEO, KEYS)
    given = forward(variables, VIDEO, KEYS, progress=jnp.ones(4))
    early = forward(variables, VIDEO, KEYS, progress=jnp.zeros(4))
    np.testing.assert_array_equal(found.mask.visible, given.mask.visible)
    assert (np.asarray(found.mask.visible) != np.asarray(early.mask.visible)).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": 1}, "options.parts 1 must be at least 2"),
        ({"iterations": 0}, "options.iterations 0 must be at least 1"),
        ({"whole_start": -0.5}, r"options.whole_start -0.5 is outside \[0, 1\]"),
        ({"whole_end": 1.5}, r"options.whole_end 1.5 is outside \[0, 1\]"),
    ],
)
def test_options_that_make_no_schedule_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        masking.create("semantic", 0.75, options)


def test_a_grid_that_it_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="options.parts 50 are more than the tokens .* 2 x 4 x 5"):
        dataclasses.replace(STRATEGY, parts=50).check(CLIP.grid, 8)
    with pytest.raises(UserError, match=r"masking.options.vit_\*: "):
        dataclasses.replace(STRATEGY, vit_num_heads=5).check(CLIP.grid, 8)
    with pytest.raises(UserError, match="options.pretrained is empty: .*=DIR"):
        STRATEGY.frozen_source()
    STRATEGY.check(CLIP.grid, 8)
