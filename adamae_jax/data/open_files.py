"""The open files of one process, as many as it may have."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

MAX_OPEN = 128  # well below the usual limit of 1,024 open files

File = TypeVar("File")


class OpenFiles(Generic[File]):
    """Files by number, opened when they are needed, from any number of threads.

    Those used longest ago are dropped, and close with their last user. It survives pickling and
    forking: no process uses what another has opened.
    """

    def __init__(self, paths: Sequence[str], open_file: Callable[[str], File]):
        """Opens nothing yet; ``open_file`` must be a function that can be pickled."""
        self._paths = paths
        self._open_file = open_file
        self._start_process()

    def _start_process(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[int, File] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        """Without files and lock, which belong to this process."""
        return OpenFiles, (self._paths, self._open_file)

    def __getitem__(self, number: int) -> File:
        """The file, open; raises what opening raises."""
        if self._process != os.getpid():  # forked: the lock may be held by a thread left behind
            self._start_process()
        with self._lock:
            file = self._open.pop(number, None) or self._open_file(self._paths[number])
            self._open[number] = file
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
            return file

    def forget(self, number: int) -> None:
        """Has the file opened anew: a stale handle of a network file system stays stale."""
        with self._lock:
            self._open.pop(number, None)
