"""What a comparison runs: ways to begin, their jobs and commands; see `launch.compare`."""

import argparse
import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = "none"
# Ways to begin, and the config that each pretrains with: same model, data and optimiser, so that
# the masks alone differ. From scratch there is nothing to pretrain.
PRETRAINING = "configs/comparison_demo.py"
MASKS = (
    *("adaptive", "random", "tube", "frame", "dual", "motion", "oracle", "oracle_masked"),
    *("adaptive_sharp", "adaptive_baseline", "adaptive_inverted", "adaptive_85", "adaptive_90"),
)
REFERENCE = "random"  # whose FLOPs are the measure
METHODS = {SCRATCH: f"{PRETRAINING}:random"} | {mask: f"{PRETRAINING}:{mask}" for mask in MASKS}
DEFAULT_METHODS, DEFAULT_SEEDS = (SCRATCH, "adaptive", "random", "tube"), (0,)
FULL_METHODS, FULL_SEEDS = tuple(METHODS), (0, 1, 2)
STEPS = {"pretrain": 1000, "finetune": 3000, "probe": 300}
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
        steps: of each stage; of pretraining with random masks, where FLOPs are equal.
        budget: what is equal for all: "steps", or "flops" of the pretraining.
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
        self.budget: str = options.budget
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

    @functools.cached_property
    def costs(self) -> dict[str, int]:
        """The FLOPs of a step of pretraining, by config; see `launch.cost`.

        Raises:
            JobError: where they cannot be counted.
        """
        configs = sorted({*self.methods.values(), METHODS[REFERENCE]})
        command = [self.python, "-m", "launch.cost", *configs]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}  # nothing is computed
        found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if found.returncode:
            said = [line for line in found.stderr.splitlines() if line.strip()] or [""]
            raise JobError(f"cannot count the FLOPs of {', '.join(configs)}: {said[-1]}")
        costs: dict[str, int] = json.loads(found.stdout)
        return costs

    def steps_of(self, cell: Cell) -> int:
        """How many steps a job has."""
        steps = self.steps[cell.stage]
        if cell.stage != "pretrain" or self.budget == "steps" or cell.method == SCRATCH:
            return steps
        return round(steps * self.costs[METHODS[REFERENCE]] / self.costs[self.methods[cell.method]])

    def run_of(self, cell: Cell) -> Path:
        """The workdir of a job; that of equal steps where these are no others."""
        pretraining = self.steps_of(cell._replace(stage="pretrain"))
        is_usual = pretraining == self.steps["pretrain"]
        name = cell.method if is_usual else f"{cell.method}-{pretraining}"
        return self.workdir / name / f"seed{cell.seed}" / cell.stage

    def command(self, cell: Cell) -> list[str]:
        """The job of a cell, as words."""
        options = [f"--config.steps={self.steps_of(cell)}"]
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
        return {"data": Path(self.data).name, "steps": self.steps, "budget": self.budget}


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


def parse(arguments: Sequence[str], description: str | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="launch/compare.sh", description=description)
    add = parser.add_argument
    add("--methods", type=lambda text: named(text.split(",")), help="names, or NAME=CONFIG")
    add("--seeds", type=seeds, help="such as 0,1,2")
    add("--stages", type=stages, default=tuple(STEPS), help="such as pretrain,finetune")
    add("--steps", type=counts, default={}, help="such as pretrain=2000,finetune=1500,probe=300")
    add(
        "--budget",
        choices=("steps", "flops"),
        default="steps",
        help="of pretraining, equal for all",
    )
    add("--full", action="store_true", help="all methods and three seeds")
    add("--workdir", type=Path, default=Path("runs/compare"), help="of all runs")
    add("--data", default=DATA, help="the dataset; moving_objects_large is the other embedded one")
    add("--results", type=Path, default=Path("docs/comparison.json"), help="the file of figures")
    add("--page", type=Path, default=Path("docs/results.md"), help="where the tables go")
    add("--plot", type=Path, default=Path("docs/comparison.png"))
    add("--dry_run", action="store_true", help="prints the commands, and runs nothing")
    add("--page_only", action="store_true", help="makes tables and plot anew, and runs nothing")
    return parser.parse_args(arguments)
