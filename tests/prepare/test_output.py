import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adamae_jax.data import schema
from adamae_jax.errors import UserError
from adamae_jax.prepare.output import (
    RECORD_NAME,
    already_written,
    publish,
    shards_folder,
    unfinished,
    workspace,
)

ARGUMENTS: dict[str, Any] = {"seed": 3, "sizes": (1, 2)}


def write(output: Path, arguments: dict[str, Any] = ARGUMENTS, **facts: Any) -> None:
    with workspace(output, arguments) as folder:
        built = folder / "built"
        built.mkdir(parents=True)
        (built / "shard").write_bytes(b"12345")
        publish(built, output, arguments, **facts)


def leave(output: Path, arguments: dict[str, Any], finished: bool) -> Path:
    """The hidden folder of a job that died, perhaps with a shard finished."""
    with pytest.raises(ZeroDivisionError), workspace(output, arguments) as folder:
        shards = shards_folder(folder, arguments)
        (shards / ".half").touch()
        if finished:
            (shards / "000-009.json").touch()
        raise ZeroDivisionError
    return unfinished(output)


def test_a_dataset_is_published_with_its_record(tmp_path: Path) -> None:
    output = tmp_path / "new" / "dataset"
    assert not already_written(output, ARGUMENTS)
    write(output, clips={"train": 7})
    assert sorted(os.listdir(output)) == [RECORD_NAME, "shard"]
    record = json.loads((output / RECORD_NAME).read_text())
    assert record == {
        "schema": schema.VERSION,
        "arguments": {"seed": 3, "sizes": [1, 2]},
        "clips": {"train": 7},
        "files": {"shard": 5},
        "checksums": {},
    }
    assert os.listdir(output.parent) == ["dataset"]  # nothing else is left
    assert already_written(output, ARGUMENTS)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert already_written(tmp_path / "empty", ARGUMENTS)


@pytest.mark.parametrize("name", ["link", "dangling", "there/..", "mount"])
def test_a_place_that_a_dataset_cannot_take_is_refused_at_once(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "mount").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "dangling").symlink_to("nowhere")
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "mount")
    with pytest.raises(UserError, match="is a link or a mount point"):
        already_written(tmp_path / name, ARGUMENTS)


def test_what_is_there_is_refused_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a")
    with pytest.raises(UserError, match=r"seed is 3 there, 4 was asked for\)"):
        already_written(tmp_path / "a", {**ARGUMENTS, "seed": 4})
    with pytest.raises(UserError, match="rate is None there, 25 was asked for"):
        already_written(tmp_path / "a", {**ARGUMENTS, "rate": 25})
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file", tmp_path / "folder" / "file"):
        path.write_text("mine")
    for path in (tmp_path / "file", tmp_path / "folder"):
        with pytest.raises(UserError, match=f"{path} exists and is no dataset"):
            already_written(path, ARGUMENTS)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "VERSION", schema.VERSION + 1)
        with pytest.raises(UserError, match=r"another version of adamae_jax \(its schema is 3, no"):
            already_written(tmp_path / "a", ARGUMENTS)
    (tmp_path / "a" / "shard").write_bytes(b"123")
    with pytest.raises(UserError, match="shard is missing or does not have its 5 bytes"):
        already_written(tmp_path / "a", ARGUMENTS)
    (tmp_path / "a" / RECORD_NAME).write_text('{"arguments": ')
    with pytest.raises(UserError, match=f"{RECORD_NAME} cannot be read"):
        already_written(tmp_path / "a", ARGUMENTS)


def test_what_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="cannot be put in place"),
        workspace(tmp_path / "a", ARGUMENTS) as folder,
    ):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "mine").write_text("mine")
        (folder / "built").mkdir()
        publish(folder / "built", tmp_path / "a", ARGUMENTS)
    assert os.listdir(tmp_path / "a") == ["mine"]


def test_one_process_writes_at_a_time_and_the_next_goes_on(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time\n"
        "from adamae_jax.prepare.output import workspace\n"
        "with workspace(pathlib.Path(sys.argv[1]), {'a': 1}) as folder:\n"
        "    (folder / 'half').write_text('a')\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        with (
            pytest.raises(UserError, match="another process is writing"),
            workspace(tmp_path / "a", {"a": 1}),
        ):
            pass
        process.send_signal(signal.SIGKILL)
    assert os.listdir(tmp_path) == [".a.unfinished"]
    assert not already_written(tmp_path / "a", {"a": 1})
    with workspace(tmp_path / "a", {"a": 1}) as folder:
        assert (folder / "half").exists()
    assert os.listdir(tmp_path) == []


def test_finished_shards_of_another_job_are_not_destroyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {"items": "a1", "codec": "jpeg", "shard_mb": 3}
    folder = leave(tmp_path / "x y", old, finished=True)
    for new, why in (
        ({"codec": "h264"}, "codec is 'jpeg' there, 'h264' was asked for"),
        ({"items": "b2"}, "the files of --source, their labels or splits have changed"),
    ):
        with pytest.raises(UserError) as caught, workspace(tmp_path / "x y", {**old, **new}):
            pass
        assert str(caught.value) == (
            f"{folder} holds 1 finished shards of a dataset that was begun with other arguments "
            f"({why}): start it again as it was, which goes on; or choose another --output than "
            f"{tmp_path}/x y; or remove what is there: rm -r '{folder}'"
        )
    with monkeypatch.context() as patch:
        patch.setattr(schema, "VERSION", schema.VERSION + 1)
        with (
            pytest.raises(UserError, match="by another version"),
            workspace(tmp_path / "x y", old),
        ):
            pass
    with workspace(tmp_path / "x y", old) as build:
        assert (shards_folder(build, old) / "000-009.json").exists()


def test_leftovers_without_a_finished_shard_make_way(tmp_path: Path) -> None:
    leave(tmp_path / "x", {"a": 1}, finished=False)
    with workspace(tmp_path / "x", {"a": 2}) as build:
        assert [path.name for path in build.glob("shards-*")] == [
            shards_folder(build, {"a": 2}).name
        ]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "why"),
    [(errno.ENOSPC, r"the disk \(or a quota\) is full"), (errno.EIO, "its file system fails")],
)
def test_a_disk_that_is_full_or_fails_is_said(tmp_path: Path, number: int, why: str) -> None:
    with (
        pytest.raises(UserError, match=f"cannot be written, since {why}: .* is kept in "),
        workspace(tmp_path / "x", ARGUMENTS),
    ):
        raise OSError(number, os.strerror(number))
    with pytest.raises(PermissionError), workspace(tmp_path / "x", ARGUMENTS):
        raise PermissionError(errno.EACCES, "not yours")


def test_a_place_where_nothing_can_be_written_or_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(UserError, match="cannot be written"),
        workspace(tmp_path / "file" / "a", ARGUMENTS),
    ):
        pass

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(UserError, match="cannot be locked .*: mount its file system with locks"),
        workspace(tmp_path / "x", ARGUMENTS),
    ):
        pass
