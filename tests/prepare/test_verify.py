"""What `adamae_jax.prepare.verify` says of the ids of a dataset, and of its numbers."""

import json
from pathlib import Path

import pytest
from absl import flags
from PIL import Image
from tensorflow_datasets.core import features

from adamae_jax.data.examples import ImageLayout
from adamae_jax.data.records import layout_of
from adamae_jax.errors import UserError
from adamae_jax.prepare import job
from adamae_jax.prepare.verify import verify
from tests.data.fixtures import serialize, video, write_dataset


def test_records_with_one_id_are_told_through_all_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def records(*names: str) -> list[bytes]:
        return [serialize(video(0), name) for name in names]

    good, bad = tmp_path / "good", tmp_path / "bad"
    write_dataset(good, {"train": records("a", "b"), "validation": records("c")}, with_masks=False)
    verify(good, num_workers=1)
    assert "is sound" in capsys.readouterr().out
    splits = {"train": records("a", "b", "a"), "validation": records("b")}
    write_dataset(bad, splits, with_masks=False)
    verify(bad)
    assert "note: 2 records with the id of another one" in capsys.readouterr().out


@pytest.mark.parametrize("announced", [["0", "3"], ["1", "3"], ["1", "1"], ["2", "1"]])
@pytest.mark.parametrize("with_record", [False, True])
def test_other_numbers_than_are_announced_are_told(
    tmp_path: Path, announced: list[str], with_record: bool
) -> None:
    """Of each shard, whether or not a job's own record vouches for the sizes of the files."""
    records = [serialize(video(number), f"v{number}") for number in range(3)]
    write_dataset(tmp_path, {"train": records}, shards=2, with_masks=False)  # 1 and 2 of them
    place = tmp_path / "dataset_info.json"
    info = json.loads(place.read_text())
    info["splits"][0]["shardLengths"] = announced
    place.write_text(json.dumps(info))
    if with_record:
        files = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
        (tmp_path / "prepare.json").write_text(json.dumps({"files": files, "checksums": {}}))
    with pytest.raises(UserError, match="is damaged: ") as caught:
        verify(tmp_path)
    for shard, count in enumerate(announced):
        problem = f"-0000{shard}-of-00002: {shard + 1} records, but dataset_info.json says {count}"
        assert (problem in str(caught.value)) == (shard + 1 != int(count))


def test_images_are_told_apart_by_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a/1.png", "b/1.png", "b/2.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(video(0)[0]).save(path)
    values = flags.FlagValues()
    job.define_flags(values)
    source, output = tmp_path / "images", tmp_path / "dataset"
    values(["", f"--source={source}", f"--output={output}", "--images", "--num_workers=0"])
    job.main([], values)
    verify(output)
    assert "note" not in capsys.readouterr().out
    layout = layout_of({"image": features.Image(), "id": features.Text()}, "there")
    assert isinstance(layout, ImageLayout) and layout.name == "id"
