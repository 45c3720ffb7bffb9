"""Where the time of a run goes, and what its devices hold in memory."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import TypeVar

import jax

T = TypeVar("T")
CHECKPOINT, EVALUATION = "checkpoint", "evaluation"
SECTIONS = (CHECKPOINT, EVALUATION)
GIGABYTE = 1e9


@dataclasses.dataclass
class Clock:
    """Where the time since the last line of the metrics went.

    The host runs ahead of the devices by one step and then waits for them, so that what is neither
    waiting for data nor a section is the devices' work, and the host's own where that takes longer.

    Attributes:
      clips: clips per step, over all processes.
      seconds: seconds of training so far, those before this process started included.
      computed: of these, the seconds of steps that count, without waiting for data, without the
        first step of each start, which compiles, and without evaluation and checkpoints.
    """

    clips: int
    seconds: float = 0.0
    computed: float = 0.0
    _started: float = dataclasses.field(default_factory=lambda: time.monotonic())
    _waited: float = 0.0
    _steps: int = 0
    _spent: dict[str, float] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(SECTIONS, 0.0)
    )

    def restart(self) -> None:
        """Begins a new interval, as after the compilation; what went before counts as `seconds`."""
        now = time.monotonic()
        self.seconds += now - self._started
        self._started, self._waited, self._steps = now, 0.0, 0
        self._spent = dict.fromkeys(SECTIONS, 0.0)

    def next(self, batches: Iterator[T]) -> T:
        """Takes a batch, and counts the time that it took to come."""
        begin = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - begin
        self._steps += 1
        return batch

    @contextlib.contextmanager
    def spending(self, section: str) -> Iterator[None]:
        """Counts the time of the block as that of a section, not of the steps."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._spent[section] += time.monotonic() - begin

    def read(self, *, compiled: bool = False) -> dict[str, float]:
        """Returns the figures of the interval, and begins a new one.

        Args:
          compiled: whether the interval is a first step, which does not count as computed.
        """
        elapsed = time.monotonic() - self._started
        of_steps = max(elapsed - sum(self._spent.values()), 1e-9)
        computing = max(of_steps - self._waited, 0.0)
        if not compiled:
            self.computed += computing
        steps = max(self._steps, 1)
        figures = {
            "clips_per_second": self._steps * self.clips / of_steps,
            "data_wait_share": min(1.0, self._waited / of_steps),
            "data_wait_seconds": self._waited / steps,
            "compute_seconds": computing / steps,
            **{f"{section}_seconds": self._spent[section] for section in SECTIONS},
        }
        self.restart()
        return {**figures, "computed_seconds": self.computed, "seconds": self.seconds}


def device_memory() -> dict[str, float]:
    """Returns the most that one of this process's devices holds, and has held; {} where unknown.

    In 10^9 bytes. CPUs tell nothing.
    """
    found = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    names = {"device_memory_gb": "bytes_in_use", "device_memory_peak_gb": "peak_bytes_in_use"}
    return {
        name: max(stats[key] for stats in found) / GIGABYTE
        for name, key in names.items()
        if found and all(key in stats for stats in found)
    }
