"""The processes of one job, which end together.

When one of them ends with an error, the others wait for it in the middle of a step, and what JAX
says when it notices is pages of stacks. So whoever ends with an error leaves word in the workdir,
which all of them share, and a thread in each of the others ends its process with one line. A
process that is killed leaves none: then JAX ends the others.
"""

import contextlib
import os
import secrets
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from adamae_jax import cli
from adamae_jax.errors import UserError
from adamae_jax.training.digests import write_atomically

ENDED = ".ended"
LOOK_S = 0.5
GOING_S = 5.0  # what the others need to look and go, until JAX's coordinator ends with process 0


@contextlib.contextmanager
def ending_together(workdir: Path) -> Iterator[None]:
    """Ends all processes of the job when the block ends with an error in one of them.

    Args:
      workdir: a directory that all processes share; is made where it is missing.
    """
    if jax.process_count() == 1:
        yield
        return
    # Each start has a file of its own: what an earlier one has left does not count.
    number = int(multihost_utils.broadcast_one_to_all(np.int32(secrets.randbits(31))))
    word = workdir / f"{ENDED}_{number:08x}"
    well = threading.Event()
    ending = threading.Lock()  # is held by the thread that ends this process
    threading.Thread(target=_listen, args=(word, well, ending), daemon=True).start()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        _leave(word, error, ending)
    finally:
        well.set()


def _name() -> str:
    return f"process {jax.process_index()} of {jax.process_count()}"


def _listen(word: Path, well: threading.Event, ending: threading.Lock) -> None:
    while not well.wait(LOOK_S):
        with contextlib.suppress(OSError), ending:
            said = word.read_text()
            _say(f"{_name()} ends, since another one did: {said}")
            _end(1)


def _leave(word: Path, error: BaseException, ending: threading.Lock) -> NoReturn:
    if not isinstance(error, UserError):
        # It may come of another one's end, of which word is on its way.
        threading.Event().wait(3 * LOOK_S)
    with ending:
        if isinstance(error, UserError):
            said, status = f"{_name()}: {error}", cli.USER_ERROR_STATUS
        else:
            traceback.print_exception(error)
            said = f"{_name()} ends: if it lost another one, look for the error of that one"
            status = 1
        _say(said)
        with contextlib.suppress(OSError):
            workdir = word.parent
            workdir.mkdir(parents=True, exist_ok=True)
            for old in workdir.glob(f"{ENDED}_*"):
                old.unlink(missing_ok=True)
            write_atomically(word, said.encode())
        if jax.process_index() == 0:
            threading.Event().wait(GOING_S)
        _end(status)


def _say(said: str) -> None:
    """Says the last word: what JAX's threads report of the others that go is kept from the page."""
    sys.stdout.flush()
    print(f"error: {said}", file=sys.stderr, flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _end(status: int) -> NoReturn:
    """Ends this process at once: in its regular end JAX would wait for the others, for minutes."""
    os._exit(status)
