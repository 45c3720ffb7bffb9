"""How the processes of one job find each other, before anything touches a device.

Flags say it (``--coordinator``, ``--num_processes``, ``--process_id``), or the environment that a
scheduler leaves, which JAX reads. Processes that a scheduler has started together and that know
nothing of each other would each train alone, in the same workdir.
"""

import contextlib
import importlib.util
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags

from adamae_jax.cli import LOST_STATUS
from adamae_jax.errors import UserError

START_S = 300.0  # all processes have begun by then
PROBE_S = 5.0
BY_HAND = "give --coordinator=HOST:PORT, --num_processes=N and --process_id=I"
ALONE = "or --distributed=off, if each process is to train alone"
Arguments = dict[str, Any]


def define_flags() -> None:
    """Defines the options of a job that may have several processes."""
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, with a free port; for several processes."
    )
    flags.DEFINE_integer("num_processes", None, "How many processes the job has.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0 on.")
    flags.DEFINE_enum(
        "distributed",
        "auto",
        ("auto", "on", "off"),
        "Without --coordinator: whether there are other processes, as SLURM, MPI or a TPU pod "
        "say (auto), in any case, as JAX finds them (on), or not (off).",
    )


def begin() -> None:
    """Has this process meet the others of its job, as flags or environment say.

    Raises:
      UserError: where these do not fit together, or do not say enough.
    """
    values = flags.FLAGS
    names = ("coordinator", "num_processes", "process_id")
    given = {name: values[name].value for name in names if values[name].value is not None}
    if given:
        arguments = stated(given)
    elif values.distributed == "off" or jax.distributed.is_initialized():
        return
    else:
        found = detected(os.environ)
        if found is None and values.distributed == "auto":
            return
        arguments = found or {}
    with _within(START_S, lambda: missing(given)):
        _initialize(arguments)


def stated(given: Mapping[str, Any]) -> Arguments:
    """Returns the arguments of ``jax.distributed.initialize`` that flags say.

    Raises:
      UserError: where one is missing or wrong.
    """
    without = [f"--{n}" for n in ("coordinator", "num_processes", "process_id") if n not in given]
    if without:
        said = " and ".join(f"--{name}={value}" for name, value in given.items())
        raise UserError(f"{said} without {' and '.join(without)}: {BY_HAND}, or none of them")
    count, index = given["num_processes"], given["process_id"]
    host, _, port = given["coordinator"].rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"--coordinator={given['coordinator']} is not HOST:PORT, such as --coordinator="
            "10.0.0.1:8476: where process 0 runs, and a free port there"
        )
    if not 0 <= index < count:
        raise UserError(
            f"--process_id={index} with --num_processes={count}: the processes are numbered from "
            f"0 to {max(count, 1) - 1}"
        )
    if index == 0:
        try:
            # As gRPC will, which has no words for a port that is taken.
            socket.create_server(("", int(port)), reuse_port=True).close()
        except OSError as error:
            raise UserError(
                f"--coordinator={given['coordinator']}: process 0 cannot listen at port {port} "
                f"({error.strerror}): choose a free one, in all processes"
            ) from error
    return {
        "coordinator_address": given["coordinator"],
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }


def detected(environment: Mapping[str, str]) -> Arguments | None:
    """Returns the arguments of ``jax.distributed.initialize``; None where this process is alone.

    Args:
      environment: variables that schedulers set.

    Raises:
      UserError: where there are several processes, but not enough is known of them.
    """
    if (tasks := int(environment.get("SLURM_NTASKS") or 1)) > 1:
        if "SLURM_STEP_NODELIST" not in environment:
            raise UserError(
                f"the SLURM job has {tasks} tasks, but this process was not started by srun, and "
                f"would train alone: start it with srun, {ALONE}"
            )
        return {"cluster_detection_method": "slurm", "local_device_ids": _all_devices(environment)}
    for launcher, variable in (("Open MPI", "OMPI_COMM_WORLD_SIZE"), ("MPI", "PMI_SIZE")):
        if (tasks := int(environment.get(variable) or 1)) > 1:
            if "OMPI_MCA_orte_hnp_uri" in environment:
                return {"cluster_detection_method": "ompi"}
            if importlib.util.find_spec("mpi4py") is not None:
                return {"cluster_detection_method": "mpi4py"}
            raise UserError(
                f"{launcher} has started {tasks} processes, which do not know of each other: "
                f"pip install mpi4py, or {BY_HAND}, {ALONE}"
            )
    if (tasks := len((environment.get("TPU_WORKER_HOSTNAMES") or "").split(","))) > 1:
        return {}
    return {} if _is_tpu_host(environment) else None


def _all_devices(environment: Mapping[str, str]) -> list[int] | None:
    """With one task on a node, it takes all GPUs of the node; JAX gives one to each task."""
    if environment["SLURM_NTASKS"] != environment.get("SLURM_STEP_NUM_NODES"):
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    count = len(visible.split(",")) if visible else int(environment.get("SLURM_GPUS_ON_NODE") or 1)
    return list(range(count))


def _is_tpu_host(environment: Mapping[str, str]) -> bool:
    """Whether JAX may ask the TPU's host for the others: elsewhere it would wait for an answer."""
    wanted = environment.get("JAX_PLATFORMS") or "tpu"
    has_chips = any(any(Path("/dev").glob(name)) for name in ("accel[0-9]*", "vfio/[0-9]*"))
    has_library = importlib.util.find_spec("libtpu") is not None
    is_asked = "TPU_SKIP_MDS_QUERY" not in environment and "tpu" in wanted
    return is_asked and has_library and has_chips


def _initialize(arguments: Arguments) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        # JAX ends the process with pages of stacks when its own time is over: ours is shorter.
        jax.distributed.initialize(**arguments, initialization_timeout=int(2 * START_S))
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the processes of this job cannot be set up ({reason}): {BY_HAND}, {ALONE}; a config "
            "file must not compute anything with JAX"
        ) from error
    # JAX has taken this signal, and would say nothing of it; `preemption.Notice` listens later.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def missing(given: Mapping[str, Any]) -> str:
    """Returns what is said when the processes have not all come in time."""
    if not given:
        return (
            f"not all processes of this job have begun within {START_S:g} s, or they cannot reach "
            f"process 0: look at what the others say, or {BY_HAND}"
        )
    where = given["coordinator"]
    said = f"process {given['process_id']} of {given['num_processes']} has waited {START_S:g} s: "
    host, _, port = where.rpartition(":")
    try:
        if given["process_id"]:
            socket.create_connection((host.strip("[]"), int(port)), PROBE_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        return (
            f"{said}process 0 cannot be reached at --coordinator={where} ({reason}): is it "
            "running, is that its address, and may this host reach its ports?"
        )
    return f"{said}not all processes have come to --coordinator={where}: start all of them"


@contextlib.contextmanager
def _within(seconds: float, reason: Callable[[], str]) -> Iterator[None]:
    """Ends this process with one line where the block takes longer."""
    done = threading.Event()

    def watch() -> None:
        if not done.wait(seconds):
            print(f"error: {reason()}", file=sys.stderr, flush=True)
            os._exit(LOST_STATUS)

    threading.Thread(target=watch, name="meeting", daemon=True).start()
    try:
        yield
    finally:
        done.set()
