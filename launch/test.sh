#!/usr/bin/env bash
# The second command: sets up, then lint, format, types and all tests.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

usage() {
  cat <<END
usage: bash launch/test.sh [--full | --smoke] [--interop] [--accelerator=...] [-- PYTEST ARGUMENTS]
       bash launch/test.sh --beam [-- PYTEST ARGUMENTS]
       bash launch/test.sh --tpu [-- PYTEST ARGUMENTS]

  --full    the long campaigns too: kills, statistics, long runs
  --interop installs PyTorch (for the CPU) and transformers, and compares exported weights with
            what they compute
  --smoke   parity and a short training run only, such as CI runs on the second Python
  --beam    preparing with Apache Beam only, in an environment of its own (.venv-beam)
  --tpu     compiling for TPUs only, with a libtpu beside the environment (.libtpu); no TPU is needed
Tests run on the CPU; with --accelerator=cuda (or auto, where a GPU is found) those that need a GPU
run before them.
$SETUP_USAGE
END
}

asked=cpu
smoke=""
interop=""
beam=""
tpu=""
options=()
while [ $# -gt 0 ]; do
  case $1 in
    --accelerator=*) asked=${1#*=} ;;
    --full) options+=(--full) ;;
    --interop)
      interop=yes
      options+=(--interop)
      ;;
    --smoke) smoke=yes ;;
    --beam) beam=yes ;;
    --tpu) tpu=yes ;;
    -h | --help)
      usage
      exit
      ;;
    --)
      shift
      break
      ;;
    *) fail "unknown argument $1: launch/test.sh takes --full, --smoke, --interop, --beam, --tpu and --accelerator=...;" \
      "pytest's own come after --" ;;
  esac
  shift
done
check_accelerator "$asked"

if [ -n "$beam" ]; then
  [ "$asked$smoke$interop${options[*]-}" = cpu ] ||
    fail "--beam goes with none of --full, --smoke, --interop and --accelerator=..."
  VENV=${VENV:-$root/.venv-beam}
  setup cpu beam
  cd "$root"
  "$python" -c "import apache_beam" # else its tests would be skipped
  exec "$python" -m pytest tests/prepare/test_beam.py "$@"
fi
if [ -n "$tpu" ]; then
  [ "$asked$smoke$interop${options[*]-}" = cpu ] ||
    fail "--tpu goes with none of --full, --smoke, --interop and --accelerator=..."
fi
setup "$asked" test
cd "$root"
if [ -n "$tpu" ]; then
  say "libtpu, to compile with"
  # Beside the environment, where JAX would look for a TPU whenever it starts.
  "$python" -m pip install -q --no-deps --upgrade --target .libtpu -r requirements-tpu.txt
  export JAX_PLATFORMS=cpu PYTHONPATH=$root/.libtpu${PYTHONPATH:+:$PYTHONPATH}
  "$python" -c "import libtpu" # else its tests would be skipped
  exec "$python" -m pytest tests/planning/test_tpu.py "$@"
fi
if [ -n "$interop" ]; then
  say "PyTorch and transformers, to compare with"
  "$python" -m pip install -q -r requirements-interop.txt
fi
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}

if [ -n "$smoke" ]; then
  options+=(-m smoke)
else
  say "lint, format, types"
  "$python" -m ruff check .
  "$python" -m ruff format --check .
  "$python" -m mypy
fi

# pytest ends with 5 where no test needs a GPU.
case $accelerator in
  cuda*) JAX_PLATFORMS=cuda,cpu "$python" -m pytest -m gpu || [ $? -eq 5 ] ;;
esac

# A process per core, for most of the time goes into compiling, which takes one core. A file stays
# in one process, and with it what that process has compiled; those that take longest come first.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
exec "$python" -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder \
  ${options[@]+"${options[@]}"} "$@"
