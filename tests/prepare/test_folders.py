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
    assert find_files(folder).things == sorted([*NAMES, "dangling.mp4"])


def test_links_are_followed_wherever_they_lead(tmp_path: Path) -> None:
    """Datasets are farms of links on many clusters. Each real file is found once."""
    root, disk = tmp_path / "videos", tmp_path / "disk"
    for path in (root / "a/1.mp4", root / ".more/5", disk / "b/2.mp4", disk / "3", disk / "c/4"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    links: dict[str, str | Path] = {
        "b": disk / "b", "a/3.mp4": disk / "3", "z": disk, "a/5.mp4": "1.mp4", "a/circle": "..",
        "y": "b", "a/6.mp4": "../.more/5", "a/7.mp4": "../.more/5", "x": "x", "up": tmp_path,
    }  # fmt: skip
    for link, target in links.items():
        (root / link).symlink_to(target)
    (tmp_path / "link").symlink_to(root)
    anyway = "(a link to what is found anyway)"
    for source in (root, tmp_path / "link"):
        assert find_files(source) == (
            ["a/1.mp4", "a/6.mp4", "b/2.mp4", "x", "z/3", "z/c/4"],
            [
                f"{name} {anyway}"
                for name in ("a/circle", "up", "y", "a/3.mp4", "a/5.mp4", "a/7.mp4")
            ],
        )


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
    with pytest.raises(UserError, match="cannot be listed"):
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
