from pathlib import Path

import pytest

from adamae_jax.data.video_folder import class_of, find_files, folder_entries
from adamae_jax.errors import UserError

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
    assert find_files(folder) == sorted(NAMES)


def test_what_counts_as_an_image(folder: Path) -> None:
    assert find_files(folder, images=True) == sorted(IMAGES)


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
