"""Times the train step beside PyTorch's, turn by turn in one run, on random data.

    python -m adamae_jax.benchmark compare --config=configs/adamae_ssv2.py --batch_size=2

PyTorch runs `adamae_jax.benchmark.torch_models` in three forms: "published", with attention written
out as in the authors' code and PyTorch's ordinary AdamW; "fused", with PyTorch's own attention and
its fused AdamW; and "compiled", which is that through ``torch.compile``. Each contender is a
process of its own and rests while another has its turn, so that a machine that changes its speed
changes it for all. Both round float32 matrix products in the same way, and take bfloat16 where
``model.dtype`` says so (PyTorch by autocast).

Prints a table and one JSON object. Input and transfers are not in it. PyTorch must be installed,
which training never needs.
"""

import dataclasses
import importlib.util
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from adamae_jax import cli
from adamae_jax.errors import UserError

OURS = "adamae_jax"
FORMS = ("published", "fused", "compiled")
# What a contender may take to compile its step and to run it the first times.
START_S = 1800.0
USES_DEVICES = False  # its contenders do, in processes of their own


def define_flags() -> None:
    """Defines this benchmark's options; importing the module does not."""
    cli.define_config()
    flags.DEFINE_integer("batch_size", 2, "Clips in a step.", 1)
    flags.DEFINE_integer("rounds", 5, "Turns of each contender.", 1)
    flags.DEFINE_integer("steps", 1, "Steps in a turn.", 1)
    flags.DEFINE_integer("warmup", 2, "Steps of each contender before the first turn.", 1)
    flags.DEFINE_list("forms", list(FORMS), "PyTorch's, in which it is run.")


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured of one contender.

    Attributes:
      name: ours, or PyTorch's form.
      step_seconds: median over its turns.
      ratio: of its time to ours, the median over the rounds: above 1, ours is faster.
      ratio_min: the lowest of any round.
      ratio_max: the highest of any round.
      peak_bytes: the most memory in use: the device's, or the process's on a CPU.
      start_seconds: from the start of the process to the end of the first steps.
      version: of JAX or PyTorch.
    """

    name: str
    step_seconds: float
    ratio: float
    ratio_min: float
    ratio_max: float
    peak_bytes: int
    start_seconds: float
    version: str


def main(argv: Sequence[str]) -> None:
    """Measures as the flags say."""
    del argv
    values = flags.FLAGS
    unknown = sorted(set(values.forms) - set(FORMS))
    if unknown:
        raise UserError(f"--forms names {', '.join(unknown)}: there are {', '.join(FORMS)}")
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "compare needs PyTorch, which is not installed: pip install -r requirements-interop.txt"
        )
    config = values.config
    config.batch_size = values.batch_size
    check(config)
    names = [OURS, *values.forms]
    rows = compare(config, names, rounds=values.rounds, steps=values.steps, warmup=values.warmup)
    print(describe(rows))
    print(json.dumps([dataclasses.asdict(row) for row in rows]))


def check(config: ConfigDict) -> None:
    """Raises a `UserError` for what PyTorch's side has not got: it is AdaMAE and VideoMAE alone."""
    has = {
        "masking.name": ("adaptive", "tube"),
        "model.class_token": ("none",),
        "model.positions": ("sincos_1d",),
        "model.predicted_frames": (0,),
        "objective.loss": ("mse",),
        "objective.normalize_targets": ("channel",),
        "objective.target_pixels": ("unit",),
        "optimizer.accumulation": (1,),
    }
    for field, known in has.items():
        group, name = field.split(".")
        value = config[group][name]
        if value not in known:
            raise UserError(
                f"compare knows AdaMAE and VideoMAE only: {field} is {value!r}, and must be "
                + " or ".join(map(repr, known))
            )


def compare(
    config: ConfigDict, names: Sequence[str], *, rounds: int, steps: int, warmup: int
) -> list[Row]:
    """Runs all contenders, turn by turn.

    Args:
      config: the experiment, batch size included.
      names: `OURS`, then of `FORMS`.
      rounds: turns of each.
      steps: in a turn.
      warmup: steps of each before the first turn.

    Raises:
      UserError: where a contender ends before its time.
    """
    # Else JAX takes a GPU's memory for itself.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    context = multiprocessing.get_context("spawn")
    contenders = []
    try:
        for name in names:
            here, there = context.Pipe()
            process = context.Process(
                target=contend, args=(there, name, config, warmup), daemon=True
            )
            begin = time.perf_counter()
            process.start()
            there.close()
            contenders.append((name, process, here))
            _answer(name, here)  # one after the other: compiling takes all cores
            print(f"{name} is ready after {time.perf_counter() - begin:.0f} s", flush=True)
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, _, connection in contenders:
                connection.send(steps)
                times[name].append(_answer(name, connection) / steps)
        reports = {}
        for name, _, connection in contenders:
            connection.send(0)
            reports[name] = _answer(name, connection)
    finally:
        for _, process, connection in contenders:
            connection.close()
            process.terminate()
            process.join()
    return [_row(name, times[name], times[OURS], reports[name]) for name in names]


def _answer(name: str, connection: Connection) -> Any:
    """What a contender says next."""
    try:
        if connection.poll(START_S):
            return connection.recv()
    except EOFError:
        raise UserError(f"{name} has ended: what it said is above") from None
    raise UserError(f"{name} has said nothing for {START_S:.0f} s")


def _row(name: str, times: list[float], ours: list[float], report: dict[str, Any]) -> Row:
    ratios = [time / our for time, our in zip(times, ours, strict=True)]
    return Row(
        name,
        statistics.median(times),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        **report,
    )


def contend(connection: Connection, name: str, config: ConfigDict, warmup: int) -> None:
    """A contender's process: makes its step, then runs as many as it is told, until 0.

    Args:
      connection: where it is told and answers, with seconds and, at the end, with its report.
      name: see `compare`.
      config: the experiment.
      warmup: steps to run first.
    """
    begin = time.perf_counter()
    # Imported here: neither framework shares a process with the other.
    side = "compare_jax" if name == OURS else "compare_torch"
    framework = importlib.import_module(f"adamae_jax.benchmark.{side}")
    contender: Contender = framework.contender(config, name)
    for _ in range(warmup):
        contender.step()
    start_seconds = time.perf_counter() - begin
    connection.send(start_seconds)
    while steps := connection.recv():
        begin = time.perf_counter()
        for _ in range(steps):
            contender.step()
        connection.send(time.perf_counter() - begin)
    connection.send(
        {
            "peak_bytes": contender.peak_bytes(),
            "start_seconds": start_seconds,
            "version": contender.version,
        }
    )


@dataclasses.dataclass(frozen=True)
class Contender:
    """One framework's train step.

    Attributes:
      step: runs a step to its end.
      peak_bytes: the most memory in use so far.
      version: of the framework.
    """

    step: Callable[[], None]
    peak_bytes: Callable[[], int]
    version: str


def describe(rows: Sequence[Row]) -> str:
    """A table for people."""
    lines = [f"{'':<12}{'s/step':>9}{'to ours':>9}{'(rounds)':>16}{'GiB':>7}{'start s':>9}"]
    for row in rows:
        spread = f"{row.ratio_min:.2f} to {row.ratio_max:.2f}"
        lines.append(
            f"{row.name:<12}{row.step_seconds:>9.3f}{row.ratio:>9.2f}{spread:>16}"
            f"{row.peak_bytes / 2**30:>7.2f}{row.start_seconds:>9.1f}"
        )
    return "\n".join(lines)
