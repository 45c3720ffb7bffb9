"""Checkpoints and metrics in a bucket, which a server on this machine stands in for."""

import json

import numpy as np
import pytest

from adamae_jax.errors import UserError
from adamae_jax.training import files
from adamae_jax.training.checkpoint_files import FINISHED, checkpoint_steps, read_subtree
from adamae_jax.training.metrics import RunMetrics
from tests.object_store import ObjectStore
from tests.training.checkpoint_helpers import assert_same, make_state, restore, save_steps


def largest(store: ObjectStore, under: str) -> str:
    """The object that certainly holds arrays."""
    keys = [f"{under}/{name}" for name in store.names(under) if "/d/" in name]
    return max(keys, key=lambda key: len(store.objects[key].data))


def test_the_newest_intact_checkpoint_is_restored(bucket: str, store: ObjectStore) -> None:
    directory = files.at(f"{bucket}/run/checkpoints")
    under = f"{bucket.removeprefix('gs://')}/run/checkpoints"
    assert checkpoint_steps(directory) == [] and restore(directory) is None
    save_steps(directory, 1, 2, 3, 4, keep=3)
    assert checkpoint_steps(directory) == [2, 3, 4]
    # A kill leaves one without its last file; one byte is another; both are passed over.
    del store.objects[f"{under}/4/{FINISHED}"]
    damaged = largest(store, f"{under}/3/state")
    data = store.objects[damaged].data
    store.put(damaged, data[:-1] + bytes([data[-1] ^ 1]))
    assert checkpoint_steps(directory) == [2, 3]
    step, state = restore(directory)
    assert step == 2
    assert_same(state, make_state(2))
    assert checkpoint_steps(directory) == [2]
    assert any(name.startswith("3.corrupt/") for name in store.names(under))
    # What was half written makes room for what is saved next.
    save_steps(directory, 4, keep=3)
    step, read = read_subtree(directory)
    assert step == 4
    expected = np.asarray(make_state(4).params["encoder"]["kernel"])
    np.testing.assert_array_equal(read["encoder"]["kernel"], expected)


def test_a_save_that_is_refused_is_one_line(bucket: str, store: ObjectStore) -> None:
    directory = files.at(f"{bucket}/run/checkpoints")
    save_steps(directory, 1)
    store.refuse = lambda method, name: 403 if method == "POST" and "/2/" in name else 0
    with pytest.raises(UserError, match=r"the checkpoint of step 2 could not be written to gs://"):
        save_steps(directory, 2)
    store.refuse = lambda method, name: 0
    assert restore(directory)[0] == 1


def test_metrics_are_there_once_they_are_flushed(bucket: str) -> None:
    workdir = files.at(f"{bucket}/run")
    with RunMetrics(workdir, start_step=0) as run:
        for step in (1, 2):
            run.write(step, {"loss": 1.0 / step})
        run.write_images(2, {"x": np.zeros((2, 2, 3), np.uint8)})
        run.flush()
        run.write(3, {"loss": 0.25})
        # A process that is killed here has lost the last line, and makes step 3 again.
        lines = files.read(workdir / "metrics.jsonl").decode().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2]
        events = [name for name in files.list_files(workdir) if "tfevents" in name]
        assert len(events) == 1 and files.size(workdir / events[0]) > 100
    with RunMetrics(workdir, start_step=1, tensorboard=False) as run:
        run.write(2, {"loss": 0.5})
    text = files.read(workdir / "metrics.jsonl").decode()
    assert text == '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n'
