"""How tests run: on CPU, in full float32, with shapes checked, on eight virtual devices."""

import os
import zlib
from collections.abc import Iterator
from typing import Any

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

from tests import typecheck
from tests.object_store import ObjectStore, of_server, served

# The older compiler of the CPU's loops takes half the time; JAX 0.11 and later have it no more, and
# end at a flag that they do not know. Jobs in processes of their own have it too.
if jax.__version_info__ < (0, 11):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false".strip()
# JAX_PLATFORMS=cuda pytest -m gpu reaches a GPU; everything else is tested on CPU.
jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)  # so that sharding is tested in this process
jax.config.update("jax_default_matmul_precision", "highest")
# Tiny models take far longer to compile than to run: this halves the time of the whole suite.
jax.config.update("jax_disable_most_optimizations", True)

# Every call of these modules checks its arrays against the annotations.
CHECKED = (
    *("models", "masking", "pretraining", "targets", "training", "interop"),
    *("config", "experiment"),
)
install_import_hook([f"adamae_jax.{name}" for name in CHECKED], f"{typecheck.__name__}.functions")

hypothesis.settings.register_profile(
    "adamae_jax", derandomize=True, deadline=None, database=None, max_examples=20
)
hypothesis.settings.load_profile("adamae_jax")

_TRACED: dict[Any, Any] = {}


@pytest.fixture(scope="module")
def traced_once() -> Iterator[None]:
    """Traces each tiny model once: tests of weights ask for its variables again and again."""
    from adamae_jax.task import Task

    original = jax.eval_shape

    def eval_shape(function: Any, *arguments: Any, **options: Any) -> Any:
        task = getattr(function, "__self__", None)
        if not isinstance(task, Task) or function.__name__ != "init":
            return original(function, *arguments, **options)
        if task not in _TRACED:
            _TRACED[task] = original(function, *arguments, **options)
        return jax.tree.map(lambda leaf: leaf, _TRACED[task])  # dicts of the caller's own

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "eval_shape", eval_shape)
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--full`` and ``--interop``."""
    parser.addoption("--full", action="store_true", help="run the long campaigns too")
    parser.addoption(
        "--interop", action="store_true", help="compare with PyTorch and transformers too"
    )


# What takes minutes begins first, so that no process is left alone with it at the end.
LONGEST = (
    *("test_readme", "test_pretrain", "test_systems", "test_meshes", "test_lost_processes"),
    *("test_many_processes", "test_initial", "test_whole_path", "test_finetune", "test_probe"),
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what was not asked for, or cannot run here, with the reason; the longest come first."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
    full = pytest.mark.skip(reason="a long campaign: run with --full")
    interop = pytest.mark.skip(reason="compares with transformers: run with --interop")
    gpu = pytest.mark.skip(reason="needs a GPU: run with JAX_PLATFORMS=cuda -m gpu")
    for item in items:
        # Not by keyword: a folder's name is one too.
        marked = {mark.name for mark in item.iter_markers()}
        if "full" in marked and not config.getoption("--full"):
            item.add_marker(full)
        if "interop" in marked and not config.getoption("--interop"):
            item.add_marker(interop)
        if "gpu" in marked and jax.default_backend() != "gpu":
            item.add_marker(gpu)


@pytest.fixture(scope="session")
def served_store() -> Iterator[ObjectStore]:
    """A server of buckets, to which the libraries' own settings send them; started once."""
    with served() as (store, url), pytest.MonkeyPatch.context() as patch:
        for name, value in of_server(url).items():
            patch.setenv(name, value)
        pytest.importorskip("gcsfs")  # which reads them when it is imported
        yield store


@pytest.fixture
def store(served_store: ObjectStore) -> Iterator[ObjectStore]:
    """What the server holds; a test may have it refuse requests."""
    yield served_store
    served_store.refuse = lambda method, name: 0


@pytest.fixture
def bucket(store: ObjectStore, request: pytest.FixtureRequest) -> str:
    """The address of a bucket of the test's own."""
    del store
    digest = zlib.crc32(request.node.nodeid.encode())
    return f"gs://bucket-{digest:08x}"
