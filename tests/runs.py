"""Whole runs of a tiny pretraining, as processes of their own, and the data for them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from adamae_jax.prepare import embedded, examples
from adamae_jax.training import metrics, rundir
from tests.data import fixtures

ROOT = Path(__file__).parent.parent
TINY = Path("tests/configs/tiny.py")
DEADLINE_S = 240.0


def arguments(workdir: str | Path, data: Path, *options: str, config: Path = TINY) -> list[str]:
    """The arguments of a tiny run."""
    # Compiled programs are shared between the runs, as they are from one start to the next.
    cache = data.parent / "compiled"
    return [
        *(f"--config={config}", f"--workdir={workdir}", f"--config.data.dir={data}"),
        *(f"--config.compilation_cache_dir={cache}", *options),
    ]


def command(workdir: str | Path, data: Path, *options: str) -> list[str]:
    """The command line of a tiny run."""
    return [sys.executable, "-m", "adamae_jax.pretrain", *arguments(workdir, data, *options)]


def environment() -> dict[str, str]:
    """One CPU device, quietly; most of a tiny run's time is compilation, which is cut short."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def run(workdir: Path, data: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs to the end."""
    return subprocess.run(
        command(workdir, data, *options),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def lines(workdir: Path) -> list[dict[str, Any]]:
    """The metrics without what depends on the clock."""
    text = (workdir / rundir.METRICS).read_text()
    return [
        {name: value for name, value in json.loads(line).items() if name not in metrics.TIMINGS}
        for line in text.splitlines()
    ]


def moving_waves(count: int) -> list[bytes]:
    """Examples of colour waves that run over the frame, with half of it as foreground."""
    records = []
    time, row, column = np.meshgrid(*(np.arange(n) for n in (10, 24, 32)), indexing="ij")
    masks = np.repeat(np.array([[[0, 0, 0, 0, 255, 255, 255, 255]]], np.uint8), 10, 0).repeat(6, 1)
    for number in range(count):
        speed, rows, columns = np.random.default_rng(number).uniform(0.2, 0.5, 3)
        wave = np.sin(speed * time + rows * row + columns * column)
        frames = np.stack([128 + 100 * wave, 128 - 100 * wave, 128 + 50 * wave], -1)
        identity, label = f"wave-{number}", number % 3
        records.append(fixtures.serialize(frames.astype(np.uint8), identity, label, masks))
    return records


def embedded_clips(split: str, count: int) -> list[bytes]:
    """The first clips of the embedded dataset, as the demos train on them."""
    clips = (embedded.encode_clip(("demo", 0, split, number)) for number in range(count))
    return [examples.serialize(examples.make_example(**clip)) for clip in clips]
