"""What is kept of the recipes, compiled for the chips they are meant for."""

import json
from typing import Any

import pytest

from launch import pods

PLAN: dict[str, Any] = {
    **{"chips": 16, "batch_size": 2048, "clips_at_once": 64, "parameters": 10, "traffic": 5},
    **{"memory": {"arguments": 1, "temporaries": 2}, "memory_total": 10**10, "kernels": {}},
    **{"memory_limit": 16 * 10**9, "fits": True, "model_flops": 7, "program_flops": 8},
    **{"seconds": {"compute": 0.5}, "step_seconds": 0.5, "clips_per_second": 4096.0},
    **{"utilization": 0.25, "verdict": "fits", "versions": {"jax": "1"}},
    "collectives": [
        {"kind": "all-reduce", "sent": 700.0},
        {"kind": "all-gather", "sent": 50.0},
        {"kind": "all-reduce", "sent": 300.0},
    ],
}
ROW = pods.Row("a.py:B", "v5e:4x4", ("--config.optimizer.accumulation=2",))


def test_what_is_kept_and_shown() -> None:
    found = {**pods.kept(ROW, PLAN), **pods.origin()}
    assert found["sent"] == {"all-reduce": 1000, "all-gather": 50}
    assert pods.same(ROW, json.loads(json.dumps(found)))
    assert not pods.same(ROW._replace(options=()), found)
    other = {**found, "fits": False, "config": "b.py"}
    lines = pods.table([found, other]).splitlines()
    shown = "| 2,048, 64 | 10.0 GB, 16.0 GB | 0.00 GB | 500 ms | 4,096 | 25% |"
    assert lines[2].startswith("| `a.py:B`, `optimizer.accumulation=2` | v5e:4x4, 16 chips |")
    assert lines[2].endswith(shown)
    assert "does not fit 16.0 GB" in lines[3]


def test_what_a_recipe_needs_more_of() -> None:
    kept = pods.kept(ROW, PLAN)
    assert pods.exceeded(kept, kept) == []
    assert pods.exceeded(kept, {**kept, "memory_total": int(1.04 * 10**10)}) == []
    assert pods.exceeded(kept, {**kept, "memory_total": int(1.06 * 10**10)}) == [
        "a.py:B on v5e:4x4: memory_total 10,000,000,000 -> 10,600,000,000 bytes"
    ]
    more = pods.exceeded(kept, {**kept, "sent": {"all-reduce": 1000, "all-to-all": 9}})
    assert more == ["a.py:B on v5e:4x4: all-to-all 0 -> 9 bytes"]
    no_more = {**kept, "fits": False, "memory_total": None}
    assert pods.exceeded(kept, no_more) == ["a.py:B on v5e:4x4 does not fit any more"]


def test_a_recipe_that_does_not_compile() -> None:
    with pytest.raises(pods.PodError, match=r"missing.py --topology=cpu:1: status \d+: .*missing"):
        pods.compiled(pods.Row("missing.py", "cpu:1"))


def test_every_row_is_kept_and_fits() -> None:
    """The page is made from the file."""
    rows = pods.read()
    assert all(any(pods.same(row, one) for one in rows) for row in pods.ROWS)
    assert len(rows) == len(pods.ROWS) and all(row["fits"] for row in rows)
    text = pods.PAGE.read_text()
    assert pods.written(text, rows) == text


@pytest.mark.full
@pytest.mark.parametrize("row", pods.ROWS, ids=lambda row: f"{row.config}-{row.topology}")
def test_no_recipe_needs_more_than_was_kept(row: pods.Row) -> None:
    """Minutes for each."""
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu")
    (kept,) = (one for one in pods.read() if pods.same(row, one))
    assert pods.exceeded(kept, pods.compiled(row)) == []
