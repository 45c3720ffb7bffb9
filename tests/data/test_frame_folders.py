import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamae_jax.data.frame_folders import FrameFolders, find_folders, natural_order
from adamae_jax.errors import UserError

NAMES = st.text("ab_0123456789.", min_size=1, max_size=8)


def fill(folder: Path, *names: str) -> Path:
    """Makes files that hold their own names; those that end in a slash are folders."""
    for name in names:
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_text(name)
    return folder


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 6)), unique_by=lambda n: n[0]))
def test_frames_are_shown_in_the_order_of_their_numbers(numbers: list[tuple[int, int]]) -> None:
    """However many zeros stand in front of them, and whatever their suffixes are."""
    suffixes = (".jpg", ".PNG", ".webp")
    names = [f"cam2_{n:0{width}d}x{suffixes[n % 3]}" for n, width in numbers]
    shown = FrameFolders().select(names)
    assert shown == [name for _, name in sorted(zip(numbers, names, strict=True))]


@given(st.lists(NAMES, unique=True), st.randoms())
def test_every_machine_has_the_same_order(names: list[str], random: object) -> None:
    ordered = sorted(names, key=natural_order)
    random.shuffle(names)  # type: ignore[attr-defined]
    assert sorted(names, key=natural_order) == ordered
    assert len({str(natural_order(name)) for name in names}) == len(names)


def test_natural_order() -> None:
    names = ["a10", "a2", "a", "a2b10", "b\udcff1", "a02", "b", "a2b1", "a1"]
    assert sorted(names, key=natural_order) == [
        "a", "a1", "a02", "a2", "a2b1", "a2b10", "a10", "b", "b\udcff1"
    ]  # fmt: skip


def test_which_files_are_frames(tmp_path: Path) -> None:
    fill(tmp_path, "10.jpg", "9.PNG", "._9.jpg", "9.txt", "8.jpg/", "11")
    (tmp_path / "12.jpg").symlink_to("nowhere")  # reading it will show that it is missing
    paths = FrameFolders().paths(str(tmp_path))
    assert paths == [str(tmp_path / name) for name in ("9.PNG", "10.jpg", "12.jpg")]
    tsn = ["img_2.jpg", "flow_x_1.jpg", "img_1.jpg", "flow_y_1.jpg", "img_1.txt", "IMG_3.jpg"]
    assert FrameFolders("img_*").select(tsn) == ["img_1.jpg", "img_2.jpg"]


def test_folders_that_hold_frames_are_found(tmp_path: Path) -> None:
    fill(
        tmp_path, "v1/1.jpg", "a/v2/1.png", "a/v2/more/0.jpg", "a/list.txt", "b/notes.txt",
        ".trash/v/1.jpg", "poster.jpg", "v3/.1.jpg", "a/v4/", "val/empty/",
    )  # fmt: skip
    # Empty folders count beside others that hold frames.
    assert find_folders(tmp_path, FrameFolders()) == ["a/v2", "a/v2/more", "a/v4", "v1", "v3"]
    assert find_folders(tmp_path, FrameFolders("*.png")) == ["a/v2", "a/v4"]
    with pytest.raises(UserError, match=r"holds no folder with images called 'x\*': with --fr"):
        find_folders(tmp_path, FrameFolders("x*"))
    with pytest.raises(UserError, match="holds no folder with images: with --frame_folders, give"):
        find_folders(tmp_path / "v1", FrameFolders())


def test_a_folder_that_changes_has_another_state(tmp_path: Path) -> None:
    folder, folders = fill(tmp_path / "v", "1.jpg", "2.jpg", "3.jpg", "note.txt"), FrameFolders()
    states = [folders.state(str(folder), tmp_path)]
    os.utime(folder / "2.jpg", (0, 0))
    (folder / "note.txt").write_text("longer than before")
    assert folders.state(str(folder), tmp_path) == states[0]
    changes = [
        lambda: (folder / "2.jpg").write_text("longer"),
        lambda: (folder / "4.jpg").write_text("4"),
        lambda: (folder / "3.jpg").rename(folder / "5.jpg"),
        lambda: (folder / "1.jpg").unlink(),
        lambda: (folder / "1.jpg").symlink_to("nowhere"),
    ]
    for change in changes:
        change()
        states.append(folders.state(str(folder), tmp_path))
    assert len(set(states)) == len(states)
    for name in (b"1\xfe.jpg", b"1\xff.jpg"):  # names need not be text
        odd = tmp_path / str(name[1])
        odd.mkdir()
        Path(os.fsdecode(os.fsencode(odd) + b"/" + name)).write_text("")
        states.append(folders.state(str(odd), tmp_path))
    assert len(set(states)) == len(states)
    assert folders.state(str(tmp_path / "absent"), tmp_path) == ""
    (tmp_path / "empty").mkdir()
    assert folders.state(str(tmp_path / "empty"), tmp_path)


TSN = ["img_00001.jpg", "img_00002.jpg", "flow_x_00001.jpg", "flow_y_00001.jpg"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (TSN, r"v holds images of 3 kinds \(flow_x_00001.jpg, flow_y_00001.jpg, img_00001.jpg\): "
              r"say which are the frames, in quotes: --frame_names='img_\[0-9\]\*', for instance"),
        (["cover.jpg", "1.jpg", "2.jpg"], r"2 kinds \(1.jpg, cover.jpg\).*names='\[0-9\]\*', for"),
        (["1_left.jpg", "2_right.png"], r"2 kinds \(1_left.jpg, 2_ri.*names='\[0-9\]\*_right\.\*'"),
        (["a.jpg", "b.jpg"], r"2 kinds \(a.jpg, b.jpg\): .*names='\*.jpg', for instance"),
        ([f"{n}_1.jpg" for n in range(9)], r"9 kinds \(0_1.jpg, 1_1.*, 3_1.jpg, \.\.\.\)"),
        (["1.jpg", "2.jpg", "01.png"], r"holds frame 1 twice \(01.png, 1.jpg\): .*names='\*.png'"),
    ],
)  # fmt: skip
def test_images_of_several_kinds_need_a_pattern(
    tmp_path: Path, names: list[str], message: str
) -> None:
    folder = fill(tmp_path / "v", *names)
    with pytest.raises(UserError, match=message) as caught:
        FrameFolders().state(str(folder), tmp_path)
    assert "\n" not in str(caught.value)
    assert FrameFolders("*.*").state(str(folder), tmp_path)


def test_frames_stay_below_the_source(tmp_path: Path) -> None:
    folder = fill(tmp_path / "source" / "v", "1.jpg")
    fill(tmp_path, "2.jpg")
    (folder / "2.jpg").symlink_to("1.jpg")
    FrameFolders().state(str(folder), tmp_path / "source")
    (folder / "3.jpg").symlink_to(tmp_path / "2.jpg")
    with pytest.raises(UserError, match=r"v/3.jpg lies outside of --source \(it leads to .*/2.jp"):
        FrameFolders().state(str(folder), tmp_path / "source")
