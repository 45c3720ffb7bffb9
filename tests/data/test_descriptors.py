import errno
import subprocess
import sys
from pathlib import Path

import pytest

from adamae_jax.data.batches import Batches
from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.pipeline import train_batches
from adamae_jax.data.records import Dataset
from adamae_jax.errors import UserError
from tests.data.fixtures import small_records, write_dataset

REPOSITORY = Path(__file__).parents[2]
SPEC = ClipSpec(4, 1, (16, 16))


def read_a_large_batch(folder: str) -> None:
    """Run by a process that may open few files."""
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    with train_batches(
        Dataset(folder, "train"), SPEC, seed=0, videos_per_step=1024, first_step=0, num_steps=3,
        num_workers=2, num_threads=0,
    ) as batches:  # fmt: skip
        for batch in batches:
            print(len(batch["video"]), flush=True)


def test_large_batches_need_few_descriptors(tmp_path: Path) -> None:
    """Some recipes have 4,096 images in a batch of one host; a process has 1,024 descriptors."""
    folder = write_dataset(tmp_path / "a", {"train": small_records(8)})
    script = f"from {__name__} import read_a_large_batch as read\nread({str(folder)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["1024"] * 3, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "too little shared memory.*--shm-size"),
        (errno.EMFILE, "too many files open.*ulimit -n"),
        (errno.EIO, "the dataset cannot be read any more"),
    ],
)
def test_what_ran_out_is_said(
    tmp_path: Path, number: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(number, "failed")

    monkeypatch.setattr(Batches, "_assemble", fail)
    folder = write_dataset(tmp_path / "a", {"train": small_records(8)})
    with (
        pytest.raises(UserError, match=message),
        train_batches(
            Dataset(folder, "train"), SPEC, seed=0, videos_per_step=8, first_step=0, num_steps=3
        ) as batches,
    ):
        next(batches)
