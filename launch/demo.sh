#!/usr/bin/env bash
# The first command: sets up, makes the embedded dataset, pretrains AdaMAE on it, and says how it
# went. Started again, it goes on from the newest checkpoint, or ends at once.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

usage() {
  cat <<END
usage: bash launch/demo.sh [--accelerator=...] [WORKDIR] [-- PRETRAIN OPTIONS]

Pretrains AdaMAE on the embedded moving objects in WORKDIR (runs/demo in the repository). What
follows -- goes to python -m adamae_jax.pretrain, such as --config.seed=1.
$SETUP_USAGE
END
}

asked=auto
workdir=""
while [ $# -gt 0 ]; do
  case $1 in
    --accelerator=*) asked=${1#*=} ;;
    -h | --help)
      usage
      exit
      ;;
    --)
      shift
      break
      ;;
    -*) fail "unknown option $1: launch/demo.sh takes --accelerator=...; pretrain's own come after --" ;;
    "") fail "WORKDIR is empty: name a directory, or leave it out for runs/demo" ;;
    *)
      [ -z "$workdir" ] || fail "unexpected argument $1: one WORKDIR is given already, $workdir"
      workdir=$1
      ;;
  esac
  shift
done
check_accelerator "$asked"
case $workdir in
  "") workdir=runs/demo ;;
  /*) ;;
  *) [ "$PWD" = "$root" ] || workdir=$PWD/$workdir ;;
esac

setup "$asked"
cd "$root"
choose_platforms

"$python" -m adamae_jax.prepare --embedded=demo --output=runs/data/moving_objects_demo
"$python" -m adamae_jax.pretrain --config=configs/adamae_demo.py --workdir="$workdir" "$@"

"$python" - "$workdir" <<'END'
import json
import pathlib
import sys

workdir = pathlib.Path(sys.argv[1])
summary = json.loads((workdir / "summary.json").read_text())


def figure(name, form=""):
    value = summary[name]
    return "unknown" if value is None else format(value, form)


first, last = figure("loss_reconstruction_first", ".3f"), figure("loss_reconstruction_last", ".3f")
lift, random_lift = figure("foreground_lift", ".2f"), figure("foreground_lift_random", ".2f")
rate = figure("clips_per_second", ".0f")
print(f"""
trained              {figure("steps")} steps in {figure("seconds", ".0f")} s, {rate} clips a second (median)
reconstruction loss  {first} at first, {last} at last
foreground lift      {lift} (random masks: {random_lift})
pictures             {workdir / "pictures"}""")
END
