"""``python -m adamae_jax.prepare [verify DIR] --name=value``.

Without the command, it is `adamae_jax.prepare.job`.
"""

import sys

from adamae_jax.cli import run

if __name__ == "__main__":
    program, *arguments = sys.argv
    if arguments[:1] == ["verify"]:
        from adamae_jax.prepare import verify

        verify.define_flags()
        # The folder may stand by itself: ``verify DIR``.
        options = [word if word.startswith("-") else f"--dataset={word}" for word in arguments[1:]]
        run(verify.main, [program, *options])
    else:
        from adamae_jax.prepare import job

        job.define_flags()
        run(job.main)
