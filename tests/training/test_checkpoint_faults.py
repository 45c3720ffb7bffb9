"""Run checkpoints under damage, kills and full disks, and in two processes."""

import json
import logging as python_logging
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from adamae_jax.errors import UserError
from adamae_jax.training import checkpoints, digests
from adamae_jax.training.checkpoints import RunCheckpoints
from tests.training.checkpoint_helpers import (
    abstract,
    assert_same,
    largest_file,
    make_state,
    restore,
    run_python,
    save_steps,
)


def flip(path: Path) -> None:
    """Inverts one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def truncate(path: Path) -> None:
    """Loses the last byte."""
    path.write_bytes(path.read_bytes()[:-1])


def manifest_of(path: Path) -> Path:
    """The manifest of the checkpoint to which a file belongs."""
    return next(p for p in path.parents if p.name == "state") / digests.MANIFEST_NAME


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "truncated": truncate,
    "missing": Path.unlink,
    "manifest missing": lambda path: manifest_of(path).unlink(),
    "manifest flipped": lambda path: flip(manifest_of(path)),
    "manifest nested": lambda path: manifest_of(path).write_bytes(b"[" * 99_999),
    "manifest empty": lambda path: manifest_of(path).write_bytes(b""),
}


class TestDamage:
    """Files that are not as they were written."""

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_goes_back_to_an_older_one(
        self, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Loudly, naming the file; the damaged one is kept aside."""
        save_steps(tmp_path, 1, 2)
        DAMAGES[damage](largest_file(tmp_path, 2))
        step, state = restore(tmp_path)
        assert step == 1
        assert_same(state, make_state(1))
        [record] = [r for r in caplog.records if "is damaged" in r.getMessage()]
        assert record.levelname == "WARNING"
        assert str(tmp_path / "2" / "state") in record.getMessage()
        assert f"moved to {tmp_path / '2.corrupt'}, going back to step 1" in record.getMessage()
        assert (tmp_path / "2.corrupt" / "state").is_dir()
        assert not (tmp_path / "2").exists()

    def test_every_file_is_covered(self, tmp_path: Path) -> None:
        """A flipped bit in any file of the item is found."""
        save_steps(tmp_path, 1)
        item = tmp_path / "1" / "state"
        covered = json.loads((item / digests.MANIFEST_NAME).read_text())["files"]
        assert len(covered) > 5
        for name in covered:
            flip(item / name)
            with pytest.raises(digests.DamagedError, match=name):
                digests.verify(item)
            flip(item / name)
        digests.verify(item)

    def test_goes_on_and_is_damaged_again(self, tmp_path: Path) -> None:
        """The step is saved anew, damaged anew, and set aside under another name."""
        save_steps(tmp_path, 1, 2)
        for _ in range(2):
            flip(largest_file(tmp_path, 2))
            with RunCheckpoints(tmp_path, keep=5, metadata={}) as run:
                restored = run.restore(abstract(make_state()))
                assert restored is not None and restored[0] == 1
                run.save(2, make_state(2))
        assert restore(tmp_path)[0] == 2
        assert (tmp_path / "2.corrupt").is_dir() and (tmp_path / "2.corrupt2").is_dir()

    def test_none_intact_is_an_error_every_time(self, tmp_path: Path) -> None:
        """Never a silent start from nothing; nothing is moved."""
        save_steps(tmp_path, 1, 2)
        flip(largest_file(tmp_path, 1))
        truncate(largest_file(tmp_path, 2))
        for _ in range(2):
            with pytest.raises(UserError, match="no intact checkpoint") as caught:
                restore(tmp_path)
            assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
        assert checkpoints.checkpoint_steps(tmp_path) == [1, 2]
        for step in (1, 2):
            (tmp_path / str(step)).rename(tmp_path / f"{step}.corrupt")
        with pytest.raises(UserError, match=r"1.corrupt: found damaged earlier"):
            restore(tmp_path)

    def test_a_renamed_checkpoint_is_not_another_step(self, tmp_path: Path) -> None:
        """The step is in the manifest."""
        save_steps(tmp_path, 1)
        (tmp_path / "1").rename(tmp_path / "9")
        with pytest.raises(UserError, match="it was saved as step 1"):
            restore(tmp_path)

    def test_metadata_is_protected(self, tmp_path: Path) -> None:
        """A changed fingerprint is found."""
        save_steps(tmp_path, 1)
        path = tmp_path / "1" / "state" / digests.MANIFEST_NAME
        path.write_text(path.read_text().replace("3f2a", "3f2b"))
        with pytest.raises(UserError, match="no intact checkpoint of step 1"):
            checkpoints.read_metadata(tmp_path, 1)


SAVER = """
    import sys, jax, jax.numpy as jnp
    from adamae_jax.training.checkpoints import RunCheckpoints
    directory = sys.argv[1]
    like = {"x": jnp.zeros(1 << 18), "step": jnp.int32(0)}
    with RunCheckpoints(directory, keep=2, metadata={}) as run:
        found = run.restore(like)
        first = found[0] if found else 0
        for step in range(first + 1, first + 10_000):
            run.save(step, {"x": jnp.full(1 << 18, step, jnp.float32), "step": jnp.int32(step)})
            print(step, flush=True)
"""


def kill_while_saving(directory: Path, delay: float) -> int:
    """Starts a process that saves and saves, kills it, and returns the last step it began."""
    child = run_python(SAVER, directory)
    assert child.stdout is not None and child.stderr is not None
    first = child.stdout.readline()
    assert first, child.stderr.read()
    time.sleep(delay)
    child.send_signal(signal.SIGKILL)
    rest = child.communicate()[0].split()
    return int(rest[-1]) if rest else int(first)


class TestKilled:
    """kill -9 at any moment."""

    def check(self, directory: Path, delays: list[float]) -> None:
        """Whatever is restored is whole, and at most one save behind what was begun."""
        like = {"x": jnp.zeros(1 << 18), "step": jnp.int32(0)}
        for delay in delays:
            begun = kill_while_saving(directory, delay)
            found = restore(directory, like)
            if found is None:
                assert begun == 1
                continue
            step, state = found
            assert begun - 1 <= step <= begun + 1
            assert_same(state["x"], jnp.full(1 << 18, step, jnp.float32))
            assert int(state["step"]) == step
            assert not list(directory.glob("*.corrupt"))

    def test_restores_a_whole_state(self, tmp_path: Path) -> None:
        """Three kills, each process resuming where the last one was killed."""
        self.check(tmp_path, [random.Random(seed).uniform(0, 0.4) for seed in range(3)])
        with RunCheckpoints(tmp_path, keep=2, metadata={}) as run:
            run.save(1_000_000, make_state())
        assert not list(tmp_path.glob("*.orbax-checkpoint-tmp")), "half-written ones must go"

    @pytest.mark.full
    def test_many_kills(self, tmp_path: Path) -> None:
        """The same, thirty times."""
        self.check(tmp_path, [random.Random(seed).uniform(0, 0.6) for seed in range(100, 130)])


class TestFailures:
    """Saves that cannot succeed."""

    def test_full_disk_is_one_clear_line(self, tmp_path: Path) -> None:
        """The error comes from close() or the next save; the process ends; the old one is good."""
        code = """
            import resource, sys, jax.numpy as jnp, numpy as np
            from adamae_jax.errors import UserError
            from adamae_jax.training.checkpoints import RunCheckpoints
            # Many, so that some are still being written when the first one has failed.
            draw = np.random.default_rng(0).normal
            state = {f"x{number}": draw(size=1 << 14) for number in range(200)}
            run = RunCheckpoints(sys.argv[1], keep=1, metadata={})
            run.save(1, state)
            run.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            try:
                run.save(2, state)
                if sys.argv[2] == "save":
                    run.save(3, state)
                run.close()
            except UserError as error:
                print(error)
                run.close()
        """
        children = {how: run_python(code, tmp_path / how, how) for how in ("close", "save")}
        for how, child in children.items():
            output, errors = child.communicate(timeout=120)
            assert child.returncode == 0, errors
            assert output.count("\n") == 1
            assert "checkpoint of step 2 could not be written" in output
            assert f"{tmp_path / how}: File too large; put that right" in output
            assert "Traceback" not in errors and "orbax" not in errors
            step, arrays = checkpoints.read_subtree(tmp_path / how, "")
            assert step == 1
            assert arrays["x7"].shape == (1 << 14,)

    def test_directory_that_cannot_be_made(self, tmp_path: Path) -> None:
        """A file is in its place."""
        (tmp_path / "c").write_text("")
        failure = pytest.raises(UserError, match=f"checkpoint.* {tmp_path / 'c'}")
        with RunCheckpoints(tmp_path / "c", keep=1, metadata={}) as run, failure:
            run.save(1, make_state())

    def test_orbax_is_quiet(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No progress lines of orbax among the job's own, nor where a model is only loaded."""
        save_steps(tmp_path, 1)
        # As in a process that has saved nothing.
        monkeypatch.setattr(python_logging.getLogger("absl"), "filters", [])
        with caplog.at_level("INFO", "absl"):
            verbosity = logging.get_verbosity()
            logging.set_verbosity(logging.INFO)
            try:
                checkpoints.read_subtree(tmp_path)
                save_steps(tmp_path, 2)
                logging.info("our own")
            finally:
                logging.set_verbosity(verbosity)
        assert [r.getMessage() for r in caplog.records if r.name == "absl"] == ["our own"]


def test_two_processes_save_and_restore_together(tmp_path: Path) -> None:
    """One array over both; the newest checkpoint damaged: both go back to the same older one."""
    code = """
        import sys, jax, jax.numpy as jnp, numpy as np
        from jax.sharding import Mesh, NamedSharding, PartitionSpec
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[3]))
        from adamae_jax.training.checkpoints import RunCheckpoints
        from adamae_jax.training.digests import MANIFEST_NAME
        from pathlib import Path
        sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
        def make(step):
            local = np.full(4, 10 * step + jax.process_index(), np.float32)
            return {"x": jax.make_array_from_process_local_data(sharding, local)}
        like = {"x": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding)}
        with RunCheckpoints(sys.argv[1], keep=3, metadata={"a": 1}) as run:
            assert run.restore(like) is None
            for step in (1, 2):
                run.save(step, make(step))
            run.wait()
            if jax.process_index() == 0:
                (Path(sys.argv[1]) / "2" / "state" / MANIFEST_NAME).unlink()
            step, state = run.restore(like)
            mine = np.asarray(state["x"].addressable_data(0))
            assert step == 1 and (mine == 10 + jax.process_index()).all(), (step, mine)
            run.save(2, make(3))
        print(run.latest_step())
    """
    port = 20_000 + os.getpid() % 20_000
    children = [run_python(code, tmp_path, port, process) for process in range(2)]
    for child in children:
        output, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors[-3000:]
        assert output.splitlines()[-1] == "2"  # gloo has its lines before
    _, arrays = checkpoints.read_subtree(tmp_path, "")
    np.testing.assert_array_equal(arrays["x"], [30] * 4 + [31] * 4)
    assert (tmp_path / "2.corrupt").is_dir()
