#!/usr/bin/env bash
# bash launch/tpu_pod.sh [--dry_run] NAME ZONE JOB OPTIONS ...: a job, such as pretrain, on all hosts
# of a TPU slice, which find each other. On each host lies this repository, set up, in ~/adamae-jax
# (or DIRECTORY); the workdir is in a bucket (gs://), or on a file system that all of them have
# mounted.
set -euo pipefail

run=""
if [ "${1:-}" = --dry_run ]; then
  run="echo"
  shift
fi
if [ $# -lt 3 ]; then
  echo "error: bash launch/tpu_pod.sh NAME ZONE JOB OPTIONS ..." >&2
  exit 2
fi
name=$1 zone=$2 job=$3
shift 3
printf -v options ' %q' "$@"
$run gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" --worker=all \
  "--command=cd ${DIRECTORY:-adamae-jax} && source .venv/bin/activate && bash launch/again.sh python -m adamae_jax.$job$options"
