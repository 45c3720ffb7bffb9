"""Writes requirements.txt, -test.txt and -beam.txt: every package, at one tested version.

    .venv/bin/python launch/pin.py python3.11 python3.12 python3.13

asks pip, under each of these interpreters, for the newest versions that fit the ranges in
pyproject.toml, on the platform that it runs on (Linux, x86-64). Where Pythons differ, a marker says
which version is whose. Nothing is installed; afterwards run ``bash launch/test.sh``.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# Every package that {purpose}, at the version that is tested, for Python
# {pythons}. To refresh it, run launch/pin.py, which asks pip for the newest versions within
# the ranges of pyproject.toml. JAX's packages for GPUs and TPUs follow from the version of jax.
"""
# The same library under another name on the platforms where pip is not asked.
TWINS = {"tensorflow": "tensorflow-cpu"}

Versions = dict[str, str]  # of packages, by normalised name


def main(interpreters: list[str]) -> None:
    """Asks pip under every interpreter and writes the files."""
    if not interpreters:
        sys.exit("error: name the interpreters: launch/pin.py python3.11 python3.12 python3.13")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"]
    tests = project["optional-dependencies"]["test"]
    # Beam keeps to older versions of much, so that an environment with it is one of its own.
    with_beam = [*needed, *tests, *project["optional-dependencies"]["beam"]]
    run: dict[str, Versions] = {}
    extra: dict[str, Versions] = {}
    beam: dict[str, Versions] = {}
    for interpreter in interpreters:
        everything = resolve(interpreter, [*needed, *tests], {})
        python = everything.pop("python")
        run[python] = resolve(interpreter, needed, everything)
        del run[python]["python"]
        extra[python] = {name: everything[name] for name in everything.keys() - run[python].keys()}
        beam[python] = resolve(interpreter, with_beam, {})
        del beam[python]["python"]
    pythons = ", ".join(run)
    lines = pin_lines(run, needed)
    write("requirements.txt", "adamae-jax runs on", pythons, lines)
    lines = pin_lines(extra, tests)
    write("requirements-test.txt", "launch/test.sh needs besides", pythons, lines)
    lines = pin_lines(beam, with_beam)
    write("requirements-beam.txt", "Apache Beam and its tests need", pythons, lines)


def resolve(interpreter: str, needed: Iterable[str], limits: Mapping[str, str]) -> Versions:
    """The versions that pip would install, and that of Python as ``python``.

    Args:
        interpreter: that pip is asked under.
        needed: requirements.
        limits: versions of packages that are settled already.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as settled:
        settled.writelines(f"{name}=={version}\n" for name, version in limits.items())
        settled.flush()
        command = [interpreter, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--report=-", f"--constraint={settled.name}", *needed]
        report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    packages = [package["metadata"] for package in report["install"]]
    versions: Versions = {"python": report["environment"]["python_version"]}
    versions |= {canonicalize_name(package["name"]): package["version"] for package in packages}
    return versions


def pin_lines(versions: Mapping[str, Versions], direct: Iterable[str]) -> list[str]:
    """One line per package and version, as ``NAME==VERSION; MARKER``.

    Args:
        versions: of packages, for each Python.
        direct: the requirements that these follow from; their markers are kept.
    """
    platforms: dict[str, str] = {}
    for requirement in map(Requirement, direct):
        platforms[canonicalize_name(requirement.name)] = str(requirement.marker or "")
    names: set[str] = {name for packages in versions.values() for name in packages}
    twins = {twin for twin in TWINS if twin in platforms}
    lines = []
    for name in sorted(names.union(twins)):
        pythons: dict[str, list[str]] = {}
        for python, packages in versions.items():
            version = packages.get(TWINS.get(name, name))
            if version:
                pythons.setdefault(version, []).append(python)
        for version, those in pythons.items():
            markers = [python_marker(those, list(versions)), platforms.get(name, "")]
            marker = " and ".join(
                f"({text})" if " or " in text else text for text in markers if text
            )
            lines.append(f"{name}=={version}" + f"; {marker}" * bool(marker))
    return lines


def python_marker(those: list[str], pythons: list[str]) -> str:
    """The marker that holds for ``those`` of the ``pythons``, which are sorted."""
    if those == pythons:
        return ""
    if those == pythons[: len(those)]:
        return f'python_version < "{pythons[len(those)]}"'
    if those == pythons[-len(those) :]:
        return f'python_version >= "{those[0]}"'
    return " or ".join(f'python_version == "{python}"' for python in those)


def write(name: str, purpose: str, pythons: str, lines: list[str]) -> None:
    """Writes a requirements file."""
    header = HEADER.format(purpose=purpose, pythons=pythons)
    (ROOT / name).write_text(header + "\n".join(lines) + "\n")
    print(f"{name}: {len(lines)} lines")


if __name__ == "__main__":
    main(sys.argv[1:])
