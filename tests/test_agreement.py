"""What processes must have in common, with the others played by a list."""

import json
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

from adamae_jax import agreement, job
from adamae_jax.config import default_config
from adamae_jax.errors import UserError


def meet(monkeypatch: pytest.MonkeyPatch, *everywhere: dict[str, Any]) -> None:
    """Compares what the processes have, as the first of them."""
    monkeypatch.setattr(agreement, "gathered", lambda value: list(everywhere))
    agreement.check(everywhere[0])


def test_what_is_the_same_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    meet(monkeypatch, *[{"seed": 1, "size": [8, 8]}] * 3)
    agreement.check({"seed": 1})  # alone


def test_a_difference_names_field_values_and_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    same = {"data": "a", "seed": 1}
    with pytest.raises(UserError, match=r"seed \(1 in processes 0, 2; 2 in process 1\): start"):
        meet(monkeypatch, same, {**same, "seed": 2}, same)
    with pytest.raises(UserError, match=r"differ in data .*, seed \(1 in process 0; null in proc"):
        meet(monkeypatch, same, {"data": "b"})


def test_the_line_stays_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = ({f"field{n}": value for n in range(40)} for value in (1, 2))
    with pytest.raises(UserError, match=r"field0 .*field4 \([^)]*\) and 35 more: start"):
        meet(monkeypatch, one, other)


def test_one_process_needs_nothing(tmp_path: Any) -> None:
    agreement.check_shared(tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Data:
    """As much of a run's data as is compared."""

    fingerprint = "3f2a"
    validation = [0] * 7


def common(config: ConfigDict, steps: list[int]) -> dict[str, Any]:
    data: Any = Data()
    found: dict[str, Any] = json.loads(json.dumps(job.in_common(config, data, steps)))
    return found


def test_a_run_compares_its_config_but_for_places() -> None:
    config = default_config()
    found = common(config, [5, 10])
    assert found["the newest checkpoint"] == [10]
    assert found["the data's fingerprint"] == "3f2a"
    assert found["the number of held-out videos"] == 7
    assert found["the version of jax"] == jax.__version__
    assert found["config.masking.options.depth"] == 1
    config.data.dir, config.compilation_cache_dir = "elsewhere", "there"
    assert common(config, [5, 10]) == found
    config.log_every = 3
    different = [name for name, value in common(config, []).items() if found[name] != value]
    assert different == ["the newest checkpoint", "config.log_every"]
