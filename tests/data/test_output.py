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
from adamae_jax.data.output import RECORD_NAME, already_written, publish, workspace
from adamae_jax.errors import UserError

ARGUMENTS: dict[str, Any] = {"seed": 3, "sizes": (1, 2)}


def write(output: Path, arguments: dict[str, Any] = ARGUMENTS, **facts: Any) -> None:
    with workspace(output) as folder:
        built = folder / "deep" / "built"
        built.mkdir(parents=True)
        (built / "shard").write_bytes(b"12345")
        publish(built, output, arguments, **facts)


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
    }
    assert os.listdir(output.parent) == ["dataset"]  # nothing else is left
    assert already_written(output, ARGUMENTS)


def test_an_empty_folder_is_a_place_to_write_to(tmp_path: Path) -> None:
    assert not already_written(tmp_path, ARGUMENTS)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert already_written(tmp_path / "empty", ARGUMENTS)


def test_other_arguments_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a")
    with pytest.raises(UserError, match=r"seed is 3 there, 4 was asked for\)"):
        already_written(tmp_path / "a", {**ARGUMENTS, "seed": 4})
    with pytest.raises(UserError, match="rate is None there, 25 was asked for"):
        already_written(tmp_path / "a", {**ARGUMENTS, "rate": 25})
    assert (tmp_path / "a" / "shard").read_bytes() == b"12345"


def test_datasets_of_another_schema_are_named_and_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a")
    with pytest.raises(ValueError), workspace(tmp_path / "b", resume=ARGUMENTS) as folder:
        (folder / "half").write_text("12")
        raise ValueError
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    with pytest.raises(UserError, match=r"another version of adamae_jax \(its schema is 2, not 3"):
        already_written(tmp_path / "a", ARGUMENTS)
    record = json.loads((tmp_path / "a" / RECORD_NAME).read_text())
    del record["schema"]
    (tmp_path / "a" / RECORD_NAME).write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"its schema is 1, not 3"):
        already_written(tmp_path / "a", ARGUMENTS)
    with workspace(tmp_path / "b", resume=ARGUMENTS) as folder:
        assert not list(folder.iterdir())


def test_other_content_is_refused(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("mine")
    folder.mkdir()
    (folder / "mine").write_text("mine")
    for path in (file, folder):
        with pytest.raises(UserError, match=f"{path} exists and is no dataset"):
            already_written(path, ARGUMENTS)


def test_a_damaged_dataset_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a")
    (tmp_path / "a" / "shard").write_bytes(b"123")
    with pytest.raises(UserError, match="shard is missing or does not have its 5 bytes"):
        already_written(tmp_path / "a", ARGUMENTS)
    (tmp_path / "a" / "shard").unlink()
    with pytest.raises(UserError, match="shard is missing"):
        already_written(tmp_path / "a", ARGUMENTS)
    (tmp_path / "a" / RECORD_NAME).write_text('{"arguments": ')
    with pytest.raises(UserError, match=f"{RECORD_NAME} cannot be read"):
        already_written(tmp_path / "a", ARGUMENTS)


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), workspace(tmp_path / "a") as folder:
        (folder / "shard").write_bytes(b"123")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_the_remains_of_a_killed_process_are_cleared_away(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time\n"
        "from adamae_jax.data.output import workspace\n"
        "with workspace(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('a')\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        # While it lives, nobody else may write there.
        with (
            pytest.raises(UserError, match="another process is writing"),
            workspace(tmp_path / "a"),
        ):
            pass
        assert len(os.listdir(tmp_path)) == 1
        process.send_signal(signal.SIGKILL)
    assert len(os.listdir(tmp_path)) == 1
    assert not already_written(tmp_path / "a", ARGUMENTS)
    with workspace(tmp_path / "a") as folder:
        assert os.listdir(folder) == []
    assert os.listdir(tmp_path) == []


def test_what_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="cannot be put in place"),
        workspace(tmp_path / "a") as folder,
    ):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "mine").write_text("mine")
        (folder / "built").mkdir()
        publish(folder / "built", tmp_path / "a", ARGUMENTS)
    assert os.listdir(tmp_path / "a") == ["mine"]


def test_a_place_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot be written"), workspace(tmp_path / "file" / "a"):
        pass


def test_a_job_that_can_go_on_finds_what_it_left(tmp_path: Path) -> None:
    for arguments, expected in [({"a": 1}, []), ({"a": 1}, ["half"]), ({"a": 2}, [])]:
        with pytest.raises(ZeroDivisionError), workspace(tmp_path / "x", arguments) as folder:
            assert os.listdir(folder) == expected
            (folder / "half").write_text("a")
            raise ZeroDivisionError
        assert os.listdir(tmp_path) == [".x.unfinished"]
    with workspace(tmp_path / "x", {"a": 2}) as folder:
        assert os.listdir(folder) == ["half"]
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"the disk \(or a quota\) is full: .* what is finished is"),
        workspace(tmp_path / "x", {"a": 1}),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), workspace(tmp_path / "x"):
        raise PermissionError(errno.EACCES, "not yours")


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ESTALE])
def test_a_file_system_that_fails_is_said(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = OSError(number, os.strerror(number))
    with (
        pytest.raises(UserError, match=f"its file system fails: .*{failure.strerror}; what is fin"),
        workspace(tmp_path / "x", {"a": 1}),
    ):
        raise failure

    def fail(path: Path) -> None:
        raise failure

    monkeypatch.setattr(Path, "exists", fail)
    with pytest.raises(UserError, match=r"--output=.*x cannot be read .*: see to its file system"):
        already_written(tmp_path / "x", ARGUMENTS)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(UserError, match=r"cannot be locked .*: mount its file system with locks"),
        workspace(tmp_path / "x"),
    ):
        pass


def test_names_are_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    rename, fsync = os.rename, os.fsync

    def note_sync(descriptor: int) -> None:
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)
        if done[-1] == "deep":  # not all file systems know this of folders
            raise OSError(errno.EINVAL, "what?")

    def note_rename(source: Path, target: Path) -> None:
        rename(source, target)
        done.append("renamed")

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", note_rename)
    with workspace(tmp_path / "here" / "x") as folder:
        (folder / "built" / "deep").mkdir(parents=True)
        (folder / "built" / "deep" / "shard").write_bytes(b"12345")
        publish(folder / "built", tmp_path / "here" / "x", ARGUMENTS)
    assert done == ["shard", RECORD_NAME, "deep", "built", "renamed", "here"]
