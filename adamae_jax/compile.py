"""Compiles the real train step for hardware that is not attached: will it fit, how fast can it be?

    python -m adamae_jax.compile --config=configs/adamae_k400.py --topology=v5e:4x4

Prints a table (or, with --json, one line) and a verdict; status 3 where the step does not fit. It
needs no data. For TPUs it needs the package libtpu, for NVIDIA GPUs JAX's CUDA packages.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from adamae_jax import cli
from adamae_jax.planning import plan, report, topology
from adamae_jax.planning.fit import largest

DOES_NOT_FIT_STATUS = 3


def define_flags() -> None:
    """Defines the job's options; importing the module does not."""
    cli.define_config()
    flags.DEFINE_string(
        "topology",
        None,
        "Chip and shape: v5e:4x4 (v4, v5e, v5p, v6e: chips along a slice's axes), h100:1x2x8 "
        "(a100, h100, h200: slices x hosts x GPUs), cpu:8 (virtual devices).",
        required=True,
    )
    flags.DEFINE_bool("json", False, "Print one line of JSON instead of the table.")
    flags.DEFINE_bool("fit", False, "Find the largest number of clips on a chip at once that fits.")
    flags.DEFINE_float(
        "memory_gb", None, "GB (1e9 bytes) of a chip, where they are not its kind's.", 0.0
    )


def main(argv: Sequence[str]) -> None:
    """Compiles as the flags say, and prints what was found."""
    del argv
    values = flags.FLAGS
    config, recipe = values.config, cli.recipe_values()
    topology.prepare(values.topology)
    # A program from the cache would make compilation look free.
    jax.config.update("jax_enable_compilation_cache", False)
    limit = int(values.memory_gb * 1e9) if values.memory_gb else None
    found, config = compiled(config, values.topology, limit, recipe, fit=values.fit)
    verdict = report.verdict(found, config)
    if values.json:
        print(json.dumps({**found.to_json(), "verdict": verdict}))
    else:
        print(report.table(found))
        print(verdict)
    if found.memory is None or not found.fits:
        print(f"error: {verdict}", file=sys.stderr, flush=True)
        sys.exit(DOES_NOT_FIT_STATUS)


def compiled(
    config: ConfigDict,
    name: str,
    memory_limit: int | None,
    recipe: Mapping[str, Any],
    *,
    fit: bool,
) -> tuple[plan.Plan, ConfigDict]:
    """Returns what was planned, and the config that it is for.

    Args:
      config: the experiment.
      name: of the topology.
      memory_limit: bytes of a chip, if not its kind's.
      recipe: see `adamae_jax.config.resolve`.
      fit: look for the largest batch.
    """
    target = topology.describe(name)
    if not fit:
        return plan.make(config, target, memory_limit=memory_limit, recipe=recipe), config

    def tried(clips: int, found: plan.Plan) -> None:
        needs = f"{found.memory.total / 1e9:.2f} GB" if found.memory else "too much"
        print(f"{clips} clips a chip: {needs}", file=sys.stderr, flush=True)

    return largest(config, target, memory_limit=memory_limit, recipe=recipe, tried=tried)


if __name__ == "__main__":
    define_flags()
    cli.run(main, uses_devices=False)
