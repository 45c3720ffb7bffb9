import csv
from pathlib import Path

import pytest

from adamae_jax.data.video_folder import (
    Flaw,
    find_videos,
    in_hash_order,
    read_videos,
    split,
    write_flaws,
)
from adamae_jax.errors import UserError
from tests.data.videos import blot, make_audio, make_video


def test_what_counts_as_a_video(tmp_path: Path) -> None:
    names = ["b.mp4", "a/c.AVI", "a/d", "a/e.xyz", "z z/ü.webm"]
    others = ["README.md", "a/labels.CSV", "x.json", ".hidden.mp4", ".trash/x.mp4", "a/p.jpg"]
    for name in names + others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "dangling.mp4").symlink_to("nowhere")
    assert find_videos(tmp_path) == sorted(names)


def test_a_source_without_videos(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("empty")
    with pytest.raises(UserError, match="holds no videos"):
        find_videos(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        find_videos(tmp_path / "README.md")


def test_hash_order_depends_on_the_paths_alone() -> None:
    paths = [f"{index}.mp4" for index in range(50)]
    ordered = in_hash_order(paths)
    assert sorted(ordered) == sorted(paths)
    assert ordered != paths
    assert in_hash_order(paths[::-1]) == ordered
    assert in_hash_order(ordered[10:]) == ordered[10:]
    assert in_hash_order(["a", "b", "c"]) == ["c", "b", "a"]  # by SHA-256, in all versions


@pytest.mark.parametrize("num_workers", [0, 2])
def test_reading(tmp_path: Path, num_workers: int) -> None:
    make_video(tmp_path / "good.mp4", 20, 48, 64)
    make_video(tmp_path / "short.mp4", 7)
    blot(make_video(tmp_path / "damaged.mkv", 60, codec="libx264"), 0.65, 150)
    blot(make_video(tmp_path / "both.mkv", 16, codec="libx264"), 0.6, 600)
    make_audio(tmp_path / "sound.mp4")
    paths = ["good.mp4", "short.mp4", "sound.mp4", "damaged.mkv", "both.mkv"]
    flaws: list[Flaw] = []
    results = list(read_videos(tmp_path, paths, 24, 16, num_workers, flaws))
    assert [result and result[0] for result in results] == [
        "good.mp4", None, None, "damaged.mkv", None
    ]  # fmt: skip
    good, damaged = (video for _, video in filter(None, results))
    assert (good.height, good.width) == (24, 32)
    count = len(damaged.frames)
    assert damaged.damage is not None
    assert flaws[0] == Flaw("short.mp4", "skipped", 7, "7 frames, fewer than 16")
    assert flaws[1] == Flaw("sound.mp4", "skipped", 0, "holds no video stream")
    assert flaws[2] == Flaw("damaged.mkv", "truncated", count, damaged.damage)
    assert flaws[3].status == "skipped"
    assert flaws[3].reason.startswith(f"{flaws[3].frames} frames, fewer than 16 (after ")


def test_names_that_are_not_text(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4")
    path.rename(tmp_path / "b\udcff.mp4")
    paths = find_videos(tmp_path)
    assert in_hash_order(paths) == paths
    ((identity, video),) = filter(None, read_videos(tmp_path, paths, 24, 16, 0, []))
    assert identity == "b\\xff.mp4"
    assert video.damage is None


@pytest.mark.parametrize(
    ("number", "validation", "expected"),
    [
        (10, 3, ([0, 1, 2], [3, 4, 5, 6, 7, 8, 9])),
        (10, 1, ([0], [1, 2, 3, 4, 5, 6, 7, 8, 9])),
        (3, 3, ([0, 1], [2])),
        (3, 9, ([0, 1], [2])),
        (2, 1, ([0], [1])),
        (2, 5, ([0], [1])),
    ],
)
def test_split(number: int, validation: int, expected: tuple[list[int], list[int]]) -> None:
    parts = split(iter(range(number)), validation)
    assert list(parts) == ["validation", "train"]
    assert tuple(list(part) for part in parts.values()) == expected


def test_split_of_next_to_nothing() -> None:
    assert {name: list(part) for name, part in split(iter("a"), 1).items()} == {"train": ["a"]}
    assert split(iter(""), 1) == {}


def test_flaws_are_a_table(tmp_path: Path) -> None:
    flaws = [Flaw("ü,1", "truncated", 20, 'said "no"'), Flaw("a", "skipped", 0, "empty")]
    write_flaws(flaws, tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["id", "status", "frames", "reason"],
        ["a", "skipped", "0", "empty"],
        ["ü,1", "truncated", "20", 'said "no"'],
    ]
