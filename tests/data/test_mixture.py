from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.mixture import MixedDataset, Part, open_dataset, open_first, parts_in
from adamae_jax.data.order import record_order
from adamae_jax.data.records import Dataset
from adamae_jax.data.stream import Element, TrainClips, train_stream
from adamae_jax.errors import UserError
from tests.data.fixtures import evaluation, serialize, small_records, training, video, write_dataset

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


@pytest.mark.parametrize(
    "weights", [(0.7, 0.1, 0.2), (1 / 3, 2 / 3), (240436, 168913), (1, 1, 1), (2**0.5, 3**0.5, 1)]
)
def test_every_batch_holds_the_shares(folders: list[Path], weights: tuple[float, ...]) -> None:
    dataset = mixed(folders, *weights)
    order = record_order(dataset, seed=1)
    expected = np.array(weights) / sum(weights)
    for first in (0, 7, 10**12):
        for count in (10, 100, 1000):
            parts = [dataset.part_of(order[first + k]) for k in range(count)]
            found = np.bincount(parts, minlength=len(weights))
            # Grain rounds shares to hundredths of the smallest weight.
            np.testing.assert_allclose(found, count * expected, atol=2 + count / 200)


def test_each_part_walks_through_epochs_and_orders_of_its_own(folders: list[Path]) -> None:
    dataset = MixedDataset([Part(folders[0], 2), Part(folders[1]), Part(folders[0])], "train")
    order = record_order(dataset, seed=3)
    walks: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for position in range(400):
        walks[dataset.part_of(order[position])].append(order[position])
    for part, (first, size) in enumerate(((0, 7), (7, 3), (10, 7))):
        records = walks[part]
        epochs = [tuple(records[k : k + size]) for k in range(0, len(records) - size, size)]
        assert all(sorted(epoch) == list(range(first, first + size)) for epoch in epochs)
        assert len(set(epochs)) > min(4, len(epochs) // 2)
    # The same dataset twice, in other orders; nor is one the other's of some epochs later.
    once, again = ([record % 10 for record in walks[part][:70]] for part in (0, 2))
    assert all(once[7 * k : 7 * k + 28] != again[:28] for k in range(6))


def test_a_mixture_of_one_is_that_one(folders: list[Path]) -> None:
    alone = train_stream(TrainClips(Dataset(folders[0], "train"), SPEC, 3, 4))
    only = train_stream(TrainClips(mixed(folders[:1], 5.0), SPEC, 3, 4))
    for position in (0, 6, 7, 10**9):
        for name, values in alone[position].items():
            np.testing.assert_array_equal(only[position][name], values)


def test_elements_have_their_part_s_label_and_substitutes(folders: list[Path]) -> None:
    dataset = mixed(folders, 2, 1, 1)
    stream, order = train_stream(TrainClips(dataset, SPEC, 3, 4)), record_order(dataset, 3)
    assert len(dataset) == 15
    replaced = 0
    for position in range(60):
        element = stream[position]
        index = int(element["example_index"][0])
        part = dataset.part_of(index)
        assert part == dataset.part_of(order[position])
        own = index - (0, 7, 10)[part]
        assert element["label"][0] == (own % 3 if part < 2 else 2)
        assert "foreground" not in element  # not all of them have masks
        if element["replaced"][0]:
            replaced += 1
            assert part == 2 and element["bad_record"][0] == 12
    assert replaced >= 2
    assert dataset.where(12).startswith("record 2 of split 'train' (number 2 in ")
    assert dataset.place(12) == (dataset.datasets[2].place(2))
    assert mixed(folders[:2], 1, 1).has_foreground


def test_batches_of_a_mixture_for_any_hosts_and_starts(folders: list[Path]) -> None:
    parts = [Part(folders[0], 2), Part(folders[2], 1)]

    def batches(first_step: int, steps: int, **options: Any) -> list[Element]:
        with training(
            open_dataset(parts, "train"), SPEC,
            seed=1, videos_per_step=8, first_step=first_step, num_steps=steps, **options,
        ) as stream:  # fmt: skip
            return list(stream)

    whole = batches(0, 5)
    parts_of_hosts = [batches(3, 2, host=host, num_hosts=2) for host in range(2)]
    for k in range(2):
        for name, values in whole[3 + k].items():
            found = np.concatenate([part[k][name] for part in parts_of_hosts])
            np.testing.assert_array_equal(found, values)


def test_the_fingerprint_knows_parts_and_shares(folders: list[Path]) -> None:
    prints = {
        mixed(folders, 1, 1).fingerprint,
        mixed(folders, 1, 2).fingerprint,
        mixed(folders[1:], 1, 1).fingerprint,
        mixed(folders, 0.7, 0.3).fingerprint,
        mixed(folders, 0.3, 0.7).fingerprint,
    }
    assert len(prints) == 5
    assert mixed(folders, 0.7, 0.3).fingerprint == mixed(folders, 7, 3).fingerprint


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


@pytest.mark.parametrize("words", ["a,b", "a:1,:2", "a:1,", "a:1,b:x", "a:1,b:0", "a:1,b:nan"])
def test_words_that_are_no_mixture_are_refused(words: str) -> None:
    with pytest.raises(UserError, match="is no DIR:WEIGHT with a weight above 0: write") as caught:
        parts_in(words)
    assert repr(words) in str(caught.value)


def test_the_first_part_is_evaluated(folders: list[Path]) -> None:
    words = f"{folders[1]}:1,{folders[0]}:9"
    with evaluation(open_first(words, "train"), SPEC, batch_size=8) as batches:
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
