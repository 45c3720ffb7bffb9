"""A token budget: who gets how many tokens by hand, whatever the batch, and what padding does."""

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
from adamae_jax.masking import base, budget, random
from adamae_jax.masking.budget import Strategy, information
from adamae_jax.pretraining import CONTEXT
from adamae_jax.task import example_keys
from adamae_jax.training import partitioning
from tests import helpers
from tests.masking.test_base import masks

GRID = (4, 3, 5)
# 15 visible tokens of 60 on average, 6 to 30 in a clip.
STRATEGY = Strategy(mask_ratio=0.75, least=0.4, most=2.0)
share = jax.jit(lambda found, valid=None: STRATEGY.share(found, GRID, valid))


def shared(*found: float) -> list[int]:
    counts: list[int] = share(jnp.asarray(found, jnp.float32)).tolist()
    return counts


def test_tokens_are_shared_in_proportion_to_information() -> None:
    # 7.5, 7.5, 15 and 30 of 60 tokens; a thousandth of the mean is added to each weight.
    assert shared(1, 1, 2, 4) == [8, 7, 15, 30]
    assert shared(10, 10, 20, 40) == [8, 7, 15, 30]
    assert shared(1, 1, 1, 9) == [10, 10, 10, 30]  # the most
    assert shared(1, 9, 9, 9) == [6, 18, 18, 18]  # the least


def test_where_nothing_happens_what_is_left_is_shared_evenly() -> None:
    assert shared(0, 0, 0, 5) == [10, 10, 10, 30]
    assert shared(0, 0, 0, 0) == [15, 15, 15, 15]


@hypothesis.given(
    found=st.lists(st.floats(0, 2.0**20, width=32, allow_subnormal=False), min_size=9, max_size=9)
)
@hypothesis.settings(max_examples=100)
def test_any_batch_keeps_the_budget(found: list[float]) -> None:
    counts, values = np.asarray(shared(*found)), np.asarray(found)
    assert counts.sum() == 9 * STRATEGY.num_visible(GRID) == 9 * 15
    assert counts.min() >= 6 and counts.max() <= 30
    order = np.lexsort((counts, values))
    assert (np.diff(counts[order])[np.diff(values[order]) > 0] >= 0).all()
    for value in np.unique(values):
        assert np.ptp(counts[values == value]) <= 1


def test_what_fills_up_a_batch_takes_no_part() -> None:
    valid = jnp.asarray([True, False, True, True, False, True])
    counts = share(jnp.asarray([1.0, 50.0, 1.0, 2.0, 0.0, 4.0]), valid)
    assert counts.tolist() == [8, 15, 7, 15, 15, 30]
    assert share(jnp.ones(3), jnp.zeros(3, bool)).tolist() == [15] * 3


def test_motion_is_the_mean_distance_between_time_steps() -> None:
    """Two time steps of 2 frames, two tokens of 1 x 2 pixels each, one colour channel."""
    video = np.zeros((2, 4, 1, 4, 1), np.float32)
    video[0, 2:, 0, 0, 0] = 3.0  # one of two pixels of a token, in both frames of a step
    video[1, :2, 0, 2:, 0] = 4.0
    video[1, 2, 0, 2:, 0] = 4.0
    found = information(jnp.asarray(video), (2, 1, 2), "motion")
    np.testing.assert_allclose(found, [np.sqrt(18 / 4) / 2, np.sqrt(32 / 4) / 2], rtol=1e-6)


def test_detail_is_the_mean_deviation_within_tokens() -> None:
    """One frame, two tokens of 1 x 2 pixels, two channels with levels of their own."""
    video = np.zeros((2, 1, 1, 4, 2), np.float32)
    video[0, ..., 1] = 7.0
    video[0, 0, 0, 0, 0] = 6.0  # 3 from the mean of its token
    video[1, ..., 1], video[1, 0, 0, 2:, :] = 5.0, 1.0  # flat
    found = information(jnp.asarray(video), (1, 1, 2), "detail")
    np.testing.assert_allclose(found, [np.sqrt((9 + 9) / 4) / 2, 0.0], rtol=1e-6)


def moving(count: int, geometry: Any = helpers.GEOMETRY, seed: int = 0) -> np.ndarray:
    """Clips that change as much as their number says; the first not at all."""
    rng = np.random.default_rng(seed)
    shape = (count, *geometry.clip_shape)
    strength = np.linspace(0.0, 1.0, count).reshape(-1, 1, 1, 1, 1)
    return (100 + strength * rng.uniform(0, 155, shape)).astype(np.uint8)


def drawn(inputs: Any, keys: Any, strategy: Strategy = STRATEGY) -> base.TokenMask:
    return masks(strategy, inputs, keys)


def inputs_of(counts: list[int]) -> base.MaskInputs:
    return helpers.mask_inputs(len(counts), GRID).replace(context=jnp.asarray(counts))


def test_a_mask_has_as_many_tokens_as_it_was_given() -> None:
    counts = [6, 15, 30, 9]
    mask = drawn(inputs_of(counts), helpers.example_keys(4))
    assert mask.visible.shape == (4, 30) and mask.masked.shape == (4, 30)
    assert mask.visible_valid is not None
    assert mask.visible_valid.sum(1).tolist() == counts
    assert mask.queries is mask.masked and mask.decode_weight is None
    for row, count in enumerate(counts):
        seen, padding = np.split(np.asarray(mask.visible[row]), [count])
        hidden = np.asarray(mask.masked[row])
        for part in (seen, padding, hidden):
            assert (np.diff(part) > 0).all()
        assert sorted([*seen, *padding, *hidden]) == list(range(60))
        assert mask.visible_valid[row, :count].all()


def test_with_the_mean_it_shows_what_random_masks_show() -> None:
    inputs, keys = inputs_of([15] * 5), helpers.example_keys(5)
    plain = masks(random.Strategy(mask_ratio=0.75), inputs, keys)
    np.testing.assert_array_equal(drawn(inputs, keys).visible[:, :15], plain.visible)


def test_every_token_is_seen_padding_or_decoded_as_often() -> None:
    count = 3000
    mask = drawn(inputs_of([9] * count), helpers.example_keys(count))
    for part, size in ((mask.visible[:, :9], 9), (mask.visible[:, 9:], 21), (mask.masked, 30)):
        times = np.bincount(np.asarray(part).ravel(), minlength=60)
        expected = count * size / 60
        assert np.abs(times - expected).max() < 5 * np.sqrt(expected)


# Of 24 tokens 6, from 3 to 12.
TASK = dataclasses.replace(helpers.pretraining(Strategy(mask_ratio=0.75)), random_draws=1)


@pytest.fixture(scope="module")
def variables() -> dict[str, Any]:
    """Random variables of the tiny model."""
    return helpers.variables(TASK)


def test_more_motion_shows_more_tokens(variables: dict[str, Any]) -> None:
    forward = jax.jit(functools.partial(TASK.forward, train=True))
    mask = forward(variables, jnp.asarray(moving(6)), helpers.example_keys(6)).mask
    counts = mask.visible_valid.sum(1).tolist()
    assert sum(counts) == 36 and counts == sorted(counts)
    assert counts[0] == 3 and counts[-1] > 9


def test_what_is_not_visible_takes_no_part(variables: dict[str, Any]) -> None:
    """Neither values nor gradients: other pixels where padding points change nothing."""
    params, video = variables["params"]["autoencoder"], jnp.asarray(moving(4))
    keys = helpers.example_keys(4)
    inputs, placed = TASK.mask_inputs(params, video / 255.0)
    mask = masks(TASK.strategy, inputs.replace(context=jnp.asarray([3, 5, 6, 10])), keys)
    assert mask.visible_valid is not None
    unseen = np.ones((4, 24), bool)
    seen = np.where(mask.visible_valid, mask.visible, mask.visible[:, :1])
    np.put_along_axis(unseen, seen, False, axis=1)

    @jax.jit
    def compute(placed: Any) -> Any:
        latents = TASK.model.apply(
            {"params": params}, placed, mask.visible,
            visible_valid=mask.visible_valid, method="encode",
        )  # fmt: skip
        return latents, TASK.reconstruct(params, video, placed, mask)

    latents, output = compute(placed)
    noise = jax.random.normal(jax.random.key(1), placed.shape)
    others, same = compute(jnp.where(unseen[..., None], 10 * noise, placed))
    valid = np.asarray(mask.visible_valid)
    np.testing.assert_array_equal(np.asarray(latents)[valid], np.asarray(others)[valid])
    assert (np.asarray(latents)[~valid] != np.asarray(others)[~valid]).any()
    np.testing.assert_array_equal(output.predictions, same.predictions)
    gradient = jax.jit(jax.grad(lambda placed: compute(placed)[1].loss.sum()))(placed)
    assert not np.asarray(gradient)[unseen].any()
    assert np.asarray(gradient)[~unseen].any(-1).all()


def test_the_budget_is_the_whole_batchs_on_any_mesh_and_in_any_microbatches(
    variables: dict[str, Any],
) -> None:
    """24 clips, on one device at once, and on 8 with one of each in each of 3 microbatches."""
    # Without the stillest, whose normalised targets are noise of rounding.
    video = moving(32)[8:]
    batch = {"video": video, "slot": np.arange(24, dtype=np.int32)}

    def answers(devices: int, microbatches: int) -> Any:
        def answer(batch: Any) -> Any:
            keys = example_keys(7, 0, batch["slot"])
            whole = TASK.prepare(variables, batch, keys, microbatches)
            output = TASK.forward(variables, whole["video"], keys, True, **TASK.known(whole))
            return whole[CONTEXT], output.mask.visible, output.mask.visible_valid, output.loss

        mesh = partitioning.create_mesh({"data": devices}, jax.devices()[:devices])
        run = jax.jit(partitioning.on_mesh(answer, mesh))
        return [np.asarray(one) for one in run(partitioning.put_batch(batch, mesh))]

    *alone, losses = answers(1, 1)
    *found, same = answers(8, 3)
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(same, losses, rtol=1e-5)
    numbers = alone[0]
    assert numbers.sum() == 24 * 6
    np.testing.assert_array_equal(alone[2].sum(1), numbers)
    # Spread within a microbatch it would be another.
    part = {"video": jnp.asarray(video[::3])}
    third = TASK.prepare(variables, part, helpers.example_keys(8), 1)[CONTEXT]
    assert third.sum() == 8 * 6 and (np.asarray(third) != numbers[::3]).any()


def test_gradients_of_still_and_of_moving_clips_are_finite(variables: dict[str, Any]) -> None:
    video, keys = moving(4), helpers.example_keys(4)
    video[1] = 0

    @jax.jit
    def gradient(params: Any) -> Any:
        def loss(params: Any) -> Any:
            given = {**variables, "params": params}
            return TASK.forward(given, jnp.asarray(video), keys, True).loss.mean()

        return jax.grad(loss)(params)

    for name, leaf in helpers.named(gradient(variables["params"])).items():
        assert np.isfinite(leaf).all(), name


def test_an_evaluation_leaves_out_what_fills_up_the_last_batch(variables: dict[str, Any]) -> None:
    video, keys = moving(6), helpers.example_keys(6)
    filled = np.concatenate([video[:4], np.full_like(video[4:], 255)])
    filled[4:, ::2] = 0  # flickers: it would take what it can get
    evaluate = jax.jit(TASK.evaluate)
    alone = evaluate(variables, {"video": jnp.asarray(video[:4]), "valid": jnp.ones(4, bool)},
                     keys[:4])  # fmt: skip
    valid = jnp.arange(6) < 4
    found = evaluate(variables, {"video": jnp.asarray(filled), "valid": valid}, keys)
    for name, values in alone.items():
        np.testing.assert_allclose(found[name][:4], values, rtol=1e-5, err_msg=name)
    taken = evaluate(variables, {"video": jnp.asarray(filled)}, keys)
    assert (taken["loss_reconstruction"][:4] != found["loss_reconstruction"][:4]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"information": "entropy"}, "options.information 'entropy' .*: use one of motion, detail"),
        ({"least": -0.1}, r"options.least -0.1 is outside \[0, 1\]"),
        ({"least": 1.5}, r"options.least 1.5 is outside \[0, 1\]"),
        ({"most": 0.5}, "options.most 0.5 must be at least 1"),
        ({"most": float("inf")}, "options.most inf must be at least 1"),
    ],
)
def test_options_that_make_no_budget_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        masking.create("budget", 0.75, options)


def test_a_grid_that_it_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="most 4.0 of 15 visible tokens leaves none .* 4 x 3 x 5"):
        Strategy(mask_ratio=0.75, most=4.0).check(GRID, 16)
    with pytest.raises(UserError, match="'motion' needs clips of two time steps .* use 'detail'"):
        STRATEGY.check((1, 6, 10), 16)
    Strategy(mask_ratio=0.75, information="detail").check((1, 6, 10), 16)
    STRATEGY.check(GRID, 16)


def test_bounds_are_rounded_down_and_leave_one_token() -> None:
    assert Strategy(mask_ratio=0.75, least=0.5, most=1.5).bounds(GRID) == (7, 22)
    assert Strategy(mask_ratio=0.75, least=0.0, most=1.0).bounds(GRID) == (1, 15)
    assert budget.INFORMATION == ("motion", "detail")
