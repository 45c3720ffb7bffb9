"""The launchers of several processes, with programs in the place of schedulers' and the job."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
# Writes down how it was called, and ends with the next status of those that it was given, or with
# that of its process.
STUB = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$CALLS"
count=$(grep -c "^$(basename "$0")" "$CALLS")
statuses=($STATUSES)
[[ $* =~ --process_id=([0-9]+) ]] && count=$((BASH_REMATCH[1] + 1))
exit "${statuses[$count - 1]:-0}"
"""


class Place:
    """A folder with stubs, which come before the real programs."""

    def __init__(self, folder: Path):
        self.folder, self.calls_file = folder, folder / "calls"
        for name in ("python", "srun", "scontrol", "gcloud"):
            (folder / name).write_text(STUB)
            (folder / name).chmod(0o755)
        self.calls_file.touch()

    def start(self, *arguments: str, statuses: str = "", **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "PATH": f"{self.folder}:{os.environ['PATH']}",
                "CALLS": str(self.calls_file),
                "STATUSES": statuses,
                "PAUSE_S": "0",
                **variables,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, statuses: str = "", **variables: str) -> int:
        process = self.start(*arguments, statuses=statuses, **variables)
        process.communicate(timeout=60)
        return process.returncode

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize(
    ("statuses", "ends_with", "starts"),
    [
        *(("0", 0, 1), ("75 69 0", 0, 3), ("75 2 0", 2, 2), ("1", 1, 1), ("137", 137, 1)),
        # Aborts: a process that was lost, or, one after the other, a fault that comes again.
        *(("134 0", 0, 2), ("134 134 134 134 0", 134, 4), ("134 134 69 134 134 134 0", 0, 7)),
    ],
)
def test_only_what_may_go_on_is_started_again(
    place: Place, statuses: str, ends_with: int, starts: int
) -> None:
    assert place.run("launch/again.sh", "python", "x", statuses=statuses) == ends_with
    assert place.calls == ["python x"] * starts


def test_it_is_not_started_for_ever(place: Place) -> None:
    assert place.run("launch/again.sh", "python", statuses="69 69 69", RESTARTS="1") == 69
    assert len(place.calls) == 2


def test_a_scheduler_that_ends_the_loop_ends_the_job(place: Place, tmp_path: Path) -> None:
    """The job saves its state first, and is not started again."""
    job = tmp_path / "job"
    job.write_text(
        "#!/usr/bin/env bash\ntrap 'sleep 0.5; echo saved >> \"$CALLS\"; exit 75' TERM\n"
        'echo started >> "$CALLS"\nwhile :; do sleep 0.1; done\n'
    )
    process = place.start("launch/again.sh", "bash", str(job))
    end = time.monotonic() + 60
    while not place.calls and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert place.calls == ["started", "saved"]


@pytest.mark.parametrize(
    ("statuses", "ends_with"),
    [("0 0 0", 0), ("75 75 75", 75), ("69 137 69", 69), ("1 2 1", 2), ("137 1 69", 1)],
)
def test_processes_of_this_machine(place: Place, statuses: str, ends_with: int) -> None:
    arguments = ("launch/local.sh", "3", "pretrain", "--workdir=a b")
    assert place.run(*arguments, statuses=statuses, PORT="1234") == ends_with
    common = "python -m adamae_jax.pretrain --workdir=a b --coordinator=127.0.0.1:1234"
    assert sorted(place.calls) == [
        f"{common} --num_processes=3 --process_id={index}" for index in range(3)
    ]


def test_dry_runs_start_nothing(place: Place) -> None:
    for arguments, expected in (
        (("local.sh", "--dry_run", "2", "pretrain", "--x=1"), "adamae_jax.pretrain --x=1"),
        (("tpu_pod.sh", "--dry_run", "pod", "zone", "finetune", "--x=a b"), "--x=a\\ b"),
    ):
        process = place.start(f"launch/{arguments[0]}", *arguments[1:], PORT="1234")
        assert expected in process.communicate(timeout=60)[0]
    assert not place.calls


def test_all_hosts_of_a_tpu_slice(place: Place) -> None:
    assert place.run("launch/tpu_pod.sh", "pod", "us-x", "pretrain", "--config=a b.py") == 0
    assert place.calls == [
        "gcloud compute tpus tpu-vm ssh pod --zone=us-x --worker=all --command=cd adamae-jax && "
        "source .venv/bin/activate && bash launch/again.sh python -m adamae_jax.pretrain "
        "--config=a\\ b.py"
    ]


@pytest.mark.parametrize(
    ("status", "count", "is_requeued"),
    [(0, 0, False), (75, 0, True), (69, 3, True), (134, 0, True), (137, 0, True), (2, 0, False),
     (1, 0, False), (75, 20, False)],
)  # fmt: skip
def test_slurm(place: Place, status: int, count: int, is_requeued: bool) -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(count)}
    arguments = ("launch/slurm.sbatch", "pretrain", "--x=1")
    assert place.run(*arguments, statuses=str(status), **job) == status
    assert place.calls[0] == "srun --kill-on-bad-exit=0 python -m adamae_jax.pretrain --x=1"
    assert place.calls[1:] == ["scontrol requeue 7"] * is_requeued


@pytest.mark.parametrize("index", range(2))
def test_kubernetes(place: Place, index: int) -> None:
    """As many processes as pods, the coordinator is the first one's name, and 1 and 2 are final."""
    found = yaml.safe_load((ROOT / "launch/jobset.yaml").read_text())
    (workers,) = found["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    name = f"{found['metadata']['name']}-{workers['name']}-0-0.{found['metadata']['name']}"
    (container,) = job["template"]["spec"]["containers"]
    assert place.run(*container["command"][1:], JOB_COMPLETION_INDEX=str(index)) == 0
    (call,) = place.calls
    assert call.endswith(
        f"--coordinator={name}:8476 --num_processes={job['completions']} --process_id={index}"
    )
    assert job["completions"] == job["parallelism"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [1, 2]
    assert rule["onExitCodes"]["containerName"] == container["name"]


@pytest.mark.parametrize("script", ["again.sh", "local.sh", "slurm.sbatch", "tpu_pod.sh"])
def test_called_without_anything(place: Place, script: str) -> None:
    process = place.start(f"launch/{script}")
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert errors.startswith("error: ") and errors.count("\n") == 1
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, ROOT / "launch" / script], check=True)
