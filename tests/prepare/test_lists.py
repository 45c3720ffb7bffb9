import json
from pathlib import Path

import pytest

from adamae_jax.errors import UserError
from adamae_jax.prepare.lists import read_classes, read_list


def read(folder: Path, text: str, name: str = "list.txt") -> list[tuple[str, str | None]]:
    (folder / name).write_text(text, encoding="utf-8")
    entries = read_list(folder / name, "train", folder)
    assert {entry.split for entry in entries} == {"train"}
    return [(entry.path, entry.label) for entry in entries]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "a.mp4 3\nb/c.mp4 0\n", [("a.mp4", "3"), ("b/c.mp4", "0")]),
        ("a.txt", "a b.mp4 3\n\n c.mp4   run \n", [("a b.mp4", "3"), ("c.mp4", "run")]),
        ("a.txt", "a.mp4\nb.mp4", [("a.mp4", None), ("b.mp4", None)]),
        ("a.txt", "a b.mp4\trun fast\n", [("a b.mp4", "run fast")]),
        ("a.txt", "path label\na.mp4 3", [("a.mp4", "3")]),
        ("a.txt", "a.mp4 -1\nb 2.mp4 2", [("a.mp4", None), ("b 2.mp4", "2")]),
        ("a.csv", "a.mp4,-1\nb 2,run", [("a.mp4", None), ("b 2", "run")]),
        ("a.txt", "a.mp4,3\r\nb.mp4,4\r\n", [("a.mp4", "3"), ("b.mp4", "4")]),
        ("a.csv", "a b.mp4,run fast\n", [("a b.mp4", "run fast")]),
        ("a.csv", '"a, b.mp4","say ""hi"""\n', [("a, b.mp4", 'say "hi"')]),
        ("a.csv", "\ufeffa.mp4\nb.mp4\n", [("a.mp4", None), ("b.mp4", None)]),
        ("a.csv", "Path,Label\na.mp4,run\n", [("a.mp4", "run")]),
        ("a.csv", "label,note,video\nrun,x,a.mp4\n", [("a.mp4", "run")]),
        ("a.csv", "video,split\na.mp4,x\n", [("a.mp4", None)]),
        ("a.csv", "7;Holding a, b\n8;Putting c\n", [("7", "Holding a, b"), ("8", "Putting c")]),
        ("a.csv", "a.mp4,run;fast\n", [("a.mp4", "run;fast")]),
    ],
)
def test_lines(
    tmp_path: Path, name: str, text: str, expected: list[tuple[str, str | None]]
) -> None:
    assert read(tmp_path, text, name) == expected


@pytest.mark.parametrize("strange", ["\u2028", "\x85", "\x0b", "\x1c"])
def test_names_and_labels_may_have_what_unicode_calls_the_end_of_a_line(
    tmp_path: Path, strange: str
) -> None:
    assert read(tmp_path, f"a{strange}b.mp4 1\nc.mp4 2") == [
        (f"a{strange}b.mp4", "1"),
        ("c.mp4", "2"),
    ]
    (found,) = read(tmp_path, f"a.mp4,say{strange}hi")
    assert found == ("a.mp4", f"say{strange}hi")


def test_quoted_names_may_have_line_ends(tmp_path: Path) -> None:
    assert read(tmp_path, '"a\nb.mp4",1\nc.mp4,2\n', "list.csv") == [
        ("a\nb.mp4", "1"),
        ("c.mp4", "2"),
    ]
    assert read(tmp_path, "a.mp4,1\r\nb.mp4,2\r\n") == [("a.mp4", "1"), ("b.mp4", "2")]


def test_lines_are_known_by_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label\n\na.mp4,1\n")
    (entry,) = read_list(tmp_path / "a.csv", "val", tmp_path)
    assert entry.where == f"{tmp_path / 'a.csv'}, line 3"


def test_a_number_at_the_end_of_a_name_belongs_to_it_where_the_file_is_there(
    tmp_path: Path,
) -> None:
    (tmp_path / "take 2").write_bytes(b"")
    assert read(tmp_path, "take 2 5\n") == [("take 2", "5")]


def test_kinetics_own_tables(tmp_path: Path) -> None:
    text = """label,youtube_id,time_start,time_end,split
        air drumming,-0a,3,13,train
        yoga,x_1,0,10,train"""
    (tmp_path / "yoga").mkdir()
    (tmp_path / "yoga" / "x_1_000000_000010.mkv").write_bytes(b"")
    assert read(tmp_path, text, "k400.csv") == [
        ("-0a_000003_000013.mp4", "air drumming"),  # not there: it will be listed as skipped
        ("yoga/x_1_000000_000010.mkv", "yoga"),
    ]
    with pytest.raises(UserError, match="line 2: time_start and time_end must be seconds"):
        read(tmp_path, "label,youtube_id,time_start,time_end\nyoga,x,?,10\n", "k400.csv")


@pytest.mark.parametrize(
    "place", ["{}", "val/{}", "air drumming/{}", "val/air drumming/{}", "air_drumming/{}"]
)
def test_kinetics_clips_are_found_where_scripts_put_them(tmp_path: Path, place: str) -> None:
    path = tmp_path / place.format("-0a_000003_000013.webm")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    text = "label,youtube_id,time_start,time_end,split\nair drumming,-0a,3,13,validate\n"
    found = path.relative_to(tmp_path).as_posix()
    assert read(tmp_path, text, "validate.csv") == [(found, "air drumming")]


HMDB51 = "#1_a, b_clap_f_0.avi 1 \nApril, 09_clap_f_1.avi 0 \n\nx y_clap_f_2.avi 2\n"


def test_hmdb51_lists_of_both_halves(tmp_path: Path) -> None:
    assert read(tmp_path, HMDB51, "brush_hair_test_split1.txt") == [
        ("brush_hair/#1_a, b_clap_f_0.avi", "brush_hair")
    ]
    for split in ("validation", "test"):
        (entry,) = read_list(tmp_path / "brush_hair_test_split1.txt", split, tmp_path)
        assert (entry.path, entry.label, entry.split) == (
            "brush_hair/x y_clap_f_2.avi", "brush_hair", split
        )  # fmt: skip
        assert entry.where.endswith("line 4")


def test_something_something(tmp_path: Path) -> None:
    (tmp_path / "7.webm").write_bytes(b"")
    videos = [
        {"id": "7", "label": "holding a pen", "template": "Holding [something]"},
        {"id": "8", "label": "dropping a pen", "template": "Dropping [something] onto [a table]"},
    ]
    assert read(tmp_path, json.dumps(videos), "train.json") == [
        ("7.webm", "Holding something"), ("8.mp4", "Dropping something onto a table")
    ]  # fmt: skip
    assert read(tmp_path, '[{"id": "7"}]', "test.json") == [("7.webm", None)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "names no videos"),
        ("a.csv", "path,label\n", "names no videos"),
        ("a.csv", "a.mp4,1\nb.mp4,2,3\n", "a.csv, line 2: 3 columns, but path and label"),
        ("a.csv", "a,120,3\n", "3 columns.* if these are folders of frames .* add --frame_folders"),
        ("a.csv", "a,1,2,3\n", "4 columns, but path and label were expected; name the columns"),
        ("a.csv", "path,label,x\na.mp4\n", "a.csv, line 2: only 1 columns"),
        ("a.txt", "a.mp4 1\nb.mp4\n", "a.txt, line 2: the label is missing"),
        ("a.csv", "a.mp4,1\nb.mp4,\n", "a.csv, line 2: the label is missing"),
        ("a.txt", "a.mp4 0\nb.mp4 0 -1\n", "line 2: 'b.mp4 0 -1' has three columns"),
        ("a.txt", "frames/a 120 3\n", "three columns.* of a folder of frames, add --frame_fo"),
        ("a.txt", "a.MP4 run fast\n", "three columns.* need a comma or tab"),
        ("a.txt", "path total_frames label\na 9 1\n", "line 2: 'a 9 1' has three columns"),
        ("a_test_split1.txt", "x.avi 3\n", "line 1: 'x.avi 3' is no name with 0, 1 or 2"),
        ("a_test_split2.txt", "x.avi 1\nx.avi\n", "line 2: 'x.avi' is no name with 0, 1 or 2"),
        ("a_test_split3.txt", "x.avi 2\n", "names no videos"),
        ("a.json", "{", "is no JSON"),
        ("a.json", '{"a": 1}', "holds no list"),
        ("a.json", '[{"id": "7"}, 3]', "a.json, entry 2: 3 is no object with an 'id'"),
        ("a.json", '[{"name": "7"}]', "entry 1: .* is no object with an 'id'"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, text, name)


def read_folders(folder: Path, text: str, name: str) -> list[tuple[str, int | None, str | None]]:
    (folder / name).write_text(text)
    entries = read_list(folder / name, "train", folder, frame_folders=True)
    return [(entry.path, entry.num_frames, entry.label) for entry in entries]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "a 120 3\nb/c 9 0\n", [("a", 120, "3"), ("b/c", 9, "0")]),
        ("a.txt", "a b 120 run\nc 7 -1\n", [("a b", 120, "run"), ("c", 7, None)]),
        ("a.txt", "a 3\nb run\n", [("a", None, "3"), ("b", None, "run")]),
        ("a.txt", "a\nb/c\n", [("a", None, None), ("b/c", None, None)]),
        ("a.txt", "a\t120\trun fast\nb 2\t5\tfly\n", [("a", 120, "run fast"), ("b 2", 5, "fly")]),
        ("a.csv", "a,120,3\nb 2,9,0\n", [("a", 120, "3"), ("b 2", 9, "0")]),
        ("a.csv", "a,3\n", [("a", None, "3")]),
        ("a.csv", "label,Num_Frames,path\nrun,7,a\n", [("a", 7, "run")]),
        ("a.csv", "path,total_frames\na,7\n", [("a", 7, None)]),
        ("a.txt", "path total_frames label\na b 9 1\n", [("a b", 9, "1")]),
        ("a.txt", "path total_frames\na 9\n", [("a", 9, None)]),
        ("a.txt", "path label\na 9 1\n", [("a 9", None, "1")]),
        # Numbers at the end of names that are there belong to them.
        ("a.txt", "take 2 5\ntake 3 5\n", [("take 2", None, "5"), ("take", 3, "5")]),
        ("a.txt", "take 2 7 5\n", [("take 2", 7, "5")]),
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
        ("a.txt", "a 9 1\nb 10 90 3\n", "a.txt, line 2: 4 columns, but 'path total_frames label'"),
        ("a.csv", "a,9,3,1\n", "line 1: 4 columns, .* or 'path label' was expected; parts of fold"),
        ("a.txt", "a\t9\t3\t1\n", "line 1: 4 columns"),
        ("a.txt", "a 9 1 5 7\n", "5 columns, .* several labels cannot be taken over"),
        ("a.csv", "a,many,1\n", "line 1: total_frames is 'many', which is no number"),
        ("a.csv", "a,-3,1\n", "line 1: total_frames is '-3'"),
        ("a.csv", "path,start_frame,label\na,3,1\n", "has the column 'start_frame', but parts of"),
        ("a.txt", "a 9 1\nb 3\nc\n", "line 3: the label is missing"),
    ],
)
def test_what_is_wrong_with_lists_of_folders_is_said(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_folders(tmp_path, text, name)


def test_json_of_absurd_depth(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no JSON: "):
        read(tmp_path, "[" * 100_000, "list.json")


def test_files_that_are_no_texts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent.csv cannot be read"):
        read_list(tmp_path / "absent.csv", "train", tmp_path)
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="a.csv is no text in UTF-8"):
        read_list(tmp_path / "a.csv", "train", tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "walk\nrun fast\n", {"walk": 0, "run fast": 1, "0": 0, "1": 1}),
        ("a.txt", "1 walk\n2 run\n", {"walk": 0, "run": 1, "1": 0, "2": 1}),
        ("a.csv", 'id,name\n0,walk\n1,"run"\n', {"walk": 0, "run": 1, "0": 0, "1": 1}),
        ("a.json", '{"walk": "0", "run": "1"}', {"walk": 0, "run": 1, "0": 0, "1": 1}),
        ("a.json", '["walk", "run"]', {"walk": 0, "run": 1, "0": 0, "1": 1}),
    ],
)
def test_classes(tmp_path: Path, name: str, text: str, expected: dict[str, int]) -> None:
    (tmp_path / name).write_text(text)
    assert read_classes(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "names no classes"),
        ("a.txt", "walk\nrun\nwalk\n", "has the class 'walk' 2 times"),
        ("a.txt", "1 walk\n1 run\n", "has the number 1 2 times"),
        ("a.json", '{"walk": "x"}', "class 'walk' has the number 'x'"),
        ("a.json", "3", "holds neither"),
    ],
)
def test_bad_classes(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_classes(tmp_path / name)
