"""Compares ways to begin by what comes after them, cell by cell: bash launch/compare.sh.

A cell is a way to begin (scratch, or pretraining with some masks), a seed, and a stage:
pretraining, fine-tuning or probes. Each is an ordinary job of this package, with the same data and
as many steps for all. One that was killed goes on where it was, one that is finished is not run
again, and its figures are kept in one file, of which `launch.comparison` makes tables and a plot.
"""

import argparse
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
from typing import Any, NamedTuple

from launch import comparison, provenance

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = "none"
# Ways to begin, and the config that each pretrains with: same model, data and optimiser, so that the
# masks alone differ. From scratch there is nothing to pretrain.
PRETRAINING = "configs/comparison_demo.py"
MASKS = (
    *("adaptive", "random", "tube", "frame", "dual", "motion", "oracle", "oracle_masked"),
    *("adaptive_sharp", "adaptive_baseline", "adaptive_85", "adaptive_90"),
)
METHODS = {SCRATCH: f"{PRETRAINING}:random"} | {mask: f"{PRETRAINING}:{mask}" for mask in MASKS}
DEFAULT_METHODS, DEFAULT_SEEDS = (SCRATCH, "adaptive", "random", "tube"), (0,)
FULL_METHODS, FULL_SEEDS = tuple(METHODS), (0, 1, 2)
STEPS = {"pretrain": 1000, "finetune": 1500, "probe": 300}
AFTER = {
    "finetune": "configs/comparison_finetune_demo.py",
    "probe": "configs/comparison_probe_demo.py",
}
# One step that changes nothing: what probes see in an encoder that is not trained.
UNTRAINED = [
    "--config.steps=1",
    "--config.optimizer.learning_rate=1e-20",
    "--config.optimizer.min_learning_rate=0.0",
]
DATA = "runs/data/moving_objects_medium"
# What the configs need for other data. Clips of the large dataset have 32 frames for the same
# motion, not 20: as much of it in 8 frames.
OPTIONS = {"moving_objects_large": ["--config.data.sampling_rate=3"]}


class Cell(NamedTuple):
    """One job of the comparison."""

    method: str
    seed: int
    stage: str


class JobError(Exception):
    """Something that the user has to know of, in one line."""


class Plan:
    """Where jobs run and with what.

    Attributes:
        methods: the config that each pretrains with, by name, in order.
        seeds: of each method.
        stages: that are run.
        steps: of each stage.
        workdir: runs lie in METHOD/seedN/STAGE below it.
        data: the dataset's directory.
        results: the file of figures.
        python: the interpreter of the jobs.
    """

    def __init__(self, options: argparse.Namespace, python: str = sys.executable) -> None:
        self.python = python
        self.stages: tuple[str, ...] = options.stages
        self.methods: dict[str, str] = options.methods or named(
            FULL_METHODS if options.full else DEFAULT_METHODS
        )
        self.seeds: tuple[int, ...] = options.seeds or (
            FULL_SEEDS if options.full else DEFAULT_SEEDS
        )
        self.steps: dict[str, int] = {**STEPS, **options.steps}
        self.workdir: Path = options.workdir
        self.data: str = options.data
        self.results: Path = options.results

    def cells(self) -> list[Cell]:
        """All jobs in the order in which they run: a seed of all methods before the next seed."""
        return [
            Cell(method, seed, stage)
            for seed in self.seeds
            for method in self.methods
            for stage in self.stages
        ]

    def run_of(self, cell: Cell) -> Path:
        """The workdir of a job."""
        return self.workdir / cell.method / f"seed{cell.seed}" / cell.stage

    def command(self, cell: Cell) -> list[str]:
        """The job of a cell, as words."""
        options = [f"--config.steps={self.steps[cell.stage]}"]
        if cell.stage == "pretrain":
            config = self.methods[cell.method]
            if cell.method == SCRATCH:
                options = UNTRAINED.copy()
        else:
            config = AFTER[cell.stage]
            # From scratch is a job that begins with nothing; probes need an encoder.
            if cell.method != SCRATCH or cell.stage == "probe":
                pretrained = self.run_of(cell._replace(stage="pretrain"))
                options.append(f"--config.init_from={pretrained}")
        options += OPTIONS.get(Path(self.data).name, [])
        return [
            self.python,
            *("-m", f"adamae_jax.{cell.stage}", f"--config={config}"),
            *(f"--workdir={self.run_of(cell)}", f"--config.data.dir={self.data}"),
            *(f"--config.seed={cell.seed}", *options),
        ]

    def setting(self) -> dict[str, Any]:
        """What all cells of one table have in common."""
        return {"data": Path(self.data).name, "steps": self.steps}


def named(words: Sequence[str]) -> dict[str, str]:
    """Reads methods: names of `METHODS`, or NAME=CONFIG for another.

    Raises:
        argparse.ArgumentTypeError: for a name that is unknown.
    """
    methods = {}
    for word in words:
        name, equals, config = word.partition("=")
        if not equals and name not in METHODS:
            raise argparse.ArgumentTypeError(
                f"method {name!r} is unknown: use {', '.join(METHODS)}, or NAME=CONFIG, such as "
                "mine=configs/adamae_demo.py:mypackage.block"
            )
        if equals and (name in METHODS or not config or not name.isidentifier()):
            raise argparse.ArgumentTypeError(
                f"{word!r}: give a new name of letters and digits, and a config"
            )
        methods[name] = config or METHODS[name]
    return methods


def counts(text: str) -> dict[str, int]:
    """Reads STAGE=STEPS,...; raises an `argparse.ArgumentTypeError` for anything else."""
    steps = {}
    for word in text.split(","):
        stage, _, count = word.partition("=")
        if stage not in STEPS or not count.isdecimal() or not int(count):
            raise argparse.ArgumentTypeError(
                f"{word!r} is not STAGE=STEPS, with a STAGE of {', '.join(STEPS)}"
            )
        steps[stage] = int(count)
    return steps


def stages(text: str) -> tuple[str, ...]:
    """Reads STAGE,...; raises an `argparse.ArgumentTypeError` for anything else."""
    words = text.split(",")
    if unknown := set(words) - STEPS.keys():
        raise argparse.ArgumentTypeError(
            f"stage {sorted(unknown)[0]!r} is unknown: use {', '.join(STEPS)}"
        )
    return tuple(stage for stage in STEPS if stage in words)


def seeds(text: str) -> tuple[int, ...]:
    """Reads N,N,...; raises an `argparse.ArgumentTypeError` for anything else."""
    words = text.split(",")
    if not all(word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of seeds, such as 0,1,2")
    return tuple(map(int, words))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="launch/compare.sh", description=__doc__)
    add = parser.add_argument
    add("--methods", type=lambda text: named(text.split(",")), help="names, or NAME=CONFIG")
    add("--seeds", type=seeds, help="such as 0,1,2")
    add("--stages", type=stages, default=tuple(STEPS), help="such as pretrain,finetune")
    add("--steps", type=counts, default={}, help="such as pretrain=2000,finetune=1500,probe=300")
    add("--full", action="store_true", help="all methods and three seeds")
    add("--workdir", type=Path, default=Path("runs/compare"), help="of all runs")
    add("--data", default=DATA, help="the dataset; moving_objects_large is the other embedded one")
    add("--results", type=Path, default=Path("docs/comparison.json"), help="the file of figures")
    add("--page", type=Path, default=Path("docs/results.md"), help="where the tables go")
    add("--plot", type=Path, default=Path("docs/comparison.png"))
    add("--dry_run", action="store_true", help="prints the commands, and runs nothing")
    add("--page_only", action="store_true", help="makes tables and plot anew, and runs nothing")
    return parser.parse_args(arguments)


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
        return {**accuracy, "loss": summary["loss_last"], "chance": chance}
    return {
        "chance": chance,
        "linear": summary["eval_accuracy_linear"],
        "attentive": summary["eval_accuracy_attentive"],
        "change": summary["eval_accuracy_change"],
        "knn": summary["eval_knn_accuracy"],
    }


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
    options = parse(arguments)
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
