#!/usr/bin/env bash
# Compares ways to begin (scratch, and pretraining with several masks) by what comes after them:
# fine-tuning, probes, nearest neighbours. Started again, it goes on where it was.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

usage() {
  cat <<END
usage: bash launch/compare.sh [--accelerator=...] [OPTIONS]

Pretrains, fine-tunes and probes on the embedded moving objects, cell by cell, in runs/compare; the
figures go to docs/comparison.json, and the tables and the plot of docs/results.md are made of them.

  --methods=none,adaptive,random,tube   what to compare: none (from scratch), the masks of
                                        configs/comparison_demo.py, or NAME=CONFIG for another
  --seeds=0                             of each
  --full                                all methods and seeds 0, 1 and 2
  --stages=pretrain,finetune,probe      what to run of each
  --steps=pretrain=1000,finetune=3000,probe=300
  --budget=steps                        or flops: all pretrain with as many FLOPs as random masks
  --data=runs/data/moving_objects_medium  or .../moving_objects_large, or a labelled dataset of your
                                        own, made by python -m adamae_jax.prepare
  --workdir=runs/compare  --results=FILE.json  --page=FILE.md  --plot=FILE.png
  --dry_run                             prints the commands, and runs nothing
  --page_only                           makes tables and plot anew, and runs nothing
$SETUP_USAGE
END
}

asked=auto
options=()
while [ $# -gt 0 ]; do
  case $1 in
    --accelerator=*) asked=${1#*=} ;;
    -h | --help)
      usage
      exit
      ;;
    --*) options+=("$1") ;;
    *) fail "unexpected argument $1: options are given as --name=value" ;;
  esac
  shift
done
check_accelerator "$asked"

setup "$asked"
cd "$root"
choose_platforms
exec "$python" -m launch.compare ${options[@]+"${options[@]}"}
