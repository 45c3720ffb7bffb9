import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamae_jax.data.order import AUGMENT, REPLACE, Epochs, generator, permuted

SEEDS = st.integers(0, 2**63 - 1)


@given(st.integers(1, 600), SEEDS, st.integers(0, 10**6))
def test_every_epoch_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    records = Epochs(7, size, seed)
    order = [records[epoch * size + place] - 7 for place in range(size)]
    assert sorted(order) == list(range(size))
    assert order == [permuted(place, size, seed, epoch) for place in range(size)]


@given(st.integers(0, 2**40), SEEDS, st.integers(0, 10**6))
def test_large_datasets_stay_in_range(place: int, seed: int, epoch: int) -> None:
    assert 0 <= permuted(place, 2**40 + 1, seed, epoch) <= 2**40


def test_epochs_seeds_and_parts_differ() -> None:
    orders = {
        tuple(permuted(place, 50, seed, epoch, part) for place in range(50))
        for seed in range(5)
        for epoch in range(5)
        for part in range(4)
    }
    assert len(orders) == 100


@pytest.mark.parametrize("size", [7, 16])
def test_every_place_is_as_likely_as_any_other(size: int) -> None:
    epochs = 2000
    counts = np.zeros((size, size))
    for epoch in range(epochs):
        for place in range(size):
            counts[place, permuted(place, size, 5, epoch)] += 1
    expected = epochs / size
    # Chi-squared with (size - 1)**2 degrees of freedom: mean that, standard deviation below.
    freedom = (size - 1) ** 2
    deviation = ((counts - expected) ** 2 / expected).sum() - freedom
    assert abs(deviation) < 4 * np.sqrt(2 * freedom)


def test_orders_and_numbers_are_the_same_for_ever() -> None:
    # A restart after an upgrade of a library must find the same stream.
    expected = [6, 8, 9, 0, 5, 2, 4, 1, 3, 7]
    assert [permuted(place, 10, 42, 3) for place in range(10)] == expected
    assert generator(7, AUGMENT, 123, 0).integers(1000, size=4).tolist() == [761, 412, 597, 122]


def test_addresses_do_not_share_numbers() -> None:
    addresses = [(1, AUGMENT, 5, 0), (2, AUGMENT, 5, 0), (1, REPLACE, 5, 0), (1, AUGMENT, 6, 0)]
    addresses += [(1, AUGMENT, 5, 1), (1, AUGMENT, 0, 5)]
    first = {int(generator(*address).integers(2**62)) for address in addresses}
    assert len(first) == len(addresses)
