"""How every job starts: absl flags, and user errors as one line instead of a traceback."""

import sys
from collections.abc import Callable, Sequence

from absl import app

from adamae_jax.errors import UserError

USER_ERROR_STATUS = 2


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a job's ``main(argv)`` under absl; a `UserError` ends it with one line and status 2."""

    def guarded(argv: Sequence[str]) -> None:
        try:
            if len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}: options are given as --name=value")
            main(argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(USER_ERROR_STATUS)

    app.run(guarded)
