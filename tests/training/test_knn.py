"""The k-nearest-neighbour accuracy."""

import numpy as np
import pytest

from adamae_jax.training import knn


def directions(degrees: list[float]) -> np.ndarray:
    """Unit vectors in the plane."""
    angle = np.deg2rad(np.array(degrees))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def test_nearest_neighbours_decide() -> None:
    bank = (directions([0, 2, 90, 92]), np.array([0, 0, 1, 1]))
    held_out = (directions([1, 91, 89, 3]), np.array([0, 1, 1, 1]))
    assert knn.accuracy(bank, held_out, neighbours=2) == 0.75


def test_a_close_neighbour_outweighs_two_far_ones() -> None:
    bank = (directions([0, 60, 62]), np.array([0, 1, 1]))
    held_out = (directions([5]), np.array([0]))
    assert knn.accuracy(bank, held_out, neighbours=3) == 1.0


def test_more_neighbours_than_there_are() -> None:
    bank = (directions([0, 90]), np.array([0, 1]))
    assert knn.accuracy(bank, bank, neighbours=20) == 1.0


def test_without_labels_there_is_no_accuracy() -> None:
    nothing = (directions([]), np.array([], int))
    assert np.isnan(knn.accuracy(nothing, (directions([0]), np.array([0])), neighbours=3))


@pytest.mark.parametrize("seed", range(3))
def test_equals_a_plain_computation(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def side(count: int) -> knn.Labelled:
        features = rng.normal(size=(count, 5)).astype(np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        return features, rng.integers(0, 4, count)

    bank, held_out = side(30), side(17)
    right = 0
    for feature, label in zip(*held_out, strict=True):
        cosine = bank[0] @ feature
        votes = np.zeros(4)
        for index in np.argsort(-cosine)[:7]:
            votes[bank[1][index]] += np.exp(cosine[index] / 0.07)
        right += votes.argmax() == label
    assert knn.accuracy(bank, held_out, neighbours=7) == pytest.approx(right / 17)
