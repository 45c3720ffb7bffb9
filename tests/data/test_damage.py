from pathlib import Path

import numpy as np
import pytest
from absl import logging

from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.damage import EvaluationDamage, Listing, TrainingDamage
from adamae_jax.data.pipeline import Batch, eval_batches, train_batches
from adamae_jax.data.records import Dataset
from adamae_jax.data.stream import REASON
from adamae_jax.errors import UserError
from tests.data.fixtures import serialize, small_records, video, write_dataset

COUNT = 40
DAMAGED = (3, 8, 21)
SPEC = ClipSpec(6, 1, (16, 16))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records 3 and 21 are no examples, and record 8 has damaged frames."""
    records = small_records(COUNT, with_masks=False)
    records[3] = records[21] = b"\xff"
    records[8] = serialize(video(8), "video-8", frames=[b"rubbish"] * 6)
    path = tmp_path_factory.mktemp("dataset")
    return write_dataset(path, {"train": records}, shards=2, with_masks=False)


def watch(directory: Path, damage: TrainingDamage, steps: int) -> None:
    with train_batches(
        Dataset(directory, "train"), SPEC, seed=1, videos_per_step=8, first_step=0, num_steps=steps
    ) as batches:
        for batch in batches:
            damage.see(batch)


def batch_of(bad: list[int]) -> Batch:
    reasons = [f"record {index}: it is torn" if index >= 0 else "" for index in bad]
    return {
        "bad_record": np.array(bad, np.int32),
        "bad_reason": np.array([reason.encode() for reason in reasons], REASON),
        "repeat": np.zeros(len(bad), np.int32),
    }


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged as a warning."""
    lines: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
    return lines


def test_a_run_goes_on_over_as_much_damage_as_is_allowed(directory: Path, tmp_path: Path) -> None:
    damage = TrainingDamage(COUNT, 3 / 40, Listing(tmp_path / "bad.txt"))
    watch(directory, damage, steps=25)  # five epochs
    assert damage.records == set(DAMAGED)


ONLY_COUNTED = "; others of this file are not logged: all are listed in "


def test_each_record_is_listed_once_and_the_first_of_a_shard_logged(
    directory: Path, tmp_path: Path, logged: list[str]
) -> None:
    path = tmp_path / "run" / "bad.txt"
    watch(directory, TrainingDamage(COUNT, 1, Listing(path)), steps=25)  # five epochs
    dataset = Dataset(directory, "train")
    lines = path.read_text().splitlines()
    assert sorted(int(line.split()[1]) for line in lines) == [3, 8, 21]
    firsts = {"-0000" + line.partition("-0000")[2][:1]: line for line in reversed(lines)}
    assert sorted(logged) == sorted(
        f"replaced by another record: {line}{ONLY_COUNTED}{path}" for line in firsts.values()
    )
    assert len(logged) == 2
    assert {line.startswith(dataset.where(int(line.split()[1]))) for line in lines} == {True}
    assert sum("'video-8': frame 0 is no JPEG" in line for line in lines) == 1
    # Nor a second time by an evaluation of the same records, or after the run has been restarted.
    for listing in (Listing(path), Listing(path)):
        damage = EvaluationDamage(1, listing)
        for _ in range(2):
            with eval_batches(dataset, SPEC, batch_size=16) as batches:
                for batch in batches:
                    damage.see(batch)
    assert len(logged) == 2 and path.read_text().splitlines() == lines


def test_what_an_evaluation_meets_is_logged_and_listed_too(
    directory: Path, tmp_path: Path, logged: list[str]
) -> None:
    damage = EvaluationDamage(1, Listing(tmp_path / "bad.txt"))
    with eval_batches(Dataset(directory, "train"), SPEC, batch_size=16) as batches:
        damage.see(next(batches))
    lines = (tmp_path / "bad.txt").read_text().splitlines()
    assert [line.split()[1] for line in lines] == ["3", "8"]
    (text,) = logged
    assert text == f"left out of the evaluation: {lines[0]}{ONLY_COUNTED}{tmp_path / 'bad.txt'}"


def where(number: int, shard: str = "/data (1)/new: a, b/x.tfrecord-00000-of-00002") -> str:
    """As `Dataset.where` words it."""
    return f"record {number} of split 'a (b)' (number {number} in {shard})"


@pytest.mark.parametrize("rest", [": it is torn", ", 'video-3': frame 0 (of 2): torn", ""])
def test_a_thousand_damaged_records_of_a_shard_are_one_line_of_the_log(
    tmp_path: Path, logged: list[str], rest: str
) -> None:
    path = tmp_path / "bad.txt"
    listing = Listing(path)
    for number in range(1000):
        listing.add(where(number) + rest, "left out")
    assert logged == [f"left out: {where(0)}{rest}{ONLY_COUNTED}{path}"]
    listing = Listing(path)  # of a run that has been started again
    listing.add(where(1000) + rest, "left out")
    listing.add(where(1001, "/data (1)/new: a, b/x.tfrecord-00001-of-00002") + rest, "left out")
    assert len(path.read_text().splitlines()) == 1002
    assert len(logged) == 2 and "record 1001 " in logged[1]


def test_what_cannot_be_listed_or_lies_in_no_shard_is_logged(
    tmp_path: Path, logged: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "bad.txt", tmp_path / "bad.txt"):
        listing = Listing(path)
        for number in range(3):
            known = where(number) if path.parent != tmp_path else f"video {number}"
            listing.add(f"{known}: it is torn", "left out")
            assert logged.pop() == f"left out: {known}: it is torn"
    assert logged == []


def test_more_than_allowed_ends_the_run_with_the_list(directory: Path, tmp_path: Path) -> None:
    listing = tmp_path / "deep" / "bad.txt"
    damage = TrainingDamage(COUNT, 2 / 40, Listing(listing))
    with pytest.raises(UserError) as caught:
        watch(directory, damage, steps=25)
    message = str(caught.value)
    assert "3 damaged records of 40 records are more than max_bad_fraction 0.05 allows" in message
    assert "(number 3 in " in message and "(number 1 in " in message
    assert "it is no tf.train.Example" in message
    assert "'video-8': frame 0 is no JPEG" in message
    assert str(listing) in message
    lines = listing.read_text().splitlines()
    assert sorted(int(line.split()[1]) for line in lines) == [3, 8, 21]


def test_only_a_fraction_of_0_minds_a_single_one(tmp_path: Path) -> None:
    listing = Listing(tmp_path / "bad.txt")
    lenient = TrainingDamage(COUNT, 0.001, listing)
    lenient.see(batch_of([-1, 3, -1]))
    lenient.see(batch_of([3]))
    with pytest.raises(UserError, match="2 damaged records of 40"):
        lenient.see(batch_of([8]))
    strict = TrainingDamage(COUNT, 0, listing)
    strict.see(batch_of([-1, -1]))
    with pytest.raises(UserError, match="1 damaged records of 40"):
        strict.see(batch_of([21]))


MANY = 100_000


def epoch_of_one_host(damaged: int, seed: int, hosts: int = 8) -> list[Batch]:
    """What one of 8 hosts meets in an epoch of `MANY`, of which so many are damaged."""
    order = np.random.default_rng(seed).permutation(MANY)[: MANY // hosts]
    bad = np.where(order < damaged, order, -1)
    return [batch_of(part.tolist()) for part in np.split(bad, 100)]


def test_a_host_among_many_knows_early_and_does_not_cry_wolf(tmp_path: Path) -> None:
    listing = Listing(tmp_path / "bad.txt")
    good = TrainingDamage(MANY, 0.01, listing, process_count=8)
    for seed in range(30):  # 1,000 may be damaged, and one by one this host meets all that are
        for batch in epoch_of_one_host(1000, seed):
            good.see(batch)
    assert len(good.records) > 950
    bad = TrainingDamage(MANY, 0.01, listing, process_count=8)
    with pytest.raises(UserError, match=r"of at most 12500 records that this host has read"):
        for batch in epoch_of_one_host(2000, 0):
            bad.see(batch)
    assert 125 < len(bad.records) < 250


def test_a_long_list_is_cut_in_the_message_only(tmp_path: Path) -> None:
    damage = TrainingDamage(MANY, 0.0001, Listing(tmp_path / "bad.txt"))
    with pytest.raises(UserError) as caught:
        damage.see(batch_of(list(range(500, 550))))
    assert "record 509: it is torn; and 40 more (all are listed in " in str(caught.value)
    assert "record 510" not in str(caught.value)
    assert "record 510: it is torn" in (tmp_path / "bad.txt").read_text().splitlines()


def test_a_list_that_cannot_be_written_is_no_second_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    damage = TrainingDamage(MANY, 0, Listing(tmp_path / "file" / "bad.txt"))
    with pytest.raises(UserError, match=r"record 7: .*the list could not be written to"):
        damage.see(batch_of([7]))


def test_an_evaluation_fails_above_the_fraction(directory: Path, tmp_path: Path) -> None:
    dataset = Dataset(directory, "train")
    strict = EvaluationDamage(2 / 40, Listing(tmp_path / "bad.txt"))
    lenient = EvaluationDamage(3 / 40, Listing(tmp_path / "lenient.txt"))
    unreadable = total = 0
    with eval_batches(dataset, SPEC, batch_size=16) as batches:
        for batch in batches:
            unreadable += int(batch["unreadable"].sum())
            total += int((batch["valid"] | batch["unreadable"]).sum())
            strict.see(batch)
            lenient.see(batch)
    assert (unreadable, total) == (3, COUNT)
    lenient.check(unreadable, total)
    with pytest.raises(UserError, match=r"3 damaged records of 40 evaluated .* 'video-8': frame 0"):
        strict.check(unreadable, total)
    assert len((tmp_path / "bad.txt").read_text().splitlines()) == 3


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_impossible_fractions_are_refused(tmp_path: Path, fraction: float) -> None:
    listing = Listing(tmp_path / "bad.txt")
    with pytest.raises(UserError, match="max_bad_fraction is .* from 0 to 1"):
        TrainingDamage(COUNT, fraction, listing)
    with pytest.raises(UserError, match="max_bad_fraction is .* from 0 to 1"):
        EvaluationDamage(fraction, listing)
