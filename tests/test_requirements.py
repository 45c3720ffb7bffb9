"""The pinned versions fit what pyproject.toml promises and cover what the code imports."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from launch import pin

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {
    name: [Requirement(line) for line in lines]
    for name, lines in PROJECT["optional-dependencies"].items()
}
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = {
    "linux": {"sys_platform": "linux", "platform_machine": "x86_64"},
    "arm": {"sys_platform": "linux", "platform_machine": "aarch64"},
    "mac": {"sys_platform": "darwin", "platform_machine": "arm64"},
}
# Where a package is not called as it is imported. Of the two TensorFlows one is enough.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "cv2": "opencv-python-headless",
    "google": "protobuf",
    "orbax": "orbax-checkpoint",
    "yaml": "pyyaml",
}


def pinned(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def applying(requirements: list[Requirement], environment: Mapping[str, str]) -> list[Requirement]:
    values = dict(environment)  # what it does not say is this machine's
    return [each for each in requirements if each.marker is None or each.marker.evaluate(values)]


def versions(name: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What a file of requirements pins in an environment."""
    found: dict[str, str] = {}
    for requirement in applying(pinned(name), environment):
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", requirement
        key = canonicalize_name(requirement.name)
        assert key not in found, f"{requirement.name} is pinned twice for {environment}"
        found[key] = specifier.version
    return found


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_pins_are_within_the_ranges(python: str, platform: str) -> None:
    environment = {"python_version": python, **PLATFORMS[platform]}
    run = versions("requirements.txt", environment)
    tests = versions("requirements-test.txt", environment)
    assert not run.keys() & tests.keys()
    beam = versions("requirements-beam.txt", environment)
    for needed, found in (
        (NEEDED, run),
        (EXTRAS["test"], run | tests),
        ([*NEEDED, *EXTRAS["test"], *EXTRAS["beam"]], beam),
    ):
        for requirement in applying(needed, environment):
            version = found[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement} forbids {version}"
    assert run["jax"] == run["jaxlib"] and beam["jax"] == beam["jaxlib"]


def test_the_compiler_for_tpus_goes_with_jax() -> None:
    from importlib.metadata import requires

    (version,) = versions("requirements-tpu.txt", {}).values()
    wanted = (Requirement(line) for line in requires("jax") or ())
    (libtpu,) = (each for each in wanted if each.name == "libtpu")
    assert libtpu.specifier.contains(version)


def test_two_stacks() -> None:
    newest = {
        python: versions("requirements.txt", {"python_version": python, **PLATFORMS["linux"]})
        for python in PYTHONS
    }
    assert newest["3.11"]["jax"].startswith("0.10.")
    assert newest["3.12"]["jax"] == newest["3.13"]["jax"] and newest["3.12"]["jax"] > "0.12"
    assert PROJECT["requires-python"] == ">=3.11,<3.14"


def test_this_environment_is_the_pinned_one() -> None:
    """Else the tests say little about what is pinned."""
    from importlib.metadata import version

    for requirement in applying(pinned("requirements.txt"), {}):
        if requirement.name in ("jax", "flax", "grain", "orbax-checkpoint", "numpy"):
            assert requirement.specifier.contains(version(requirement.name)), requirement


def imported(path: Path) -> Iterator[str]:
    """The top-level packages that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


@functools.cache
def declared(*groups: str) -> frozenset[str]:
    names = [each for group in groups for each in (EXTRAS[group] if group else NEEDED)]
    return frozenset(canonicalize_name(each.name) for each in names)


OURS = {"adamae_jax", "configs", "launch", "tests", *sys.stdlib_module_names}


@pytest.mark.parametrize(
    ("folder", "groups"),
    [
        ("adamae_jax", ("",)),
        ("configs", ("",)),
        ("launch", ("", "test")),
        ("tests", ("", "test", "interop")),
    ],
)
def test_every_import_is_declared(folder: str, groups: tuple[str, ...]) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        needs_torch = "interop" in path.parts or "torch" in path.name
        optional = ["interop"] * needs_torch + ["beam"] * ("beam" in path.name)
        for name in set(imported(path)) - OURS:
            distribution = canonicalize_name(DISTRIBUTIONS.get(name, name))
            assert distribution in declared(*groups, *optional), f"{path} imports {name}"


def test_every_direct_dependency_is_used() -> None:
    used = {
        canonicalize_name(DISTRIBUTIONS.get(name, name))
        for folder in ("adamae_jax", "configs")
        for path in (ROOT / folder).rglob("*.py")
        for name in imported(path)
    }
    # TensorFlow's wheel for CPUs brings the package under the other name, and TensorBoard is what
    # people look at a run's event files with.
    assert declared("") - used <= {"tensorflow-cpu", "tensorboard"}


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git repository")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_nothing_names_a_machine() -> None:
    """No paths of somebody's machine, and no hosts of package indexes."""
    paths = "/".join(("", "(root|work|home/[a-z]+|tmp/[a-z])", ""))
    hosts = "(pypi" + r"\.org|python" + "hosted|--(extra-)?index-url|--find" + "-links)"
    for path in tracked_files():
        if path.suffix in (".npz", ".png", ".gif", ".mp4"):
            continue
        found = re.search(rf"(?<![\w.$}}]){paths}|{hosts}", path.read_text())
        assert not found, f"{path} names {found[0] if found else ''}"


def test_pin_lines() -> None:
    versions = {
        "3.11": {"a": "1", "b": "1", "tensorflow-cpu": "2"},
        "3.12": {"a": "1", "b": "2", "c": "5", "tensorflow-cpu": "2"},
        "3.13": {"a": "1", "b": "2", "tensorflow-cpu": "2"},
    }
    direct = ["a", "tensorflow-cpu; os_name == 'x'", "tensorflow; os_name != 'x' or os_name == 'y'"]
    assert pin.pin_lines(versions, direct) == [
        "a==1",
        'b==1; python_version < "3.12"',
        'b==2; python_version >= "3.12"',
        'c==5; python_version == "3.12"',
        'tensorflow==2; (os_name != "x" or os_name == "y")',
        'tensorflow-cpu==2; os_name == "x"',
    ]
