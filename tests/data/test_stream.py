import dataclasses
import pickle
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest
import simplejpeg

from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.damage import BadRecordError, Damage
from adamae_jax.data.examples import Record
from adamae_jax.data.order import record_order
from adamae_jax.data.records import Dataset
from adamae_jax.data.schema import UNLABELLED
from adamae_jax.data.stream import (
    Element,
    EvalClips,
    HostSlice,
    TrainClips,
    eval_stream,
    train_stream,
)
from adamae_jax.errors import UserError
from tests.data.fixtures import serialize, small_records, video, write_dataset

COUNT = 7
NUMBERS = ("label", "example_index", "slot", "repeat", "replaced", "bad_record", "damage")
SPEC = ClipSpec(4, 1, (16, 16))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    directory = tmp_path_factory.mktemp("dataset")
    return Dataset(write_dataset(directory, {"train": small_records(COUNT)}, shards=2), "train")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Record 2 is no example, and record 4 has damaged frames."""
    records = small_records(COUNT, with_masks=False)
    records[2] = b"\xff"
    records[4] = serialize(video(4), "video-4", frames=[b"rubbish"] * 6)
    directory = tmp_path_factory.mktemp("damaged")
    return Dataset(write_dataset(directory, {"train": records}, with_masks=False), "train")


def make_stream(
    dataset: Dataset, seed: int = 3, videos_per_step: int = 3, **options: Any
) -> grain.MapDataset[Element]:
    return train_stream(TrainClips(dataset, SPEC, seed, videos_per_step, **options))


def evaluate(dataset: Dataset, **options: Any) -> list[Element]:
    """Two batches of an evaluation."""
    stream = eval_stream(EvalClips(dataset, SPEC, **options))
    return [stream[position] for position in range(2 * options["batch_size"])]


def assert_same(first: Element, second: Element) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def test_elements_say_what_they_are(dataset: Dataset) -> None:
    stream, order = make_stream(dataset), record_order(dataset, seed=3)
    for position in range(2 * COUNT):
        element = stream[position]
        assert element["video"].shape == (1, *SPEC.video_shape)
        assert element["foreground"].shape == (1, *SPEC.foreground_shape)
        assert element["example_index"] == order[position]
        assert element["label"] == order[position] % 3
        assert element["slot"] == position % 3
        assert element["repeat"] == element["replaced"] == element["damage"] == 0
        assert element["bad_record"] == -1
        assert {(element[name].shape, element[name].dtype) for name in NUMBERS} == {
            ((1,), np.dtype(np.int32))
        }


def test_repeats_are_added_to_a_video(dataset: Dataset) -> None:
    once, thrice = make_stream(dataset), make_stream(dataset, repeats=3)
    for position in range(2 * COUNT):
        element = thrice[position]
        assert element["repeat"].tolist() == [0, 1, 2]
        for name in ("label", "example_index", "slot", "replaced"):
            assert element[name].tolist() == once[position][name].tolist() * 3
        assert_same({name: values[:1] for name, values in element.items()}, once[position])
    clips = {clip.tobytes() for position in range(COUNT) for clip in thrice[position]["video"]}
    assert len(clips) == 3 * COUNT


def test_repeats_may_share_their_frames(tmp_path: Path) -> None:
    """Those of the first clip; crops are those that the clips have anyway."""
    records = [serialize(video(number, 20)) for number in range(3)]
    dataset = Dataset(write_dataset(tmp_path, {"train": records}, with_masks=False), "train")
    whole = ClipSpec(4, 1, (24, 32), "none")
    cut = ClipSpec(4, 1, (24, 32), "random_resized", crop_area=(0.2, 0.4))
    starts = []
    for position in range(6):
        own, shared, crops = (
            train_stream(TrainClips(dataset, spec, 3, 3, repeats=4))[position]["video"]
            for spec in (
                whole,
                dataclasses.replace(whole, shared_frames=True),
                dataclasses.replace(cut, shared_frames=True),
            )
        )
        assert len({clip.tobytes() for clip in own}) > 1
        for clip in shared:
            np.testing.assert_array_equal(clip, own[0])
        assert len({clip.tobytes() for clip in crops}) > 2
        # The red channel counts frames: 10 * number + 5.
        numbers = np.round((crops[..., 0].mean((2, 3)) - 5) / 10)
        assert (numbers == numbers[0]).all()
        starts.append(numbers[0, 0])
    assert len(set(starts)) > 2


def test_a_video_is_read_once_for_all_repeats(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    read = Dataset.__getitem__

    def noted(self: Dataset, index: int) -> Record:
        reads.append(index)
        return read(self, index)

    monkeypatch.setattr(Dataset, "__getitem__", noted)
    element = make_stream(dataset, repeats=4)[5]
    assert reads == [element["example_index"][0]]


def test_a_frame_that_is_bad_for_one_repeat_replaces_the_video(tmp_path: Path) -> None:
    # Of record 1 the last frame is damaged, which some clips of 4 frames need and some do not.
    records = small_records(4, with_masks=False)
    jpegs = [simplejpeg.encode_jpeg(frame) for frame in video(1)]
    records[1] = serialize(video(1), "video-1", frames=[*jpegs[:-1], b"rubbish"])
    dataset = Dataset(write_dataset(tmp_path, {"train": records}, with_masks=False), "train")
    once, twice = make_stream(dataset), make_stream(dataset, repeats=2)
    fates = set()
    for position in range(60):
        element = twice[position]
        assert len(set(element["example_index"].tolist())) == 1
        assert len(set(element["replaced"].tolist())) == 1
        if record_order(dataset, 3)[position] == 1:
            fates.add((not once[position]["replaced"].any(), not element["replaced"].any()))
    assert fates == {(True, False), (True, True), (False, False)}


def test_an_element_depends_on_seed_and_position_only(dataset: Dataset) -> None:
    backwards = {position: make_stream(dataset)[position] for position in (11, 5, 0)}
    stream = pickle.loads(pickle.dumps(make_stream(dataset)))
    for position in range(12):
        element = stream[position]
        if position in backwards:
            assert_same(element, backwards[position])
    others = make_stream(dataset, videos_per_step=5)
    np.testing.assert_array_equal(others[11]["video"], backwards[11]["video"])
    reseeded = make_stream(dataset, seed=4)
    assert any((reseeded[k]["video"] != stream[k]["video"]).any() for k in range(3))


def test_augmentation_changes_from_epoch_to_epoch(dataset: Dataset) -> None:
    elements = [make_stream(dataset)[position] for position in range(5 * COUNT)]
    clips = {e["video"].tobytes() for e in elements if e["example_index"] == 0}
    assert len(clips) >= 4


def test_damaged_records_are_replaced_where_they_stand(damaged: Dataset) -> None:
    order = record_order(damaged, 3)
    wanted = [order[position] for position in range(6 * COUNT)]
    elements = [make_stream(damaged)[position] for position in range(6 * COUNT)]
    used = [int(element["example_index"][0]) for element in elements]
    replaced = [int(element["replaced"][0]) for element in elements]
    assert set(wanted) == set(range(COUNT))
    assert not {2, 4} & set(used)
    for before, after, count in zip(wanted, used, replaced, strict=True):
        assert (count > 0) == (before in (2, 4))
        assert count or before == after
    bad = [int(element["bad_record"][0]) for element in elements]
    assert bad == [before if before in (2, 4) else -1 for before in wanted]
    kinds = {-1: Damage.NONE, 2: Damage.FEATURES, 4: Damage.FRAMES}
    assert [element["damage"][0] for element in elements] == [kinds[index] for index in bad]
    assert len({after for after, count in zip(used, replaced, strict=True) if count}) > 2
    for position in reversed(range(6 * COUNT)):
        assert_same(make_stream(damaged)[position], elements[position])


def test_damage_can_be_raised_instead(damaged: Dataset) -> None:
    position = next(p for p in range(COUNT) if record_order(damaged, 3)[p] == 4)
    with pytest.raises(BadRecordError, match=r"record 4 of split .*'video-4': frame \d is no JPEG"):
        make_stream(damaged, on_error="raise")[position]


def test_nothing_but_damage_ends_the_stream(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": [b"\xff"] * 3}, with_masks=False)
    complaint = "16 damaged records in a row at position 1 .*: record . of .* no tf.train.Example"
    with pytest.raises(BadRecordError, match=complaint):
        make_stream(Dataset(tmp_path, "train"))[1]


def test_impossible_streams_are_refused(dataset: Dataset) -> None:
    changes: dict[str, dict[str, Any]] = {
        "seed is -1": {"seed": -1},
        "repeats is 0, but must be at least 1": {"repeats": 0},
        "on_error is 'skip', but must be one of: replace, raise": {"on_error": "skip"},
    }
    for complaint, options in changes.items():
        with pytest.raises(UserError, match=complaint):
            make_stream(dataset, **options)


def test_evaluation_is_in_order_then_filled_up(dataset: Dataset) -> None:
    elements = evaluate(dataset, batch_size=4, num_examples=6)
    joined = {name: np.concatenate([e[name] for e in elements]) for name in elements[0]}
    assert joined["example_index"].tolist() == [0, 1, 2, 3, 4, 5, -1, -1]
    assert joined["label"].tolist() == [0, 1, 2, 0, 1, 2, UNLABELLED, UNLABELLED]
    assert joined["valid"].tolist() == [True] * 6 + [False] * 2
    assert not joined["unreadable"].any()
    assert joined["slot"].tolist() == [0, 1, 2, 3] * 2
    assert elements[0]["video"].any()
    assert not elements[7]["video"].any()
    shapes = [{name: (v.shape, v.dtype) for name, v in e.items()} for e in elements]
    assert all(shape == shapes[0] for shape in shapes)


def test_unreadable_videos_are_marked_not_replaced(damaged: Dataset) -> None:
    elements = evaluate(damaged, batch_size=4, num_examples=COUNT)[:COUNT]
    assert [e["example_index"].tolist() for e in elements] == [[k] for k in range(COUNT)]
    assert [k for k, e in enumerate(elements) if not e["valid"]] == [2, 4]
    assert [k for k, e in enumerate(elements) if e["unreadable"]] == [2, 4]
    assert [int(elements[k]["damage"][0]) for k in (2, 4)] == [Damage.FEATURES, Damage.FRAMES]
    assert not elements[2]["video"].any()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_hosts_read_consecutive_parts_of_each_batch(dataset: Dataset, count: int) -> None:
    stream = make_stream(dataset, videos_per_step=6)
    parts = [HostSlice(stream, 6, index, count, first_step=2) for index in range(count)]
    for step in range(2):
        joined = [part[step * part.batch + k] for part in parts for k in range(part.batch)]
        assert [int(element["slot"][0]) for element in joined] == list(range(6))
        for slot, element in enumerate(joined):
            assert_same(element, stream[(2 + step) * 6 + slot])
