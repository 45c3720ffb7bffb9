"""The benchmarks by name; each is a module with flags and a ``main`` of its own."""

from adamae_jax.cli import run_command

COMMANDS = {
    "step": "adamae_jax.benchmark.step",
    "data": "adamae_jax.benchmark.data",
    "compare": "adamae_jax.benchmark.compare",
}

if __name__ == "__main__":
    run_command(COMMANDS)
