"""The k-nearest-neighbour accuracy."""

import jax
import numpy as np
import pytest

from adamae_jax.data.schema import UNLABELLED
from adamae_jax.errors import UserError
from adamae_jax.training import evaluation, knn
from adamae_jax.training.partitioning import create_mesh


def directions(degrees: list[float]) -> np.ndarray:
    """Unit vectors in the plane."""
    angle = np.deg2rad(np.array(degrees))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def test_nearest_neighbours_decide() -> None:
    bank = knn.Labelled(directions([0, 2, 90, 92]), np.array([0, 0, 1, 1]))
    held_out = knn.Labelled(directions([1, 91, 89, 3]), np.array([0, 1, 1, 1]))
    assert knn.accuracy(bank, held_out, neighbours=2) == 0.75


def test_a_close_neighbour_outweighs_two_far_ones() -> None:
    bank = knn.Labelled(directions([0, 60, 62]), np.array([0, 1, 1]))
    held_out = knn.Labelled(directions([5]), np.array([0]))
    assert knn.accuracy(bank, held_out, neighbours=3) == 1.0


def test_more_neighbours_than_there_are() -> None:
    bank = knn.Labelled(directions([0, 90]), np.array([0, 1]))
    assert knn.accuracy(bank, bank, neighbours=20) == 1.0


def test_without_labels_there_is_no_accuracy() -> None:
    nothing = knn.Labelled(directions([]), np.array([], int), unreadable=1)
    one = knn.Labelled(directions([0]), np.array([0]))
    assert np.isnan(knn.accuracy(nothing, one, neighbours=3))
    assert np.isnan(knn.accuracy(one, nothing, neighbours=3))


def test_a_held_out_clip_that_cannot_be_read_counts_as_wrong() -> None:
    bank = knn.Labelled(directions([0, 90]), np.array([0, 1]), unreadable=7)
    held_out = knn.Labelled(directions([1, 89, 91]), np.array([0, 1, 1]))
    assert knn.accuracy(bank, held_out, neighbours=1) == 1.0
    torn = held_out._replace(unreadable=1)
    assert knn.accuracy(bank, torn, neighbours=1) == 0.75


def test_every_clip_is_counted_once() -> None:
    """Readable ones with and without a label, torn ones, and what fills a batch up."""
    batches = [
        {
            "video": directions([0, 10, 20, 30]),
            "label": np.array([2, UNLABELLED, UNLABELLED, 1], np.int32),
            "valid": np.array([True, True, False, True]),
            "unreadable": np.array([False, False, True, False]),
        },
        {
            "video": directions([40, 50, 60, 70]),
            "label": np.array([0, *[UNLABELLED] * 3], np.int32),
            "valid": np.array([True, False, False, False]),
            "unreadable": np.array([False, True, True, False]),
        },
    ]
    mesh = create_mesh({"data": -1}, jax.devices()[:1])
    side = knn.collect(lambda variables, batch: batch["video"], {}, batches, mesh)
    np.testing.assert_allclose(side.features, directions([0, 30, 40]), rtol=1e-6)
    assert side.labels.tolist() == [2, 1, 0]
    assert (side.unreadable, side.unlabelled, side.clips) == (3, 1, 7)


@pytest.mark.parametrize("seed", range(3))
def test_equals_a_plain_computation(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def side(count: int) -> knn.Labelled:
        features = rng.normal(size=(count, 5)).astype(np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        return knn.Labelled(features, rng.integers(0, 4, count))

    bank, held_out = side(30), side(17)
    right = 0
    for feature, label in zip(held_out.features, held_out.labels, strict=True):
        cosine = bank.features @ feature
        votes = np.zeros(4)
        for index in np.argsort(-cosine)[:7]:
            votes[bank.labels[index]] += np.exp(cosine[index] / 0.07)
        right += votes.argmax() == label
    assert knn.accuracy(bank, held_out, neighbours=7) == pytest.approx(right / 17)


@pytest.mark.parametrize("found", [9, 11, 0])
def test_an_evaluation_that_has_not_seen_all_is_refused(found: int) -> None:
    evaluation.check_count(10, 10)
    with pytest.raises(UserError, match=f"evaluation of 10 clips has counted {found}: "):
        evaluation.check_count(found, 10)
