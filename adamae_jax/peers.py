"""The processes of one job, which end together.

When one of them ends with an error, the others wait for it in the middle of a step, and what JAX
says when it notices is pages of stacks. So whoever ends with an error leaves word in the workdir,
which all of them share, and a thread in each of the others ends its process with one line. A
process that is killed or stands still leaves none: then the others notice by `links`, and end with
a status of its own, since the same command may go on.
"""

import contextlib
import os
import secrets
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from adamae_jax import cli, links
from adamae_jax.errors import PreemptedError, UserError
from adamae_jax.training import files
from adamae_jax.training.files import AnyPath

ENDED = ".ended"
LOOK_S, LOOK_IN_BUCKET_S = 0.5, 5.0  # a look into a bucket is a request, which is paid for
GOING_S = 5.0  # what the others need to look and go, until JAX's coordinator ends with process 0


@contextlib.contextmanager
def ending_together(workdir: AnyPath) -> Iterator[None]:
    """Ends all processes of the job when the block ends with an error in one of them.

    Args:
      workdir: a directory that all processes share; is made where it is missing.
    """
    if jax.process_count() == 1:
        yield
        return
    # Each start has a file of its own: what an earlier one has left does not count.
    number = int(multihost_utils.broadcast_one_to_all(np.int32(secrets.randbits(31))))
    job = _Job(workdir / f"{ENDED}_{number:08x}")
    try:
        yield
    except PreemptedError:  # all have agreed on it
        raise
    except (Exception, KeyboardInterrupt) as error:
        job.leave(error)
    finally:
        job.well.set()
        job.say_done()


class _Job:
    """This process as one of a job's.

    Attributes:
      well: is set when the block has come to its end.
      say_done: tells the others that this process ends on its own; see `links.watch`.
    """

    def __init__(self, word: AnyPath) -> None:
        """Begins to listen.

        Args:
          word: the file in which whoever ends with an error says so.
        """
        self.well = threading.Event()
        self._word = word
        self._look_s = LOOK_IN_BUCKET_S if files.is_bucket(word) else LOOK_S
        self._name = f"process {jax.process_index()} of {jax.process_count()}"
        self._ending = threading.Lock()  # is held by the thread that ends this process
        self.say_done: Callable[[], None] = links.watch(self._lose)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while not self.well.wait(self._look_s):
            with contextlib.suppress(OSError), self._ending:
                said = files.read(self._word).decode()
                self._end(f"{self._name} ends, since another one did: {said}", 1)

    def _lose(self, index: int) -> None:
        """Ends this process, since another one is gone, and has left no word."""
        with self._ending:
            self._end(
                f"{self._name} ends, since process {index} is gone: it was killed, its host is "
                f"down, or has been silent for {links.SILENT_S:g} s; the same command goes on from "
                "the newest checkpoint",
                cli.LOST_STATUS,
            )

    def leave(self, error: BaseException) -> NoReturn:
        """Ends this process, and leaves word for the others."""
        if not isinstance(error, UserError):
            # It may come of another one's end, of which word is on its way.
            threading.Event().wait(3 * self._look_s)
        with self._ending:
            if isinstance(error, UserError):
                said, status = f"{self._name}: {error}", cli.USER_ERROR_STATUS
            else:
                traceback.print_exception(error)
                said = f"{self._name} ends: if it lost another one, look for the error of that one"
                status = 1
            with contextlib.suppress(OSError):
                workdir = self._word.parent
                files.make_directory(workdir)
                with files.os_errors(workdir):
                    for old in workdir.glob(f"{ENDED}_*"):
                        files.remove(old)
                files.write(self._word, said.encode())
            self._end(said, status)

    def _end(self, said: str, status: int) -> NoReturn:
        """Says the last word, and ends this process at once.

        What JAX's threads report of the others that go is kept from the page. In the regular end
        JAX would wait for the others, for minutes.
        """
        sys.stdout.flush()
        print(f"error: {said}", file=sys.stderr, flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        self.say_done()
        if jax.process_index() == 0:
            threading.Event().wait(GOING_S)
        os._exit(status)
