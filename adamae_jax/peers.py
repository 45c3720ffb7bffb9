"""The processes of one job, which end together."""

import contextlib
import os
import sys
import threading
import time
import traceback
from typing import NoReturn

import jax
from jax._src import distributed

from adamae_jax import cli
from adamae_jax.errors import UserError

# Keys of the word with which one ends, and of those that have gone.
ENDED, GONE, FINISHED = "adamae_jax/ended", "adamae_jax/gone", "well"
LISTENING_MS = 3_600_000  # then it listens again
HEARING_S, GOING_S, LINGERING_S = 1.0, 5.0, 0.5


class Peers:
    """The other processes of a job, which have to end when this one ends with an error.

    They wait for it in the middle of a step, and JAX, when it notices, ends them with pages of
    stacks. So whoever ends leaves word in the store of JAX's coordination service, and a thread in
    each of the others ends its process with one line. Whoever is killed leaves none.
    """

    def __init__(self) -> None:
        """Begins to listen."""
        # JAX has no public way to its store; orbax, too, goes this one.
        several = distributed.global_state.num_processes > 1
        self._client = distributed.global_state.client if several else None
        self._ending = threading.Lock()  # of the thread that ends this process
        self._listener = threading.Thread(target=self._listen, name="peers", daemon=True)
        if self._client is not None:
            self._listener.start()

    def finish(self) -> None:
        """Waits until the first process has come to its end, too, and stops listening."""
        if self._client is not None:
            with contextlib.suppress(Exception):
                if jax.process_index() == 0:
                    self._client.key_value_set(ENDED, FINISHED)
            self._listener.join()  # at the end of Python a thread inside JAX would crash it

    def leave(self, error: BaseException) -> NoReturn:
        """Ends this process at once, and with it the others.

        In its regular end JAX would wait for them, for minutes.
        """
        if self._client is not None and not isinstance(error, UserError):
            time.sleep(HEARING_S)  # it may come of another one's end, of which word is on its way
        with self._ending:
            if isinstance(error, UserError):
                self._end(f"{self._name}: {error}", cli.USER_ERROR_STATUS)
            traceback.print_exception(error)
            advice = "if it lost another one, look for the error of that one"
            self._end(f"{self._name} ends: {advice}", 1)

    @property
    def _name(self) -> str:
        return f"process {jax.process_index()} of {jax.process_count()}"

    def _listen(self) -> None:
        assert self._client is not None
        word = None
        while word is None:
            try:
                word = self._client.blocking_key_value_get(ENDED, LISTENING_MS)
            except Exception as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    return  # the store has gone; JAX ends this process
        if word == FINISHED:
            return
        with self._ending:
            self._end(f"{self._name} ends, since another one did: {word}", 1)

    def _end(self, word: str, status: int) -> NoReturn:
        print(f"error: {word}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # other threads have no say
        if self._client is not None:
            self._tell(word)
        os._exit(status)

    def _tell(self, word: str) -> None:
        """Leaves word; the first process, which keeps the store, goes last."""
        assert self._client is not None
        index, deadline = jax.process_index(), time.monotonic() + GOING_S
        with contextlib.suppress(Exception):  # somebody was first
            self._client.key_value_set(ENDED, word)
        with contextlib.suppress(Exception):  # the store has gone, or somebody without a word
            self._client.key_value_set(f"{GONE}/{index}", "")
            for other in range(1, jax.process_count() if index == 0 else 0):
                left = max(1, int(1000 * (deadline - time.monotonic())))
                self._client.blocking_key_value_get(f"{GONE}/{other}", left)
            time.sleep(LINGERING_S if index == 0 else 0)  # until they have gone indeed
