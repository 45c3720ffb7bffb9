import errno
import os
from pathlib import Path

import pytest

from adamae_jax.errors import UserError
from adamae_jax.prepare.folders import class_of, find_files, folder_entries

NAMES = ["b.mp4", "a/c.AVI", "a/d", "a/e.xyz", "z z/ü.webm", "a/moving.gif"]
OTHERS = ["README.md", "a/labels.CSV", "x.json", ".hidden.mp4", ".trash/x.mp4", ".trash/x.png"]
IMAGES = ["a/p.jpg", "b c/q.PNG", "r.JPEG"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES + OTHERS + IMAGES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "dangling.mp4").symlink_to("nowhere")
    return tmp_path


def test_what_counts_as_a_video(folder: Path) -> None:
    """A link that leads nowhere does: a video is missing there."""
    assert find_files(folder) == (sorted([*NAMES, "dangling.mp4"]), [])


def test_what_counts_as_an_image(folder: Path) -> None:
    assert find_files(folder, images=True) == (sorted(IMAGES), [])


def test_what_is_no_file_is_no_video(folder: Path) -> None:
    os.mkfifo(folder / "pipe.mp4")
    (folder / "link.mp4").symlink_to("pipe.mp4")
    assert find_files(folder).things == sorted([*NAMES, "dangling.mp4"])


def test_links_are_followed_inside_of_the_source(tmp_path: Path) -> None:
    """Each real file is found once, whatever leads to it."""
    root = tmp_path / "videos"
    for name in ("a/1.mp4", ".store/b/2.mp4", ".store/3", ".store/c/4.mp4", ".more/5"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    links = {
        "b": ".store/b", "a/3.mp4": "../.store/3", "z": ".store", "a/5.mp4": "1.mp4",
        "a/circle": "..", "y": "b", "a/6.mp4": "../.more/5", "a/7.mp4": "../.more/5", "x": "x",
        "notes.txt": "/etc/passwd",
    }  # fmt: skip
    for link, target in links.items():
        (root / link).symlink_to(target)
    (tmp_path / "link").symlink_to(root)
    for source in (root, tmp_path / "link"):
        assert find_files(source) == (
            ["a/1.mp4", "a/6.mp4", "b/2.mp4", "x", "z/3", "z/c/4.mp4"],
            [
                "a/circle (a link to ., which is found anyway)",
                "y (a link to .store/b, which is found anyway)",
                "a/3.mp4 (a link to .store/3, which is found anyway)",
                "a/5.mp4 (a link to a/1.mp4, which is found anyway)",
                "a/7.mp4 (a link to .more/5, which is found anyway)",
            ],
        )


@pytest.mark.parametrize("link", ["dog", "1.mp4", "a/b/.."])
def test_links_that_lead_out_are_refused(tmp_path: Path, link: str) -> None:
    root, target = tmp_path / "videos", tmp_path / "disk 2" / link
    (root / "a" / "b").mkdir(parents=True)
    (root / "0.mp4").write_bytes(b"")
    if link == "a/b/..":
        link, target = "a/b/up", tmp_path  # what leads above the source leads out of it
    elif link == "dog":
        target.mkdir(parents=True)
    else:
        target.parent.mkdir()
        target.write_bytes(b"")
    (root / link).symlink_to(target)
    with pytest.raises(UserError) as caught:
        find_files(root)
    message = str(caught.value)
    assert message.startswith(f"{link} lies outside of --source={root} (it leads to {target})")
    assert f"give the folder that holds all files (--source={tmp_path}), or mount" in message
    mounted = target if target.is_dir() else target.parent
    assert f"(mount --bind {mounted} FOLDER)" in message and "\n" not in message


def test_folders_that_cannot_be_listed_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("z z"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_files(folder)
    assert "z z/ü.webm" not in found.things
    assert found.passed_over == ["z z (cannot be listed: Permission denied)"]


def test_a_source_without_files(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("empty")
    with pytest.raises(UserError, match="holds no videos"):
        find_files(tmp_path)
    with pytest.raises(UserError, match="holds no images"):
        find_files(tmp_path, images=True)
    with pytest.raises(UserError, match="is not a folder"):
        find_files(tmp_path / "README.md")


def facts(paths: list[str], class_folders: bool) -> list[tuple[str | None, str | None]]:
    return [(entry.split, entry.label) for entry in folder_entries(paths, class_folders)]


def test_folders_as_classes() -> None:
    assert facts(["a/1.mp4", "b c/d/2.mp4"], True) == [(None, "a"), (None, "b c")]
    assert facts(["a/1.mp4", "2.mp4"], False) == [(None, None)] * 2
    with pytest.raises(UserError, match=r"'2.mp4' lies in no class folder"):
        facts(["a/1.mp4", "2.mp4"], True)


def test_folders_as_splits() -> None:
    assert facts(["train/a/1.mp4", "Val/b/2.mp4", "test/a/x/3.mp4"], True) == [
        ("train", "a"),
        ("validation", "b"),
        ("test", "a"),
    ]
    assert facts(["train/1.mp4", "valid/2.mp4"], False) == [("train", None), ("validation", None)]
    # One folder that is no split makes them all classes.
    assert facts(["train/1.mp4", "tram/2.mp4"], True) == [(None, "train"), (None, "tram")]
    with pytest.raises(UserError, match="lies in no class folder"):
        facts(["train/1.mp4"], True)


def test_the_class_is_a_folder_on_the_way() -> None:
    assert class_of("a/b/c.mp4") == "a"
    assert class_of("a/b/c.mp4", depth=1) == "b"
    assert class_of("caf\udce9/c.mp4") == "caf\\xe9"  # as in the ids: names need not be text
