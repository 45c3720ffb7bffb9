from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from absl import logging

from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.damage import Damage, DamageWatch
from adamae_jax.data.records import Dataset
from adamae_jax.data.stream import Element
from adamae_jax.errors import UserError
from tests.data.fixtures import evaluation, serialize, small_records, training, video, write_dataset

COUNT = 40
DAMAGED = (3, 8, 21)
SPEC = ClipSpec(6, 1, (16, 16))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Records 3 and 21 are no examples, and record 8 has damaged frames."""
    records = small_records(COUNT, with_masks=False)
    records[3] = records[21] = b"\xff"
    records[8] = serialize(video(8), "video-8", frames=[b"rubbish"] * 6)
    path = tmp_path_factory.mktemp("dataset")
    write_dataset(path, {"train": records}, shards=2, with_masks=False)
    return Dataset(path, "train")


class Many:
    """A hundred thousand records in files of a thousand."""

    def where(self, index: int) -> str:
        return f"record {index} ({index % 1000} in /data/x-{index // 1000})"


def see(damage: DamageWatch, batch: Element, total: int = 100_000) -> None:
    """As a training does it."""
    damage.see(batch)
    damage.check(damage.count, total)


def watch(dataset: Dataset, damage: DamageWatch, steps: int = 25) -> None:
    """Five epochs, unless it ends before."""
    with training(
        dataset, SPEC, seed=1, videos_per_step=8, first_step=0, num_steps=steps
    ) as batches:
        for batch in batches:
            see(damage, batch, COUNT)


def evaluated(dataset: Dataset, damage: DamageWatch) -> tuple[int, int]:
    """How many videos cannot be read, and how many there are."""
    unreadable = total = 0
    with evaluation(dataset, SPEC, batch_size=16) as batches:
        for batch in batches:
            damage.see(batch)
            unreadable += int(batch["unreadable"].sum())
            total += int((batch["valid"] | batch["unreadable"]).sum())
    return unreadable, total


def batch_of(bad: Sequence[int]) -> Element:
    damage = [Damage.NONE if index < 0 else Damage.CHECKSUM for index in bad]
    return {"bad_record": np.array(bad, np.int32), "damage": np.array(damage, np.int32)}


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged as a warning."""
    lines: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
    return lines


def test_each_record_is_listed_and_logged_once(
    dataset: Dataset, tmp_path: Path, logged: list[str]
) -> None:
    path = tmp_path / "run" / "bad.txt"
    damage = DamageWatch(dataset, 3 / 40, path)
    watch(dataset, damage)
    assert damage.count == len(DAMAGED)
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(
        f"{dataset.where(index)}: {words}"
        for index, words in {
            3: "its features are not those of the dataset",
            8: "its frames cannot be decoded",
            21: "its features are not those of the dataset",
        }.items()
    )
    assert len(logged) == 3
    assert all(text.startswith("damaged, replaced by another: record ") for text in logged)
    assert all(text.endswith(f"; all are listed in {path}") for text in logged)
    # Nor a second time by an evaluation of the same records, or after the run has been restarted.
    evaluated(dataset, DamageWatch(dataset, 1, path))
    assert len(logged) == 3 and path.read_text().splitlines() == lines


def test_a_training_and_its_evaluation_share_the_list(tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    training, evaluation = DamageWatch(Many(), 1, path), DamageWatch(Many(), 1, path)
    training.see(batch_of([1]))
    evaluation.see(batch_of([2, 1]))
    training.see(batch_of([3]))
    assert [int(line.split()[1]) for line in path.read_text().splitlines()] == [1, 2, 3]


def test_what_an_evaluation_meets_is_logged_and_listed_too(
    dataset: Dataset, tmp_path: Path, logged: list[str]
) -> None:
    path = tmp_path / "bad.txt"
    evaluated(dataset, DamageWatch(dataset, 1, path))
    lines = path.read_text().splitlines()
    assert [int(line.split()[1]) for line in lines] == [3, 8, 21]
    assert [text.split(": ")[0] for text in logged] == ["damaged, left out of the evaluation"] * 3


def test_more_than_allowed_ends_the_run_with_the_list(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "bad.txt"
    with pytest.raises(UserError) as caught:
        watch(dataset, DamageWatch(dataset, 2 / 40, path))
    message = str(caught.value)
    assert "3 damaged records of 40 are more than max_bad_fraction 0.05 allows" in message
    assert "(number 3 in " in message and "(number 1 in " in message
    assert "its frames cannot be decoded" in message and f"all are listed in {path}" in message
    assert sorted(int(line.split()[1]) for line in path.read_text().splitlines()) == [3, 8, 21]


def test_only_a_fraction_of_0_minds_a_single_one(tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    lenient = DamageWatch(Many(), 1e-6, path)
    see(lenient, batch_of([-1, 3, -1]))
    see(lenient, batch_of([3]))
    with pytest.raises(UserError, match="2 damaged records of 100000"):
        see(lenient, batch_of([8]))
    strict = DamageWatch(Many(), 0, path)
    see(strict, batch_of([-1, -1]))
    with pytest.raises(UserError, match="1 damaged records of 100000"):
        see(strict, batch_of([21]))


def test_a_long_list_is_cut_in_the_message_only(tmp_path: Path, logged: list[str]) -> None:
    damage = DamageWatch(Many(), 0.0001, tmp_path / "bad.txt")
    with pytest.raises(UserError) as caught:
        see(damage, batch_of(range(500, 550)))
    assert "record 509 (509 in /data/x-0): its checksum does not match" in str(caught.value)
    assert "its content; and 40 more (all are listed in " in str(caught.value)
    assert "record 510" not in str(caught.value)
    assert len((tmp_path / "bad.txt").read_text().splitlines()) == 50
    assert len(logged) == 10


def test_a_list_that_cannot_be_written_is_no_second_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    damage = DamageWatch(Many(), 0, tmp_path / "file" / "bad.txt")
    with pytest.raises(UserError, match=r"record 7 .*the list could not be written to"):
        see(damage, batch_of([7]))


def test_an_evaluation_fails_above_the_fraction(dataset: Dataset, tmp_path: Path) -> None:
    damage = DamageWatch(dataset, 2 / 40, tmp_path / "bad.txt")
    assert evaluated(dataset, damage) == (3, COUNT)
    damage.check(2, COUNT)
    with pytest.raises(UserError, match=r"3 damaged records of 40 are .* its frames cannot"):
        damage.check(3, COUNT)
    with pytest.raises(UserError, match="4 that other processes read and list: copy"):
        damage.check(7, COUNT)


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_impossible_fractions_are_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(UserError, match="max_bad_fraction is .* from 0 to 1"):
        DamageWatch(Many(), fraction, tmp_path / "bad.txt")
