"""What figures were found with: device, versions and commit."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that figures may depend on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {**found, "python": platform.python_version()}


def device(python: str) -> str:
    """What JAX computes on, asked in a process of its own, which gives it free again."""
    asked = "import jax; d = jax.devices(); print(len(d), 'x', d[0].device_kind)"
    found = subprocess.run([python, "-c", asked], capture_output=True, text=True)
    kind = found.stdout.strip() or "unknown"
    if kind.endswith("cpu"):
        return f"{len(os.sched_getaffinity(0))} CPU cores, {processor()}"
    return kind


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit(root: Path) -> str:
    """The commit that is checked out in a clone, with a + where code or configs differ from it."""

    def ask(*words: str) -> str:
        try:
            found = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
        except OSError:
            return ""
        return found.stdout.strip()

    changed = ask("status", "--porcelain", "--", "adamae_jax", "configs")
    return (ask("rev-parse", "--verify", "--short=10", "HEAD") or "unknown") + "+" * bool(changed)
