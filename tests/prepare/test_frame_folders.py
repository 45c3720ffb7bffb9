import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamae_jax.errors import UserError
from adamae_jax.prepare.find import Found
from adamae_jax.prepare.frame_folders import FrameFolders, find_folders, natural_order
from adamae_jax.prepare.sources import Item, Source

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
    shown = sorted(filter(FrameFolders().is_frame, names), key=natural_order)
    assert shown == [name for _, name in sorted(zip(numbers, names, strict=True))]


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
    assert list(filter(FrameFolders("img_*").is_frame, tsn)) == ["img_2.jpg", "img_1.jpg"]


def test_folders_that_hold_frames_are_found(tmp_path: Path) -> None:
    fill(
        tmp_path, "v1/1.jpg", "a/v2/1.png", "a/v2/more/0.jpg", "a/list.txt", "b/notes.txt",
        ".trash/v/1.jpg", "poster.jpg", "v3/.1.jpg", "a/v4/", "val/empty/",
    )  # fmt: skip
    # Empty folders count beside others that hold frames.
    every = ["a/v2", "a/v2/more", "a/v4", "v1", "v3"]
    assert find_folders(tmp_path, FrameFolders()) == (every, [])
    assert find_folders(tmp_path, FrameFolders("*.png")) == (["a/v2", "a/v4"], [])
    with pytest.raises(UserError, match=r"holds no folder with images called 'x\*': with --fr"):
        find_folders(tmp_path, FrameFolders("x*"))
    with pytest.raises(UserError, match="holds no folder with images: with --frame_folders, give"):
        find_folders(tmp_path / "v1", FrameFolders())


def test_linked_folders_are_found(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", "a/1.jpg", ".store/v/1.jpg")
    links: dict[str, str | Path] = {
        "c": "a",
        "d": "nowhere",
        "e": ".store/v",
        "list.txt": "gone",
        "b": tmp_path / "b",
    }
    for link, target in links.items():
        (source / link).symlink_to(target)
    fill(tmp_path / "b", "1.jpg")
    (source / "a" / "2.jpg").symlink_to("gone.jpg")  # a frame that is missing, no folder
    found = find_folders(source, FrameFolders())
    assert found == (["a", "b", "d", "e"], ["c (a link to what is found anyway)"])


def state(folder: Path) -> str:
    return FrameFolders().look(str(folder)).state


def test_a_folder_that_changes_has_another_state(tmp_path: Path) -> None:
    folder = fill(tmp_path / "v", "1.jpg", "2.jpg", "3.jpg", "4.jpg", "note.txt")
    states = [state(folder)]
    os.utime(folder / "2.jpg", (0, 0))
    os.utime(folder, (0, 0))
    (folder / "note.txt").write_text("longer than before")
    fill(folder, ".thumbs.jpg", "thumbs/1.jpg")
    assert state(folder) == states[0]
    changes = [
        lambda: (folder / "1.jpg").write_text("longer"),
        lambda: (folder / "4.jpg").write_text("longer"),
        lambda: (folder / "5.jpg").write_text("longer"),
        lambda: (folder / "3.jpg").rename(folder / "03.jpg"),
        lambda: (folder / "03.jpg").unlink(),
        lambda: (folder / "1.jpg").unlink(),
        lambda: (folder / "1.jpg").symlink_to("nowhere"),
    ]
    for change in changes:
        change()
        states.append(state(folder))
    assert len(set(states)) == len(states)
    for name in (b"1\xfe.jpg", b"1\xff.jpg"):  # names need not be text
        odd = tmp_path / str(name[1])
        odd.mkdir()
        Path(os.fsdecode(os.fsencode(odd) + b"/" + name)).write_text("")
        states.append(state(odd))
    assert len(set(states)) == len(states)
    assert FrameFolders().look(str(tmp_path / "absent")) == ("", {})
    (tmp_path / "empty").mkdir()
    assert state(tmp_path / "empty")


TSN = ["img_00001.jpg", "img_00002.jpg", "flow_x_00001.jpg", "flow_y_00001.jpg"]


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        (TSN, ["flow_x_[0-9]*.jpg", "flow_y_[0-9]*.jpg", "img_[0-9]*.jpg"]),
        (["cover.jpg", "1.jpg", "2.jpg"], ["[0-9]*.jpg", "cover.jpg"]),
        (["1_left.jpg", "2_right.jpg"], ["[0-9]*_left.jpg", "[0-9]*_right.jpg"]),
        (["1.jpg", "2.jpg", "01.png"], ["[0-9]*.jpg", "[0-9]*.png"]),
        (["x1_9.jpg", "x1_10.jpg"], ["x1_[0-9]*.jpg"]),
    ],
)
def test_images_of_several_kinds_are_told_apart(
    tmp_path: Path, names: list[str], kinds: list[str]
) -> None:
    folder = str(fill(tmp_path / "v", *names))
    assert sorted(FrameFolders().look(folder).kinds) == kinds
    assert not FrameFolders("*.*").look(folder).kinds
    chosen = [list(filter(FrameFolders(pattern).is_frame, names)) for pattern in kinds]
    assert sorted(name for names in chosen for name in names) == sorted(names)


def found(root: Path) -> Found:
    """All folders right in the root as videos."""
    items = tuple(Item(path.name, str(path)) for path in sorted(root.iterdir()))
    return Found(root, Source(items, ()), frame_folders=FrameFolders())


def test_all_folders_with_odd_images_are_named(tmp_path: Path) -> None:
    """At the start, and not one at each start."""
    for number in range(14):
        names = [f"img_{frame}.jpg" for frame in range(3)] + ["cover.jpg"] * (number > 1)
        fill(tmp_path / f"v{number:02d}", *names)
    with pytest.raises(UserError) as caught:
        found(tmp_path).fingerprint()
    message, kinds = str(caught.value), "(cover.jpg; img_[0-9]*.jpg)"
    assert message.startswith(
        f"12 folders of frames with images of several kinds: v02 {kinds}; v03 {kinds}; "
    )
    assert message.count(kinds) == 10
    assert message.endswith(
        "; and 2 more: remove what is no frame, or say which are the frames, in quotes: "
        "--frame_names='img_[0-9]*.jpg', for instance"
    )
