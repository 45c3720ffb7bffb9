"""Mixup, cutmix, erasing and smoothing, against values worked out by hand and authors' code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamae_jax import mixing
from adamae_jax.mixing import MixDraw, Mixing
from adamae_jax.task import example_keys

FRAME = (6, 8)


def keys(count: int, step: int = 0) -> jax.Array:
    return example_keys(0, step, jnp.arange(count))


def clips(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 2, *FRAME, 3)).astype(np.float32)


def test_partners_are_mirrored_within_their_groups() -> None:
    places = jnp.arange(8)
    assert Mixing(mixup=1.0).partners(places).tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert Mixing(mixup=1.0, group=4).partners(places).tolist() == [3, 2, 1, 0, 7, 6, 5, 4]


def test_mixup_and_cutmix_of_given_draws() -> None:
    video = jnp.asarray(clips(2))
    partner = video[::-1]
    draw = MixDraw(
        jnp.array([0.25, 0.9]),
        jnp.array([[0, 0, 0, 0], [1, 3, 2, 8]]),
        jnp.array([False, True]),
    )
    mixed = np.asarray(mixing.mix(video, partner, draw))
    np.testing.assert_allclose(mixed[0], 0.25 * video[0] + 0.75 * video[1], rtol=1e-6)
    expected = np.array(video[1])
    expected[:, 1:3, 2:8] = video[0][:, 1:3, 2:8]
    np.testing.assert_array_equal(mixed[1], expected)


@pytest.mark.parametrize(
    ("share", "centre", "box"),
    [
        (0.75, (3, 4), [2, 4, 2, 6]),  # 6 * 0.5 = 3 rows, an odd length loses one
        (0.75, (0, 7), [0, 1, 5, 8]),  # cut off at the frame
        (1.0, (3, 4), [3, 3, 4, 4]),
        (0.0, (3, 4), [0, 6, 0, 8]),
    ],
)
def test_a_box_of_cutmix(share: float, centre: tuple[int, int], box: list[int]) -> None:
    found, left = mixing.cutmix_box(jnp.asarray(share), jnp.asarray(centre), FRAME)
    assert found.tolist() == box
    area = (box[1] - box[0]) * (box[3] - box[2])
    assert float(left) == pytest.approx(1 - area / 48)


def test_one_draw_serves_a_group() -> None:
    draw = Mixing(mixup=0.8, cutmix=1.0, group=4).draw(keys(8), FRAME)
    shares = np.asarray(draw.share)
    assert len(set(shares[:4].tolist())) == len(set(shares[4:].tolist())) == 1
    assert shares[0] != shares[4]


def test_how_often_what_is_mixed() -> None:
    """Shares of a Beta(0.8, 0.8) have mean 1/2 and variance 1 / (4 (2 * 0.8 + 1))."""
    count = 4000
    both = Mixing(mixup=0.8, cutmix=1.0, probability=0.75, switch_probability=0.25, group=1)
    draw = jax.jit(lambda k: both.draw(k, (64, 64)))(keys(count))
    share, is_cutmix = np.asarray(draw.share), np.asarray(draw.is_cutmix)
    # A mixup that is not made leaves 1; a box of cutmix may be empty by itself.
    assert np.mean(share[~is_cutmix] == 1.0) == pytest.approx(0.25, abs=0.03)
    assert is_cutmix.mean() == pytest.approx(0.25, abs=0.03)
    mixed = share[~is_cutmix & (share < 1)]
    assert mixed.mean() == pytest.approx(0.5, abs=0.03)
    assert mixed.var() == pytest.approx(1 / (4 * 2.6), abs=0.01)


def test_either_alone() -> None:
    assert not Mixing(mixup=0.8).draw(keys(8), FRAME).is_cutmix.any()
    assert Mixing(cutmix=0.8).draw(keys(8), FRAME).is_cutmix.all()
    assert not Mixing().is_on
    assert not Mixing(mixup=1.0, probability=0.0).is_on


def test_smoothed_targets() -> None:
    target = np.asarray(mixing.soft_targets(jnp.array([1, -1]), 4, 0.1))
    np.testing.assert_allclose(target[0], [0.025, 0.925, 0.025, 0.025], rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_erasing_fills_one_box_through_all_frames(step: int) -> None:
    video = jnp.full((1, 3, 32, 32, 2), 7.0)
    erased = np.asarray(mixing.erase(video, keys(1, step), 1.0))[0]
    changed = (erased != 7.0).any(-1)
    rows, columns = np.flatnonzero(changed[0].any(1)), np.flatnonzero(changed[0].any(0))
    box = changed[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert box.all()
    assert changed.sum() == box.size
    height, width = box.shape[1:]
    assert 0.015 <= height * width / 32**2 <= 0.36
    assert 0.25 <= height / width <= 4.0
    noise = erased[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert np.unique(noise).size > 0.99 * noise.size  # each value of each frame drawn anew


def test_how_often_it_erases() -> None:
    video = jnp.zeros((2000, 1, 8, 8, 1))
    erased = np.asarray(mixing.erase(video, keys(2000), 0.25)).any((1, 2, 3, 4))
    assert erased.mean() == pytest.approx(0.25, abs=0.03)
