"""What `adamae_jax.prepare.verify` says of sound and of damaged datasets."""

import json
from pathlib import Path

import pytest

from adamae_jax.errors import UserError
from adamae_jax.prepare import progress
from adamae_jax.prepare.verify import verify
from tests.data.fixtures import flip_byte, serialize, video, write_dataset
from tests.data.videos import make_video
from tests.prepare.test_job import run


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for number in range(6):
        make_video(tmp_path / "videos" / f"v {number}.mp4", 20)
    run(f"--source={tmp_path / 'videos'}", f"--output={tmp_path / 'a'}")
    return tmp_path / "a"


def test_records_are_checked(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    verify(dataset, 1.0, num_workers=1)
    out, told = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split() for line in lines[:2]] == [
        ["split", "shards", "records", "frames", "MB", "decoded", "problems"],
        ["validation", "1", "1", "20", lines[1].split()[4], "1", "0"],
    ]
    assert lines[2].split()[:4] == ["train", "1", "5", "100"]
    assert lines[3] == f"{dataset} is sound"
    assert [line.split(",")[0] for line in told.splitlines()] == [
        "1 of 1 shards of validation read", "1 of 1 shards of train read"
    ]  # fmt: skip
    (shard,) = dataset.glob("*train*")
    flip_byte(shard, shard.stat().st_size // 2)
    with pytest.raises(UserError, match=r"is damaged: .*train.*, record 2: its checksum does not"):
        verify(dataset)
    # The others are read nevertheless.
    assert capsys.readouterr().out.splitlines()[2].split()[:4] == ["train", "1", "4", "80"]
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"does not have its \d+ bytes; .*the shard ends inside"):
        verify(dataset)
    shard.unlink()
    with pytest.raises(UserError, match="No such file"):
        verify(dataset)


def test_what_describes_a_dataset_is_checked(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip_byte(dataset / "skipped.csv", 1)
    with pytest.raises(UserError, match="skipped.csv does not match its checksum"):
        verify(dataset)
    (dataset / "prepare.json").write_text("{")
    with pytest.raises(UserError, match="prepare.json cannot be read"):
        verify(dataset)
    (dataset / "prepare.json").unlink()
    verify(dataset)
    assert "note: no prepare.json" in capsys.readouterr().out


def test_frames_are_checked(tmp_path: Path) -> None:
    """Checksums that match do not make a picture; and those of frames count, too."""
    bad = serialize(video(0), "bad", frames=[b"rubbish"] * 6)
    write_dataset(tmp_path, {"train": [serialize(video(1)), bad]}, with_masks=False)
    verify(tmp_path, 0.5)  # one of two
    with pytest.raises(UserError, match="record 1: frame 0 is no JPEG or PNG"):
        verify(tmp_path, 1.0)
    bad = serialize(video(0), frame_checksums=[1] * 6)
    write_dataset(tmp_path, {"train": [serialize(video(1)), bad]}, with_masks=False)
    with pytest.raises(UserError, match="record 1: frame 0 does not match its checksum"):
        verify(tmp_path, 0.5)  # it is not among those that are decoded


@pytest.mark.parametrize("announced", [["0", "3"], ["1", "3"], ["2", "1"]])
def test_other_numbers_than_are_announced_are_told(tmp_path: Path, announced: list[str]) -> None:
    records = [serialize(video(number), f"v{number}") for number in range(3)]
    write_dataset(tmp_path, {"train": records}, shards=2, with_masks=False)  # 1 and 2 of them
    place = tmp_path / "dataset_info.json"
    info = json.loads(place.read_text())
    info["splits"][0]["shardLengths"] = announced
    place.write_text(json.dumps(info))
    with pytest.raises(UserError, match="is damaged: ") as caught:
        verify(tmp_path)
    for shard, count in enumerate(announced):
        problem = f"-0000{shard}-of-00002: {shard + 1} records, but dataset_info.json says {count}"
        assert (problem in str(caught.value)) == (shard + 1 != int(count))


def test_what_is_no_dataset(tmp_path: Path) -> None:
    for arguments, message in (
        (("gs://b/x",), "^gs://b/x is an address, but a folder is needed here"),
        ((tmp_path,), "folder that holds its dataset_info.json"),
        ((tmp_path, 0), "--decode_fraction=0"),
    ):
        with pytest.raises(UserError, match=message):
            verify(*arguments)
