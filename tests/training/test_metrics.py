"""metrics.jsonl byte for byte, TensorBoard events read back, and what a resume removes."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax.errors import UserError
from adamae_jax.training import files, metrics
from adamae_jax.training.metrics import RunMetrics


def lines(workdir: Path) -> list[bytes]:
    """The raw lines of metrics.jsonl."""
    return (workdir / "metrics.jsonl").read_bytes().splitlines(keepends=True)


def event_files(workdir: Path) -> list[Path]:
    """The TensorBoard files."""
    return sorted(workdir.glob("events.out.tfevents.*"))


def events(workdir: Path) -> list[tuple[int, str]]:
    """(step, tag) of all summaries, read by TensorFlow, which checks every checksum."""
    import tensorflow as tf
    from tensorboard.compat.proto import event_pb2

    found = []
    for path in event_files(workdir):
        for record in tf.data.TFRecordDataset(str(path)):
            event = event_pb2.Event.FromString(record.numpy())
            found += [(event.step, value.tag) for value in event.summary.value]
    return sorted(found)


def write(workdir: Path, start_step: int, steps: range, **options: Any) -> None:
    """A run from one step to another."""
    with RunMetrics(workdir, start_step=start_step, **options) as run:
        for step in steps:
            run.write(step, {"loss": 1 / step})


class TestLines:
    """The file for machines."""

    def test_bytes(self, tmp_path: Path) -> None:
        """Names as given, in the order given; integers stay integers."""
        with RunMetrics(tmp_path, start_step=0, tensorboard=False) as run:
            run.write(10, {"loss": 0.1, "läuft": 2, "rate/x": np.float32(0.1)})
            run.write(20, {"loss": jnp.float32(2.5), "n": jnp.int32(3)})
        assert lines(tmp_path) == [
            b'{"step": 10, "loss": 0.1, "l\\u00e4uft": 2, "rate/x": 0.10000000149011612}\n',
            b'{"step": 20, "loss": 2.5, "n": 3}\n',
        ]

    def test_numbers_come_back_exactly(self, tmp_path: Path) -> None:
        """Every float64, the smallest and largest among them."""
        rng = np.random.default_rng(0)
        bits = rng.integers(0, 2**63, 500, dtype=np.uint64).view(np.float64)
        values = [x for x in map(float, bits) if np.isfinite(x)] + [5e-324, 1.7976931348623157e308]
        values += [-0.0, 1 / 3, float(np.float32(1) / np.float32(3))]
        with RunMetrics(tmp_path, start_step=0, tensorboard=False) as run:
            for step, value in enumerate(values):
                run.write(step, {"x": value})
        found = [json.loads(line)["x"] for line in lines(tmp_path)]
        assert [x.hex() for x in found] == [x.hex() for x in values]

    def test_not_finite_is_null_and_said_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Any JSON reader can read the line; the log says what it was."""
        with RunMetrics(tmp_path, start_step=0, tensorboard=False) as run:
            for step in (1, 2):
                run.write(step, {"loss": float("nan"), "norm": np.float32(-np.inf), "x": 1.0})
        assert lines(tmp_path)[0] == b'{"step": 1, "loss": null, "norm": null, "x": 1.0}\n'
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == 2
        assert "step 1: loss is nan" in said[0] and "norm is -inf" in said[1]

    def test_each_line_is_out_at_once(self, tmp_path: Path) -> None:
        """Another reader sees it while the file is open."""
        with RunMetrics(tmp_path, start_step=0, tensorboard=False) as run:
            run.write(1, {"loss": 1.0})
            assert len(lines(tmp_path)) == 1
            run.flush()

    @pytest.mark.parametrize("scalars", [{"step": 1.0}, {"loss": np.zeros(2)}, {"loss": "high"}])
    def test_refuses_what_is_no_scalar(self, tmp_path: Path, scalars: Mapping[str, Any]) -> None:
        """Nothing is written of such a line."""
        run = RunMetrics(tmp_path, start_step=0, tensorboard=False)
        with run, pytest.raises((ValueError, TypeError)):
            run.write(1, {"good": 1.0, **scalars})
        assert lines(tmp_path) == []

    def test_refuses_after_close(self, tmp_path: Path) -> None:
        """Nothing is lost silently."""
        run = RunMetrics(tmp_path, start_step=0, tensorboard=False)
        run.close()
        run.close()
        with pytest.raises(ValueError, match="closed"):
            run.write(1, {})

    def test_unwritable_directory_and_full_disk(self, tmp_path: Path) -> None:
        """One line for the user."""
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot write metrics"):
            RunMetrics(tmp_path / "file", start_step=0, tensorboard=False)
        with RunMetrics(tmp_path, start_step=0, tensorboard=False) as run:
            run._file = files.growing(Path("/dev/full"))
            with pytest.raises(UserError, match="No space left on device"):
                run.write(1, {"loss": 1.0})

    def test_other_processes_write_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only process 0 has files."""
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        with RunMetrics(tmp_path / "w", start_step=0) as run:
            run.write(1, {"loss": 1.0})
            run.write_images(1, {"x": np.zeros((2, 2, 3), np.uint8)})
            run.write_texts(1, {"x": "y"})
            run.flush()
        assert not (tmp_path / "w").exists()


class TestResume:
    """What an earlier process wrote after the restored step goes."""

    def test_lines_after_the_restored_step_go(self, tmp_path: Path) -> None:
        """The file is then as if the earlier process had ended there."""
        write(tmp_path, 0, range(1, 6), tensorboard=False)
        whole = lines(tmp_path)
        write(tmp_path, 3, range(4, 6), tensorboard=False)
        assert lines(tmp_path) == whole
        write(tmp_path, 3, range(0), tensorboard=False)
        assert lines(tmp_path) == whole[:3]

    def test_a_run_from_the_beginning_starts_an_empty_file(self, tmp_path: Path) -> None:
        """Nothing was restored, so step 0 is done again too."""
        write(tmp_path, 0, range(1, 3), tensorboard=False)
        with RunMetrics(tmp_path, start_step=0, tensorboard=False) as run:
            run.write(0, {"eval": 1.0})
        assert lines(tmp_path) == [b'{"step": 0, "eval": 1.0}\n']
        write(tmp_path, 0, range(0), tensorboard=False)
        assert lines(tmp_path) == []

    @pytest.mark.parametrize("torn", [b"{", b'{"step": 1, "loss": 0.', b'{"step": 1}', b"\x00\x00"])
    def test_a_torn_last_line_goes(
        self, tmp_path: Path, torn: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Even one that could be read: without its end it may be half a number."""
        write(tmp_path, 0, range(1, 3), tensorboard=False)
        path = tmp_path / "metrics.jsonl"
        whole = path.read_bytes()
        path.write_bytes(whole + torn)
        write(tmp_path, 2, range(0), tensorboard=False)
        assert path.read_bytes() == whole
        assert not caplog.records

    @pytest.mark.parametrize(
        "bad",
        [
            *(b"", b"nonsense", b"[1]", b"3", b'{"loss": 1}', b'{"step": "1"}', b'{"step": null}'),
            *(b'{"step": 1, "loss": "low"}', b"[" * 99_999),
        ],
    )
    def test_a_damaged_line_goes_with_a_warning(
        self, tmp_path: Path, bad: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Naming file and line."""
        (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + bad + b'\n{"step": 2}\n')
        write(tmp_path, 2, range(0), tensorboard=False)
        assert lines(tmp_path) == [b'{"step": 1}\n', b'{"step": 2}\n']
        assert "line 2" in caplog.text

    def test_nothing_to_remove_leaves_the_file_alone(self, tmp_path: Path) -> None:
        """The same inode."""
        write(tmp_path, 0, range(1, 3), tensorboard=False)
        before = (tmp_path / "metrics.jsonl").stat().st_ino
        write(tmp_path, 2, range(0), tensorboard=False)
        assert (tmp_path / "metrics.jsonl").stat().st_ino == before


class TestEvents:
    """The files for people. One process writes all, since TensorFlow is slow to import."""

    def test_written_and_read(self, tmp_path: Path) -> None:
        """Scalars, images and texts; a resume adds a file and leaves the others alone."""
        with RunMetrics(tmp_path, start_step=0) as run:
            for step in range(1, 6):
                run.write(step, {"loss": 1 / step, "nan": float("nan")})
                run.write_images(step, {"clip": np.full((4, 6, 3), step, np.uint8)})
            run.write_texts(1, {"config": "a: 1"})
            run.write_images(5, {"clips": np.zeros((2, 4, 6, 3), np.uint8)})
            with pytest.raises(ValueError, match="'clip' is float32"):
                run.write_images(5, {"clip": np.zeros((4, 6, 3), np.float32)})
            # On disk before the file is closed, as a killed process would leave it.
            written = events(tmp_path)
            assert len(written) == 5 * 3 + 1 + 1
        write(tmp_path, 3, range(4, 6))
        assert events(tmp_path) == sorted([*written, (4, "train/loss"), (5, "train/loss")])
        assert len(event_files(tmp_path)) == 2


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("loss_sampling", "train/loss_sampling"),
        ("eval_loss_sampling", "eval/loss_sampling"),
        ("data_wait_share", "time/data_wait_share"),
    ],
)
def test_tensorboard_shows_figures_in_groups(name: str, tag: str) -> None:
    """By the word before the slash."""
    assert metrics.tag(name) == tag


def test_light_imports() -> None:
    """Every process imports these, workers among them; TensorFlow only where events are written."""
    code = (
        "import sys; from adamae_jax.training import checkpoints, metrics, progress; "
        "print({'tensorflow', 'tensorflow_datasets', 'clu', 'grain', 'tensorboard', 'av'}"
        " & set(sys.modules))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "set()"
