"""How processes find each other: what flags and schedulers say, and what is said of errors."""

import importlib.util
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
import pytest

from adamae_jax import cli, distributed
from adamae_jax.cli import LOST_STATUS
from adamae_jax.errors import UserError
from tests import jobs
from tests.runs import ROOT, environment

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_STEP_NUM_NODES": "2",
}
# As a job begins, with a short time in which the others have to come.
START = """
import jax, sys
from absl import flags
from adamae_jax import cli, distributed
distributed.START_S = {seconds}
distributed.define_flags()
cli.run(lambda argv: print(jax.process_index(), jax.process_count()), ["job", *sys.argv[1:]])
"""


def start(
    *flags: str, seconds: float = 60, more: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START.format(seconds=seconds), *flags],
        cwd=ROOT,
        env={**environment(), **(more or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def begun(*words: str) -> jobs.Ended:
    """The same in this process, which has computed with JAX."""

    def job() -> None:
        distributed.define_flags()
        cli.run(lambda argv: print(jax.process_index(), jax.process_count()))

    return jobs.ended(job, *words)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"coordinator": "a:1"}, "--coordinator=a:1 without --num_processes and --process_id"),
        ({"process_id": 0, "num_processes": 2}, "without --coordinator: give"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 1}, "a is not HOST:PORT"),
        ({"coordinator": "a:b", "num_processes": 2, "process_id": 1}, "a:b is not HOST:PORT"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "numbered from 0 to 1"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": -1}, "numbered from 0 to 1"),
    ],
)
def test_wrong_flags(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        distributed.stated(given)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("", 0)) as server:
        where = f"localhost:{server.getsockname()[1]}"
        with pytest.raises(UserError, match="cannot listen at port"):
            distributed.stated({"coordinator": where, "num_processes": 2, "process_id": 0})


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({**SLURM, "SLURM_NTASKS": "1"}, None),
        (
            {**SLURM, "SLURM_GPUS_ON_NODE": "8"},
            {"cluster_detection_method": "slurm", "local_device_ids": list(range(8))},
        ),
        (
            {**SLURM, "CUDA_VISIBLE_DEVICES": "0,1,2"},
            {"cluster_detection_method": "slurm", "local_device_ids": [0, 1, 2]},
        ),
        (
            {**SLURM, "SLURM_NTASKS": "16", "SLURM_GPUS_ON_NODE": "8"},
            {"cluster_detection_method": "slurm", "local_device_ids": None},
        ),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        (
            {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://a:1"},
            {"cluster_detection_method": "ompi"},
        ),
        ({"TPU_WORKER_HOSTNAMES": "t0"}, None),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, {}),
    ],
)
def test_what_schedulers_say(variables: dict[str, str], expected: dict[str, Any] | None) -> None:
    assert distributed.detected({"JAX_PLATFORMS": "cpu", **variables}) == expected


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_NTASKS": "8"}, "has 8 tasks, but this process was not started by srun"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI has started 4 processes, which do not know"),
        ({"PMI_SIZE": "4"}, "MPI has started 4 processes.*--coordinator=HOST:PORT.*=off"),
    ],
)
def test_processes_that_would_each_train_alone(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # of mpi4py
    with pytest.raises(UserError, match=expected):
        distributed.detected(variables)


def test_two_processes_under_slurm_meet() -> None:
    """JAX reads the variables; process 0 is at the first of the nodes, which is this machine."""
    one = {**SLURM, "SLURM_STEP_NODELIST": "127.0.0.1", "JAX_COORDINATOR_PORT": str(free_port())}
    jobs = [start(more={**one, "SLURM_PROCID": str(index)}) for index in range(2)]
    for index, job in enumerate(jobs):
        out, errors = job.communicate(timeout=120)
        assert out == f"{index} 2\n", errors


@pytest.mark.parametrize(
    ("flags", "variables"), [((), {}), (("--distributed=off",), SLURM)], ids=("nothing", "off")
)
def test_a_process_that_is_alone_trains_alone(
    flags: tuple[str, ...], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert begun(*flags) == jobs.Ended(0, "0 1\n", "")


def test_processes_that_do_not_come_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "START_S", 12.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        given = {"coordinator": f"127.0.0.1:{server.getsockname()[1]}", "num_processes": 3}
        for index in (0, 1):
            assert distributed.missing({**given, "process_id": index}).startswith(
                f"process {index} of 3 has waited 12 s: not all processes have come to"
            )


def test_a_process_whose_coordinator_is_not_there_ends() -> None:
    """With one line, and no pages of JAX's."""
    where = f"127.0.0.1:{free_port()}"
    job = start("--num_processes=3", "--process_id=2", f"--coordinator={where}", seconds=3)
    errors = job.communicate(timeout=120)[1]
    assert errors.startswith(
        "error: process 2 of 3 has waited 3 s: process 0 cannot be reached at "
        f"--coordinator={where} (Connection refused)"
    ), errors
    assert len(errors.splitlines()) == 1
    assert job.returncode == LOST_STATUS


def test_a_config_that_has_computed_with_jax() -> None:
    jax.devices()
    where = f"--coordinator=127.0.0.1:{free_port()}"
    refusal = begun(where, "--num_processes=2", "--process_id=0").refusal
    assert "a config file must not compute anything with JAX" in refusal
