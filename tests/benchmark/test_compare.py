"""The comparison with PyTorch: what it refuses, and a whole one of a tiny model."""

import json
import subprocess
import sys

import pytest

from adamae_jax.benchmark import compare
from adamae_jax.config import masking_config
from adamae_jax.errors import UserError
from tests import jobs
from tests.configs import tiny
from tests.runs import ROOT, environment

TINY = "--config=tests/configs/tiny.py"


def test_ratios_are_of_the_same_round() -> None:
    report = {"peak_bytes": 1, "start_seconds": 2.0, "version": "v"}
    row = compare._row("fused", [2.0, 6.0, 9.0], [1.0, 2.0, 9.0], report)
    assert (row.step_seconds, row.ratio, row.ratio_min, row.ratio_max) == (6.0, 2.0, 1.0, 3.0)


def test_what_pytorchs_side_has_not_got_is_refused() -> None:
    config = tiny.get_config()
    compare.check(config)
    config.masking = masking_config("frame", mask_ratio=0.5)
    with pytest.raises(UserError, match=r"masking\.name is 'frame', and must be 'adaptive' or"):
        compare.check(config)


def test_a_form_that_there_is_not_is_one_line() -> None:
    done = jobs.run("adamae_jax.benchmark", "compare", TINY, "--forms=fast")
    assert done.refusal == "--forms names fast: there are published, fused, compiled"


def test_both_run() -> None:
    pytest.importorskip("torch")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "adamae_jax.benchmark", "compare", TINY),
            *("--forms=fused", "--rounds=2", "--warmup=1"),
        ],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours, theirs = json.loads(done.stdout.splitlines()[-1])
    assert (ours["name"], ours["ratio"], theirs["name"]) == ("adamae_jax", 1.0, "fused")
    assert theirs["ratio_min"] <= theirs["ratio"] <= theirs["ratio_max"]
    assert ours["version"].startswith("jax ")
    assert theirs["version"].startswith("torch ")
    for row in (ours, theirs):
        assert row["step_seconds"] > 0
        assert row["peak_bytes"] > 2**26  # the libraries alone are more
