"""The directions by name; each is a module with flags and a ``main`` of its own."""

from adamae_jax.cli import run_command

COMMANDS = {
    "import": "adamae_jax.convert.importing",
    "export": "adamae_jax.convert.exporting",
}

if __name__ == "__main__":
    run_command(COMMANDS)
