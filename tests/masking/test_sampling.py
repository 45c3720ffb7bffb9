"""Gumbel top-k against drawing one token after the other without replacement."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jaxtyping import Array, Bool, Float

from adamae_jax.masking import base
from adamae_jax.masking.distribution import draw_in_order
from adamae_jax.models.transformer import ExampleKeys
from tests import helpers

DRAWS = 40_000
DISTRIBUTIONS = {
    "even": [0.25, 0.25, 0.25, 0.25],
    "uneven": [0.5, 0.3, 0.1, 0.07, 0.03],
    "one likely": [0.9, 0.04, 0.03, 0.03],
}


def subset_probabilities(probabilities: list[float], count: int) -> dict[int, float]:
    """The exact probability of every set of ``count`` places, by enumerating the ordered draws.

    Sets are bit patterns. The draws are from the distribution, renormalised after each.
    """
    exact: dict[int, float] = {}
    for order in itertools.permutations(range(len(probabilities)), count):
        left, chance = 1.0, 1.0
        for place in order:
            chance *= probabilities[place] / left
            left -= probabilities[place]
        pattern = sum(1 << place for place in order)
        exact[pattern] = exact.get(pattern, 0.0) + chance
    return exact


def sample_without_replacement(
    keys: ExampleKeys, log_probs: Float[Array, "b n"], count: int
) -> Bool[Array, "b n"]:
    """Marks of the places drawn."""
    return base.marks(draw_in_order(keys, log_probs, count), log_probs.shape[1])


def draw(probabilities: np.ndarray, count: int, draws: int, seed: int = 0) -> np.ndarray:
    """Marks of many draws from one distribution, ``[draws, N]``."""
    rows = jnp.log(jnp.asarray(probabilities, jnp.float32))
    keys = helpers.example_keys(draws, seed)
    sample = jax.jit(
        lambda keys, rows: sample_without_replacement(
            keys, jnp.broadcast_to(rows, (draws, len(probabilities))), count
        )
    )
    return np.asarray(sample(keys, rows))


def chi_square(marks: np.ndarray, exact: dict[int, float]) -> float:
    """The p-value of the drawn sets under the exact probabilities."""
    patterns = marks @ (1 << np.arange(marks.shape[1]))
    found = dict(zip(*np.unique(patterns, return_counts=True), strict=True))
    assert set(found) <= set(exact)
    expected = np.asarray([exact[pattern] for pattern in exact]) * len(marks)
    observed = np.asarray([found.get(pattern, 0) for pattern in exact])
    return float(scipy.stats.chisquare(observed, expected, sum_check=False).pvalue)


def test_the_enumeration_adds_up() -> None:
    exact = subset_probabilities(DISTRIBUTIONS["uneven"], 3)
    assert len(exact) == 10
    assert sum(exact.values()) == pytest.approx(1.0)
    # Two places, written out: first the one, then the other, and the other way round.
    pair = subset_probabilities([0.5, 0.3, 0.2], 2)
    assert pair[0b011] == pytest.approx(0.5 * 0.3 / 0.5 + 0.3 * 0.5 / 0.7)


@pytest.mark.parametrize(
    ("name", "count"),
    [("even", 2), ("uneven", 1), ("uneven", 2), ("uneven", 3), ("uneven", 4), ("one likely", 2)],
)
def test_sets_have_their_exact_probabilities(name: str, count: int) -> None:
    marks = draw(np.asarray(DISTRIBUTIONS[name]), count, DRAWS)
    assert (marks.sum(-1) == count).all()
    assert chi_square(marks, subset_probabilities(DISTRIBUTIONS[name], count)) > 1e-3


def test_the_check_can_tell_a_wrong_distribution() -> None:
    """Neither squared weights nor another way of drawing sets with these weights would pass."""
    squared = np.square(DISTRIBUTIONS["uneven"]) / np.square(DISTRIBUTIONS["uneven"]).sum()
    exact = subset_probabilities(DISTRIBUTIONS["uneven"], 2)
    assert chi_square(draw(squared, 2, DRAWS), exact) < 1e-6
    # Independent inclusion, given the size (conditional Poisson), is close, and still told apart.
    weights = np.asarray(DISTRIBUTIONS["uneven"])
    pairs = {
        pattern: float(np.prod([weights[i] for i in range(5) if pattern >> i & 1]))
        for pattern in exact
    }
    total = sum(pairs.values())
    conditional = {pattern: chance / total for pattern, chance in pairs.items()}
    assert chi_square(draw(weights, 2, DRAWS), conditional) < 1e-6


def test_top_k_is_sequential_drawing_with_the_same_noise() -> None:
    """The exact argument, replayed draw by draw.

    The arg-max of ``log P + Gumbel`` is a draw from P. Renormalising what is left adds a constant
    to every ``log P`` and cannot change the next arg-max, so that the second largest of all is a
    draw from the renormalised rest, and so on.
    """
    keys = helpers.example_keys(50, seed=3)
    log_probs = np.asarray(jax.nn.log_softmax(2 * jax.random.normal(jax.random.key(0), (50, 40))))
    marks = np.asarray(sample_without_replacement(keys, jnp.asarray(log_probs), 12))
    noise = np.asarray(jax.vmap(lambda key: jax.random.gumbel(key, (40,)))(keys))
    for row in range(50):
        left, drawn = list(range(40)), set()
        for _ in range(12):
            rest = log_probs[row, left].astype(np.float64)
            rest -= np.log(np.exp(rest).sum())
            place = left[int(np.argmax(rest + noise[row, left]))]
            left.remove(place)
            drawn.add(place)
        assert drawn == set(np.flatnonzero(marks[row]))


def inclusion_probabilities(
    probabilities: np.ndarray, count: int, places: np.ndarray
) -> np.ndarray:
    """The exact probability of some places to be among ``count`` drawn without replacement.

    Drawing without replacement is the order of arrival of exponential clocks with rates P: a place
    is in when fewer than ``count`` others arrive before it. Integrated over its own arrival, with
    the distribution of the number of others (a sum of unequal coins) built up coin by coin.
    """
    nodes, weights = np.polynomial.legendre.leggauss(120)
    arrival, weights = (nodes + 1) / 2, weights / 2  # the quantile of the place's own clock
    included = []
    for place in places:
        time = -np.log1p(-arrival) / probabilities[place]
        others = np.zeros((len(time), count))
        others[:, 0] = 1.0
        for other, rate in enumerate(probabilities):
            if other != place:
                here = -np.expm1(-rate * time)[:, None]
                moved = np.concatenate([np.zeros((len(time), 1)), others[:, :-1]], axis=1)
                others = others * (1 - here) + moved * here
        included.append(weights @ others.sum(1))
    return np.asarray(included)


def test_inclusion_probabilities_of_the_integral_are_those_of_the_enumeration() -> None:
    exact = subset_probabilities(DISTRIBUTIONS["uneven"], 2)
    by_sets = [
        sum(chance for pattern, chance in exact.items() if pattern >> place & 1)
        for place in range(5)
    ]
    weights = np.asarray(DISTRIBUTIONS["uneven"])
    np.testing.assert_allclose(inclusion_probabilities(weights, 2, np.arange(5)), by_sets, 1e-4)


def check_inclusion(tokens: int, count: int, draws: int, parts: int, places: int) -> None:
    """Compares how often some tokens are drawn with the exact probability."""
    logits = np.random.default_rng(0).normal(size=tokens)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    chosen = np.linspace(0, tokens - 1, places).astype(int)
    exact = inclusion_probabilities(probabilities, count, chosen)
    total = draws * parts
    hits = sum(draw(probabilities, count, draws, seed)[:, chosen].sum(0) for seed in range(parts))
    deviation = (hits - total * exact) / np.sqrt(total * exact * (1 - exact))
    assert np.abs(deviation).max() < 4.5
    assert 0.6 < np.sqrt(np.square(deviation).mean()) < 1.35  # 1 on average


def test_many_tokens_are_included_as_often_as_they_should() -> None:
    check_inclusion(tokens=96, count=10, draws=10_000, parts=1, places=96)


@pytest.mark.full
def test_a_released_model_s_tokens_are_included_as_often_as_they_should() -> None:
    check_inclusion(tokens=1568, count=78, draws=5_000, parts=20, places=60)
