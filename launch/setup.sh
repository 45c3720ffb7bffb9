#!/usr/bin/env bash
# Makes the virtual environment that adamae-jax runs in, and keeps it up to date. launch/demo.sh and
# launch/test.sh source this file and call `setup`; it can also be run by itself:
#
#   bash launch/setup.sh [--accelerator=auto|cpu|cuda|tpu] [--test]
#
# The package itself is not installed: its jobs are started from the repository's root, and an
# installation would keep pointing to where the repository lay when it was made.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SETUP_USAGE="  --accelerator=auto|cpu|cuda|tpu   what JAX computes on; auto looks for a GPU or TPU
Environment:
  PYTHON   interpreter to make the environment with, 3.11 to 3.13, such as python3.12
  VENV     where the environment lies (.venv in the repository)"

say() { printf 'setup: %s\n' "$*"; }
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# setup ACCELERATOR [test|beam]: sets `python` (the environment's interpreter) and `accelerator` (cpu,
# cuda12, cuda13 or tpu). With `test`, also installs what launch/test.sh needs; with `beam`, Apache
# Beam, what its tests need, and of all else the older versions that it keeps to.
setup() {
  choose_accelerator "$1"
  choose_environment
  python=$venv/bin/python
  local parts="run ${2:-}"
  [ "${2:-}" != beam ] || parts=beam
  [ "$accelerator" = cpu ] || parts="$parts $accelerator"
  # shellcheck disable=SC2086 # a list of words
  if up_to_date $parts; then
    say "$(shown "$venv") is up to date (Python $version, $accelerator: $reason)"
    return
  fi
  say "Python $version, $accelerator ($reason)"
  [ -e "$venv/pyvenv.cfg" ] || make_environment
  # shellcheck disable=SC2086
  install $parts
}

# --- what to compute on ---

# Has jobs compute on what `setup` chose. A GPU or TPU that cannot be used after all is an error and
# not, silently, a slow job.
choose_platforms() {
  local platforms
  case $accelerator in
    cuda*) platforms=cuda,cpu ;;
    tpu) platforms=tpu,cpu ;;
    *) platforms=cpu ;;
  esac
  export JAX_PLATFORMS=${JAX_PLATFORMS:-$platforms}
  export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3} # TensorFlow, which writes the events
}

check_accelerator() {
  case $1 in
    auto | cpu | cuda | tpu) ;;
    *) fail "--accelerator=$1 is unknown: use auto, cpu, cuda or tpu" ;;
  esac
}

# Sets `accelerator`, and `reason` for what is printed.
choose_accelerator() {
  check_accelerator "$1"
  local driver
  driver=$(nvidia_driver) || driver=""
  reason="as asked"
  case $1 in
    cpu | tpu) accelerator=$1 ;;
    cuda)
      if [ -z "$driver" ]; then
        accelerator=cuda13 reason="no NVIDIA driver is seen here; it needs 580 or newer"
      else
        cuda_for_driver "$driver" ||
          fail "--accelerator=cuda: the NVIDIA driver is $driver, but JAX needs 525 or newer:" \
            "update it, or use --accelerator=cpu"
      fi
      ;;
    auto)
      if [ -n "$driver" ]; then
        cuda_for_driver "$driver" ||
          { accelerator=cpu reason="the NVIDIA driver is $driver, but JAX needs 525 or newer"; }
      elif has_tpu; then
        accelerator=tpu reason="a TPU is found"
      else
        accelerator=cpu reason="no GPU or TPU is found"
      fi
      ;;
  esac
}

# The major version of the NVIDIA driver, if there is a GPU.
nvidia_driver() {
  local text
  text=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null) ||
    { [ -e /dev/nvidia0 ] && text=$(cat /proc/driver/nvidia/version 2>/dev/null); } || return 1
  [[ $text =~ ([0-9]{3})\.[0-9]+ ]] && echo "${BASH_REMATCH[1]}"
}

cuda_for_driver() {
  reason="NVIDIA driver $1"
  if [ "$1" -ge 580 ]; then
    accelerator=cuda13
  elif [ "$1" -ge 525 ]; then
    accelerator=cuda12
  else
    return 1
  fi
}

# TPUs are Google's PCI devices with these numbers (v3, v4, v5p, v5e, v6e, 7x); TPU_NAME is set by
# hand or by the cloud's tools.
has_tpu() {
  [ -z "${TPU_NAME:-}" ] || return 0
  local vendor
  for vendor in /sys/bus/pci/devices/*/vendor; do
    if [ -r "$vendor" ] && [ "$(<"$vendor")" = 0x1ae0 ]; then
      case $(<"${vendor%vendor}device") in
        0x0027 | 0x0056 | 0x005e | 0x0062 | 0x0063 | 0x006f | 0x0076) return 0 ;;
      esac
    fi
  done
  return 1
}

# --- which environment, of which Python ---

# MAJOR.MINOR of an interpreter; fails where it does not run.
python_version() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

supported() {
  case $1 in 3.11 | 3.12 | 3.13) ;; *) return 1 ;; esac
}

# Sets `venv`, `version` and, to make the environment, `interpreter`.
choose_environment() {
  local here asked=""
  case ${VENV:-} in
    "") venv=$root/.venv ;;
    /*) venv=$VENV ;;
    *) venv=$PWD/$VENV ;;
  esac
  [ -z "${PYTHON:-}" ] || asked=$(asked_version)
  look_at "$venv"
  if [ -n "$asked" ] && [ -n "$here" ] && [ "$here" != "$asked" ]; then
    [ -z "${VENV:-}" ] ||
      fail "VENV=$VENV was made with Python $here, but PYTHON=$PYTHON is $asked: give another" \
        "VENV, or remove this one"
    say "$(shown "$venv") is of Python $here: taking $(shown "$venv-py$asked") for Python $asked"
    venv=$venv-py$asked
    look_at "$venv"
    [ -z "$here" ] || [ "$here" = "$asked" ] ||
      fail "$venv was made with Python $here, not $asked: remove it"
  fi
  version=${here:-$asked}
  if [ -n "${PYTHON:-}" ]; then
    interpreter=$PYTHON
  elif [ -z "$here" ]; then
    find_interpreter
  fi
  supported "$version" ||
    fail "$venv was made with Python $version, but adamae-jax needs 3.11 to 3.13: remove it"
}

# Sets `here`: the version of an environment, or nothing where none is.
look_at() {
  here=""
  [ -n "$(find "$1" -type f -print -quit 2>/dev/null)" ] || return 0
  [ -e "$1/pyvenv.cfg" ] || fail "$1 exists, but is no virtual environment: set VENV to another place"
  here=$(python_version "$1/bin/python") ||
    fail "$1 has a Python that does not run any more: remove it (rm -r '$1') and start again"
}

asked_version() {
  local found
  found=$(python_version "$PYTHON") ||
    fail "PYTHON=$PYTHON does not run: name a Python 3.11 to 3.13, such as PYTHON=python3.12"
  supported "$found" ||
    fail "PYTHON=$PYTHON is Python $found: name a Python 3.11 to 3.13, such as PYTHON=python3.12"
  echo "$found"
}

find_interpreter() {
  local candidate found=""
  for candidate in python3.11 python3.12 python3.13 python3 python; do
    version=$(python_version "$candidate") || continue
    if supported "$version"; then
      interpreter=$candidate
      return
    fi
    found="$found${found:+, }$candidate is $version"
  done
  fail "no Python 3.11 to 3.13 is found (${found:-no python at all}): install one, or name it" \
    "with PYTHON=/path/to/python3.11"
}

# --- making it ---

make_environment() {
  say "making $(shown "$venv") with $interpreter"
  "$interpreter" -m venv --clear "$venv" ||
    fail "$interpreter cannot make virtual environments: see above" \
      "(on Debian and Ubuntu: apt install python$version-venv)"
}

# What a part was installed from: of `run`, `test`, `beam` and accelerators. It is noted in the
# environment when the installation is complete: one that was interrupted is done again.
part_key() {
  {
    echo "$version $1"
    cat "$root/requirements.txt"
    case $1 in test | beam) cat "$root/requirements-$1.txt" ;; esac
  } | cksum
}

up_to_date() {
  local part
  for part in "$@"; do
    [ "$(cat "$venv/.adamae-jax/$part" 2>/dev/null)" = "$(part_key "$part")" ] || return 1
  done
}

install() {
  local part start=$SECONDS names="requirements.txt"
  local wanted=(-r "$root/requirements.txt")
  for part in "$@"; do
    case $part in
      run) refuse_beside "$part" beam ;;
      test)
        names="$names, requirements-test.txt"
        wanted+=(-r "$root/requirements-test.txt")
        ;;
      beam)
        refuse_beside "$part" run
        names="requirements-beam.txt"
        wanted=(-r "$root/requirements-beam.txt")
        ;;
      *)
        refuse_others "$part"
        names="$names, jax[$part]"
        wanted+=("jax[$part]")
        ;;
    esac
    rm -f "$venv/.adamae-jax/$part"
  done
  say "installing $names (the first time, this downloads for some minutes)"
  "$python" -m pip install --quiet --disable-pip-version-check "${wanted[@]}" ||
    fail "pip could not install $names: see its messages above, then start again"
  mkdir -p "$venv/.adamae-jax"
  for part in "$@"; do part_key "$part" >"$venv/.adamae-jax/$part"; done
  say "installed in $((SECONDS - start)) s"
}

# JAX takes the packages of one accelerator at a time.
refuse_others() {
  local other
  for other in cuda12 cuda13 tpu; do
    [ "$other" = "$1" ] || refuse_beside "$1" "$other"
  done
}

# Fails where the environment holds a part that does not go with another.
refuse_beside() {
  [ -e "$venv/.adamae-jax/$2" ] || return 0
  local held="the packages that jobs run on"
  case $2 in
    beam) held="Apache Beam" ;;
    cuda* | tpu) held="JAX for $2" ;;
  esac
  fail "$venv holds $held, which does not go with $1: remove it, or set VENV"
}

# A path as it is printed: relative to the repository where it lies there.
shown() {
  case $1 in
    "$root"/*) printf '%s' "${1#"$root"/}" ;;
    *) printf '%s' "$1" ;;
  esac
}

main() {
  local asked=auto tests=""
  while [ $# -gt 0 ]; do
    case $1 in
      --accelerator=*) asked=${1#*=} ;;
      --test) tests="test" ;;
      -h | --help)
        printf 'usage: bash launch/setup.sh [--accelerator=...] [--test]\n%s\n' "$SETUP_USAGE"
        return
        ;;
      *) fail "unknown argument $1: launch/setup.sh takes --accelerator=... and --test" ;;
    esac
    shift
  done
  # shellcheck disable=SC2086 # nothing, or one word
  setup "$asked" $tests
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then main "$@"; fi
