"""The errors that a user is meant to read."""


class UserError(Exception):
    """Something the user can put right: its message is one line that says what and how.

    Jobs print the message without a traceback and exit with status 2 (`adamae_jax.cli.run`).
    """


class WorkerDeathError(UserError, RuntimeError):
    """A worker process has ended, or hangs, while it was needed."""


class PreemptedError(Exception):
    """A run was asked to end (SIGTERM), and has saved its state: the same command goes on."""
