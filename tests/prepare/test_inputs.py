"""`prepare` from every kind of source, to what training reads."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from PIL import Image

from adamae_jax.data import schema
from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.records import Dataset
from adamae_jax.data.schema import ARRAY_RECORD, FILE_FORMATS
from adamae_jax.errors import UserError
from adamae_jax.prepare.verify import verify
from tests.data.fixtures import evaluation
from tests.data.videos import make_video
from tests.prepare.test_job import run
from tests.prepare.test_tfds_source import VIDEO, clips, write

SPEC = ClipSpec(4, 2, (32, 32), "center")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(6):
        make_video(folder / ("walk", "run fast")[number % 2] / f"v {number}.mp4", 20)
    return folder


def labels(output: Path, split: str) -> dict[str, int]:
    dataset = Dataset(output, split)
    return {record.id: record.label for record in (dataset[n] for n in range(len(dataset)))}


def test_class_folders(source: Path, tmp_path: Path) -> None:
    run(f"--source={source}", "--class_folders", f"--output={tmp_path / 'a'}")
    assert Dataset(tmp_path / "a", "train").label_names == ("run fast", "walk")
    found = labels(tmp_path / "a", "train") | labels(tmp_path / "a", "validation")
    assert found == {
        f"{folder}/v {number}.mp4": label
        for number in range(6)
        for folder, label in [(("walk", "run fast")[number % 2], 1 - number % 2)]
    }


def test_lists(source: Path, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("walk/v 0.mp4 1\nrun fast/v 1.mp4 0\n")  # VideoMAE's
    (tmp_path / "val.txt").write_text(f"{source}/walk/v 2.mp4\t1\n")
    (tmp_path / "names.csv").write_text("name,id\nrun fast,0\nwalk,1\nfly,2\n")
    run(
        f"--source={source}", f"--list=train={tmp_path / 'train.csv'}",
        f"--list=val={tmp_path / 'val.txt'}", f"--labels={tmp_path / 'names.csv'}",
        f"--output={tmp_path / 'a'}",
    )  # fmt: skip
    assert Dataset(tmp_path / "a", "val").label_names == ("run fast", "walk", "fly")
    assert labels(tmp_path / "a", "train") == {"walk/v 0.mp4": 1, "run fast/v 1.mp4": 0}
    assert labels(tmp_path / "a", "val") == {"walk/v 2.mp4": 1}


def copied(source: Path, folder: Path, *names: str) -> Path:
    """A folder that holds the same video under these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "walk" / "v 0.mp4", folder / name)
    return folder


def test_the_official_split_of_ucf101(source: Path, tmp_path: Path) -> None:
    """Its test list has no labels; without --class_folders that is said."""
    train = ["YoYo/v_YoYo_g08_c01.avi", "Archery/v_Archery_g08_c01.avi"]
    test = ["Archery/v_Archery_g01_c01.avi", "YoYo/v_YoYo_g01_c02.avi"]
    videos = copied(source, tmp_path / "UCF-101", *train, *test)
    (tmp_path / "trainlist01.txt").write_text(f"{train[0]} 2\r\n{train[1]} 1\r\n")
    (tmp_path / "testlist01.txt").write_text(f"{test[0]}\r\n{test[1]}\r\n")
    (tmp_path / "classInd.txt").write_text("1 Archery\r\n2 YoYo\r\n")
    options = [
        f"--source={videos}", f"--list=train={tmp_path / 'trainlist01.txt'}",
        f"--list=validation={tmp_path / 'testlist01.txt'}", f"--output={tmp_path / 'a'}",
    ]  # fmt: skip
    with pytest.raises(UserError, match="testlist01.txt has no labels, .* add --class_folders"):
        run(*options)
    run(*options, "--class_folders", f"--labels={tmp_path / 'classInd.txt'}")
    assert Dataset(tmp_path / "a", "validation").label_names == ("Archery", "YoYo")
    assert labels(tmp_path / "a", "train") == {train[0]: 1, train[1]: 0}
    assert labels(tmp_path / "a", "validation") == {test[0]: 0, test[1]: 1}


def test_the_official_split_of_hmdb51(source: Path, tmp_path: Path) -> None:
    names = ["clap/a_f_0.avi", "clap/b_f_1.avi", "clap/#c_f_2.avi", "wave/d_f_0.avi",
             "wave/e_f_1.avi"]  # fmt: skip
    videos = copied(source, tmp_path / "hmdb51", *names)
    lists = tmp_path / "testTrainMulti_7030_splits"
    lists.mkdir()
    (lists / "clap_test_split1.txt").write_text("a_f_0.avi 1 \nb_f_1.avi 0 \n#c_f_2.avi 2 \n")
    (lists / "wave_test_split1.txt").write_text("d_f_0.avi 2 \ne_f_1.avi 1 \n")
    (lists / "wave_test_split2.txt").write_text("d_f_0.avi 1 \ne_f_1.avi 2 \n")
    run(
        f"--source={videos}", f"--list=train={lists}/*_test_split1.txt",
        f"--list=validation={lists}/*_test_split1.txt", f"--output={tmp_path / 'a'}",
    )  # fmt: skip
    assert Dataset(tmp_path / "a", "train").label_names == ("clap", "wave")
    assert labels(tmp_path / "a", "train") == {"clap/a_f_0.avi": 0, "wave/e_f_1.avi": 1}
    assert labels(tmp_path / "a", "validation") == {"clap/#c_f_2.avi": 0, "wave/d_f_0.avi": 1}


def test_the_official_split_of_kinetics(source: Path, tmp_path: Path) -> None:
    names = ["train/-aB_000003_000013.mp4", "train/x_0_000010_000020.mp4",
             "val/y_000000_000010.mp4"]  # fmt: skip
    videos = copied(source, tmp_path / "k400", *names)
    head = "label,youtube_id,time_start,time_end,split\n"
    (tmp_path / "train.csv").write_text(
        f"{head}air drumming,-aB,3,13,train\nyoga,x_0,10,20,train\n"
    )
    (tmp_path / "val.csv").write_text(f"{head}yoga,y,0,10,val\n")
    run(
        f"--source={videos}", f"--list=train={tmp_path / 'train.csv'}",
        f"--list=validation={tmp_path / 'val.csv'}", f"--output={tmp_path / 'a'}",
    )  # fmt: skip
    assert Dataset(tmp_path / "a", "train").label_names == ("air drumming", "yoga")
    assert labels(tmp_path / "a", "train") == {names[0]: 0, names[1]: 1}
    assert labels(tmp_path / "a", "validation") == {names[2]: 1}


def test_something_something(source: Path, tmp_path: Path) -> None:
    videos = [{"id": "walk/v 0", "template": "Moving [a]"}, {"id": "walk/v 2", "template": "[b]"}]
    (tmp_path / "train.json").write_text(json.dumps(videos))
    (tmp_path / "labels.json").write_text('{"b": "0", "Moving a": "1"}')
    run(
        f"--source={source}", f"--list=train={tmp_path / 'train.json'}",
        f"--labels={tmp_path / 'labels.json'}", f"--output={tmp_path / 'a'}",
    )  # fmt: skip
    assert labels(tmp_path / "a", "train") == {"walk/v 0.mp4": 1, "walk/v 2.mp4": 0}


def test_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        path = tmp_path / "images" / ("train", "val")[number % 2] / f"n{number // 2}" / "a.JPEG"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (80, 60), (40 * number, 0, 0)).save(path)
    output = tmp_path / "a"
    run(
        f"--source={tmp_path / 'images'}", "--images", "--class_folders", "--short_side=48",
        f"--output={output}",
    )  # fmt: skip
    assert "2 images for train" in capsys.readouterr().out
    assert labels(output, "train") == {"train/n0/a.JPEG": 0, "train/n1/a.JPEG": 1}
    assert labels(output, "validation") == {"val/n0/a.JPEG": 0, "val/n1/a.JPEG": 1}
    spec = ClipSpec(1, 1, (32, 32), "center")
    with evaluation(Dataset(output, "train"), spec, batch_size=2, num_threads=0) as batches:
        assert sorted(next(batches)["video"][..., 0].mean((1, 2, 3)).round(-1)) == [0, 80]
    verify(output, 1.0)
    example = next(iter(tfds.as_numpy(tfds.builder_from_directory(output).as_dataset("train"))))
    assert example[schema.IMAGE].shape == (48, 64, 3)
    (output / "label.labels.txt").unlink()
    with pytest.raises(UserError, match=r"label.labels.txt is missing, .*copy the dataset"):
        Dataset(output, "train")


def test_links_are_not_dropped_in_silence(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, output = copied(source, tmp_path / "videos", "a/1.mp4", "a/2.mp4", "z/3.mp4"), "a"
    (videos / "b.mp4").symlink_to("nowhere")
    (videos / "c").symlink_to("a")
    options = [f"--source={videos}", f"--output={tmp_path / output}"]
    with pytest.raises(UserError, match=r"1 of 4 videos cannot be used.* b.mp4 \(cannot be opened"):
        run(*options)
    told = f"passed over in {videos}: c (a link to what is found anyway)\n"
    assert capsys.readouterr().err.startswith(told)
    run(*options, "--max_skipped=0.3")
    assert (tmp_path / output / "skipped.csv").read_text().count("b.mp4,skipped") == 1
    (videos / "d").symlink_to(source)
    run(*options[:1], f"--output={tmp_path / 'b'}", "--max_skipped=0.3")
    found = labels(tmp_path / "b", "train") | labels(tmp_path / "b", "validation")
    assert len(found) == 3 + 6 and "d/walk/v 0.mp4" in found


def test_names_that_are_no_text(source: Path, tmp_path: Path) -> None:
    """Of classes, and of the source itself."""
    videos = tmp_path / os.fsdecode(b"videos\xfe")
    copied(source, videos, os.fsdecode(b"caf\xe9/1.mp4"), "tea/2.mp4")
    run(f"--source={videos}", "--class_folders", f"--output={tmp_path / 'a'}")
    assert Dataset(tmp_path / "a", "train").label_names == ("caf\\xe9", "tea")
    found = labels(tmp_path / "a", "train") | labels(tmp_path / "a", "validation")
    assert found == {"caf\\xe9/1.mp4": 0, "tea/2.mp4": 1}


def test_datasets_of_tfds(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", VIDEO, {"train": clips(3), "test": clips(2)})
    run(f"--tfds={folder}", f"--output={tmp_path / 'b'}", "--min_frames=6", "--short_side=16")
    assert labels(tmp_path / "b", "train") == {"train/0": 0, "train/1": 1, "train/2": 0}
    assert Dataset(tmp_path / "b", "test").label_names == ("walk", "run")


@pytest.mark.parametrize("codec", schema.CODECS)
def test_codecs_are_read_by_training_and_by_tfds(source: Path, tmp_path: Path, codec: str) -> None:
    output = tmp_path / "a"
    run(f"--source={source}", f"--codec={codec}", f"--output={output}")
    with evaluation(Dataset(output, "train"), SPEC, batch_size=5, num_threads=0) as batches:
        video = next(batches)["video"]
    quarters = video[:, :, 8::16, 8::16].mean((0, 1))
    assert abs(quarters[1, 1] - 230).max() < 30 and quarters[0, 1, 1] > quarters[0, 1, 0] + 80
    example = next(iter(tfds.as_numpy(tfds.builder_from_directory(output).as_dataset("train"))))
    assert example[schema.CODEC].decode() == codec
    if codec == schema.CODEC_ORIGINAL:
        assert example[schema.FRAMES] == (source / example[schema.ID].decode()).read_bytes()
    if codec != schema.CODEC_JPEG:
        assert len(example[schema.TIMES]) == 20 and example[schema.KEYFRAMES][0] == 0


@pytest.mark.parametrize("codec", [schema.CODEC_JPEG, schema.CODEC_ORIGINAL])
def test_array_record(source: Path, tmp_path: Path, codec: str) -> None:
    pytest.importorskip("array_record")
    outputs = {}
    for file_format in FILE_FORMATS:
        outputs[file_format] = tmp_path / file_format
        run(
            f"--source={source}", f"--file_format={file_format}", f"--codec={codec}",
            f"--output={outputs[file_format]}",
        )  # fmt: skip
    verify(outputs[ARRAY_RECORD], 1.0)
    videos = []
    for output in outputs.values():
        with evaluation(Dataset(output, "train"), SPEC, batch_size=5, num_threads=0) as batches:
            videos.append(next(batches)["video"])
    assert (videos[0] == videos[1]).all() and videos[0].any()
    data = tfds.builder_from_directory(outputs[ARRAY_RECORD]).as_data_source("train")
    assert len(data) == 5
    if codec == schema.CODEC_JPEG:
        assert [frame.shape for frame in data[0][schema.FRAMES]] == [(48, 64, 3)] * 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--list=train.csv"], "--list=train.csv must be SPLIT=FILE"),
        (["--list=train=a.txt", "--list=train=a.txt"], "the split train has a list already"),
        (["--list=train=none.csv"], "none.csv cannot be read"),
        (["--list=train=none*.csv"], "no file is called like the list 'none*.csv'"),
        (["--list=train=bad.txt"], "bad.txt, line 2: '../x.mp4' lies outside of --source"),
        (["--list=train=a.txt", "--labels=names.txt"], "line 1: the label '7' is not among"),
        (["--list=train=a.txt"], "only 0 of the 1 file that the lists name are in --source="),
        (["--labels=names.txt"], "nothing has a label"),
        (["--codec=original", "--short_side=64"], "--short_side means nothing with --codec=or"),
    ],
)
def test_bad_arguments(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("walk/v0.mp4 7\n")
    Path("bad.txt").write_text("walk/v0.mp4 7\n../x.mp4 8\n")
    Path("names.txt").write_text("walk\n")
    with pytest.raises(UserError) as caught:
        run(f"--source={source}", "--output=output", *arguments)
    assert message in str(caught.value)
    assert not Path("output").exists() and not Path(".output.unfinished").exists()


def test_splits_of_few_videos(source: Path, tmp_path: Path) -> None:
    run(f"--source={source}", f"--output={tmp_path / 'all'}", "--validation_fraction=0")
    assert len(Dataset(tmp_path / "all", "train")) == 6
    with pytest.raises(UserError, match="has no split 'validation'; it has: train"):
        Dataset(tmp_path / "all", "validation")
    arguments = [f"--source={source}", "--validation_fraction=0.95"]
    run(*arguments, f"--output={tmp_path / 'a'}")
    assert len(labels(tmp_path / "a", "train")) == 1  # something is left to train on
    # The one that was set aside cannot be used: another one takes its place.
    videos = copied(source, tmp_path / "more", *(f"{number}.mp4" for number in range(6)))
    aside = min(videos.iterdir(), key=lambda path: hashlib.sha256(path.name.encode()).digest())
    aside.write_text("no video")
    run(f"--source={videos}", f"--output={tmp_path / 'c'}", "--max_skipped=0.2")
    assert len(labels(tmp_path / "c", "validation")) == 1
    assert len(labels(tmp_path / "c", "train")) == 4
    make_video(tmp_path / "videos" / "long.mp4", 20)
    make_video(tmp_path / "videos" / "short.mp4", 5)
    message = (
        r"the split 'train' would be empty: 1 of 2 items can be used, .*: short.mp4 \(5 frames"
    )
    with pytest.raises(UserError, match=message):
        run(f"--source={tmp_path / 'videos'}", f"--output={tmp_path / 'b'}", "--max_skipped=0.5")
