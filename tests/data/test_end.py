"""How a process ends whose data workers have died."""

import subprocess
import sys
import time
from pathlib import Path

from adamae_jax import cli
from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.pipeline import train_batches
from adamae_jax.data.records import Dataset
from tests.data.fixtures import small_records, write_dataset

REPOSITORY = Path(__file__).parents[2]


def lose_a_worker(folder: str) -> None:
    """Run by a process in which something never comes to an end."""
    import atexit

    import psutil

    cli.END_S = 1.0
    atexit.register(time.sleep, 600)
    with train_batches(
        Dataset(folder, "train"), ClipSpec(4, 1, (16, 16)), seed=0, videos_per_step=8,
        first_step=0, num_steps=10**6, num_workers=1, num_threads=0,
    ) as stream:  # fmt: skip
        next(stream)
        for process in psutil.Process().children(recursive=True):
            if "resource_tracker" not in " ".join(process.cmdline()):
                process.kill()
        for _ in stream:
            pass


def test_it_ends_whatever_hangs(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "a", {"train": small_records(8)})
    script = (
        f"from {__name__} import lose_a_worker\n"
        "from adamae_jax import cli\n"
        f"cli.run(lambda argv: lose_a_worker({str(folder)!r}), ['job'])\n"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "exit code -9" in done.stderr
    assert done.returncode == 2 and time.monotonic() - start < 40
