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
    assert (item.id, item.path, item.split) == ("d.mp4", "/videos/d.mp4", None)
    (item,) = make_source(Path("/videos"), [entry("b\udcff.mp4")]).items
    assert item.id == "b\\xff.mp4"
    assert os.fsencode(item.path) == b"/videos/b\xff.mp4"


@pytest.mark.parametrize(
    "path", ["../a.mp4", "a/../../b.mp4", "/etc/passwd", "/videos-2/a.mp4", ".", "", "a\0b"]
)
def test_paths_of_lists_do_not_climb_out_of_the_source(tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match=r"^list.csv, line .*(lies outside of|names no file)"):
        make_source(tmp_path / "videos", [entry(path)])


def test_links_are_followed_and_keep_their_names(tmp_path: Path) -> None:
    """The source may be a link, and hold links to other disks, or to nowhere."""
    real, root = tmp_path / "real", tmp_path / "videos"
    real.mkdir()
    root.symlink_to(real)
    (real / "b.mp4").symlink_to("/etc/passwd")
    (real / "d.mp4").symlink_to("nowhere")
    entries = [entry("b.mp4"), entry(str(real / "c.mp4")), entry("d.mp4"), entry(f"{root}/e.mp4")]
    assert sorted(item.id for item in make_source(root, entries).items) == [
        "b.mp4", "c.mp4", "d.mp4", "e.mp4"
    ]  # fmt: skip


def test_a_part_of_each_class_is_set_aside() -> None:
    """At least one video of each class that has two; what has a split keeps it."""

    def split(fraction: float, *labels: str | None) -> dict[str | None, int]:
        entries = [entry(f"{number}.mp4", label) for number, label in enumerate(labels)]
        source = make_source(Path("/videos"), entries, validation_fraction=fraction)
        assert {item.split for item in source.items} <= {None, "validation"}
        aside = [item.label for item in source.items if item.split == "validation"]
        names = source.label_names or (None,)
        return {name: aside.count(names.index(name) if name else UNLABELLED) for name in names}

    assert split(0.1, *"aaaaaabbbbbb") == {"a": 1, "b": 1}
    assert split(0.25, *"aaaaaaaabbbbc") == {"a": 2, "b": 1, "c": 0}
    assert split(0.95, *"aaab") == {"a": 2, "b": 0}  # something is left to train on
    assert split(0.1, *[None] * 12) == {None: 1}
    assert split(0.25, *[None] * 12) == {None: 3}
    assert split(0, *"aabb") == {"a": 0, "b": 0}
    assert sum(split(0.1, *"abc").values()) == 1
    entries = [entry("a.mp4", split="test"), entry("b.mp4"), entry("c.mp4")]
    source = make_source(Path("/videos"), entries, validation_fraction=0.5)
    assert sorted(str(item.split) for item in source.items) == ["None", "test", "validation"]


def test_many_entries_keep_their_order(tmp_path: Path) -> None:
    names = [f"{number}.mp4" for number in range(1000)]
    assert {item.id for item in make_source(tmp_path, list(map(entry, names))).items} == {*names}
    assert list(in_threads(str.upper, names)) == [name.upper() for name in names]
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda number: 1 // (number - 500), range(1000)))


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
    items = [Item("a", ""), Item("b", "", 0, "validation"), Item("c", "")]
    assert [item.split for item in in_order(items)] == ["validation", None, None]
    # By SHA-256, in all versions.
    assert [item.id for item in in_order(Item(name, "") for name in "abc")] == ["c", "b", "a"]
