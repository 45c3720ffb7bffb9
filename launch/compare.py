"""Compares ways to begin by what comes after them, cell by cell: bash launch/compare.sh.

A cell is a way to begin (scratch, or pretraining with some masks), a seed, and a stage:
pretraining, fine-tuning or probes. Each is an ordinary job of this package, with the same data and
as many steps for all. One that was killed goes on where it was, one that is finished is not run
again, and its figures are kept in one file, of which `launch.comparison` makes tables and a plot.
"""

import datetime
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launch import comparison, provenance
from launch.compare_plan import ROOT, Cell, JobError, Plan, parse

# --- what a finished job has found ---


def figures_of(stage: str, run: Path) -> dict[str, float | None]:
    """Reads the figures of a finished job from its workdir.

    Raises:
        OSError, ValueError, KeyError: where it is not finished, or not such a job.
    """
    summary = json.loads((run / "summary.json").read_text())
    config = json.loads((run / "config.json").read_text())
    if stage == "pretrain":
        rate = summary["clips_per_second"]
        return {
            "loss": summary["loss_reconstruction_last"],
            "held_out_loss": summary.get("eval_loss_reconstruction"),
            "lift": summary.get("foreground_lift"),
            "step_ms": 1000 * config["batch_size"] / rate if rate else None,
        }
    chance = 1 / config["classifier"]["num_classes"]
    if stage == "finetune":
        test = json.loads((run / "test" / "metrics.json").read_text())
        accuracy = {"top1": test["top1"], "top5": test["top5"]}
        half = steps_to(run / "metrics.jsonl", 0.5)
        return {**accuracy, "loss": summary["loss_last"], "half": half, "chance": chance}
    return {
        "chance": chance,
        "linear": summary["eval_accuracy_linear"],
        "attentive": summary["eval_accuracy_attentive"],
        "change": summary["eval_accuracy_change"],
        "knn": summary["eval_knn_accuracy"],
    }


def steps_to(metrics: Path, accuracy: float) -> int | None:
    """The first step whose evaluation has passed an accuracy; None where none has."""
    for line in metrics.read_text().splitlines():
        found = json.loads(line)
        if found.get("eval_accuracy", 0.0) > accuracy:
            return int(found["step"])
    return None


def record(plan: Plan, cell: Cell, memory: float | None) -> dict[str, Any]:
    """What is kept of a finished job: figures, and what they were found with.

    Args:
        plan: of the comparison.
        cell: the job.
        memory: the most that it held, in MiB; None where it was not seen running.
    """
    run = plan.run_of(cell)
    summary = json.loads((run / "summary.json").read_text())
    figures: dict[str, float | None] = {**figures_of(cell.stage, run), "memory_mib": memory}
    if cell.stage == "pretrain":
        figures["steps"] = summary["steps"]
        figures["gflop"] = plan.costs[plan.methods[cell.method]] / 1e9
    return {
        **cell._asdict(),
        **plan.setting(),
        "trained_steps": summary["steps"],
        "figures": {
            name: None if value is None else round(value, 4) for name, value in figures.items()
        },
        "seconds": round(summary["seconds"], 1),
        "device": provenance.device(plan.python),
        "versions": provenance.versions(),
        "commit": provenance.commit(ROOT),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


# --- running ---


def run(command: Sequence[str], log: Path) -> float:
    """Runs a job to its end, and returns the most memory that it held, in MiB.

    Linux counts from the fork on, so that it is never less than this process holds: a little.

    Raises:
        JobError: where it does not end well; the log says why.
        SystemExit: where this process was told to end, which the job is told too.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    told: list[int] = []
    with log.open("a") as output:
        job = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)

        def tell(number: int, frame: object) -> None:
            del frame
            told.append(number)
            job.send_signal(signal.SIGTERM)  # it saves where it is

        before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            _, status, usage = os.wait4(job.pid, 0)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    job.returncode = os.waitstatus_to_exitcode(status)
    if told:
        sys.exit(128 + told[0])
    if job.returncode:
        raise JobError(f"status {job.returncode}, see {log}: {last_line(log)}")
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def last_line(log: Path) -> str:
    """What a job has said last."""
    lines = log.read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")


def is_complete(plan: Plan, cell: Cell) -> bool:
    """Whether a job's run is there, and has come to its end."""
    try:
        figures_of(cell.stage, plan.run_of(cell))
    except (OSError, ValueError, KeyError):
        return False
    return True


def is_kept(plan: Plan, cell: Cell) -> bool:
    """Whether a job's figures are in the file."""
    key = comparison.key({**cell._asdict(), **plan.setting()})
    return any(comparison.key(known) == key for known in comparison.read(plan.results))


def compare(plan: Plan) -> Iterator[Cell]:
    """Runs what is not finished, and yields each cell when its figures are kept.

    Raises:
        JobError: at the end, where jobs have failed; those that need them are left out.
    """
    failed: list[Cell] = []
    for cell in plan.cells():
        name = f"{cell.method}, seed {cell.seed}, {cell.stage}"
        if any(cell[:2] == other[:2] and other.stage == "pretrain" for other in failed):
            continue
        complete = is_complete(plan, cell)
        if complete and is_kept(plan, cell):
            print(f"{name}: finished before", flush=True)
            continue
        print(f"{name}: {shlex.join(plan.command(cell))}", flush=True)
        directory, start = plan.run_of(cell), time.monotonic()
        try:
            memory = run(plan.command(cell), directory.with_name(f"{cell.stage}.log"))
            found = record(plan, cell, None if complete else memory)
        except (JobError, OSError, ValueError, KeyError) as error:
            failed.append(cell)
            print(f"error: {name}: {error}", file=sys.stderr, flush=True)
            continue
        comparison.add(plan.results, found)
        print(f"{name}: {found['figures']} in {time.monotonic() - start:.0f} s", flush=True)
        yield cell
    if failed:
        raise JobError(f"{len(failed)} jobs have failed: see above")


def main(arguments: Sequence[str]) -> None:
    """Compares as the options say."""
    options = parse(arguments, __doc__)
    plan = Plan(options)
    if options.dry_run:
        for cell in plan.cells():
            print(shlex.join(plan.command(cell)))
        return
    try:
        if not options.page_only:
            for _ in compare(plan):
                comparison.write(plan.results, options.page, options.plot)
        comparison.write(plan.results, options.page, options.plot)
    except (JobError, comparison.PageError) as error:
        sys.exit(f"error: {error}")
    print(f"{options.page}, {options.plot}: made from {plan.results}")


if __name__ == "__main__":
    main(sys.argv[1:])
