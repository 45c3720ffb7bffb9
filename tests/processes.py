"""A job in several real processes on this machine, which find each other by the job's own flags."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from tests.runs import DEADLINE_S, ROOT, arguments, environment

# Beside the job's own words, it says which files it has moved into place, and which examples it
# trains on. Who is silent is lost sooner than in a real job.
LAUNCH = """
import importlib, os, sys
def tell(event, values):
    if event == "os.rename":
        print("moved", os.fspath(values[1]), flush=True)
sys.addaudithook(tell)
from adamae_jax import cli, job, links
links.SILENT_S = 20.0
from adamae_jax.training import loop
put_batch = loop.put_batch
def put(batch, mesh):
    print("examples", *batch["example_index"], flush=True)
    return put_batch(batch, mesh)
loop.put_batch = put
job.define_flags()
cli.run(importlib.import_module("adamae_jax." + sys.argv[1]).main, sys.argv[1:])
"""


class Job:
    """Processes of a run, each with the workers that it starts in a group of its own."""

    def __init__(
        self,
        workdir: Path,
        data: Path,
        *options: str,
        config: str,
        second: Sequence[str] = (),
        count: int = 2,
        job: str = "pretrain",
    ):
        """For use in a ``with`` block, where they run, and behind which nothing is left of them.

        Args:
          workdir: of the run; beside it lie what the processes say and their config.
          data: the dataset.
          options: of all processes.
          config: text of the config file.
          second: options that the second process alone has, behind those of all.
          count: of processes.
          job: what they run.
        """
        self._held = socket.socket()
        # Nobody else is given the port, and JAX, which shares it in the same way, can listen.
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._held.bind(("127.0.0.1", 0))
        self._logs, self._job, self._count = workdir.parent, job, count
        file = self._logs / "config.py"
        file.write_text(config)
        self._arguments = [
            *arguments(workdir, data, *options, config=file),
            f"--coordinator=127.0.0.1:{self._held.getsockname()[1]}",
            f"--num_processes={count}",
        ]
        self._second = second
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Job":
        """Starts them."""
        try:
            self.processes.extend(map(self._start, range(self._count)))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        """Kills what is left."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._held.close()

    def _start(self, index: int) -> subprocess.Popen[bytes]:
        own = [f"--process_id={index}", *(self._second if index == 1 else ())]
        with (
            self._log(index, "out").open("wb") as out,
            self._log(index, "err").open("wb") as errors,
        ):
            return subprocess.Popen(
                [sys.executable, "-c", LAUNCH, self._job, *self._arguments, *own],
                cwd=ROOT, env=environment(), stdout=out, stderr=errors, start_new_session=True,
            )  # fmt: skip

    def _log(self, index: int, kind: str) -> Path:
        return self._logs / f"{index}.{kind}"

    def out(self, index: int) -> str:
        """What a process has printed."""
        return self._log(index, "out").read_text()

    def examples(self, index: int) -> list[list[int]]:
        """The examples that a process has trained on, step by step."""
        said = [line.split() for line in self.out(index).splitlines()]
        return [list(map(int, words[1:])) for words in said if words[:1] == ["examples"]]

    def errors(self, index: int) -> str:
        """What a process has logged."""
        return self._log(index, "err").read_text()

    def said(self) -> str:
        """The ends of what all have logged."""
        return "\n".join(self.errors(index)[-3000:] for index in range(len(self.processes)))

    def wait(self, seconds: float = DEADLINE_S) -> list[int]:
        """The statuses, of all together."""
        end = time.monotonic() + seconds
        for index, process in enumerate(self.processes):
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                pytest.fail(f"process {index} does not end:\n{self.said()}")
        return [process.returncode for process in self.processes]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Waits for something to happen while they run."""
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, "nothing happened in time"
            for process in self.processes:
                assert process.poll() is None, self.said()
            time.sleep(0.01)

    def left_over(self) -> list[psutil.Process]:
        """What is left of the processes' groups, after a moment in which workers may notice."""
        groups, found = {process.pid for process in self.processes}, []
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(process.pid) in groups:
                    found.append(process)
        _, alive = psutil.wait_procs(found, timeout=20)
        return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def stop_line(job: Job, index: int) -> str:
    """The last word of a process; behind it, Python tidies up what its workers have left."""
    said = job.errors(index).splitlines()
    last = max((at for at, line in enumerate(said) if line.startswith("error: ")), default=None)
    assert last is not None, said[-30:]
    behind = [line for line in said[last + 1 :] if line.strip()]
    assert all("resource_tracker" in line or "warnings.warn" in line for line in behind), behind
    return said[last]
