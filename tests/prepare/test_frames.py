"""`prepare` from folders of frames, to what training reads."""

import csv
import errno
import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adamae_jax.data import schema, storage
from adamae_jax.data.frames import decode_frames
from adamae_jax.data.records import Dataset
from adamae_jax.errors import UserError
from adamae_jax.prepare import build, transform
from adamae_jax.prepare.verify import verify
from tests.data.videos import frame_pixels
from tests.prepare.test_job import interrupt, run, snapshot

SIDES = (48, 64)


def make_folder(
    folder: Path, num_frames: int = 20, name: str = "img_{}.jpg", first: int = 1
) -> Path:
    """Frames that get brighter with their number; the names have no zeros in front."""
    folder.mkdir(parents=True)
    for number in range(num_frames):
        image = Image.fromarray(frame_pixels(number, *SIDES))
        image.save(folder / name.format(number + first), quality=95)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("frames")
    for number in range(4):
        make_folder(root / ("walk", "run")[number % 2] / f"v {number}", 18 + number)
    return root


def facts(output: Path, split: str) -> dict[str, tuple[int, int, float]]:
    dataset = Dataset(output, split)
    records = [dataset[number] for number in range(len(dataset))]
    return {record.id: (record.label, len(record.frames), record.rate) for record in records}


def flaws(output: Path) -> list[list[str]]:
    with open(output / "skipped.csv", newline="") as file:
        return list(csv.reader(file))[1:]


@pytest.mark.parametrize("codec", [schema.CODEC_JPEG, schema.CODEC_H264])
def test_folders_become_videos(source: Path, tmp_path: Path, codec: str) -> None:
    output = tmp_path / "a"
    run(
        f"--source={source}", "--frame_folders", "--class_folders", "--rate=12.5",
        f"--codec={codec}", f"--output={output}",
    )  # fmt: skip
    assert Dataset(output, "train").label_names == ("run", "walk")
    found = facts(output, "train") | facts(output, "validation")
    assert found == {
        f"{('walk', 'run')[number % 2]}/v {number}": (1 - number % 2, 18 + number, 12.5)
        for number in range(4)
    }
    verify(output, 1.0)
    record = Dataset(output, "validation")[0]
    number = len(record.frames)
    shown = decode_frames(record.frames, np.arange(number), SIDES).astype(int)
    made = np.stack([frame_pixels(frame, *SIDES) for frame in range(number)]).astype(int)
    for frame, pixels in enumerate(shown):
        distances = abs(pixels - made).mean((1, 2, 3))
        assert distances.argmin() == frame and distances[frame] < 6


def test_split_folders(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "frames" / "train")
    shutil.copytree(source / "run", tmp_path / "frames" / "val" / "run")
    (tmp_path / "frames" / "val" / "run" / "empty").mkdir()
    run(
        f"--source={tmp_path / 'frames'}", "--frame_folders", "--class_folders",
        "--max_skipped=0.2", f"--output={tmp_path / 'a'}",
    )  # fmt: skip
    assert facts(tmp_path / "a", "validation") == {
        "val/run/v 1": (0, 19, 0.0), "val/run/v 3": (0, 21, 0.0)
    }  # fmt: skip
    assert len(facts(tmp_path / "a", "train")) == 4
    assert flaws(tmp_path / "a") == [["val/run/empty", "skipped", "0", "holds no images"]]


def test_lists_of_folders(source: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("walk/v 0 16 0\nrun/v 1 25 1\nwalk/none 30 0\n")
    (tmp_path / "val.csv").write_text("path,total_frames,label\nwalk/v 2,20,0\n")
    lists = [f"--list=train={tmp_path / 'train.txt'}", f"--list=validation={tmp_path / 'val.csv'}"]
    arguments = [f"--source={source}", *lists, f"--output={tmp_path / 'a'}", "--max_skipped=0.3"]
    with pytest.raises(UserError, match="has three columns: .*'walk/v 0 16 0' .*--frame_folders"):
        run(*arguments)
    run(*arguments, "--frame_folders", "--rate=30")
    assert facts(tmp_path / "a", "train") == {"walk/v 0": (0, 16, 30.0), "run/v 1": (1, 19, 30.0)}
    assert facts(tmp_path / "a", "validation") == {"walk/v 2": (0, 20, 30.0)}
    assert flaws(tmp_path / "a") == [
        ["run/v 1", "truncated", "19", "after 19 frames: its list says that there are 25"],
        ["walk/none", "skipped", "0", "cannot be opened: No such file or directory"],
    ]
    (tmp_path / "val.csv").write_text("path,total_frames,label\nwalk/v 2,19,0\n")
    with pytest.raises(UserError, match="other arguments .the files of --source, .* have"):
        run(*arguments, "--frame_folders", "--rate=30")


def test_optical_flow_beside_the_frames(tmp_path: Path) -> None:
    """As TSN keeps it."""
    source = tmp_path / "frames"
    for video_name, shift in (("a", 1), ("b", 0)):
        folder = make_folder(source / video_name, 17, "img_{:05d}.jpg", shift)
        for name in ("flow_x_00001.jpg", "flow_y_00001.jpg"):
            shutil.copy(folder / "img_00001.jpg", folder / name)
    arguments = [f"--source={source}", "--frame_folders", f"--output={tmp_path / 'a'}"]
    with pytest.raises(UserError, match=r"say which .*: --frame_names='img_\[0-9\]\*.jpg'"):
        run(*arguments)
    assert os.listdir(tmp_path) == ["frames"]
    run(*arguments, "--frame_names=img_[0-9]*")
    found = facts(tmp_path / "a", "train") | facts(tmp_path / "a", "validation")
    assert found == {"a": (-1, 17, 0.0), "b": (-1, 17, 0.0)}
    with pytest.raises(UserError, match="frame_folders is"):
        run(*arguments, "--frame_names=img*.jpg")


def test_a_killed_job_goes_on_unless_the_folders_have_changed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = tmp_path / "frames"
    shutil.copytree(source, frames)
    arguments = [f"--source={frames}", "--frame_folders", f"--output={tmp_path / 'a'}"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "write_flaws", interrupt)
        run(*arguments)
    with monkeypatch.context() as patch:
        patch.setattr(transform, "read_folder", interrupt)  # nothing is read again
        run(*arguments)
    before = snapshot(tmp_path / "a")
    run(*arguments)
    assert snapshot(tmp_path / "a") == before
    (frames / "walk" / "v 0" / "img_18.jpg").unlink()
    with pytest.raises(UserError, match="other arguments .the files of --source, .* have"):
        run(*arguments)


def test_an_outage_ends_the_job_and_leaves_nothing_cut_off(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [f"--source={source}", "--frame_folders", f"--output={tmp_path / 'a'}"]
    read, calls = storage.read_file, itertools.count()

    def fail_once(path: str) -> bytes:
        if next(calls) == 30:
            raise OSError(errno.EIO, "Input/output error", path)
        return read(path)

    monkeypatch.setattr(storage, "read_file", fail_once)
    with pytest.raises(UserError, match=r"cannot be read, again and again \(.*error: .*\): see to"):
        run(*arguments)
    assert not (tmp_path / "a").exists()
    run(*arguments)
    found = facts(tmp_path / "a", "train") | facts(tmp_path / "a", "validation")
    assert sorted(count for _, count, _ in found.values()) == [18, 19, 20, 21]
    assert not flaws(tmp_path / "a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frame_folders", "--images"], "--images means nothing with --frame_folders"),
        (["--frame_folders", "--rate=-1"], "--rate=-1.0 must be frames per second"),
        (["--rate=25"], "--rate means nothing with videos, without --frame_folders"),
        (["--frame_folders", "--frame_names=x*"], "holds no folder with images called 'x*'"),
        ([], "holds no videos: give the folder that holds them, or add --frame_folders"),
    ],
)
def test_bad_arguments(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shutil.copytree(source, "frames")
    with pytest.raises(UserError) as caught:
        run("--source=frames", "--output=output", *arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not Path("output").exists()
