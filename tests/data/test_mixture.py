from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.mixture import (
    MixedDataset,
    Order,
    Part,
    open_dataset,
    open_first,
    parts_in,
)
from adamae_jax.data.pipeline import Batch, eval_batches, train_batches
from adamae_jax.data.records import Dataset
from adamae_jax.data.stream import TrainStream
from adamae_jax.errors import UserError
from tests.data.fixtures import serialize, small_records, video, write_dataset

SPEC = ClipSpec(4, 1, (16, 16))
SIZES = (7, 3, 5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Datasets of 7, 3 and 5 records; record 2 of the last is damaged, and it has no masks."""
    root = tmp_path_factory.mktemp("mixture")
    third = [serialize(video(90 + k), f"third-{k}", 2) for k in range(5)]
    third[2] = b"\xff"
    return [
        write_dataset(root / "a", {"train": small_records(7)}),
        write_dataset(root / "b", {"train": small_records(3)}),
        write_dataset(root / "c", {"train": third}, with_masks=False, label_names=("x", "y", "z")),
    ]


def mixed(folders: list[Path], *weights: float) -> MixedDataset:
    parts = [Part(folder, weight) for folder, weight in zip(folders, weights, strict=False)]
    return MixedDataset(parts, "train")


def turns(order: Order, count: int) -> np.ndarray:
    return np.array([order.turn(position)[0] for position in range(count)])


@pytest.mark.parametrize(
    "weights",
    [(0.7, 0.1, 0.2), (3, 1, 2), (1 / 3, 2 / 3), (240436, 168913), (1, 1, 1), (2**0.5, 3**0.5, 1)],
)
def test_every_batch_holds_the_shares(folders: list[Path], weights: tuple[float, ...]) -> None:
    order = Order(mixed(folders, *weights), seed=1)
    expected = np.array(weights) / sum(weights)
    for first in (0, 7, 10**12):
        for count in (10, 100, 1000):
            found = order.turns_of_parts(first, count)
            assert sum(found) == count
            np.testing.assert_allclose(found, count * expected, atol=len(weights))


weight = st.floats(1e-3, 1e3)


@given(st.lists(weight, min_size=1, max_size=3), st.integers(0, 2**62))
def test_turns_are_counted_without_a_gap(
    folders: list[Path], weights: list[float], first: int
) -> None:
    order = Order(mixed(folders, *weights), seed=0)
    next_turns: dict[int, int] = {}
    for start in (0, first):
        next_turns = {0: 0, 1: 0, 2: 0} if not start else {}
        for position in range(start, start + 40):
            part, turn = order.turn(position)
            assert turn == next_turns.get(part, turn)
            next_turns[part] = turn + 1


@pytest.mark.parametrize("weights", [(0.587361, 0.412639), (1.4142135, 1.7320508)])
def test_an_epoch_has_every_record_once_whatever_the_weights(
    folders: list[Path], weights: tuple[float, ...]
) -> None:
    order = Order(mixed(folders, *weights), seed=1)
    for first in (0, 10**9):
        records = np.array([order.record(first + k) for k in range(400)])
        own = records[records < 7]
        start = next(k for k in range(7) if order.turn(first + k)[0] == 0)
        into = order.turn(first + start)[1] % 7
        for epoch in own[7 - into :][:140].reshape(-1, 7):
            assert sorted(epoch) == list(range(7))


def test_weights_may_be_of_any_size(folders: list[Path]) -> None:
    order = Order(mixed(folders, 2**0.5, 3**0.5, 5**0.5), seed=1)
    assert len({order.record(2**60 + k) for k in range(500)}) == 15
    order = Order(mixed(folders[:2], 1e300, 1.0), seed=1)
    assert {order.turn(k)[0] for k in range(1, 100)} == {0}
    with pytest.raises(UserError, match="must be above 0"):
        mixed(folders, 1.0, 1e-300)


def test_each_part_walks_through_epochs_of_its_own(folders: list[Path]) -> None:
    dataset = mixed(folders, 2, 1, 1)
    order = Order(dataset, seed=3)
    walks: dict[int, list[tuple[int, int]]] = {0: [], 1: [], 2: []}
    for position in range(400):
        part, turn = order.turn(position)
        assert order.record(position) in order.span(position)
        walks[part].append((turn, order.record(position)))
    first = 0
    for part, size in enumerate(SIZES):
        records = [record for _, record in sorted(walks[part])]
        epochs = [tuple(records[k : k + size]) for k in range(0, len(records) - size, size)]
        assert all(sorted(epoch) == list(range(first, first + size)) for epoch in epochs)
        assert len(set(epochs)) > min(4, len(epochs) // 2)
        first += size


def test_parts_of_the_same_size_have_orders_of_their_own(folders: list[Path]) -> None:
    order = Order(MixedDataset([Part(folders[0]), Part(folders[0])], "train"), seed=5)
    walks: dict[int, list[int]] = {0: [], 1: []}
    for _, position in sorted((order.turn(k), k) for k in range(140)):
        walks[order.turn(position)[0]].append(order.record(position) % 7)
    assert walks[0] != walks[1]


def test_a_mixture_of_one_is_that_one(folders: list[Path]) -> None:
    alone = TrainStream(Dataset(folders[0], "train"), SPEC, seed=3, videos_per_step=4)
    only = TrainStream(mixed(folders[:1], 5.0), SPEC, seed=3, videos_per_step=4)
    for position in (0, 6, 7, 10**9):
        for name, values in alone[position].items():
            np.testing.assert_array_equal(only[position][name], values)


def test_elements_say_whose_label_they_have(folders: list[Path]) -> None:
    dataset = mixed(folders, 2, 1, 1)
    stream = TrainStream(dataset, SPEC, seed=3, videos_per_step=4)
    assert len(dataset) == 15
    replaced = 0
    for position in range(60):
        element = stream[position]
        part, index = int(element["dataset_index"][0]), int(element["example_index"][0])
        assert dataset.part_of(index) == part == stream._order.turn(position)[0]
        own = index - (0, 7, 10)[part]
        assert element["label"][0] == (own % 3 if part < 2 else 2)
        assert "foreground" not in element  # not all of them have masks
        if element["replaced"][0]:
            replaced += 1
            assert part == 2 and element["bad_record"][0] == 12
    assert replaced >= 2
    assert dataset.where(12).startswith("record 2 of split 'train' (number 2 in ")
    assert mixed(folders[:2], 1, 1).has_foreground


def test_batches_of_a_mixture_for_any_workers_hosts_and_starts(folders: list[Path]) -> None:
    parts = [Part(folders[0], 2), Part(folders[2], 1)]

    def batches(first_step: int, steps: int, **options: Any) -> list[Batch]:
        with train_batches(
            open_dataset(parts, "train"), SPEC,
            seed=1, videos_per_step=8, first_step=first_step, num_steps=steps, **options,
        ) as stream:  # fmt: skip
            return list(stream)

    whole = batches(0, 5)
    late = batches(3, 2, num_workers=2)
    hosts = [batches(3, 2, process_index=p, process_count=2) for p in range(2)]
    for k in range(2):
        for name, values in whole[3 + k].items():
            np.testing.assert_array_equal(late[k][name], values)
            np.testing.assert_array_equal(np.concatenate([host[k][name] for host in hosts]), values)


def test_the_fingerprint_knows_parts_and_weights(folders: list[Path]) -> None:
    prints = {
        mixed(folders, 1, 1).fingerprint,
        mixed(folders, 1, 2).fingerprint,
        mixed(folders[1:], 1, 1).fingerprint,
        mixed(folders, 1, 1).fingerprint,
    }
    assert len(prints) == 3


def test_weights_in_the_same_proportion_are_the_same_mixture(folders: list[Path]) -> None:
    assert mixed(folders, 0.7, 0.3).fingerprint == mixed(folders, 7, 3).fingerprint
    assert mixed(folders, 0.7, 0.3).fingerprint != mixed(folders, 0.3, 0.7).fingerprint


def test_turns_of_parts_are_counted(folders: list[Path]) -> None:
    order = Order(mixed(folders, 2, 1, 1), seed=3)
    for first in range(11):
        expected = np.bincount(turns(order, 37)[first : first + 3], minlength=3)
        assert order.turns_of_parts(first, 3) == expected.tolist()


def test_classes_that_all_parts_have_are_the_mixtures(folders: list[Path]) -> None:
    assert mixed(folders[:2], 1, 1).label_names == ("a", "b", "c")
    assert mixed(folders, 1, 1, 1).label_names == ()


def test_words_name_a_mixture(folders: list[Path]) -> None:
    assert parts_in("gs://bucket:8/k400:0.7, /data/ssv2:3e-1") == (
        Part("gs://bucket:8/k400", 0.7),
        Part("/data/ssv2", 0.3),
    )
    for single in ("/data/k400", "gs://bucket/k400:0.7"):  # a colon alone makes no mixture
        assert parts_in(single) == (Part(single),)
    by_words = open_dataset(f"{folders[0]}:2,{folders[1]}:1", "train")
    assert by_words.fingerprint == mixed(folders, 2, 1).fingerprint


@pytest.mark.parametrize(
    "words",
    ["a,b", "a:1,b:", "a:1,:2", "a:1,", "a:1,b:x", "a:1,b:0", "a:1,b:-2", "a:1,b:nan", "s://a,b:1"],
)
def test_words_that_are_no_mixture_are_refused(words: str) -> None:
    with pytest.raises(UserError, match="is no DIR:WEIGHT with a weight above 0: write") as caught:
        parts_in(words)
    assert repr(words) in str(caught.value)


def test_the_first_part_is_evaluated(folders: list[Path]) -> None:
    words = f"{folders[1]}:1,{folders[0]}:9"
    with eval_batches(open_first(words, "train"), SPEC, batch_size=8) as batches:
        (batch,) = batches
    assert batch["example_index"].tolist() == [0, 1, 2] + [-1] * 5


def test_impossible_mixtures_are_refused(folders: list[Path]) -> None:
    with pytest.raises(UserError, match="a mixture of no datasets"):
        open_dataset([], "train")
    for weight in (0, -1, float("nan"), float("inf"), 1e-9):
        with pytest.raises(UserError, match=r"weights of the parts are .* must be above 0"):
            mixed(folders, 1, weight)
    with pytest.raises(UserError, match="no split 'test'"):
        open_dataset([(folders[0], 1.0)], "test")  # type: ignore[list-item]
