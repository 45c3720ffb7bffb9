import json
from pathlib import Path

import pytest

from adamae_jax.errors import UserError
from adamae_jax.prepare.lists import read_classes, read_list

Rows = list[tuple[str, str | None]]


def read(folder: Path, text: str, name: str = "list.txt") -> Rows:
    (folder / name).write_text(text, encoding="utf-8")
    entries = read_list(folder / name, "train", folder)
    assert {entry.split for entry in entries} == {"train"}
    return [(entry.path, entry.label) for entry in entries]


@pytest.mark.parametrize("suffix", ["txt", "csv", "list"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.mp4 3\nb/c.mp4 0\n", [("a.mp4", "3"), ("b/c.mp4", "0")]),  # VideoMAE, MAE-ST, V-JEPA
        ("a b.mp4 3\n\n c.mp4   run \n", [("a b.mp4", "3"), ("c.mp4", "run")]),
        ("a, b.mp4 3\nc, d.mp4 0\n", [("a, b.mp4", "3"), ("c, d.mp4", "0")]),
        ("a.mp4\nb c.mp4", [("a.mp4", None), ("b c.mp4", None)]),
        ("a b.mp4\trun fast\n", [("a b.mp4", "run fast")]),
        ("a.mp4 -1\nb 2.mp4 2", [("a.mp4", None), ("b 2.mp4", "2")]),
        ("a.mp4,3\r\nb.mp4,4\r\n", [("a.mp4", "3"), ("b.mp4", "4")]),
        ("a b.mp4,run fast\n", [("a b.mp4", "run fast")]),
        ('"a, b.mp4","say ""hi"""\n', [("a, b.mp4", 'say "hi"')]),
        ('"b c.mp4" "run fast"\n"a.mp4" 3\n', [("b c.mp4", "run fast"), ("a.mp4", "3")]),
        ("\ufeffa.mp4\nb.mp4\n", [("a.mp4", None), ("b.mp4", None)]),
        ("7;Holding a, b\n8;Putting c\n", [("7", "Holding a, b"), ("8", "Putting c")]),
        ("a.mp4,run;fast\n", [("a.mp4", "run;fast")]),
        # The other way round.
        ("run fast,a.mp4\nfly,b.mp4\n", [("a.mp4", "run fast"), ("b.mp4", "fly")]),
        ("3 a.mp4\n0 b c.mp4\n", [("a.mp4", "3"), ("b c.mp4", "0")]),
        # First lines that name the columns.
        ("path label\na.mp4 3", [("a.mp4", "3")]),
        ("Path,Label\na.mp4,run\n", [("a.mp4", "run")]),
        ("label,note,video\nrun,x,a.mp4\n", [("a.mp4", "run")]),
        ("video,split\na.mp4,x\n", [("a.mp4", None)]),
        ("video_name,tag\na.mp4,run\nb.mp4,fly\n", [("a.mp4", "run"), ("b.mp4", "fly")]),
        ("clip,thing\na.mp4,run\nb.mp4,fly\n", [("a.mp4", "run"), ("b.mp4", "fly")]),
        ("thing clip\n0 a.mp4\n1 b.mp4\n", [("a.mp4", "0"), ("b.mp4", "1")]),
        ("clip\na.mp4\nb.mp4\n", [("a.mp4", None), ("b.mp4", None)]),
    ],
)
def test_the_content_says_how_a_list_is_written(
    tmp_path: Path, suffix: str, text: str, expected: Rows
) -> None:
    for name in ("7", "8", "a.mp4", "b.mp4", "b c.mp4"):
        (tmp_path / name).touch()
    assert read(tmp_path, text, f"list.{suffix}") == expected


def test_files_that_are_there_decide(tmp_path: Path) -> None:
    """Where names alone do not tell columns apart, or a video from a heading."""
    for name in ("take 2", "x", "y", "z"):
        (tmp_path / name).touch()
    assert read(tmp_path, "take 2 5\n") == [("take 2", "5")]
    assert read(tmp_path, "gone 5\nx 3\ny 1") == [("gone", "5"), ("x", "3"), ("y", "1")]
    assert read(tmp_path, "name,id\nx,3\ny,1\n") == [("x", "3"), ("y", "1")]
    with pytest.raises(UserError, match="may have a heading, or not: it begins with 'name,tag' an"):
        read(tmp_path, "name,tag\nx,run\ny,fly\n")


def test_lines_are_known_by_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label\n\na\u2028b.mp4,1\n", encoding="utf-8")
    (entry,) = read_list(tmp_path / "a.csv", "val", tmp_path)
    assert (entry.where, entry.path) == (f"{tmp_path / 'a.csv'}, line 3", "a\u2028b.mp4")


def test_kinetics_own_tables(tmp_path: Path) -> None:
    text = """label,youtube_id,time_start,time_end,split
        air drumming,-0a,3,13,validate
        yoga,x_1,0,10,train"""
    (tmp_path / "yoga").mkdir()
    (tmp_path / "yoga" / "x_1_000000_000010.mkv").write_bytes(b"")
    missing = ("-0a_000003_000013.mp4", "air drumming")  # will be listed as skipped
    yoga = ("yoga/x_1_000000_000010.mkv", "yoga")
    assert read(tmp_path, text, "k400.csv") == [missing, yoga]
    for folder in ("air_drumming", "air drumming", "val/air drumming", "val", "."):
        path = tmp_path / folder / "-0a_000003_000013.webm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        found = path.relative_to(tmp_path).as_posix()
        assert read(tmp_path, text, "k400.csv") == [(found, "air drumming"), yoga]
        path.unlink()
    with pytest.raises(UserError, match="line 2: time_start and time_end must be seconds"):
        read(tmp_path, "label,youtube_id,time_start,time_end\nyoga,x,?,10\n", "k400.csv")


def test_hmdb51_lists_of_both_halves(tmp_path: Path) -> None:
    text = "#1_a, b_clap_f_0.avi 1 \nApril, 09_clap_f_1.avi 0 \n\nx y_clap_f_2.avi 2\n"
    name = "brush_hair_test_split1.txt"
    assert read(tmp_path, text, name) == [("brush_hair/#1_a, b_clap_f_0.avi", "brush_hair")]
    (entry,) = read_list(tmp_path / name, "validation", tmp_path)
    assert (entry.path, entry.label) == ("brush_hair/x y_clap_f_2.avi", "brush_hair")
    assert entry.where.endswith("line 4")


def test_something_something(tmp_path: Path) -> None:
    (tmp_path / "7.webm").write_bytes(b"")
    videos = [
        {"id": "7", "label": "holding a pen", "template": "Holding [something]"},
        {"id": "8", "label": "dropping a pen", "template": "Dropping [something] onto [a table]"},
    ]
    for name, indent in (("train.json", None), ("train.txt", 2)):
        assert read(tmp_path, json.dumps(videos, indent=indent), name) == [
            ("7.webm", "Holding something"), ("8.mp4", "Dropping something onto a table")
        ]  # fmt: skip
    assert read(tmp_path, '[{"id": "7"}]', "test.json") == [("7.webm", None)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "names no videos"),
        ("a.csv", "path,label\n", "names no videos"),
        ("a.csv", "a.mp4,1\nb.mp4,2,3\n", "a.csv has 3 columns: it begins with 'a.mp4,1' and 'b"),
        ("a.csv", "a,120,3\n", "has 3 columns: .* if these are folders of frames .* add --frame_f"),
        ("a.txt", "frames/a 120 3\n", "three columns: .* if these are folders of frames"),
        ("a.txt", "a.mp4 0\nb.mp4 0 -1\n", "cannot be parted into paths and labels: it begins"),
        ("a.txt", "a.MP4 run fast\n", "write a first line that names the columns, .* part them by"),
        ("a.csv", "path,label,x\na.mp4\n", None),  # of one column, so that the label is missing
        ("a.csv", "label,path\na\n", "a.csv, line 2: 'a' has no path"),
        ("a.txt", "a.mp4 1\nb.mp4\n", "a.txt, line 2: the label is missing"),
        ("a.csv", "a.mp4,1\nb.mp4,\n", "a.csv, line 2: the label is missing"),
        ("a_test_split1.txt", "x.avi 3\n", "line 1: 'x.avi 3' is no name with 0, 1 or 2"),
        ("a_test_split3.txt", "x.avi 2\n", "names no videos"),
        ("a.json", "{", "is no JSON"),
        ("a.json", "[" * 100_000, "is no JSON"),
        ("a.json", '{"a": 1}', "holds no list"),
        ("a.json", '[{"id": "7"}, 3]', "a.json, entry 2: 3 is no object with an 'id'"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, text: str, message: str | None) -> None:
    if message is None:
        assert read(tmp_path, text, name) == [("a.mp4", None)]
        return
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, text, name)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_texts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent.csv cannot be read"):
        read_list(tmp_path / "absent.csv", "train", tmp_path)
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="a.csv is no text in UTF-8"):
        read_list(tmp_path / "a.csv", "train", tmp_path)


def read_folders(folder: Path, text: str, name: str) -> list[tuple[str, int | None, str | None]]:
    (folder / name).write_text(text)
    entries = read_list(folder / name, "train", folder, frame_folders=True)
    return [(entry.path, entry.num_frames, entry.label) for entry in entries]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "a 120 3\nb/c 9 0\n", [("a", 120, "3"), ("b/c", 9, "0")]),
        ("a.csv", "a b 120 run\nc 7 -1\n", [("a b", 120, "run"), ("c", 7, None)]),
        ("a.txt", "a 3\nb run\n", [("a", None, "3"), ("b", None, "run")]),
        ("a.txt", "a\nb/c\n", [("a", None, None), ("b/c", None, None)]),
        ("a.txt", "a\t120\trun fast\nb 2\t5\tfly\n", [("a", 120, "run fast"), ("b 2", 5, "fly")]),
        ("a.txt", "a,120,3\nb 2,9,0\n", [("a", 120, "3"), ("b 2", 9, "0")]),
        ("a.csv", "label,Num_Frames,path\nrun,7,a\n", [("a", 7, "run")]),
        ("a.csv", "path,total_frames\na,7\n", [("a", 7, None)]),
        ("a.txt", "path total_frames label\na b 9 1\n", [("a b", 9, "1")]),
        # Numbers at the end of names that are there belong to them.
        ("a.txt", "take 2 5\n", [("take 2", None, "5")]),
        ("a.txt", "take 2 7 5\n", [("take 2", 7, "5")]),
        # The first is missing, and no heading.
        ("a.txt", "gone 9 1\ntake 2 7 5\n", [("gone", 9, "1"), ("take 2", 7, "5")]),
        # Named as videos are.
        ("a.txt", "walk/v.avi 5\nb.mp4 5\nw.avi 5\n",
         [("walk/v", None, "5"), ("b", None, "5"), ("w.avi", None, "5")]),
        ("a.json", '[{"id": "7", "template": "[x]"}]', [("7", None, "x")]),
        ("walk_test_split1.txt", "v.avi 1\n", [("walk/v", None, "walk")]),
        ("a.csv", "label,youtube_id,time_start,time_end,split\nwalk,k,1,2,train",
         [("train/walk/k_000001_000002", None, "walk")]),
    ],
)  # fmt: skip
def test_lists_of_folders_of_frames(
    tmp_path: Path, name: str, text: str, expected: list[tuple[str, int | None, str | None]]
) -> None:
    for folder in ("take 2", "walk/v", "w.avi", "train/walk/k_000001_000002"):
        (tmp_path / folder).mkdir(parents=True)
    assert read_folders(tmp_path, text, name) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "a,9,3,1\n", "has 4 columns: .*parts of folders, by start .* cannot be taken"),
        ("a.txt", "a 9 1 5 7\n", "cannot be parted into paths .* several labels cannot be taken"),
        ("a.csv", "a,many,1\n", "has 3 columns: it begins with 'a,many,1'"),
        ("a.csv", "path,total_frames\na,-3\n", "line 2: total_frames is '-3'"),
        ("a.csv", "path,start_frame,label\na,3,1\n", "has the column 'start_frame', but parts of"),
        ("a.txt", "a 1\nb 3\nc\n", "line 3: the label is missing"),
    ],
)
def test_what_is_wrong_with_lists_of_folders_is_said(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=message):
        read_folders(tmp_path, text, name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "run fast\nwalk, 2\n"),
        ("a.txt", "class_name\nrun fast\nwalk, 2\n"),
        ("a.txt", "1 run fast\n2 walk, 2\n"),
        ("a.csv", 'id,name\n0,run fast\n1,"walk, 2"\n'),
        ("a.txt", 'name,id\nrun fast,0\n"walk, 2",1\n'),
        ("a.csv", "run fast\t3\nwalk, 2\t4\n"),
        ("a.txt", "walk, 2;8\nrun fast;3\n"),
        ("a.txt", "run fast 0\nwalk, 2 1\n"),
        ("a.json", '{"run fast": "0", "walk, 2": "1"}'),
        ("a.json", '["run fast", "walk, 2"]'),
        ("a.json", '{"0": "run fast", "1": "walk, 2"}'),
        ("a.csv", 'activity,nr\nrun fast,0\n"walk, 2",1\n'),
        ("a.csv", "nr\tactivity\n0\trun fast\n1\twalk, 2\n"),
    ],
)
def test_classes(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    classes = read_classes(tmp_path / name)
    assert {name: index for name, index in classes.items() if not name.isdecimal()} == {
        "run fast": 0, "walk, 2": 1
    }  # fmt: skip
    assert sorted(index for name, index in classes.items() if name.isdecimal()) == [0, 1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "names no classes"),
        ("a.txt", "walk\nrun\nwalk\n", "has the class 'walk' 2 times"),
        ("a.txt", "1 walk\n1 run\n", "has the number 1 2 times"),
        ("a.txt", "1,2\n2,1\n", "has numbers in front of and behind its classes: .*'1,2'"),
        ("a.txt", "activity nr\nwalk 0\nrun 1\n", "may have a heading, or not"),
        ("a.json", '{"walk": "x"}', "class 'walk' has the number 'x'"),
        ("a.json", "3", "holds neither"),
    ],
)
def test_bad_classes(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_classes(tmp_path / name)
