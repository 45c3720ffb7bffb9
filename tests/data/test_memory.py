"""Whether reading for days would fill the memory: 50,000 batches, small ones."""

from pathlib import Path

import numpy as np
import psutil
import pytest

from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.records import Dataset
from tests.data.fixtures import serialize, training, video, write_dataset

BATCHES = 50_000
WARM_UP = 10_000
EVERY = 500
MAX_GROWTH_MB = 4.0  # over all batches; a leak of one small batch each would be 100


@pytest.mark.full
@pytest.mark.parametrize("num_workers", [0, 1])
def test_memory_stays_flat(tmp_path: Path, num_workers: int) -> None:
    records = [serialize(video(k, 2, 8, 8), f"v{k}") for k in range(50)]
    records[7] = b"\xff"  # damage must not pile up either
    directory = write_dataset(tmp_path, {"train": records}, with_masks=False)
    megabytes = []
    with training(
        Dataset(directory, "train"), ClipSpec(2, 1, (16, 16)),
        seed=1, videos_per_step=2, first_step=0, num_steps=BATCHES, num_workers=num_workers,
        num_threads=0,
    ) as batches:  # fmt: skip
        for count, _ in enumerate(batches):
            if count >= WARM_UP and count % EVERY == 0:
                parent = psutil.Process()
                family = [parent, *parent.children()]
                megabytes.append(sum(process.memory_info().rss for process in family) / 2**20)
    slope = np.polyfit(np.arange(len(megabytes)) * EVERY, megabytes, 1)[0]
    print(
        f"{num_workers} workers: {megabytes[0]:.1f} MB after {WARM_UP} batches, "
        f"{megabytes[-1]:.1f} MB after {BATCHES}, slope {slope * BATCHES:.2f} MB in {BATCHES}"
    )
    assert slope * BATCHES < MAX_GROWTH_MB
