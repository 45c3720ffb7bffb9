import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamae_jax.data.schema import UNLABELLED
from adamae_jax.errors import UserError
from adamae_jax.prepare.sources import Entry, Item, in_order, in_threads, make_source


def entry(path: str, label: str | None = None, split: str | None = None) -> Entry:
    return Entry(path, label, split, f"list.csv, line {path[:1]}")


def labels(
    *given: str | None, classes: dict[str, int] | None = None
) -> tuple[list[int], list[str]]:
    entries = [entry(f"{number}.mp4", label) for number, label in enumerate(given)]
    source = make_source(Path("/videos"), entries, classes)
    by_id = {item.id: item.label for item in source.items}
    return [by_id[entry.path] for entry in entries], list(source.label_names)


def test_labels_are_numbered() -> None:
    assert labels("run", "jump", "run") == ([1, 0, 1], ["jump", "run"])
    assert labels("2", "0", "02") == ([2, 0, 2], ["0", "1", "2"])
    assert labels("10", "2", None) == ([10, 2, UNLABELLED], [str(n) for n in range(11)])
    assert labels(None, None) == ([UNLABELLED] * 2, [])
    assert labels("b", None) == ([0, UNLABELLED], ["b"])
    with pytest.raises(UserError, match="a label is 99999999"):
        labels("99999999")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("2", "run"), r"label '2' \(.*line 0\) is a number and 'run' \(.*line 1\) is not"),
        (("10", "-2"), "'10' .* and '-2' .* is not"),
        (("0.0", "1.0"), "'0.0' .* and '1.0' .* --labels=FILE"),
        (("1.5",), "'1.5' .* is not"),
    ],
)
def test_numbers_are_not_mixed_with_names(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        labels(*given)
    # What is listed may have any name.
    assert labels(*given, classes=dict.fromkeys(given, 0))[0] == [0] * len(given)


def test_labels_of_known_classes() -> None:
    classes = {"walk": 0, "run": 1, "1": 0, "2": 1}  # numbered from 1
    assert labels("run", "2", "1", classes=classes) == ([1, 1, 0], ["walk", "run"])
    with pytest.raises(UserError, match=r"'fly' is not among .*\(walk, run, 1, 2\)"):
        labels("run", "fly", classes=classes)


def test_items_know_their_files() -> None:
    source = make_source(Path("/videos"), [entry("a b/./c.mp4", "x", "train")])
    assert source.items == (Item("a b/c.mp4", "/videos/a b/c.mp4", 0, "train"),)
    (item,) = make_source(Path("/videos"), [entry("/videos/d.mp4")]).items
    assert (item.id, item.path) == ("d.mp4", "/videos/d.mp4")
    (item,) = make_source(Path("/videos"), [entry("b\udcff.mp4")]).items
    assert item.id == "b\\xff.mp4"
    assert os.fsencode(item.path) == b"/videos/b\xff.mp4"


@pytest.mark.parametrize(
    "path", ["../a.mp4", "a/../../b.mp4", "/etc/passwd", "/videos-2/a.mp4", ".", "", "a\0b", "link",
             "loop/../../a.mp4", "folder/passwd"]
)  # fmt: skip
def test_paths_stay_below_the_source(tmp_path: Path, path: str) -> None:
    root = tmp_path / "videos"
    root.mkdir()
    (root / "link").symlink_to("/etc/passwd")
    (root / "folder").symlink_to("/etc")
    with pytest.raises(UserError, match=r"^list.csv, line .*(lies outside of|names no file)"):
        make_source(root, [entry(path)])


def test_links_that_stay_inside_are_followed(tmp_path: Path) -> None:
    real, root = tmp_path / "real", tmp_path / "videos"
    real.mkdir()
    root.symlink_to(real)  # the folder itself may be a link
    (real / "a.mp4").write_bytes(b"")
    (real / "b.mp4").symlink_to("a.mp4")
    entries = [entry("a.mp4"), entry("b.mp4"), entry(str(real / "c.mp4"))]
    assert sorted(item.id for item in make_source(root, entries).items) == [
        "a.mp4", "b.mp4", "c.mp4"
    ]  # fmt: skip


def test_links_that_lead_nowhere_are_missing_files(tmp_path: Path) -> None:
    """Wherever they lead: reading them will show it, and they are listed then."""
    (tmp_path / "a.mp4").symlink_to("nowhere")
    (tmp_path / "b.mp4").symlink_to("/no/where.mp4")
    source = make_source(tmp_path, [entry("a.mp4"), entry("b.mp4")])
    assert {item.id for item in source.items} == {"a.mp4", "b.mp4"}


def test_many_entries_keep_their_order(tmp_path: Path) -> None:
    names = [f"{number}.mp4" for number in range(1000)]
    assert {item.id for item in make_source(tmp_path, list(map(entry, names))).items} == {*names}
    assert list(in_threads(str.upper, names)) == [name.upper() for name in names]
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda number: 1 // (number - 500), range(1000)))


def test_the_error_of_a_link_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.mp4").write_bytes(b"")
    (tmp_path / "videos" / "a.mp4").symlink_to("../more/a.mp4")
    with pytest.raises(UserError) as caught:
        make_source(tmp_path / "videos", [entry("a.mp4")])
    assert str(caught.value) == (
        f"list.csv, line a: 'a.mp4' lies outside of --source={tmp_path}/videos (it leads to "
        f"{tmp_path}/more/a.mp4), and links are not followed there: give the folder that holds all "
        f"files (--source={tmp_path}), or mount the other one in --source in place of links "
        f"(mount --bind {tmp_path}/more FOLDER)"
    )


def test_a_file_is_there_once() -> None:
    entries = [entry("1/../a.mp4", split="train"), entry("a.mp4", split="validation")]
    with pytest.raises(UserError, match=r"line a: 'a.mp4' is there already \(list.csv, line 1\)"):
        make_source(Path("/videos"), entries)


@given(st.lists(st.text("ab/", min_size=1), unique=True), st.randoms())
@settings(max_examples=50)
def test_the_order_depends_on_the_ids_alone(ids: list[str], random: object) -> None:
    items = [Item(identity, "") for identity in ids]
    ordered = in_order(items)
    random.shuffle(items)  # type: ignore[attr-defined]
    assert in_order(items) == ordered
    assert in_order(ordered[3:]) == ordered[3:]


def test_splits_stand_together() -> None:
    items = [Item(str(n), "", 0, ("train", "validation", "test")[n % 3]) for n in range(30)]
    splits = [item.split for item in in_order(items)]
    assert splits == ["validation"] * 10 + ["test"] * 10 + ["train"] * 10
    # By SHA-256, in all versions.
    assert [item.id for item in in_order(Item(name, "") for name in "abc")] == ["c", "b", "a"]
