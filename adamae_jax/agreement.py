"""What the processes of one job have in common, compared before anything is compiled.

Processes with other configs or data would wait for each other in steps that do not fit together, or
train on with wrong numbers. So each tells the others what it has, and all end with the same line
where something differs.
"""

import contextlib
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from adamae_jax.errors import UserError
from adamae_jax.training import files
from adamae_jax.training.files import AnyPath

SEEN_S = 10.0  # a network file system may take a while to show a new file elsewhere
MOST_NAMED = 5


def check_shared(workdir: AnyPath) -> None:
    """Raises a `UserError`, in all processes, where they do not share the workdir.

    Args:
      workdir: as this process is given it; is made where it is missing.
    """
    if jax.process_count() == 1:
        return
    # Process 0 leaves a file with a name that nobody knows, and the others look for it.
    mark, reason = f".shared_{secrets.token_hex(8)}", ""
    if jax.process_index() == 0:
        try:
            files.make_directory(workdir)
            files.write(workdir / mark, b"")
        except OSError as error:
            reason = files.reason(error)
    first = gathered({"workdir": str(workdir), "mark": mark, "reason": reason})[0]
    if first["reason"]:
        raise UserError(
            f"process 0 cannot write in --workdir={first['workdir']}: {first['reason']}"
        )
    end = time.monotonic() + SEEN_S
    while not (is_seen := (workdir / first["mark"]).exists()) and time.monotonic() < end:
        time.sleep(0.2)
    blind = [index for index, seen in enumerate(gathered(is_seen)) if not seen]
    if jax.process_index() == 0:
        with contextlib.suppress(OSError):
            files.remove(workdir / mark)
    if blind:
        raise UserError(
            f"{_named(blind)} cannot see in --workdir what process 0 has written in its own, "
            f"{first['workdir']}: all processes of a job share one workdir, for its checkpoints "
            "and metrics; give one on a file system that all of them see"
        )


def check(described: Mapping[str, Any]) -> None:
    """Raises a `UserError`, in all processes, where one of them has another value than the others.

    Args:
      described: values that JSON can hold, by name; the first ones are named first.
    """
    everywhere = gathered(dict(described))
    names = dict.fromkeys(name for each in everywhere for name in each)
    different = []
    for name in names:
        having: dict[str, list[int]] = {}
        for index, each in enumerate(everywhere):
            having.setdefault(json.dumps(each.get(name)), []).append(index)
        if len(having) > 1:
            values = "; ".join(f"{value} in {_named(found)}" for value, found in having.items())
            different.append(f"{name} ({values})")
    if different:
        more = len(different) - MOST_NAMED
        listed = ", ".join(different[:MOST_NAMED]) + f" and {more} more" * (more > 0)
        raise UserError(
            f"the processes of this job differ in {listed}: start all of them with the same "
            "config, data and installation"
        )


def gathered(value: Any) -> list[Any]:
    """Returns the value that each process gives; JSON can hold them."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size))
    texts = multihost_utils.process_allgather(np.pad(text, (0, int(sizes.max()) - text.size)))
    return [json.loads(each[:size].tobytes()) for each, size in zip(texts, sizes, strict=True)]


def _named(processes: list[int]) -> str:
    return f"process{'es' * (len(processes) > 1)} {', '.join(map(str, processes))}"
