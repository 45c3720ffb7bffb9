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
        # The folder may stand by itself: ``verify DIR``. Of several, one is a word too many.
        match [place for place, word in enumerate(arguments) if not word.startswith("-")]:
            case [0, place]:
                arguments[place] = f"--dataset={arguments[place]}"
        run(verify.main, [program, *arguments[1:]])
    else:
        from adamae_jax.prepare import job

        job.define_flags()
        run(job.main)
