#!/usr/bin/env bash
# bash launch/local.sh [--dry_run] N JOB OPTIONS ...: a job, such as pretrain, in N processes on this
# machine. A host needs only one for all its devices: this is for tries, and for tests. With
# launch/again.sh before it, it is started again where the same command goes on.
set -euo pipefail

run=""
if [ "${1:-}" = --dry_run ]; then
  run="echo"
  shift
fi
if [ $# -lt 2 ] || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "error: bash launch/local.sh N JOB OPTIONS ..., such as 2 pretrain --config=FILE" >&2
  exit 2
fi
count=$1 job=$2
shift 2
python=${PYTHON:-python}
port=${PORT:-$("$python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')}
children=()
trap 'kill -TERM "${children[@]}" 2>/dev/null || true' TERM
for ((index = 0; index < count; index++)); do
  $run "$python" -m "adamae_jax.$job" "$@" "--coordinator=127.0.0.1:$port" \
    "--num_processes=$count" "--process_id=$index" &
  children+=($!)
done
# What a user has to put right counts most, then another error, then what is no error of the job's.
worst=0
rank() {
  case $1 in
    0) echo 0 ;;
    75) echo 1 ;;
    69) echo 3 ;;
    1) echo 4 ;;
    2) echo 5 ;;
    *) echo 2 ;; # killed
  esac
}
for child in "${children[@]}"; do
  status=0
  wait "$child" || status=$?
  while [ "$status" -gt 128 ] && kill -0 "$child" 2>/dev/null; do
    status=0
    wait "$child" || status=$?
  done
  if [ "$(rank "$status")" -gt "$(rank "$worst")" ]; then
    worst=$status
  fi
done
exit "$worst"
