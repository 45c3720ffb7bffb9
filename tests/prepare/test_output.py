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
    unfinished,
    workspace,
)
from adamae_jax.prepare.shards import JOURNAL_NAME, Shard, shard_to_json

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
        "checksums": {},
    }
    assert os.listdir(output.parent) == ["dataset"]  # nothing else is left
    assert already_written(output, ARGUMENTS)


def test_an_empty_folder_is_a_place_to_write_to(tmp_path: Path) -> None:
    assert not already_written(tmp_path, ARGUMENTS)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert already_written(tmp_path / "empty", ARGUMENTS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("link", "is a link, which a dataset cannot take the place of: give the path .*there"),
        ("dangling", "is a link, .*nowhere"),
        ("there/..", "does not end in a name"),
        ("mount", "is a mount point, .* such as .*mount/dataset"),
    ],
)
def test_a_place_that_a_dataset_cannot_take_is_refused_at_once(
    tmp_path: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "mount").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "dangling").symlink_to("nowhere")
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "mount")
    with pytest.raises(UserError, match=message):
        already_written(tmp_path / name, ARGUMENTS)


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
    with pytest.raises(UserError, match=r"another version of adamae_jax \(its schema is 3, not 4"):
        already_written(tmp_path / "a", ARGUMENTS)
    record = json.loads((tmp_path / "a" / RECORD_NAME).read_text())
    del record["schema"]
    (tmp_path / "a" / RECORD_NAME).write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"its schema is 1, not 4"):
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
        "from adamae_jax.prepare.output import workspace\n"
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


def leave(output: Path, arguments: dict[str, Any], *shards: Shard) -> Path:
    """The folder of a job that died with these shards finished."""
    with pytest.raises(ZeroDivisionError), workspace(output, arguments) as folder:
        (folder / "shards").mkdir(exist_ok=True)
        (folder / "shards" / JOURNAL_NAME).write_text("".join(map(shard_to_json, shards)))
        raise ZeroDivisionError
    return unfinished(output)


DONE = [Shard(f"train-{n:05d}", "train", 9 * n + 9, 9, 0, 2_600_000, ()) for n in range(2)]


def test_finished_shards_of_another_job_are_not_destroyed(tmp_path: Path) -> None:
    old = {"items": "a1", "set_aside": 1, "codec": "jpeg", "shard_mb": 3, "source": "/videos"}
    folder = leave(tmp_path / "x y", old, *DONE)
    begun = f"{folder} holds 2 finished shards (5.2 MB) of a dataset that was begun "
    remedy = (
        f": start it again as it was, which goes on; or choose another --output than {tmp_path}/x "
        f"y; or remove what is there: rm -r '{folder}'"
    )
    for new, why in (
        (
            {"shard_mb": 9, "codec": "h264"},
            "with other arguments (codec is 'jpeg' there, 'h264' was asked for; shard_mb is 3 "
            "there, 9 was asked for)",
        ),
        (
            {"items": "b2", "set_aside": 2},
            "with other arguments (the files of --source, their labels or splits have changed)",
        ),
        (None, "of source '/videos'"),
    ):
        for _ in range(2):  # asking once more changes nothing
            resume = None if new is None else {**old, **new}
            with pytest.raises(UserError) as caught, workspace(tmp_path / "x y", resume):
                pass
            assert str(caught.value) == begun + why + remedy
    with workspace(tmp_path / "x y", old) as build:
        assert (build / "shards" / JOURNAL_NAME).read_text().count("\n") == 2


def test_shards_of_another_version_are_not_destroyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = leave(tmp_path / "x", ARGUMENTS, *DONE[:1])
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    with (
        pytest.raises(UserError, match=r" 1 finished shard \(2.6 MB\) .*schema is 3, not 4\)"),
        workspace(tmp_path / "x", ARGUMENTS),
    ):
        pass
    assert (folder / "build" / "shards" / JOURNAL_NAME).is_file()


def test_shards_that_workers_of_beam_have_finished_count(tmp_path: Path) -> None:
    """Until the job has ended only their own notes say so; then its journal does as well."""
    folder = leave(tmp_path / "x", {"a": 1}, *DONE[:1])
    blocks = folder / "build" / "blocks"
    blocks.mkdir()
    for shard in DONE:
        (blocks / f"{shard.name}.json").write_text(shard_to_json(shard))
    (blocks / "items.jsonl").write_bytes(b'["\xff"]\nrubbish')
    with pytest.raises(UserError, match="holds 2 finished sh"), workspace(tmp_path / "x", {"a": 2}):
        pass


def test_shards_without_their_arguments_are_not_destroyed(tmp_path: Path) -> None:
    (leave(tmp_path / "x", ARGUMENTS, *DONE) / "arguments.json").write_text("")
    with (
        pytest.raises(UserError, match="begun with arguments that are not known any more: start"),
        workspace(tmp_path / "x", ARGUMENTS),
    ):
        pass


def test_an_option_that_is_new_and_unused_makes_no_other_job(tmp_path: Path) -> None:
    leave(tmp_path / "x", ARGUMENTS, *DONE)
    with workspace(tmp_path / "x", {**ARGUMENTS, "new": None}) as build:
        assert (build / "shards").is_dir()


def test_leftovers_without_a_finished_shard_make_way(tmp_path: Path) -> None:
    only_flaws = Shard("", "", 3, 0, 0, 0, ())
    folder = leave(tmp_path / "x", {"a": 1}, only_flaws)
    (folder / "build" / "shards" / "train-00000").write_bytes(b"half")
    with workspace(tmp_path / "x", {"a": 2}) as build:
        assert not os.listdir(build)
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
    note = "arguments.json"
    assert done == [note, "shard", RECORD_NAME, "deep", "built", "renamed", "here"]
