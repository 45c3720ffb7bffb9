"""The scripts in launch/ and .ci/, run against an interpreter that only writes down what it is
asked for: nothing is installed."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stub_clone import SUMMARY, Clone

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), ROOT / ".ci/run"])


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    made = Clone(tmp_path)
    made.interpreter("python3.11", "3.11")
    return made


def one_line(errors: str) -> str:
    assert errors.startswith("error: ") and errors.count("\n") == 1, errors
    return errors


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(script: Path) -> None:
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n") and "\nset -euo pipefail\n" in text
    subprocess.run(["bash", "-n", script], check=True)


def test_ci_is_executable() -> None:
    assert os.access(ROOT / ".ci/run", os.X_OK)


@pytest.mark.parametrize(
    ("script", "arguments", "named"),
    [
        ("setup.sh", ["--accelerator=gpu"], "--accelerator=gpu is unknown: use auto, cpu, cuda"),
        ("demo.sh", ["--accelerator=gpu"], "--accelerator=gpu is unknown: use auto, cpu, cuda"),
        ("test.sh", ["--accelerator="], "--accelerator= is unknown: use auto, cpu, cuda"),
        ("setup.sh", ["--tests"], "unknown argument --tests"),
        ("demo.sh", ["--steps=5"], "unknown option --steps=5"),
        ("demo.sh", [""], "WORKDIR is empty"),
        ("demo.sh", ["a", "b"], "unexpected argument b"),
        ("compare.sh", ["--full", "0"], "unexpected argument 0: options are given as --name=value"),
        ("test.sh", ["tests/models"], "unknown argument tests/models"),
        ("test.sh", ["--beam", "--smoke"], "--beam goes with none of --full, --smoke"),
        ("test.sh", ["--full", "--beam"], "--beam goes with none of --full, --smoke"),
        ("test.sh", ["--tpu", "--interop"], "--tpu goes with none of --full, --smoke"),
    ],
)
def test_bad_arguments(clone: Clone, script: str, arguments: list[str], named: str) -> None:
    assert named in one_line(clone.run(f"launch/{script}", *arguments, status=2))
    assert not clone.calls() and not (clone.root / ".venv").exists()


@pytest.mark.parametrize("script", ["setup.sh", "demo.sh", "compare.sh", "test.sh"])
def test_help(clone: Clone, script: str) -> None:
    assert "--accelerator=auto|cpu|cuda|tpu" in clone.run(f"launch/{script}", "--help")
    assert not clone.calls()


def test_python_that_does_not_run(clone: Clone) -> None:
    errors = one_line(clone.run("launch/setup.sh", PYTHON="python9", status=2))
    assert "PYTHON=python9 does not run" in errors


def test_python_of_a_wrong_version(clone: Clone) -> None:
    old = clone.interpreter("old", "3.10")
    errors = one_line(clone.run("launch/setup.sh", PYTHON=str(old), status=2))
    assert f"PYTHON={old} is Python 3.10: name a Python 3.11 to 3.13" in errors


def test_no_python(clone: Clone) -> None:
    (clone.bin / "python3.11").unlink()
    assert "(no python at all)" in one_line(clone.run("launch/setup.sh", status=2))
    clone.interpreter("python3", "3.9")
    clone.program("python3.12", "echo 'not in this shell' >&2; exit 127")
    assert "(python3 is 3.9)" in one_line(clone.run("launch/setup.sh", status=2))


def test_set_up_installs_once(clone: Clone, tmp_path: Path) -> None:
    printed = clone.run("launch/setup.sh", "--accelerator=cpu", cwd=tmp_path)
    assert "making .venv with python3.11" in printed
    made, installed = clone.calls()
    assert made == "3.11 -m venv --clear .venv"
    assert installed.startswith("3.11 -m pip install ")
    assert installed.endswith(" -r requirements.txt")
    assert "is up to date" in clone.run("launch/setup.sh")
    assert clone.calls() == []


def test_set_up_follows_the_requirements(clone: Clone) -> None:
    clone.run("launch/setup.sh", "--test")
    assert clone.calls()[-1].endswith(" -r requirements.txt -r requirements-test.txt")
    (clone.root / "requirements-test.txt").write_text("pytest==1\n")
    clone.run("launch/setup.sh")
    assert clone.calls() == []
    clone.run("launch/setup.sh", "--test")
    assert len(clone.calls()) == 1
    (clone.root / "requirements.txt").write_text("jax==1\n")
    clone.run("launch/setup.sh")
    (call,) = clone.calls()
    assert call.endswith(" -r requirements.txt")


@pytest.mark.parametrize(
    ("asked", "driver", "extra"),
    [
        ("auto", "580.65.06", "jax[cuda13]"),
        ("cuda", "570.86.10", "jax[cuda12]"),
        ("cuda", "", "jax[cuda13]"),
        ("auto", "", "requirements.txt"),
        ("auto", "470.57.02", "requirements.txt"),
        ("cpu", "580.65.06", "requirements.txt"),
        ("tpu", "", "jax[tpu]"),
    ],
)
def test_accelerators(clone: Clone, asked: str, driver: str, extra: str) -> None:
    clone.program("nvidia-smi", f"echo {driver}")
    clone.run("launch/setup.sh", f"--accelerator={asked}")
    assert clone.calls()[-1].endswith(f" {extra}")
    # What runs on the CPU needs nothing more.
    clone.run("launch/setup.sh", "--accelerator=cpu")
    assert clone.calls() == []


def test_auto_finds_a_tpu(clone: Clone) -> None:
    clone.run("launch/setup.sh", TPU_NAME="local")
    assert clone.calls()[-1].endswith(" jax[tpu]")


def test_old_driver(clone: Clone) -> None:
    clone.program("nvidia-smi", "echo 470.57.02")
    errors = one_line(clone.run("launch/setup.sh", "--accelerator=cuda", status=2))
    assert "the NVIDIA driver is 470, but JAX needs 525 or newer" in errors


def test_one_accelerator_at_a_time(clone: Clone) -> None:
    clone.run("launch/setup.sh", "--accelerator=tpu")
    errors = one_line(clone.run("launch/setup.sh", "--accelerator=cuda", status=2))
    assert "holds JAX for tpu, which does not go with cuda13" in errors
    clone.run("launch/setup.sh", "--accelerator=tpu")  # and still works as it was


def test_tpus_are_compiled_for_beside_the_environment(clone: Clone) -> None:
    clone.run("launch/test.sh", "--tpu", "--", "-x")
    *_, installed, tests = clone.calls()
    assert installed.endswith("--target .libtpu -r requirements-tpu.txt")
    assert tests == "3.11 -m pytest tests/planning/test_tpu.py -x"


def test_beam_has_an_environment_of_its_own(clone: Clone) -> None:
    clone.run("launch/test.sh", "--beam", "--", "-x")
    *_, installed, tests = clone.calls()
    assert "requirements-beam.txt" in installed and "requirements.txt" not in installed
    assert tests == "3.11 -m pytest tests/prepare/test_beam.py -x"
    assert not (clone.root / ".venv").exists()
    clone.run("launch/setup.sh", "--accelerator=cpu")
    ours, beams = str(clone.root / ".venv"), str(clone.root / ".venv-beam")
    errors = one_line(clone.run("launch/test.sh", "--beam", VENV=ours, status=2))
    assert "holds the packages that jobs run on, which does not go with beam" in errors
    errors = one_line(clone.run("launch/setup.sh", "--accelerator=cpu", VENV=beams, status=2))
    assert "holds Apache Beam, which does not go with run" in errors
    clone.calls()
    clone.run("launch/test.sh", "--beam")  # and both still work as they were
    clone.run("launch/setup.sh", "--accelerator=cpu")
    assert clone.calls() == ["3.11 -m pytest tests/prepare/test_beam.py"]


def test_another_python_has_an_environment_of_its_own(clone: Clone) -> None:
    clone.interpreter("python3.12", "3.12")
    clone.run("launch/setup.sh")
    clone.calls()
    clone.run("launch/setup.sh", PYTHON="python3.12")
    made, installed = clone.calls()
    assert made == "3.12 -m venv --clear .venv-py3.12" and installed.startswith("3.12 -m pip")
    clone.run("launch/setup.sh", PYTHON="python3.12")
    clone.run("launch/setup.sh")  # without PYTHON, the first one
    assert clone.calls() == []
    errors = clone.run("launch/setup.sh", PYTHON="python3.12", VENV=".venv", status=2)
    assert "VENV=.venv was made with Python 3.11, but PYTHON=python3.12 is 3.12" in one_line(errors)


def test_environment_elsewhere(clone: Clone, tmp_path: Path) -> None:
    clone.run("launch/setup.sh", cwd=tmp_path, VENV="here")
    assert (tmp_path / "here/bin/python").is_file() and not (clone.root / ".venv").exists()


def test_what_is_no_environment_is_left_alone(clone: Clone, tmp_path: Path) -> None:
    treasure = tmp_path / "home/treasure"
    treasure.parent.mkdir()
    treasure.touch()
    errors = clone.run("launch/setup.sh", VENV=str(treasure.parent), status=2)
    assert "exists, but is no virtual environment" in one_line(errors)
    assert treasure.exists() and not clone.calls()


def test_environment_whose_python_is_gone(clone: Clone) -> None:
    clone.run("launch/setup.sh")
    (clone.root / ".venv/bin/python").unlink()
    assert "does not run any more: remove it" in one_line(clone.run("launch/setup.sh", status=2))


def test_failed_installation_is_tried_again(clone: Clone) -> None:
    errors = clone.run("launch/setup.sh", STUB_FAILS="pip", status=2)
    assert "pip could not install requirements.txt" in one_line(errors)
    clone.calls()
    clone.run("launch/setup.sh")
    (call,) = clone.calls()
    assert " -m pip install " in call


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_installation_is_done_again(clone: Clone) -> None:
    process = clone.start("launch/setup.sh", STUB_HANGS="pip")
    wait_for(lambda: " -m pip install " in clone.log.read_text())
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    clone.calls()
    clone.run("launch/setup.sh")
    (installed,) = clone.calls()
    assert " -m pip install " in installed
    assert "is up to date" in clone.run("launch/setup.sh")


def test_demo(clone: Clone, tmp_path: Path) -> None:
    workdir = tmp_path / "my run"
    printed = clone.run(
        "launch/demo.sh", "my run", "--accelerator=cpu", "--", "--config.seed=1", cwd=tmp_path
    )
    *_, installed, prepare, pretrain, platform = clone.calls()
    assert " -m pip install " in installed and platform == "on cpu"
    assert prepare == (
        "3.11 -m adamae_jax.prepare --embedded=demo --output=runs/data/moving_objects_demo"
    )
    assert pretrain == (
        "3.11 -m adamae_jax.pretrain --config=configs/adamae_demo.py "
        f"--workdir={workdir} --config.seed=1"
    )
    for text in (
        "600 steps in 201 s, 96 clips a second (median)",
        "1.200 at first, 0.600 at last",
        "1.41 (random masks: unknown)",
        str(workdir / "pictures"),
    ):
        assert text in printed


def test_demo_on_a_gpu_never_falls_back(clone: Clone) -> None:
    clone.program("nvidia-smi", "echo 580.65.06")
    clone.run("launch/demo.sh")
    assert clone.calls()[-1] == "on cuda,cpu"


def test_demo_stops_where_a_job_fails(clone: Clone) -> None:
    clone.run("launch/demo.sh", STUB_FAILS="adamae_jax.prepare", status=1)
    assert clone.calls()[-1].startswith("3.11 -m adamae_jax.prepare")


def test_comparison(clone: Clone, tmp_path: Path) -> None:
    clone.program("nvidia-smi", "echo 580.65.06")
    clone.run("launch/compare.sh", "--full", "--accelerator=cuda", "--seeds=1", cwd=tmp_path)
    assert clone.calls()[-2:] == ["3.11 -m launch.compare --full --seeds=1", "on cuda,cpu"]
    clone.run("launch/compare.sh", STUB_FAILS="launch.compare", status=1)


def test_tests(clone: Clone, tmp_path: Path) -> None:
    clone.run("launch/test.sh", "--full", "--", "-k", "name", cwd=tmp_path)
    *_, installed, lint, style, types, tests = clone.calls()
    assert "requirements-test.txt" in installed
    assert [lint, style, types] == [
        "3.11 -m ruff check .", "3.11 -m ruff format --check .", "3.11 -m mypy"
    ]  # fmt: skip
    assert tests.startswith("3.11 -m pytest ") and tests.endswith(" --full -k name")
    clone.run("launch/test.sh", "--smoke")
    (tests,) = clone.calls()
    assert tests.startswith("3.11 -m pytest ") and tests.endswith(" -m smoke")
    for failing in ("check", "format", "mypy", "pytest"):
        clone.run("launch/test.sh", STUB_FAILS=failing, status=1)


def test_ci(clone: Clone) -> None:
    good = json.dumps({**SUMMARY, "foreground_lift_random": 1.01})
    missing = clone.run(".ci/run", STUB_SUMMARY=good, status=1)
    assert "no Python 3.12 is found: the second stack is not tested" in missing
    clone.calls()
    clone.interpreter("python3.12", "3.12")
    clone.run(".ci/run", STUB_SUMMARY=good)
    calls = clone.calls()
    assert "3.12 -m venv --clear .venv-py3.12" in calls
    assert calls[-1].startswith("3.11 -m pytest ")
    assert any(call.startswith("3.12 -m pytest ") and "-m smoke" in call for call in calls)
    assert "3.11 -m pytest tests/prepare/test_beam.py" in calls
    assert "3.11 -m pytest tests/planning/test_tpu.py" in calls
    for figures in ({"foreground_lift": 1.2}, {"loss_reconstruction_last": 1.0}):
        bad = json.dumps({**json.loads(good), **figures})
        assert "failed: demo's figures" in clone.run(".ci/run", STUB_SUMMARY=bad, status=1)
    assert "tests" in clone.run(".ci/run", STUB_SUMMARY=good, STUB_FAILS="mypy", status=1)
