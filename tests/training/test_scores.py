"""Against plain loops."""

import math

import numpy as np
import pytest

from adamae_jax.training.scores import confusion_matrix, mean_class_accuracy, merge_views, top_k

RNG = np.random.default_rng(0)
VIDEOS, VIEWS, CLASSES = 40, 6, 5
LOGITS = (RNG.normal(size=(VIDEOS, VIEWS, CLASSES)) * 4).astype(np.float32)
VALID = RNG.random((VIDEOS, VIEWS)) < 0.6
VALID[:, 2] = True
LABELS = RNG.integers(0, CLASSES - 1, VIDEOS)  # the last class does not occur


def softmax(logits: list[float]) -> list[float]:
    exponentials = [math.exp(value) for value in logits]
    return [value / sum(exponentials) for value in exponentials]


def test_merging() -> None:
    scores = merge_views(LOGITS, VALID)
    assert scores.dtype == np.float64
    for video in range(VIDEOS):
        views = [softmax(LOGITS[video, v].tolist()) for v in range(VIEWS) if VALID[video, v]]
        expected = [sum(view[k] for view in views) / len(views) for k in range(CLASSES)]
        np.testing.assert_allclose(scores[video], expected, rtol=1e-12)
        np.testing.assert_array_equal(merge_views(LOGITS[video], VALID[video]), scores[video])


def test_views_that_are_not_there_do_not_matter() -> None:
    other = np.where(VALID[..., None], LOGITS, np.nan)
    np.testing.assert_array_equal(merge_views(other, VALID), merge_views(LOGITS, VALID))
    large = merge_views(np.array([[1e4, 0.0], [0.0, 0.0]]), np.array([True, True]))
    np.testing.assert_allclose(large, [0.75, 0.25])
    assert np.isnan(merge_views(LOGITS[0], np.zeros(VIEWS, bool))).all()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_top_k(count: int) -> None:
    scores = merge_views(LOGITS, VALID)
    found = top_k(scores, LABELS, count)
    for video in range(VIDEOS):
        ranked = sorted(range(CLASSES), key=lambda k: -scores[video, k])
        assert found[video] == (LABELS[video] in ranked[:count])


def test_ties_go_to_the_first_and_what_is_unknown_is_wrong() -> None:
    scores = np.array([[0.3, 0.4, 0.3], [0.3, 0.4, 0.3], [np.nan] * 3, [0.3, 0.4, 0.3]])
    labels = np.array([0, 2, 0, -1])
    assert top_k(scores, labels, 2).tolist() == [True, False, False, False]
    assert top_k(scores, labels, 3).tolist() == [True, True, False, False]


def test_mean_class_accuracy() -> None:
    correct = top_k(merge_views(LOGITS, VALID), LABELS, 2)
    shares = []
    for k in range(CLASSES - 1):
        of_class = [bool(c) for c, label in zip(correct, LABELS, strict=True) if label == k]
        shares.append(sum(of_class) / len(of_class))
    assert mean_class_accuracy(correct, LABELS) == pytest.approx(sum(shares) / len(shares))
    more = np.append(correct, True), np.append(LABELS, -1)
    assert mean_class_accuracy(*more) == mean_class_accuracy(correct, LABELS)
    assert math.isnan(mean_class_accuracy(np.array([False]), np.array([-1])))


def test_confusion_matrix() -> None:
    scores = merge_views(LOGITS, VALID)
    scores[3] = np.nan
    labels = np.where(np.arange(VIDEOS) == 5, -1, LABELS)
    expected = np.zeros((CLASSES, CLASSES), int)
    for video in range(VIDEOS):
        if video not in (3, 5):
            expected[labels[video], max(range(CLASSES), key=lambda k: scores[video, k])] += 1
    np.testing.assert_array_equal(confusion_matrix(scores, labels), expected)
