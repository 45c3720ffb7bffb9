from pathlib import Path

import numpy as np
import pytest

from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.damage import EvaluationDamage, TrainingDamage
from adamae_jax.data.pipeline import Batch, eval_batches, train_batches
from adamae_jax.data.records import Dataset
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
        directory, "train", SPEC, seed=1, videos_per_step=8, first_step=0, num_steps=steps
    ) as batches:
        for batch in batches:
            damage.see(batch)


def batch_of(bad: list[int]) -> Batch:
    return {"bad_record": np.array(bad, np.int32), "repeat": np.zeros(len(bad), np.int32)}


def test_a_run_goes_on_over_as_much_damage_as_is_allowed(directory: Path, tmp_path: Path) -> None:
    damage = TrainingDamage(Dataset(directory, "train"), 3 / 40, tmp_path / "bad.txt")
    watch(directory, damage, steps=25)  # five epochs
    assert damage.records == set(DAMAGED)
    assert not (tmp_path / "bad.txt").exists()


def test_more_than_allowed_ends_the_run_with_the_list(directory: Path, tmp_path: Path) -> None:
    listing = tmp_path / "deep" / "bad.txt"
    damage = TrainingDamage(Dataset(directory, "train"), 2 / 40, listing)
    with pytest.raises(UserError) as caught:
        watch(directory, damage, steps=25)
    message = str(caught.value)
    assert "3 damaged records of 40 records are more than max_bad_fraction 0.05 allows" in message
    assert "(number 3 in " in message and "(number 1 in " in message
    assert "it is no tf.train.Example" in message
    assert "'video-8': frame 0 is no JPEG" in message
    assert str(listing) in message
    lines = listing.read_text().splitlines()
    assert [line.split()[1] for line in lines] == ["3", "8", "21"]


def test_only_a_fraction_of_0_minds_a_single_one(directory: Path, tmp_path: Path) -> None:
    dataset = Dataset(directory, "train")
    lenient = TrainingDamage(dataset, 0.001, tmp_path / "bad.txt")
    lenient.see(batch_of([-1, 3, -1]))
    lenient.see(batch_of([3]))
    with pytest.raises(UserError, match="2 damaged records of 40"):
        lenient.see(batch_of([8]))
    strict = TrainingDamage(dataset, 0, tmp_path / "bad.txt")
    strict.see(batch_of([-1, -1]))
    with pytest.raises(UserError, match="1 damaged records of 40"):
        strict.see(batch_of([21]))


class Many:
    """A hundred thousand records, none of which can be read."""

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> None:
        raise OSError(f"no record {index}")

    def where(self, index: int) -> str:
        return f"record {index}"


def epoch_of_one_host(damaged: int, seed: int, hosts: int = 8) -> list[Batch]:
    """What one of 8 hosts meets in an epoch of `Many`, of which so many are damaged."""
    order = np.random.default_rng(seed).permutation(100_000)[: 100_000 // hosts]
    bad = np.where(order < damaged, order, -1)
    return [batch_of(part.tolist()) for part in np.split(bad, 100)]


def test_a_host_among_many_knows_early_and_does_not_cry_wolf(tmp_path: Path) -> None:
    listing = tmp_path / "bad.txt"
    good = TrainingDamage(Many(), 0.01, listing, process_count=8)  # type: ignore[arg-type]
    for seed in range(30):  # 1,000 may be damaged, and one by one this host meets all that are
        for batch in epoch_of_one_host(1000, seed):
            good.see(batch)
    assert len(good.records) > 950
    bad = TrainingDamage(Many(), 0.01, listing, process_count=8)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"of at most 12500 records that this host has read"):
        for batch in epoch_of_one_host(2000, 0):
            bad.see(batch)
    assert 125 < len(bad.records) < 250


def test_a_long_list_is_cut_in_the_message_only(tmp_path: Path) -> None:
    damage = TrainingDamage(Many(), 0.0001, tmp_path / "bad.txt")  # type: ignore[arg-type]
    with pytest.raises(UserError) as caught:
        damage.see(batch_of(list(range(500, 550))))
    assert "record 509: no record 509; and 40 more (all are listed in " in str(caught.value)
    assert "record 510" not in str(caught.value)
    assert (tmp_path / "bad.txt").read_text().splitlines()[10] == "record 510"


def test_a_list_that_cannot_be_written_is_no_second_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    damage = TrainingDamage(Many(), 0, tmp_path / "file" / "bad.txt")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"record 7: .*the list could not be written to"):
        damage.see(batch_of([7]))


def test_an_evaluation_fails_above_the_fraction(directory: Path, tmp_path: Path) -> None:
    dataset = Dataset(directory, "train")
    strict = EvaluationDamage(dataset, 2 / 40, tmp_path / "bad.txt")
    lenient = EvaluationDamage(dataset, 3 / 40, tmp_path / "bad.txt")
    unreadable = total = 0
    with eval_batches(directory, "train", SPEC, batch_size=16) as batches:
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
def test_impossible_fractions_are_refused(directory: Path, tmp_path: Path, fraction: float) -> None:
    for kind in (TrainingDamage, EvaluationDamage):
        with pytest.raises(UserError, match="max_bad_fraction is .* from 0 to 1"):
            kind(Dataset(directory, "train"), fraction, tmp_path / "bad.txt")
