"""A copy of the scripts in launch/ and .ci/, with an interpreter that does nothing real."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("bash", "cat", "cksum", "cp", "dirname", "env", "find", "mkdir", "rm", "sleep", "touch")

# It says that it is of some version, writes down what it is asked for, and imitates the results.
INTERPRETER = """#!/usr/bin/env bash
version={version}
case "$1 ${{2:-}}" in
  "-c "*"sys.exit"*) [ "$version" = 3.12 ]; exit ;;
  "-c "*) echo "$version"; exit ;;
  "- "*) exec {python} "$@" ;;
esac
case "$2" in venv | pip) ;; *) [ -d launch ] || echo "in $PWD" >>"$STUB_LOG" ;; esac
echo "$version $*" >>"$STUB_LOG"
case "$2" in
  venv)
    for environment; do :; done
    [ "$3" != --clear ] || rm -rf "$environment"
    mkdir -p "$environment/bin"
    touch "$environment/pyvenv.cfg"
    cp "$0" "$environment/bin/python"
    ;;
  adamae_jax.pretrain)
    for argument; do case $argument in --workdir=*) workdir=${{argument#*=}} ;; esac; done
    mkdir -p "$workdir"
    echo "on $JAX_PLATFORMS" >>"$STUB_LOG"
    echo "$STUB_SUMMARY" >"$workdir/summary.json"
    ;;
  launch.compare) echo "on $JAX_PLATFORMS" >>"$STUB_LOG" ;;
esac
case " $* " in
  *" ${{STUB_FAILS:-nothing}} "*) exit 1 ;;
  *" ${{STUB_HANGS:-nothing}} "*) sleep 60 ;;
esac
"""
SUMMARY = {
    "steps": 600,
    "seconds": 201.4,
    "clips_per_second": 95.6,
    "loss_reconstruction_first": 1.2,
    "loss_reconstruction_last": 0.6,
    "foreground_lift": 1.41,
    "foreground_lift_random": None,
}


class Clone:
    """A copy of the scripts, in a path with a space, and a PATH that holds what a test gives it."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "a clone"
        self.bin = directory / "bin"
        self.log = directory / "log"
        self.environment = {
            "PATH": str(self.bin),
            "STUB_LOG": str(self.log),
            "STUB_SUMMARY": json.dumps(SUMMARY),
        }
        self.bin.mkdir()
        self.log.touch()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        self.program("nvidia-smi", "exit 0")  # this machine's GPU, if any, stays out of it
        for name in ("launch", ".ci"):
            shutil.copytree(ROOT / name, self.root / name)
        for path in ROOT.glob("requirements*.txt"):
            shutil.copy(path, self.root)

    def program(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
        return path

    def interpreter(self, name: str, version: str) -> Path:
        path = self.program(name, "")
        path.write_text(INTERPRETER.format(version=version, python=sys.executable))
        return path

    def start(
        self, script: str, *arguments: str, cwd: Path | None = None, **variables: str
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(self.root / script), *arguments],
            env={**self.environment, **variables},
            cwd=cwd or self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(
        self,
        script: str,
        *arguments: str,
        status: int = 0,
        cwd: Path | None = None,
        **variables: str,
    ) -> str:
        """What a script prints: its output where it must succeed, else its errors."""
        process = self.start(script, *arguments, cwd=cwd, **variables)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == status, output + errors
        return errors if status else output

    def calls(self) -> list[str]:
        """What interpreters were asked for since the last time, without their version queries."""
        lines = self.log.read_text().splitlines()
        self.log.write_text("")
        return [line.replace(f"{self.root}/", "") for line in lines]
