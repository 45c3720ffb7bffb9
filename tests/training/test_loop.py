"""The loop: when it logs, validates and acts, and what it counts."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from clu.periodic_actions import PeriodicCallback

from adamae_jax.training import loop
from adamae_jax.training.mesh import create_mesh


def run(first_step: int, steps: int, log_every: int) -> SimpleNamespace:
    """A loop over numbers; the state counts the steps."""
    seen = SimpleNamespace(logged=[], validated=[], acted=[], order=[])

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for step in range(first_step, steps):
            yield {"number": np.array([step])}

    def train_step(state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        assert int(batch["number"][0]) == state  # the batch of the step that is done
        return state + 1, {"loss": jnp.float32(state)}

    def validate(step: int, state: Any) -> dict[str, float]:
        seen.order.append(("validate", step))
        return {"eval": 1.0} if step % 4 == 0 else {}

    def on_log(step: int, figures: dict[str, float]) -> None:
        seen.logged.append((step, figures))
        seen.order.append(("log", step))

    def act(step: int, t: float, state: Any) -> None:
        seen.acted.append((step, state))
        seen.order.append(("act", step))

    state = loop.Loop(
        train_step=train_step,
        put=lambda batch: {name: jnp.asarray(value) for name, value in batch.items()},
        clock=loop.Clock(clips=10, seconds=5.0),
        steps=steps,
        log_every=log_every,
        validate=validate,
        on_log=on_log,
        actions=[PeriodicCallback(every_steps=5, on_steps={steps}, callback_fn=act)],
    ).run(first_step, first_step, batches())
    assert state == steps
    return seen


def test_logs_first_last_and_every_few_steps() -> None:
    seen = run(0, 11, log_every=3)
    assert [step for step, figures in seen.logged if "loss" in figures] == [1, 3, 6, 9, 11]
    assert all(figures["loss"] == step - 1 for step, figures in seen.logged if "loss" in figures)


def test_one_line_a_step_holds_validation_too() -> None:
    seen = run(0, 12, log_every=6)
    steps = [step for step, _ in seen.logged]
    assert steps == [1, 4, 6, 8, 12]
    assert dict(seen.logged)[12].keys() >= {"loss", "eval"}
    assert dict(seen.logged)[4].keys() == {"eval"}


def test_actions_come_after_their_line() -> None:
    seen = run(0, 12, log_every=1)
    assert seen.acted == [(5, 5), (10, 10), (12, 12)]
    assert seen.order.index(("act", 5)) > seen.order.index(("log", 5))


def test_a_resumed_loop_logs_the_same_steps() -> None:
    whole, resumed = run(0, 20, log_every=3), run(7, 20, log_every=3)
    assert [step for step, _ in resumed.logged] == [step for step, _ in whole.logged if step > 7]


def test_seconds_go_on_from_where_they_were() -> None:
    seconds = [
        figures["seconds"] for _, figures in run(0, 6, log_every=1).logged if "loss" in figures
    ]
    assert seconds[0] >= 5.0
    assert seconds == sorted(seconds)


def test_the_clock_tells_waiting_from_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    clock = loop.Clock(clips=8)

    def slow() -> Iterator[dict[str, np.ndarray]]:
        while True:
            now[0] += 3.0
            yield {}

    batches = slow()
    for _ in range(2):
        clock.next(batches)
        now[0] += 1.0  # the step
    figures = clock.read()
    assert figures["data_wait_share"] == pytest.approx(0.75)
    assert figures["clips_per_second"] == pytest.approx(2 * 8 / 8.0)
    assert figures["seconds"] == pytest.approx(8.0)


def test_batches_are_sharded_over_the_data_axis() -> None:
    mesh = create_mesh({"data": -1})
    put = loop.device_put({"video": np.zeros((16, 2)), "id": np.zeros(16)}, mesh, ("video", "slot"))
    assert set(put) == {"video"}
    assert {shard.data.shape for shard in put["video"].addressable_shards} == {(2, 2)}
