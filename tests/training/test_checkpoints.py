"""Run checkpoints: round trips, other devices, reading a part, another model's checkpoints."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adamae_jax.errors import UserError
from adamae_jax.training import checkpoints
from adamae_jax.training.checkpoints import RunCheckpoints
from tests.training.checkpoint_helpers import (
    METADATA,
    abstract,
    assert_same,
    largest_file,
    make_state,
    restore,
    run_python,
    save_steps,
)


class TestRoundTrip:
    """What is saved comes back, where and as it was asked for."""

    def test_every_container_and_type_bitwise(self, tmp_path: Path) -> None:
        """Dicts, dataclass, named tuples, tuples, lists, None, empty nodes, arrays of size 0."""
        state = make_state(3)
        with RunCheckpoints(tmp_path / "c", keep=2, metadata=METADATA) as run:
            assert run.restore(abstract(state)) is None
            assert run.latest_step() is None
            assert not (tmp_path / "c").exists()
            run.save(3, state)
            run.wait()
            assert run.latest_step() == 3
            assert run.metadata(3) == METADATA
            found = run.restore(abstract(state))
            assert found is not None and found[0] == 3
            assert_same(found[1], state)
            run.save(4, found[1])
        assert checkpoints.checkpoint_steps(tmp_path / "c") == [3, 4]

    def test_sharded_to_replicated_and_other_axes(self, tmp_path: Path) -> None:
        """Arrays sharded over eight devices come back sharded, otherwise sharded, and on one."""
        mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "model"))
        kernel = jnp.arange(64.0).reshape(8, 8)
        placed = [
            jax.device_put(kernel, NamedSharding(mesh, PartitionSpec(*axes)))
            for axes in [("data", "model"), (None, ("data", "model")), ()]
        ]
        with RunCheckpoints(tmp_path, keep=1, metadata={}) as run:
            run.save(1, {"kernel": placed[0]})
        on_one = jax.ShapeDtypeStruct((8, 8), jnp.float32)
        for like in [*map(abstract, placed), on_one]:
            _, restored = restore(tmp_path, {"kernel": like})
            assert_same(restored["kernel"], kernel)
            if like.sharding is not None:
                assert restored["kernel"].sharding == like.sharding

    def test_between_processes_with_eight_devices_and_one(self, tmp_path: Path) -> None:
        """A process with one device reads what eight devices wrote."""
        mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
        kernel = jax.device_put(jnp.arange(48.0), NamedSharding(mesh, PartitionSpec("data")))
        with RunCheckpoints(tmp_path, keep=1, metadata={}) as run:
            run.save(1, {"kernel": kernel})
        code = """
            import sys, jax, jax.numpy as jnp
            from adamae_jax.training.checkpoints import RunCheckpoints
            assert len(jax.devices()) == 1
            with RunCheckpoints(sys.argv[1], keep=5, metadata={}) as run:
                step, state = run.restore({"kernel": jax.ShapeDtypeStruct((48,), jnp.float32)})
                assert bool((state["kernel"] == jnp.arange(48.0)).all()), state
                run.save(2, {"kernel": state["kernel"] + 1})
        """
        child = run_python(code, tmp_path)
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
        step, restored = restore(tmp_path, abstract({"kernel": kernel}))
        assert step == 2
        assert_same(restored["kernel"], kernel + 1)
        assert restored["kernel"].sharding == kernel.sharding

    def test_arrays_may_be_donated_at_once(self, tmp_path: Path) -> None:
        """What is saved is the state at the call, though its memory is used again."""
        step = jax.jit(lambda x: x * 1.5 + 1, donate_argnums=0)
        state = step(jnp.zeros(1 << 20))
        expected = np.array(state)
        with RunCheckpoints(tmp_path, keep=1, metadata={}) as run:
            run.save(1, {"x": state})
            for _ in range(20):
                state = step(state)
            state.block_until_ready()
        _, arrays = checkpoints.read_subtree(tmp_path, "")
        np.testing.assert_array_equal(arrays["x"], expected)

    def test_keeps_the_newest_and_ignores_a_repeated_step(self, tmp_path: Path) -> None:
        """Old ones go; the first save of a step stays."""
        with RunCheckpoints(tmp_path, keep=2, metadata={}) as run:
            for step in (1, 2, 3, 3):
                run.save(step, make_state(step))
            run.save(3, make_state(9))
            run.wait()
            run.save(3, make_state(9))
        assert checkpoints.checkpoint_steps(tmp_path) == [2, 3]
        with RunCheckpoints(tmp_path, keep=2, metadata={}) as run:
            run.save(3, make_state(9))
        assert_same(restore(tmp_path)[1], make_state(3))

    def test_refuses_to_start_over(self, tmp_path: Path) -> None:
        """A run that did not restore does not write below the steps of another."""
        save_steps(tmp_path, 20)
        later = pytest.raises(UserError, match="checkpoint of step 20, later than step 10")
        with RunCheckpoints(tmp_path, keep=2, metadata={}) as run, later:
            run.save(10, make_state())

    @pytest.mark.parametrize(
        ("state", "error"),
        [
            ({"a/b": np.zeros(2)}, ValueError),
            (np.zeros(2), ValueError),
            ({"a": 1.5}, TypeError),
            ({"a": jax.random.key(0)}, TypeError),
        ],
    )
    def test_refuses_what_cannot_be_named_or_stored(
        self, tmp_path: Path, state: Any, error: type[Exception]
    ) -> None:
        """Slashes in keys, bare leaves, Python numbers, typed keys."""
        with RunCheckpoints(tmp_path, keep=2, metadata={}) as run, pytest.raises(error):
            run.save(1, state)

    def test_permanent_ones_stay_beside_the_newest(self, tmp_path: Path) -> None:
        """From one process to the next, until they are not wanted any more."""
        for steps, every, left in (
            (range(1, 9), 3, [3, 6, 7, 8]),
            (range(9, 12), 3, [3, 6, 9, 10, 11]),
            (range(12, 13), 0, [11, 12]),
        ):
            with RunCheckpoints(tmp_path, keep=2, keep_every=every, metadata={}) as run:
                for step in steps:
                    run.save(step, {"x": jnp.float32(step)})
            assert checkpoints.checkpoint_steps(tmp_path) == left
        assert restore(tmp_path, {"x": jnp.float32(0)})[0] == 12

    def test_keep_must_be_positive(self, tmp_path: Path) -> None:
        """One line for the user."""
        with pytest.raises(UserError, match="keep=0"):
            RunCheckpoints(tmp_path, keep=0, metadata={})


class TestReadSubtree:
    """Reading without a structure and without writing."""

    def test_a_part_or_all_as_numpy(self, tmp_path: Path) -> None:
        """Nested by name, with the types that were saved."""
        save_steps(tmp_path, 1, 2)
        step, params = checkpoints.read_subtree(tmp_path)
        kernel, bias = make_state(2).params["encoder"].values()
        assert step == 2
        assert_same(params, {"encoder": {"kernel": np.asarray(kernel), "bias": np.asarray(bias)}})
        assert all(type(array) is np.ndarray for array in jax.tree.leaves(params))
        assert checkpoints.read_subtree(tmp_path, "params/encoder")[1].keys() == {"kernel", "bias"}
        step, state = checkpoints.read_subtree(tmp_path, "", step=1)
        assert step == 1
        assert set(state) == {"step", "params", "opt_state"}
        moments = state["opt_state"]["model"]["0"]["mu"]["encoder"]["kernel"]
        assert_same(moments, -make_state(1).params["encoder"]["kernel"])
        assert state["opt_state"]["flags"]["2"].shape == (0, 3)

    def test_passes_over_damage_and_moves_nothing(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The older one is read; the damaged one stays where it is."""
        save_steps(tmp_path, 1, 2)
        largest_file(tmp_path, 2).write_bytes(b"")
        before = sorted(tmp_path.rglob("*"))
        step, _ = checkpoints.read_subtree(tmp_path)
        assert step == 1
        assert "is damaged" in caplog.text
        assert sorted(tmp_path.rglob("*")) == before

    def test_errors_name_the_remedy(self, tmp_path: Path) -> None:
        """Nothing there, no such step, no such root, the wanted one damaged."""
        with pytest.raises(UserError, match="holds no checkpoint"):
            checkpoints.read_subtree(tmp_path)
        save_steps(tmp_path, 1, 2)
        with pytest.raises(UserError, match=r"no checkpoint of step 7 .* it has \[1, 2\]"):
            checkpoints.read_subtree(tmp_path, step=7)
        with pytest.raises(
            UserError, match="no arrays under 'par': it has opt_state, params, step"
        ):
            checkpoints.read_subtree(tmp_path, "par")
        largest_file(tmp_path, 2).unlink()
        with pytest.raises(UserError, match="no intact checkpoint"):
            checkpoints.read_subtree(tmp_path, step=2)


class TestOtherModel:
    """A directory that holds a run of another model."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda s: s.replace(params=make_state(0, width=24).params),
                r"params/encoder/kernel is float32\[8,16\] there, float32\[8,24\] here"
                r" \(and 1 more arrays differ\)|params/encoder/bias is bfloat16\[16\] there",
            ),
            (
                lambda s: s.replace(step=jnp.float32(0)),
                r"step is int32\[\] there, float32\[\] here; choose",
            ),
            (lambda s: s.replace(ema=jnp.zeros(2)), r"ema is absent there, float32\[2\] here"),
            (
                lambda s: s.replace(opt_state={"model": s.opt_state["model"]}),
                r"opt_state/flags/0 is bool\[2\] there, absent here \(and 2 more",
            ),
        ],
    )
    def test_says_which_array_and_changes_nothing(
        self, tmp_path: Path, change: Any, message: str
    ) -> None:
        """Even when a newer checkpoint is damaged, nothing is moved."""
        save_steps(tmp_path, 1, 2)
        largest_file(tmp_path, 2).write_bytes(b"")
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        with pytest.raises(UserError, match=message):
            restore(tmp_path, abstract(change(make_state())))
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
