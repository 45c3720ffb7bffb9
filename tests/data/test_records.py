import pickle
import shutil
from pathlib import Path

import pytest

from adamae_jax.data.damage import BadRecordError
from adamae_jax.data.records import Dataset
from adamae_jax.data.schema import UNLABELLED
from adamae_jax.errors import UserError
from adamae_jax.prepare.verify import verify
from tests.data.fixtures import (
    flip_byte,
    serialize,
    shard_path,
    small_records,
    stored_frames,
    video,
    write_dataset,
)


def test_reads_what_was_written(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": small_records(5), "validation": small_records(2)}, shards=2)
    dataset = Dataset(tmp_path, "train")
    assert len(dataset) == 5
    assert dataset.label_names == ("a", "b", "c")
    assert dataset.has_foreground
    records = [dataset[index] for index in range(5)]
    assert [record.id for record in records] == [f"video-{number}" for number in range(5)]
    assert [record.label for record in records] == [0, 1, 2, 0, 1]
    assert {(len(r.frames), r.height, r.width, r.rate) for r in records} == {(6, 24, 32, 8.0)}
    assert all(record.foreground for record in records)
    assert pickle.loads(pickle.dumps(dataset))[3] == records[3]
    assert len(Dataset(tmp_path, "validation")) == 2
    for outside in (-1, 5):
        with pytest.raises(IndexError):
            dataset[outside]


def test_dataset_without_labels_and_masks(tmp_path: Path) -> None:
    record = serialize(video(0), label=UNLABELLED)
    write_dataset(tmp_path, {"train": [record]}, with_masks=False, label_names=())
    dataset = Dataset(tmp_path, "train")
    assert dataset.label_names == ()
    assert not dataset.has_foreground
    assert dataset[0].label == UNLABELLED
    assert dataset[0].foreground is None


def test_reads_what_the_writer_writes(tmp_path: Path) -> None:
    from adamae_jax.prepare import examples as writing

    frames = [(b"jpeg %d" % number) * 100 for number in range(3)]
    examples = [writing.make_example(f"v{number}", frames, 25.0, 8, 16) for number in range(4)]
    payloads = [writing.serialize(example) for example in examples]
    dataset = Dataset(write_dataset(tmp_path, {"train": payloads}, with_masks=False), "train")
    records = [dataset[index] for index in range(len(dataset))]
    assert sorted(record.id for record in records) == ["v0", "v1", "v2", "v3"]
    assert {(tuple(stored_frames(r)), r.rate, r.height, r.width, r.label) for r in records} == {
        (tuple(frames), 25.0, 8, 16, UNLABELLED)
    }


def test_fingerprint_knows_the_data_not_the_place(tmp_path: Path) -> None:
    records = small_records(3)
    first = Dataset(write_dataset(tmp_path / "a", {"train": records}), "train").fingerprint
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    assert Dataset(tmp_path / "copy", "train").fingerprint == first
    write_dataset(tmp_path / "b", {"train": records[:2]})
    assert Dataset(tmp_path / "b", "train").fingerprint != first
    write_dataset(tmp_path / "c", {"train": records}, shards=2)
    assert Dataset(tmp_path / "c", "train").fingerprint != first


def test_missing_and_empty_datasets_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere, which is no directory: .*adamae_jax.prepare"):
        Dataset(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match=r"holds no dataset_info.json: .*adamae_jax.prepare"):
        Dataset(tmp_path, "train")
    inner = write_dataset(tmp_path / "name" / "1.0.0", {"train": small_records(1), "empty": []})
    with pytest.raises(UserError, match=f"did you mean {inner}"):
        Dataset(tmp_path, "train")
    with pytest.raises(UserError, match=r"no split 'test'; it has: empty, train"):
        Dataset(inner, "test")
    with pytest.raises(UserError, match=r"split 'empty' of .* is empty"):
        Dataset(inner, "empty")
    shard_path(inner, "train").unlink()
    with pytest.raises(UserError, match=r"train.tfrecord-00000-of-00001 cannot be opened"):
        Dataset(inner, "train")


def test_foreign_datasets_are_reported(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": small_records(1)})
    info = (tmp_path / "dataset_info.json").read_text()
    (tmp_path / "dataset_info.json").write_text(info.replace('"tfrecord"', '"riegeli"'))
    with pytest.raises(UserError, match="stored as riegeli, but only tfrecord and array_record"):
        Dataset(tmp_path, "train")
    (tmp_path / "dataset_info.json").write_text(info)
    features = (tmp_path / "features.json").read_text()
    (tmp_path / "features.json").write_text(features.replace('"num_frames"', '"count"'))
    with pytest.raises(UserError, match="lacks the features num_frames"):
        Dataset(tmp_path, "train")


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        ("dataset_info.json", "{", "", "Failed to load JSON: .*"),
        ("dataset_info.json", "{SPLIT}", "{SPLAT}", "Could .*SPLAT.*"),
        ("features.json", "{", "", ".*line . .*"),
        ("features.json", None, None, "features.json is missing"),
        ("label.labels.txt", "b\n", "", "label.labels.txt has 2 different names for 3 classes"),
        ("label.labels.txt", "b", "a", "label.labels.txt has 2 different names for 3 classes"),
        ("label.labels.txt", None, None, "label.labels.txt is missing, .* names of the .*"),
    ],
)
def test_a_broken_description_is_named(
    tmp_path: Path, file: str, old: str | None, new: str, complaint: str
) -> None:
    write_dataset(tmp_path, {"train": small_records(1), "empty": []})
    path = tmp_path / file
    if old is None:
        path.unlink()
    else:
        path.write_text(path.read_text().replace(old, new, 1), encoding="latin-1")
    words = f"TFDS cannot open the dataset at {tmp_path} \\({complaint}\\): copy the dataset again"
    with pytest.raises(UserError, match=words):
        Dataset(tmp_path, "train")
    with pytest.raises(UserError, match=f"{tmp_path} is no dataset .* \\({complaint}\\): "):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (b"\xff\xff rubbish", "no tf.train.Example"),
        (serialize(video(0), num_frames=7), "6 frames and says that it has 7"),
        (serialize(video(0)[:0], height=24, width=32), "it has 0 frames"),
        (serialize(video(0), codec=[b"jpeg", b"h264"]), "'codec' has 2 values"),
        (serialize(video(0), height=24.0), "'height' has 0 values of int64_list"),
    ],
)
def test_damaged_records_are_named(tmp_path: Path, record: bytes, complaint: str) -> None:
    write_dataset(
        tmp_path, {"train": [*small_records(1, False), record]}, with_masks=False, shards=2
    )
    dataset = Dataset(tmp_path, "train")
    assert dataset[0].id == "video-0"
    where = r"record 1 of split 'train' \(number 0 in .*-00001-of-00002\): "
    with pytest.raises(BadRecordError, match=where + ".*" + complaint):
        dataset[1]


def test_missing_masks_and_failed_checksums_are_bad_records(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": [*small_records(1), serialize(video(0))]})
    path = shard_path(tmp_path, "train")
    flip_byte(path, path.read_bytes().index(b"video-0"))
    dataset = Dataset(tmp_path, "train")
    with pytest.raises(BadRecordError, match="its features do not match their checksum"):
        dataset[0]
    with pytest.raises(BadRecordError, match="'foreground' has 0 values"):
        dataset[1]


def test_only_damaged_frames_are_bad(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": [serialize(video(0))]}, with_masks=False)
    before = list(stored_frames(Dataset(tmp_path, "train")[0]))
    path = shard_path(tmp_path, "train")
    flip_byte(path, path.read_bytes().index(before[2]) + 100)
    frames = stored_frames(Dataset(tmp_path, "train")[0])
    assert frames.fetch([1, 3]) == [before[1], before[3]]
    with pytest.raises(BadRecordError, match="frame 2 does not match its checksum"):
        frames.fetch([1, 2])


def test_datasets_of_an_older_schema_are_to_be_made_again(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": small_records(1)})
    features = (tmp_path / "features.json").read_text()
    (tmp_path / "features.json").write_text(features.replace("frame_checksums", "unknown"))
    with pytest.raises(UserError, match=r"lacks the features frame_checksums, .*make it again"):
        Dataset(tmp_path, "train")


def test_unknown_codec_is_the_users_to_know(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": [serialize(video(0), codec=b"dirac")]}, with_masks=False)
    with pytest.raises(UserError, match="codec 'dirac', but only jpeg, h264, original are read"):
        Dataset(tmp_path, "train")[0]
