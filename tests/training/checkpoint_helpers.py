"""States, faults and processes that the checkpoint tests share."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from adamae_jax.training import digests
from adamae_jax.training.checkpoints import RunCheckpoints
from adamae_jax.training.files import AnyPath

METADATA = {"data": "3f2a", "sizes": [1, 2.5, None]}


class Moments(NamedTuple):
    """Like an optax state."""

    count: Any
    mu: Any


class Empty(NamedTuple):
    """Like optax's EmptyState."""


@struct.dataclass
class State:
    """Like a train state."""

    step: Any
    params: Any
    opt_state: Any
    ema: Any = None


def make_state(seed: int = 0, width: int = 16) -> State:
    """A state with every kind of container and several types."""
    kernel = jax.random.normal(jax.random.key(seed), (8, width))
    params = {"encoder": {"kernel": kernel, "bias": kernel[0].astype(jnp.bfloat16)}, "none": {}}
    moments = Moments(count=jnp.int32(seed), mu={"encoder": {"kernel": -kernel}})
    flags = [jnp.array([True, False]), jnp.array([seed, 7], jnp.uint32), jnp.zeros((0, 3))]
    return State(jnp.int32(seed), params, {"model": (moments, Empty(), None), "flags": flags})


def abstract(tree: Any) -> Any:
    """What a job asks for: shapes, types and shardings."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same(found: Any, expected: Any) -> None:
    """Same structure, types and bytes."""
    structures: list[Any] = [jax.tree.structure(found), jax.tree.structure(expected)]
    assert structures[0] == structures[1]
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def save_steps(directory: AnyPath, *steps: int, keep: int = 5) -> None:
    """Saves `make_state(step)` for every step."""
    with RunCheckpoints(directory, keep=keep, metadata=METADATA) as run:
        for step in steps:
            run.save(step, make_state(step))


def restore(directory: AnyPath, like: Any = None) -> Any:
    """Restores into `make_state`'s structure."""
    with RunCheckpoints(directory, keep=5, metadata={}) as run:
        return run.restore(abstract(make_state()) if like is None else like)


def largest_file(directory: Path, step: int) -> Path:
    """A file that certainly holds arrays."""
    files = [path for path in (directory / str(step) / "state").rglob("*") if path.is_file()]
    data = [path for path in files if path.name != digests.MANIFEST_NAME]
    return max(data, key=lambda path: path.stat().st_size)


def run_python(code: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Starts a fresh interpreter on CPU; the code finds its arguments in sys.argv."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
